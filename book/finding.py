"""Draw the finding's figure, for the README and the book's first page, from the study's tables: ``python book/finding.py``.

Its description holds the figure's numbers; a test compares them with the tables. kaleido draws it, in Chromium.
"""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path

from paradigms.study import controlled, finding_figures
from rlcircuits.errors import InputError
from rlcircuits.lab.display import export

ROOT = Path(__file__).resolve().parent.parent
TABLES, FILE = ROOT / "results" / "study", ROOT / "book" / "_static" / "finding.svg"


def numbers() -> str:
    """Every factor and interval of the figure, in words."""
    return finding_figures.intensity_figure(controlled.load(TABLES)).layout.meta["alt"]


def described(file: Path = FILE) -> str:
    """The numbers that a drawn figure says it shows."""
    found = re.search(r"<desc>(.*?)</desc>", file.read_text("utf-8"), re.DOTALL)
    return html.unescape(found[1]) if found else ""


def main() -> int:
    """Draw it; returns the exit code."""
    figure = finding_figures.intensity_figure(controlled.load(TABLES))
    try:
        export(figure, FILE)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    drawn = FILE.read_text("utf-8")
    FILE.write_text(re.sub(r"(<svg[^>]*>)", rf"\1<desc>{html.escape(numbers())}</desc>", drawn, count=1), "utf-8")
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
