"""What all figures share: colours, theme, text that stays text, a title and a description in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from rlcircuits.errors import InputError

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
POSITIVE, NEGATIVE, NEUTRAL = "#D55E00", "#0072B2", "#7F7F7F"
DIVERGING = ((0.0, "#00446B"), (0.25, NEGATIVE), (0.5, "#FFFFFF"), (0.75, POSITIVE), (1.0, "#7A3600"))
SEQUENTIAL = ((0.0, "#FFFFFF"), (1.0, "#E69F00"))
NO_EDGE = "#ECECEC"

_AXIS = {
    "gridcolor": "#E3E3E3",
    "zerolinecolor": "#9A9A9A",
    "linecolor": "#9A9A9A",
    "automargin": True,
    "title": {"standoff": 8, "font": {"size": 14}},
}
PAD, TOP, BOTTOM = 30, 115, 90
"""Pixels above a title, where a figure's buttons are; what a height counts for above and below the panels."""
_LINE = 1.35
THEME = go.layout.Template(
    layout={
        "font": {"family": "Source Sans Pro, Segoe UI, Helvetica, Arial, sans-serif", "size": 14, "color": "#222222"},
        "title": {
            "x": 0.0,
            "xref": "container",
            "xanchor": "left",
            "y": 1.0,
            "yref": "container",
            "yanchor": "top",
            "pad": {"l": 12, "t": PAD},
            "font": {"size": 18},
        },
        "colorway": PALETTE,
        "paper_bgcolor": "#FFFFFF",
        "plot_bgcolor": "#FFFFFF",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 70, "r": 30, "t": TOP, "b": BOTTOM},
        "hoverlabel": {"align": "left", "namelength": -1},
        "legend": {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0.01, "x": 0.0},
    }
)

Scores = Mapping[str, xr.DataArray]


def as_text(text: object) -> str:
    """`text` so that plotly shows exactly it: no HTML tag, no entity, no TeX between dollar signs.

    >>> as_text("<b>$x$</b>")
    '&lt;b&gt;&#36;x&#36;&lt;/b&gt;'
    """
    escaped = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")
    return re.sub(r"\r\n|[\r\n]", "⏎", escaped)


def some(given: Mapping) -> dict:
    """The dictionary, with at least one entry.

    Raises:
        InputError: it is none, or empty.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"expected a dictionary from a model's name to its data, not {type(given).__name__}")
    if not given:
        raise InputError("nothing to draw: expected a dictionary with at least one model")
    return {str(name): value for name, value in given.items()}


def grid(rows: int, panel: int, between: int = 90) -> tuple[int, float]:
    """Height of a figure of `rows` rows of panels, in pixels, and the share of it between two rows."""
    inside = rows * panel + (rows - 1) * between
    return inside + 205, between / inside if rows > 1 else 0.0


def line_of(i: int) -> dict[str, str]:
    """Colour and dash of the i-th model."""
    return {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i % len(DASHES)]}


def dress(figure: go.Figure, title: str, subtitle: str, alt: str, height: int = 460, heads: int = 14) -> go.Figure:
    """Give a figure the theme, its title and its description, and return it.

    Args:
        figure: what is dressed; its panels have their titles.
        title, subtitle: what stands above it, plain or with ``<br>``.
        alt: what it shows, in words; the title is put before it.
        height: in pixels, `TOP` and `BOTTOM` of which stand for what is above and below the panels; in their place comes as
            much as that needs.
        heads: size of the panels' titles.
    """
    figure.update_annotations(font_size=heads)
    top = PAD + _tall(title, 18) + _tall(subtitle, 13) + 18 + max(map(_head, figure.layout.annotations), default=0)
    below = BOTTOM if _has_legend(figure) else 60 if any(axis.title.text for axis in figure.select_xaxes()) else 30
    told: dict[str, Any] = {"text": title}
    if subtitle:
        told["subtitle"] = {"text": subtitle, "font": {"size": 13, "color": "#555555"}}
    return figure.update_layout(
        template=THEME,
        title=told,
        height=height - TOP - BOTTOM + top + below,
        margin={"t": top, "b": below},
        meta={"alt": f"{title} {alt}"},
    )


def _has_legend(figure: go.Figure) -> bool:
    """Whether plotly draws a legend: asked for, or by itself for two traces or more."""
    drawn = [t for t in figure.data if t.showlegend is not False and t.type not in ("heatmap", "table")]
    return bool(drawn) and (len(drawn) > 1 or any(t.showlegend for t in drawn) or bool(figure.layout.showlegend))


def _tall(text: str, size: int) -> int:
    """Pixels that lines of text are high."""
    return math.ceil(_LINE * size * (text.count("<br>") + 1)) if text else 0


def _head(annotation: Any) -> int:
    """Pixels above the panels that an annotation takes: those of the first row's titles."""
    above = annotation.yref == "paper" and annotation.yanchor == "bottom" and annotation.y > 0.999
    return _tall(annotation.text, annotation.font.size) + 4 if above else 0


class SignedLog:
    """An axis for values of both signs over orders of magnitude: asinh(value / unit), the same unit on both axes.

    The unit is the power of ten below the smallest tenth of all sizes on either axis, so few values are in its linear
    part.
    """

    def __init__(self, values: np.ndarray, others: np.ndarray) -> None:
        sizes = np.abs(np.concatenate([values, others]))
        sizes = sizes[sizes > 0]
        self.unit = 10.0 ** math.floor(math.log10(np.quantile(sizes, 0.1))) if len(sizes) else 1.0
        self.reach = 1.2 * float(np.abs(values).max()) or 1.0

    def __call__(self, values: np.ndarray | Sequence[float]) -> np.ndarray:
        return np.arcsinh(np.asarray(values) / self.unit)

    def line(self) -> np.ndarray:
        """Values from end to end, evenly spaced on the axis."""
        end = math.asinh(self.reach / self.unit)
        return self.unit * np.sinh(np.linspace(-end, end, 201))

    def powers(self) -> np.ndarray:
        """Exponents of at most four ticks to either side of 0, rising; not the unit's, so near 0, where there are others."""
        first, last = round(math.log10(self.unit)), math.floor(math.log10(self.reach))
        first += last - first > 1
        return np.arange(last, first - 1, -max(1, math.ceil((last - first + 1) / 4)))[::-1]

    def ticks(self) -> list[float]:
        """0 and powers of ten to either side of it, rising."""
        sizes = 10.0 ** self.powers()
        return [*(-sizes[::-1]).tolist(), 0.0, *sizes.tolist()]

    def axis(self) -> dict[str, Any]:
        """Range and ticks, at powers of ten."""
        powers = self.powers()
        text = [f"−10<sup>{p}</sup>" for p in powers[::-1]] + ["0"] + [f"10<sup>{p}</sup>" for p in powers]
        end = float(self([self.reach])[0])
        return {"range": [-end, end], "tickvals": self(np.array(self.ticks())), "ticktext": text}
