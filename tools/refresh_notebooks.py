"""Execute the committed notebooks in place: python tools/refresh_notebooks.py [NOTEBOOK …]."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def refresh(path: Path) -> None:
    """Execute one notebook; native messages of TensorFlow on stderr are not kept."""
    notebook = nbformat.read(path, as_version=4)
    options = {"timeout": 600, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    client = nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOKS)}}, **options)
    client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in ("CHESTXRAY_DATA", "CHESTXRAY_WEIGHTS"):
        os.environ.pop(name, None)
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for notebook_path in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        print(notebook_path.name, flush=True)
        refresh(notebook_path)
