"""The first two cells of each notebook, from header.md.j2, colab_cell.txt and the notebook's metadata."""

import re
from pathlib import Path

import jinja2
import nbformat

NOTEBOOKS = Path(__file__).resolve().parent
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
