"""Write the headers of the notebooks and execute them in place: tools/refresh_notebooks.py [FILE …]."""

import os
import sys
from pathlib import Path

import nbclient
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
from header import ALL, set_header  # noqa: E402


def refresh(path: Path) -> None:
    """Execute one notebook; native messages of TensorFlow on stderr are not kept."""
    notebook = nbformat.read(path, as_version=4)
    set_header(notebook, path.stem)
    options = {"timeout": 600, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    nbclient.NotebookClient(notebook, resources={"metadata": {"path": str(NOTEBOOKS)}}, **options).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for name in ("CHESTXRAY_DATA", "CHESTXRAY_WEIGHTS"):
        os.environ.pop(name, None)
    for notebook_path in [Path(name) for name in sys.argv[1:]] or ALL:
        print(notebook_path.name, flush=True)
        refresh(notebook_path)
