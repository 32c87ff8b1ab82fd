"""Pages of the site that lie elsewhere in the repository (README, changelog, built notebooks), and formulas."""

import html
import posixpath
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
PAGES = {
    "index.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "benchmarks/README.md",
    "notebooks/index.md": "notebooks/README.md",
    "CITATION.cff": "CITATION.cff",
}
NOTEBOOKS = ROOT / "notebooks"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([\w./-]+\.\w+)(?=[)#])")

FORMULA = re.compile(r'class="arithmatex">\\([(\[])(.*?)\\[)\]]<', re.DOTALL)


def relinked(text: str, source: str, page: str) -> str:
    """The text of a file with its links to other files of the repository as links between pages of the site."""
    pages = {origin: page for page, origin in PAGES.items()}
    pages |= {f"notebooks/{path.name}": page for page, path in notebooks().items()}

    def place(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link[1]))
        return posixpath.relpath(pages.get(path, path.removeprefix("docs/")), posixpath.dirname(page) or ".")

    return LINK.sub(place, text)


def notebooks() -> dict[str, Path]:
    """Page by page, the notebooks that are built."""
    return {f"notebooks/{path.stem}.md": path for path in sorted(NOTEBOOKS.glob("*.ipynb"))}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the section of notebooks."""
    section = next(entry for entry in config.nav if "Notebooks" in entry)
    section["Notebooks"] = ["notebooks/index.md", *notebooks()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=relinked(text, source, page)))
    for page, path in notebooks().items():
        for uri, content in rendered(page, path).items():
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links of the pages in docs/ to where other files of the repository are."""
    uri = page.file.src_uri
    return markdown if page.file.generated_by else relinked(markdown, f"docs/{uri}", uri)


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers draw by themselves."""

    def drawn(formula: re.Match) -> str:
        kind = "block" if formula[1] == "[" else "inline"
        return f'class="arithmatex">{convert(html.unescape(formula[2]), display=kind)}<'

    return FORMULA.sub(drawn, content)


def rendered(page: str, path: Path) -> dict[str, Any]:
    """A notebook as Markdown, with its images."""
    folder = f"{path.stem}_files"
    text, resources = MarkdownExporter().from_filename(str(path), {"output_files_dir": folder, "unique_key": path.stem})
    images = {f"notebooks/{name}": data for name, data in resources["outputs"].items()}
    return {page: relinked(text, f"notebooks/{path.name}", page), **images}
