r"""A study as one HTML file, to send to somebody: it opens from disk, without a network, Python or a kernel.

1. The file holds the viewer (`viewer.js`, made of ``viewer/src``) and the study's document (`rlcircuits.lab.document`).
2. The document stands in a script element as JSON in which every ``<`` is written ``\u003c``, so that no text of a
   model or a data set can end it; the viewer makes text nodes of what it reads.
"""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError
from rlcircuits.lab.document import ROOM, Measures, document
from rlcircuits.lab.parts import opened
from rlcircuits.lab.views import checked_view, target, write

SCRIPT = Path(__file__).with_name("viewer.js")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; max-width: 1500px; padding: 8px 12px; font-family: "Source Sans Pro", "Segoe UI", Helvetica, Arial, sans-serif; }}
h1 {{ font-size: 20px; margin: 8px 10px; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #14181f; color: #e8e8e8; }} }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{place}
<noscript>This page draws its data by JavaScript, which is switched off.</noscript>
</main>
<script>{script}</script>
</body>
</html>
"""


def export(
    study: Any,
    file: str | os.PathLike[str],
    view: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    more: Measures | None = None,
    room: int = ROOM,
) -> Path:
    """Write a study as one HTML file that opens anywhere: graphs, heatmaps, answers, each edge on every problem.

    Args:
        study: as for `rlcircuits.explore`: what `rlcircuits.study` returns, one of its pairs, scores, or a folder that
            ``rlcircuits attribute --out`` wrote.
        file: where to write, ``.html``.
        view: a view that the explorer saved, to open at.
        more: further measures of the edges, by pair, name and model, such as exact effects:
            ``{"pair": {"exact": {"base": rc.ablate(…), "tuned": rc.ablate(…)}}}``.
        room: bytes of scores in the file, before encoding makes 4 of 3. Where all edges do not fit, the strongest are
            kept, which the page says.

    Returns:
        The file's path.

    Raises:
        InputError: another suffix, nothing to show, a view or measure of another study, or it cannot be written.
    """
    path = target(file, (".html",))
    found, trouble = opened(study)
    told = document(found, more, room)
    if not told["pairs"]:
        raise InputError(trouble or "the study holds no pair, so there is nothing to export: make one with rc.study(…)")
    if view is not None:
        told["view"] = checked_view(view, told)
    names = ", ".join(one["name"] for one in told["pairs"])
    write(path, PAGE.format(title=html.escape(f"rlcircuits: {names}"), place=place(told), script=script()))
    return path


def place(told: Mapping[str, Any]) -> str:
    """Where the viewer draws a document, as HTML for a page that loads it."""
    # "<" can only be inside a string of JSON, and there "\\u003c" is the same character to every parser.
    data = json.dumps(told, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<div class="rlc-viewer"><script type="application/json">{data}</script></div>'


def script() -> str:
    """The viewer as a classic script, for an element of its own."""
    return SCRIPT.read_text("utf-8")
