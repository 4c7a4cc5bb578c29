"""Run the command line: ``python -m chestxray``."""

from chestxray.cli import main

main()
