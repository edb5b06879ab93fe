"""Show a plotly figure or a table: interactive in JupyterLab, and in the book without a network.

1. `figure_html` turns a figure into one `<figure>` whose id is the name the author gave it: the figure as JSON, a
   text that says what is to be seen, a caption. No script and no plotly.js is inside: the book's pages load the one
   copy of plotly.js that the book holds (see `book/figures.js`) and draw every `.rlc-plot` they find.
2. `show` displays that HTML beside plotly's own form of the figure. A front end takes the one it can draw: JupyterLab
   draws the second, Jupyter Book keeps the first (it knows nothing of the second and would drop the figure).

The same figure under the same name gives the same bytes.

`export` writes a figure to a file, for papers.

`digits` and `comparison` make tables readable: as many digits as a number deserves, no wider than a page.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError, require

if TYPE_CHECKING:
    import pandas as pd
    from plotly.graph_objects import Figure

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PLOTLY = "application/vnd.plotly.v1+json"


def show(fig: Figure, name: str, caption: str | None = None, alt: str | None = None) -> None:
    """Display `fig` here and in the book.

    Args:
        fig: a plotly figure.
        name: its id on the page, unique there: lower-case words and numbers joined by hyphens.
        caption: what the reader should see in it, as plain text under the figure.
        alt: what stands for the figure where it cannot be drawn or seen; the caption, or the title, when not given.

    Raises:
        InputError: `name` cannot be an id, or `fig` is no plotly figure.
    """
    require("IPython", "lab", "showing a figure in a notebook")
    from IPython.display import display

    bundle: dict[str, Any] = {"text/plain": _description(fig, name, caption, alt)}
    bundle["text/html"] = figure_html(fig, name, caption, alt)
    bundle[PLOTLY] = json.loads(fig.to_json())
    if caption:
        # JupyterLab draws the figure alone, so its caption follows as a line of its own.
        bundle[PLOTLY].setdefault("config", {"responsive": True})
    display(bundle, raw=True)


def figure_html(fig: Figure, name: str, caption: str | None = None, alt: str | None = None) -> str:
    """The figure as a `<figure>` for a page that loads the book's `figures.js`; arguments as for `show`."""
    description = html.escape(_description(fig, name, caption, alt))
    specification = fig.to_plotly_json()
    layout = specification.get("layout", {})
    height = layout.get("height") or 450
    # "<" can only be inside a string of JSON, and there "\\u003c" is the same character to every parser: no text of the
    # figure can end the script element it stands in.
    data = json.dumps(json.loads(fig.to_json()), sort_keys=True, separators=(",", ":")).replace("<", "\\u003c")
    under = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="rlc-figure" id="{name}">'
        f'<div class="rlc-plot" id="{name}-plot" role="img" aria-label="{description}" '
        f'style="min-height:{int(height)}px"><p class="rlc-alt">{description}</p></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>{under}</figure>'
    )


def export(fig: Figure, file: str | os.PathLike[str], scale: float = 2.0) -> Path:
    """Write `fig` to a file, for a paper or a talk.

    Args:
        fig: a plotly figure.
        file: its ending says what is written: ``.svg`` and ``.pdf`` (lines stay lines), ``.png``, or ``.html``
            (interactive, with plotly.js inside, 5 MB).
        scale: pixels of a PNG per pixel of the figure.

    Returns:
        The file's path.

    Raises:
        InputError: no plotly figure, another ending, or, for all but HTML, no kaleido or no browser (it says how to get
            them).
        StoreError: the file cannot be written.
    """
    from rlcircuits.storage import written

    if not hasattr(fig, "to_plotly_json"):
        raise InputError(f"export: expected a plotly figure, got {type(fig).__name__}")
    path = Path(file).expanduser()
    suffix = path.suffix.lower()
    if suffix not in (".svg", ".pdf", ".png", ".html"):
        raise InputError(
            f"export: {str(file)!r} does not end in .svg, .pdf, .png or .html, so it is not clear what to write"
        )
    content = fig.to_html(include_plotlyjs=True).encode() if suffix == ".html" else _image(fig, suffix[1:], scale)
    with written(path) as temporary:
        temporary.write_bytes(content)
    return path


def _image(fig: Figure, kind: str, scale: float) -> bytes:
    """The figure as an image, drawn by kaleido in a Chrome or Chromium."""
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise InputError(
            "export: images are drawn by kaleido, which is not installed: pip install 'rlcircuits[export]'; .html "
            "needs nothing"
        ) from None
    chrome = os.environ.get("BROWSER_PATH") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not chrome or not Path(chrome).exists():
        raise InputError(
            "export: kaleido needs a Chrome or Chromium, and none was found: install one (on Debian: apt-get install "
            "chromium), or name it in the environment variable BROWSER_PATH"
        )
    before = os.environ.get("BROWSER_PATH")
    os.environ["BROWSER_PATH"] = chrome
    try:
        return fig.to_image(format=kind, width=fig.layout.width or 1000, height=fig.layout.height or 450, scale=scale)
    finally:
        if before is None:
            del os.environ["BROWSER_PATH"]


def digits(table: pd.DataFrame, n: int = 3) -> pd.DataFrame:
    """The table as text with `n` significant digits: 0.0000812 becomes 8.12e−05 and 25600.0 becomes 25,600.

    Whole numbers, text and truth values stay as they are; a missing number leaves its cell empty.
    """
    from numbers import Integral, Real

    def text(value: Any) -> Any:
        if isinstance(value, (bool, Integral)) or not isinstance(value, Real):
            return value
        if value != value:
            return ""
        return _number(float(value), n)

    return table.apply(lambda column: column.map(text).astype(object))


def comparison(table: pd.DataFrame) -> pd.DataFrame:
    """A table of `rlcircuits.compare` or `Study.table` for a page: names as in figures, each interval in one column.

    Args:
        table: indexed by metric, or by pair and metric; with ``base``, ``tuned``, ``difference``, ``low``, ``high``,
            ``p`` and perhaps ``p_holm``, ``share`` and ``note``.

    Returns:
        Text, with the columns base, tuned, difference, interval, p (and p (Holm)), the share of the change that is the
        largest problem's; notes only where there are any. What is not defined, as an interval of one problem, leaves its
        cell empty.
    """
    from rlcircuits.metrics import METRICS

    found = digits(table[["base", "tuned", "difference"]])
    level = table.attrs.get("confidence", 0.95)
    found[f"{100 * level:g} % interval"] = [
        "" if low != low or high != high else f"[{_number(low, 2)},\u00a0{_number(high, 2)}]"
        for low, high in zip(table["low"], table["high"], strict=True)
    ]
    for column, title in (("p", "p"), ("p_holm", "p (Holm)")):
        if column in table:
            found[title] = ["" if p != p else _number(p, 2) for p in table[column]]
    if "share" in table and table["share"].notna().any():
        shares = table["share"].astype(float)
        found["largest problem's share"] = ["" if share != share else f"{100 * share:.0f}\u00a0%" for share in shares]
    if "note" in table and table["note"].fillna("").astype(str).str.strip().any():
        found["note"] = table["note"].fillna("")
    found = found.rename(index={name: metric.label for name, metric in METRICS.items()})
    return found.rename(index=lambda name: name.removeprefix("family/"))


def _number(value: float, n: int) -> str:
    """`n` significant digits, in which a page breaks no line (a hyphen would allow it)."""
    whole = 10**n <= abs(value) < 10 ** (n + 3) or value == 0
    return (f"{value:,.0f}" if whole else f"{value:.{n}g}").replace("-", "−")


def _description(fig: Figure, name: str, caption: str | None, alt: str | None) -> str:
    """The text that stands for the figure: alt, or caption, or title."""
    if not hasattr(fig, "to_plotly_json"):
        raise InputError(f"show: expected a plotly figure, got {type(fig).__name__}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InputError(
            f"show: {name!r} cannot name a figure; use lower-case words joined by hyphens, as in 'edge-scores'"
        )
    title = fig.layout.title.text
    text = alt or caption or title or f"Figure {name}."
    return re.sub(r"<[^>]*>", " ", text) if text == title else text
