"""Checks the words of the sources and the documentation: `python -m tools.words` (part of `make lint`).

Comments, messages and pages use the terms of Kubernetes and Linux. Each pattern below stands for a word that
says less than a technical one, or says it as an idiom; names in code are judged like prose.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("src/kubeproxy/**/*.py", "docs/**/*.md", "*.md")

WORDS: Final = {
    "tells?|told|telling": "report, pass, distinguish",
    "anew": "again",
    "nobody|somebody|whoever": "no client, another program, the operator",
    "word of|no word": "a change of, no event",
    "go(es)? on|went on": "continue",
    "for people": "for operators",
    "hears?|heard|hearing": "receive, watch",
    "for ever": "until it is cancelled, without a limit",
    "in one go": "in one transaction",
    "harms?": "affect",
    "mends?|mended": "repair",
    "to blame|for the sake|their sake": "the cause, because of",
}
"""Patterns of words, and what to write instead."""

EXEMPT: Final = ("CHANGELOG.md",)
"""History stays as it was written."""


_PATTERNS = {
    re.compile(rf"(?<![a-zA-Z])(?:{words})(?![a-zA-Z])", re.IGNORECASE): instead
    for words, instead in WORDS.items()
}


def problems(root: Path = ROOT) -> Iterator[str]:
    """The lines with such a word, as `path:line: message`."""
    for path in sorted({path for pattern in PAGES for path in root.glob(pattern)}):
        name = path.relative_to(root).as_posix()
        if name in EXEMPT:
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for pattern, instead in _PATTERNS.items():
                if found := pattern.search(line):
                    yield f"{name}:{number}: {found[0]!r}: write {instead}, or what fits"


def main() -> int:
    """Prints what is wrong; returns the exit status."""
    found = list(problems())
    print("\n".join(found), end="\n" if found else "", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
