"""Download size, disk space and minutes of the first command in the README.

    python benchmarks/footprint.py

Asks pip what a fresh environment would download (nothing is installed), measures the packages that are
installed with the running Python, and times `chestxray run` with an empty cache. Writes
results/benchmarks/footprint.json.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.request
from pathlib import Path

from chestxray.files import project_path, write_json
from chestxray.results import versions


def download_bytes() -> int:
    """Bytes of all files that pip would fetch."""
    report = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--dry-run",
            "--ignore-installed",
            "--quiet",
            "--report",
            "-",
            "-e",
            f"{project_path('.')}[train]",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    sizes = []
    for package in json.loads(report)["install"]:
        url = package["download_info"]["url"]
        if url.startswith("http"):
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
                sizes.append(int(answer.headers["Content-Length"]))
    return sum(sizes)


def disk_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> None:
    found = {"download": download_bytes(), "environment": disk_bytes(Path(sysconfig.get_path("purelib")))}
    with tempfile.TemporaryDirectory() as folder:
        cache, output = Path(folder) / "cache", Path(folder) / "run"
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", "from chestxray.cli import main; main()", "run", "--output-dir", output],
            check=True,
            env=os.environ | {"CHESTXRAY_CACHE": str(cache)},
        )
        found |= {
            "run_seconds": round(time.monotonic() - began),
            "run": disk_bytes(output),
            "cache": disk_bytes(cache),
        }
    write_json(
        project_path("results/benchmarks/footprint.json"),
        {
            "schema": "chestxray.benchmark/1",
            "name": "footprint",
            "cores": os.cpu_count(),
            **found,
            "versions": versions(),
        },
    )
    print(found)


if __name__ == "__main__":
    main()
