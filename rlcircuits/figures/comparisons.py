"""Differences between a base and what was tuned from it, with their intervals."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError, choose
from rlcircuits.figures.theme import NEUTRAL, PALETTE, as_text, dress, grid, some
from rlcircuits.metrics import METRICS


def forest(
    tables: Mapping[str, pd.DataFrame],
    metrics: Sequence[str] | None = None,
    relative: bool = False,
    nulls: Sequence[str] = (),
    title: str | None = None,
) -> go.Figure:
    """Differences from the base with their intervals: one panel per metric, one row per paradigm.

    Args:
        tables: paradigm's name to its `compare` table.
        metrics: which to show; by default all that every table holds.
        relative: show differences as a share of |base| in per cent.
        nulls: paradigms that serve as controls, drawn in grey.
        title: the finding, in place of the question.

    Raises:
        InputError: no table, or a metric that a table does not hold.
    """
    tables = some(tables)
    shared = [m for m in next(iter(tables.values())).index if all(m in t.index for t in tables.values())]
    shown = [choose("metric", m, shared) for m in metrics] if metrics is not None else shared
    if not shown:
        raise InputError("the tables share no metric: expected tables of `compare` with at least one in common")
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    height, gap = grid(rows, 40 + 26 * len(tables), 130)
    figure = make_subplots(
        rows=rows,
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.035,
        vertical_spacing=gap,
        subplot_titles=[
            "<br>".join(textwrap.wrap(METRICS[m].label if m in METRICS else as_text(m), 26)) for m in shown
        ],
    )
    names = list(tables)
    for index, metric in enumerate(shown):
        row, column = divmod(index, columns)
        entries = pd.DataFrame([tables[n].loc[metric] for n in names])
        scale = 100 / entries["base"].abs().to_numpy(float) if relative else np.ones(len(names))
        with np.errstate(invalid="ignore"):
            middle, low, high = (entries[c].to_numpy(float) * scale for c in ("difference", "low", "high"))
        figure.add_trace(
            go.Scatter(
                x=middle,
                y=[as_text(n) for n in names],
                mode="markers",
                error_x={"type": "data", "symmetric": False, "array": high - middle,
                         "arrayminus": middle - low, "thickness": 1.5, "width": 4, "color": "#444444"},
                marker={"size": 9, "color": [NEUTRAL if n in nulls else PALETTE[0] for n in names],
                        "symbol": ["diamond-open" if n in nulls else "circle" for n in names]},
                customdata=np.stack([low, high, entries["p"], entries["base"], entries["tuned"]], axis=-1),
                hovertemplate="%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]"
                "<br>p = %{customdata[2]:.2g}<br>%{customdata[3]:.4g} → %{customdata[4]:.4g}<extra></extra>",
                showlegend=False,
                name=as_text(metric),
            ),
            row=row + 1,
            col=column + 1,
        )  # fmt: skip
        unit = "% of base" if relative else (METRICS[metric].unit if metric in METRICS else "")
        figure.update_xaxes(
            title_text=f"difference{f' ({unit})' if unit else ''}", row=row + 1, col=column + 1, exponentformat="power"
        )
        figure.add_vline(x=0, line={"color": "#333333", "width": 1}, row=row + 1, col=column + 1)
    figure.update_xaxes(nticks=4, title_font_size=12)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=[as_text(n) for n in names][::-1])
    level = next(iter(tables.values())).attrs.get("confidence")
    bars = f"bars: {level:.0%} paired bootstrap intervals" if level else "bars: intervals"
    said = [
        f"{METRICS[m].label if m in METRICS else m} differs from 0 in: {', '.join(clear) or 'none'}"
        for m in shown
        for clear in [[n for n in names if tables[n].loc[m, "low"] > 0 or tables[n].loc[m, "high"] < 0]]
    ]
    return dress(
        figure,
        title or "What does each paradigm change, against the base?",
        f"Tuned minus base; {bars}" + ("; grey: controls" if len(nulls) else ""),
        f"Forest plot of differences from the base for {', '.join(names)}. {'; '.join(said)}.",
        height=height,
    )
