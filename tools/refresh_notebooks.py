"""Write the headers of the notebooks and execute them in place: tools/refresh_notebooks.py [FILE …]."""

import os
import re
import sys
from pathlib import Path

import jinja2
import nbclient
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
ALL = sorted(NOTEBOOKS.glob("0*.ipynb"))


def set_header(notebook: nbformat.NotebookNode, name: str) -> None:
    """Write the first two cells, header and Colab set-up, from templates and metadata."""
    names = ["", *(path.stem for path in ALL), ""]
    place = names.index(name)
    text = "\n".join(cell.source for cell in notebook.cells[1:] if cell.cell_type == "markdown")
    about = {"name": name, "number": name[:2], "previous": names[place - 1], "next": names[place + 1]}
    about["headings"] = re.findall(r"^## (.*)$", text, re.MULTILINE)
    template = jinja2.Template((NOTEBOOKS / "header.md.j2").read_text(encoding="utf-8"))
    notebook.cells[0].source = template.render(notebook.metadata["chestxray"], **about)
    notebook.cells[1].source = (NOTEBOOKS / "colab_cell.txt").read_text(encoding="utf-8").strip()


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
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    for notebook_path in [Path(name) for name in sys.argv[1:]] or ALL:
        print(notebook_path.name, flush=True)
        refresh(notebook_path)
