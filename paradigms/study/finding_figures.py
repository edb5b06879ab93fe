"""The figures of the finding: factors to the base on one logarithmic axis, a panel per base.

1. `intensity_figure`: first-order, integrated and exact intensity of every descendant, side by side.
2. `confidence_figure`: intensity, per gradient at the logits and at equal loss, with the nulls as rows of their own.
3. `factors_figure` draws them, and the figure of `paradigms.study.side_by_side`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from paradigms.study.controlled import Results
from paradigms.study.effects import EQUAL_LOSS
from paradigms.study.finding import (
    INTENSITY,
    METHODS,
    PER_GRADIENT,
    WHOLE,
    arranged,
    factor,
    log_ratios,
    named,
    removals,
    standing,
)
from paradigms.study.nulls import ANOTHER_BASE, NOISE
from rlcircuits.errors import InputError
from rlcircuits.figures import NEUTRAL, PALETTE, as_text, dress

_TICKS = (0.1, 0.3, 1, 3, 10, 30)
_BAND = "rgba(127,127,127,0.18)"
Series = tuple[str, str, str, pd.DataFrame]
"""Name, colour, symbol, and log ratios by base and row: ``middle``, ``left``, ``right``."""


def intensity_figure(
    results: Results, title: str = "What fine-tuning does to intensity depends on how it is measured"
) -> go.Figure:
    """Intensity on whole answers over the base's, by each method, with 95 % intervals over seeds.

    Raises:
        InputError: whole answers were not measured.
    """
    table, methods = standing(results), removals(results)
    if table.empty:
        raise InputError("the study holds no whole answers: measure it at alpha = 1")
    series: list[Series] = [("first-order (EAP)", PALETTE[1], "circle", table)]
    few = f"{results.exactness['n_problems'].max():.0f}" if len(results.exactness) else "fewer"
    names = (
        f"first-order, {few} problems",
        f"integrated (EAP-IG), these {few}",
        f"edges removed (exact), these {few}",
    )
    for method, name, colour, symbol in zip(
        METHODS, names, (PALETTE[1], PALETTE[0], PALETTE[2]), ("circle-open", "square", "diamond")
    ):
        if len(methods) and method in methods.index.get_level_values("method"):
            series.append((name, colour, symbol, methods.xs(method, level="method")))
    bands = {base: float(one["null"].iloc[0]) for base, one in table.groupby(level="base", sort=False)}
    rows = [named(p) for p in arranged(table.index.get_level_values("paradigm"))]
    subtitle = "whole answers; bars: 95 % over seeds; grey: the largest null's spread (EAP)"
    return factors_figure(series, rows, bands, title, subtitle, "intensity, tuned / base")


def confidence_figure(
    results: Results, title: str = "With confidence taken out, what is left of the rise?"
) -> go.Figure:
    """First-order intensity on whole answers as it is, per gradient at the logits, and at equal loss; nulls below.

    Raises:
        InputError: whole answers were not measured.
    """
    series: list[Series] = []
    for metric, name, colour, symbol in (
        (INTENSITY, "as it is", PALETTE[1], "circle"),
        (PER_GRADIENT, "per gradient at the logits", PALETTE[5], "square"),
        (EQUAL_LOSS, "at equal loss", PALETTE[3], "diamond"),
    ):
        table = standing(results, metric)
        if len(table):
            series.append(
                (name, colour, symbol, pd.concat([table[["middle", "left", "right"]], _nulls(results, metric)]))
            )
    if not series:
        raise InputError("the study holds no whole answers: measure it at alpha = 1")
    rows = [named(p) for p in arranged(standing(results).index.get_level_values("paradigm"))]
    rows += [
        name for name in ("weight noise, largest", "another base") if name in series[0][3].index.get_level_values(1)
    ]
    subtitle = "whole answers, EAP; bars: 95 % over seeds; the last rows are nulls"
    return factors_figure(series, rows, {}, title, subtitle, "tuned / base")


def _nulls(results: Results, metric: str) -> pd.DataFrame:
    """Weight noise of the size with the largest change, and another base, as rows of a series."""
    rows = results.effects
    rows = rows[
        (rows["metric"] == metric) & (rows["alpha"] == WHOLE) & (rows["level"] == "block") & (rows["tokens"] == "own")
    ]
    found = {}
    for base, one in log_ratios(rows).groupby("base", sort=False):
        at = one.set_index("paradigm")[["middle", "left", "right"]].astype(float)
        noise = at[at.index.str.startswith(NOISE) & np.isfinite(at["middle"])]
        if len(noise):
            found[base, "weight noise, largest"] = noise.loc[noise["middle"].abs().idxmax()]
        if ANOTHER_BASE in at.index:
            found[base, "another base"] = at.loc[ANOTHER_BASE]
    return pd.DataFrame(found).T if found else pd.DataFrame(columns=["middle", "left", "right"])


def factors_figure(
    series: Sequence[Series],
    rows: Sequence[str],
    bands: Mapping[str, float],
    title: str,
    subtitle: str,
    axis: str,
    heads: Mapping[str, str] | None = None,
) -> go.Figure:
    """Factors with intervals: a row per name, a panel per base, the series of a row one under the other.

    Args:
        series: what is drawn.
        rows: names from top to bottom.
        bands: by base, how far its nulls go, in log ratios; drawn behind it.
        title, subtitle, axis: the figure's, and the horizontal axis'.
        heads: by base, the panel's title where it is not "… base".
    """
    heads = heads or {}
    bases = list(dict.fromkeys(base for *_, table in series for base in table.index.get_level_values(0)))
    figure = make_subplots(
        rows=1, cols=len(bases), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[as_text(heads.get(base, f"{named(base)} base")) for base in bases],
    )  # fmt: skip
    place = {name: len(rows) - i for i, name in enumerate(rows)}
    said = []
    for c, base in enumerate(bases, start=1):
        for i, (name, colour, symbol, table) in enumerate(series):
            one = table[table.index.get_level_values(0) == base].droplevel(0)
            one = one[np.isfinite(one["middle"].astype(float)) & one.index.map(named).isin(rows)]
            names = [named(p) for p in one.index]
            middle, left, right = (np.exp(one[n].to_numpy(float)) for n in ("middle", "left", "right"))
            shift = 0.18 * ((len(series) - 1) / 2 - i)
            text = [factor(*row) for row in one[["middle", "left", "right"]].to_numpy(float)]
            said.append(f"{named(base)}, {name}: " + ", ".join(f"{n} {t}" for n, t in zip(names, text)))
            figure.add_trace(
                go.Scatter(
                    x=middle, y=[place[n] + shift for n in names], mode="markers", name=name, legendgroup=name,
                    showlegend=c == 1, customdata=np.array([names, text], dtype=object).T,
                    marker={"color": colour, "symbol": symbol, "size": 9, "line": {"width": 1.5, "color": colour}},
                    error_x={"type": "data", "symmetric": False, "array": right - middle, "arrayminus": middle - left,
                             "thickness": 1.5, "width": 3},
                    hovertemplate="%{customdata[0]}: %{customdata[1]}<extra></extra>",
                ),
                row=1, col=c,
            )  # fmt: skip
        if math.isfinite(bands.get(base, math.nan)):
            figure.add_vrect(
                x0=math.exp(-bands[base]),
                x1=math.exp(bands[base]),
                fillcolor=_BAND,
                line_width=0,
                layer="below",
                row=1,
                col=c,
            )
        figure.add_vline(x=1, line={"color": NEUTRAL, "width": 1}, row=1, col=c)
    figure.update_xaxes(
        type="log", tickvals=_TICKS, ticktext=[f"{t:g}" for t in _TICKS], tickangle=0, title_text=axis, matches="x"
    )
    figure.update_yaxes(
        tickvals=list(place.values()), ticktext=[as_text(n) for n in place], range=[0.4, len(rows) + 0.6]
    )
    figure.update_layout(showlegend=True)
    return dress(figure, title, subtitle, f"{'. '.join(said)}.", 180 + 36 * len(rows))
