"""The notebooks, built from the scripts beside them: `python notebooks/paired.py` executes all, or those named."""

import argparse
import base64
import io
import os
import tempfile
from pathlib import Path

import jupytext
import matplotlib.font_manager  # noqa: F401  finds the fonts of a new machine here, and not with words in a cell
import nbclient
import nbformat
from PIL import Image

FOLDER = Path(__file__).parent
SCRIPTS = sorted(FOLDER.glob("[0-9]*.py"))
SECONDS = 300
"""That one cell may take."""


def read(script: Path) -> nbformat.NotebookNode:
    """The cells of a script, not executed; the same script gives the same notebook."""
    notebook = jupytext.read(script, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
    return notebook


def execute(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """In a fresh kernel, in an empty folder that is gone afterwards; what a cell raises is raised."""
    told = dict(notebook.metadata)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        settings = {"timeout": SECONDS, "kernel_name": "python3", "coalesce_streams": True, "record_timing": False}
        nbclient.NotebookClient(notebook, resources=resources, **settings).execute()
    notebook.metadata = nbformat.from_dict(told)  # the kernel adds the version of its Python
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _smaller(output.data["image/png"])
    return notebook


def _smaller(png: str) -> str:
    """The picture with a palette: curves and words need no more than 256 colors."""
    picture, out = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    picture.quantize(256, dither=Image.Dither.NONE).save(out, format="png", optimize=True)
    return base64.b64encode(out.getvalue()).decode()


def main() -> None:
    """Build notebooks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", type=Path, default=SCRIPTS, help="default: all")
    os.environ.setdefault("PYTHONPATH", str(FOLDER.parent))
    for script in parser.parse_args().scripts:
        target = script.with_suffix(".ipynb")
        nbformat.write(execute(read(script)), target)
        print(f"{target.name}: {target.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
