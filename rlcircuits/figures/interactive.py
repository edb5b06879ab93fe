"""Figures to choose from on a page without a kernel: one figure with a drop-down or a slider of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go
import xarray as xr

from rlcircuits.errors import InputError
from rlcircuits.figures.graph import residual_graph
from rlcircuits.figures.theme import TOP, as_text, some

MOST_POINTS = 400_000
"""Points of all choices together, so that the page stays fluid."""
MENU = 45
"""Pixels that a drop-down takes between the titles of a figure and its panels."""


def choices(figures: Mapping[str, go.Figure], slider: bool = False, title: str | None = None) -> go.Figure:
    """One figure out of several with the same axes: the drop-down (or slider) shows one at a time.

    Args:
        figures: by what the drop-down calls them; the first is shown first.
        slider: a slider below in place of the drop-down above.
        title: the finding, in place of the first figure's title.

    Raises:
        InputError: nothing given, or more points than a page can move.
    """
    figures = some(figures)
    points = sum(
        len(trace.x) for one in figures.values() for trace in one.data if getattr(trace, "x", None) is not None
    )
    if points > MOST_POINTS:
        raise InputError(
            f"{points:,} points in {len(figures)} figures: expected at most {MOST_POINTS:,}; draw fewer edges or "
            "choices"
        )
    names, first = list(figures), next(iter(figures.values()))
    whole = go.Figure(layout=first.layout)
    owner = [name for name, one in figures.items() for _ in one.data]
    for name, one in figures.items():
        for trace in one.data:
            whole.add_trace(trace)
            whole.data[-1].visible = name == names[0]
    steps = [
        {
            "label": as_text(name),
            "method": "update",
            "args": [
                {"visible": [name == other for other in owner]},
                {
                    "title.subtitle.text": one.layout.title.subtitle.text,
                    "annotations": one.to_plotly_json()["layout"].get("annotations", []),
                },
            ],
        }
        for name, one in figures.items()
    ]
    room, top = first.layout.height or 450, first.layout.margin.t or TOP
    if slider:
        whole.update_layout(
            sliders=[
                {
                    "steps": steps,
                    "active": 0,
                    "x": 0,
                    "len": 1,
                    "y": -0.02,
                    "pad": {"t": 10},
                    "currentvalue": {"prefix": "edges drawn: "},
                }
            ]
        )
        whole.update_layout(height=room + 80, margin_b=150)
    else:
        menu = {"buttons": steps, "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "pad": {"b": 34}}
        whole.update_layout(updatemenus=[menu], height=room + MENU, margin_t=top + MENU)
    if title is not None:
        whole.layout.title.text = title
    alts = [str((one.layout.meta or {}).get("alt", "")) for one in figures.values()]
    control = "slider" if slider else "drop-down"
    whole.update_layout(
        meta={"alt": f"{whole.layout.title.text} A {control} chooses between {', '.join(names)}. {names[0]}: {alts[0]}"}
    )
    return whole


def graph_by_size(
    base: xr.DataArray,
    tuned: xr.DataArray | None = None,
    sizes: Sequence[int] = (10, 30, 100, 300),
    sample: str | None = None,
    names: Sequence[str] = ("base", "tuned"),
    title: str | None = None,
) -> go.Figure:
    """The residual graph with a slider of how many edges are drawn, for graphs too large to draw whole.

    Args:
        base, tuned, sample, names, title: as for `residual_graph`.
        sizes: the numbers of edges to choose from.

    Raises:
        InputError: as `residual_graph` and `choices`.
    """
    figures = {f"{k:,}": residual_graph(base, tuned, k, sample, names) for k in sizes}
    return choices(figures, slider=True, title=title or "Through which edges does the answer come?")
