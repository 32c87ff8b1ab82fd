"""Is the built site in order? `python docs/checked.py build/site`: links, network, search, width, console."""

import contextlib
import functools
import html
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

SOUGHT = "condition_number"
FOUND = re.compile(rf'md-search-result__link[^>]*>.*?reference/spectra\.html[^"]*#localhessian\.{SOUGHT}"', re.DOTALL)
PHONE = 390
WIDER = f"""
addEventListener("load", () => {{
  const wide = Array.from(frames).filter((frame) => frame.document.documentElement.scrollWidth > {PHONE});
  document.title = "wider: " + wide.map((frame) => frame.location.pathname).join(" ");
}});"""
CONSOLE = re.compile(r":CONSOLE:\d+\] (.*)")
ALWAYS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=10000")


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort its attributes."""
        given = dict(attrs)
        self.places.update(filter(None, (given.get("id"), given.get("name"))))
        self.links += filter(None, [given.get("href")] if tag == "a" else [])
        self.loads += filter(None, [given.get("src"), given.get("href") if tag == "link" else None])


def dead(root: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """One sentence for each link without an end, and for each thing that wants a network."""
    for path, page in pages.items():
        where = path.relative_to(root)
        yield from (f"{where} loads {load}" for load in page.loads if urlsplit(load).netloc)
        for link in (*page.links, *page.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{where} links to {link}, which is no file"
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
                yield f"{where} links to {link}, and there is no such place"


@functools.cache
def browser() -> str | None:
    """One that starts here."""
    for found in filter(None, map(shutil.which, ("chromium", "google-chrome"))):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            run(found, "about:blank")
            return found
    return None


def run(program: str, address: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A page as it is after its scripts ran, and what the browser says."""
    with tempfile.TemporaryDirectory() as folder:
        flags = (*ALWAYS, *more, f"--user-data-dir={folder}", "--enable-logging=stderr", "--dump-dom", address)
        return subprocess.run([program, *flags], capture_output=True, text=True, check=True, timeout=120)


def complaints(root: Path, pages: dict[Path, Page], program: str) -> Iterator[str]:
    """What is wrong in a browser: the search, a page too wide for a phone, and what any page prints to the console."""
    searched = run(program, f"{(root / 'index.html').as_uri()}?q={SOUGHT}")
    if not FOUND.search(searched.stdout):
        yield f"the search does not find `{SOUGHT}` in the reference"
    with tempfile.TemporaryDirectory() as folder:
        frames = "".join(f'<iframe width="{PHONE}" src="{html.escape(path.as_uri())}"></iframe>' for path in pages)
        around = Path(folder) / "around.html"
        around.write_text(f"<!doctype html><title>all pages</title>{frames}<script>{WIDER}</script>", "utf-8")
        every = run(program, around.as_uri(), "--allow-file-access-from-files")
    if (told := re.search(r"<title>wider: (.*?)</title>", every.stdout)) is None:
        yield "the pages did not load in time"
    else:
        yield from (f"{Path(name).name} scrolls sideways on a phone" for name in told[1].split())
    yield from dict.fromkeys(CONSOLE.findall(searched.stderr + every.stderr))


def main(root: Path) -> int:
    """Print what is wrong; 1 where anything is."""
    pages = {path: Page(path) for path in sorted(root.rglob("*.html")) if path.name != "404.html"}  # that of a server
    program = browser()
    wrong = [*dead(root, pages), *(complaints(root, pages, program) if program else ())]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    links = sum(len(page.links) for page in pages.values())
    checked = "links, search, width, console" if program else "links (no browser for search, width, console)"
    print(f"{len(pages)} pages, {links} links; checked: {checked}; complaints: {len(wrong)}")
    return int(bool(wrong) or not pages)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
