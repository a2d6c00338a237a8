"""Checks the links of all Markdown pages, without a network: `python -m tools.links` (part of `make lint`).

A relative link must lead to a file of this repository, and its fragment to a heading of that page. Links of
pages in docs/ must stay in docs/, because the web site holds nothing else. README and CONTRIBUTING name files
in code spans (`docs/nftables.md`): those must exist, too. Each page in docs/ must be in the navigation of the
web site (mkdocs.yml) and be linked from docs/index.md, because readers find no other pages. Links to other
hosts are not followed.
"""

import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "docs/**/*.md")
NAMES_FILES = ("README.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages whose code spans are checked, too."""

_FENCE = re.compile(r"^(```|~~~).*?^\1\s*?$", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)|(?:href|src|srcset)=\"([^\"]+)\"")
_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*$", re.MULTILINE)
_FILE = re.compile(r"`((?:bench|deploy|docs|examples|requirements|src|tests|tools|\.ci)/[\w./-]*)`")
_EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:")


def prose(text: str) -> str:
    """The text without its blocks of code, whose brackets are no links and whose `#` begin no headings."""
    return _INDENTED.sub("", _FENCE.sub("", text))


def anchor(heading: str) -> str:
    """The fragment that leads to a heading, as GitHub and Python-Markdown's `toc` build it for the headings used here."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", plain.lower())).strip("-")


@cache
def anchors(page: Path) -> frozenset[str]:
    """The fragments of a page. Equal headings are numbered; a link to the second one would break with each new heading, so only the first counts."""
    return frozenset(anchor(heading) for heading in _HEADING.findall(prose(page.read_text())))


def problems(root: Path = ROOT) -> Iterator[str]:
    """What is wrong with the links of all pages below a directory, one line each."""
    pages = sorted({page for pattern in PAGES for page in root.glob(pattern)})
    for page in pages:
        name = page.relative_to(root)
        text = prose(page.read_text())
        for match in _LINK.finditer(_CODE.sub("", text)):
            if wrong := _wrong(match[1] or match[2], page, root):
                yield f"{name}: {wrong}"
        if str(name) in NAMES_FILES:
            yield from (
                f"{name}: {path} does not exist" for path in _FILE.findall(text) if not (root / path).exists()
            )


def hidden(root: Path = ROOT) -> Iterator[str]:
    """The pages in docs/ that readers do not find, one line for each place that does not list them."""
    docs = root / "docs"
    index = docs / "index.md"
    navigation = set(_pages(yaml.safe_load((root / "mkdocs.yml").read_text())["nav"]))
    text = _CODE.sub("", prose(index.read_text()))
    linked = {(match[1] or match[2]).partition("#")[0] for match in _LINK.finditer(text)}
    for page in sorted(docs.glob("**/*.md")):
        name = page.relative_to(docs).as_posix()
        if name not in navigation:
            yield f"docs/{name}: is not in the navigation of mkdocs.yml"
        if page != index and name not in linked:
            yield f"docs/{name}: is not linked from docs/index.md"


def _pages(navigation: Any) -> Iterator[str]:
    """The pages in a navigation of MkDocs, which consists of lists, of mappings from title to entry, and of paths."""
    if isinstance(navigation, str):
        yield navigation
        return
    for entry in navigation.values() if isinstance(navigation, dict) else navigation:
        yield from _pages(entry)


def _wrong(link: str, page: Path, root: Path) -> str:
    if _EXTERNAL.match(link):
        return ""
    path, _, fragment = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.exists():
        return f"link to {link}: no such file"
    docs = root / "docs"
    if page.is_relative_to(docs) and not target.is_relative_to(docs):
        return f"link to {link}: leaves docs/, which is all that the web site holds"
    if fragment and target.suffix == ".md" and fragment not in anchors(target):
        return f"link to {link}: no such heading"
    return ""


if __name__ == "__main__":
    found = [*problems(), *hidden()]
    print("\n".join(found), file=sys.stderr, end="\n" if found else "")
    sys.exit(bool(found))
