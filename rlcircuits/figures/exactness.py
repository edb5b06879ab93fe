"""Scores against the exact effects of removing edges, faithfulness of circuits, and what scoring costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError, choose
from rlcircuits.figures.theme import NEUTRAL, PALETTE, SYMBOLS, SignedLog, as_text, dress, grid, line_of


def cost_curves(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Time of each case against tokens and against layers, on log axes.

    Args:
        table: rows of the benchmark's suite ``growth``: columns case, tokens, layers, seconds.
        title: the finding, in place of the question.

    Raises:
        InputError: a table without its columns, or without rows.
    """
    missing = {"case", "tokens", "layers", "seconds"} - set(table.columns)
    if missing or table.empty:
        raise InputError(
            f"the table lacks {', '.join(sorted(missing)) or 'rows'}: expected the benchmark's suite growth"
        )
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for column, (size, other) in enumerate((("tokens", "layers"), ("layers", "tokens")), start=1):
        usual = table.groupby(other)[size].nunique().idxmax()
        rows = table[table[other] == usual].groupby(["case", size], sort=False)["seconds"].median()
        for i, case in enumerate(dict.fromkeys(table["case"])):
            one = rows[case].sort_index()
            trace = go.Scatter(
                x=one.index,
                y=one.values,
                mode="lines+markers",
                line=line_of(i),
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
                name=as_text(case),
                legendgroup=str(i),
                showlegend=column == 1,
                hovertemplate=f"%{{x}} {size}: %{{y:.3g}} s<extra>%{{fullData.name}}</extra>",
            )
            figure.add_trace(trace, row=1, col=column)
        values = sorted(rows.index.get_level_values(size).unique())
        figure.update_xaxes(
            type="log",
            tickvals=values,
            ticktext=[f"{v:,}" for v in values],
            title_text=f"{size} ({usual} {other})",
            col=column,
        )
        figure.update_yaxes(type="log", dtick="D2", title_text="seconds" if column == 1 else None, col=column)
    largest = table.loc[table["tokens"] == table["tokens"].max()].groupby("case")["seconds"].median()
    ends = "; ".join(f"{case} {seconds:.3g} s" for case, seconds in largest.items())
    return dress(
        figure,
        title or "Does the cost grow as that of a plain pass?",
        "One pass, median",
        f"Time against tokens and layers. At {table['tokens'].max():,} tokens: {ends}.",
        height=420,
    )


def faithfulness_curves(circuits: Mapping[str, xr.Dataset], title: str | None = None) -> go.Figure:
    """Faithfulness of circuits against the share of edges they keep, beside random edges.

    Args:
        circuits: name of a ranking -> what `rlcircuits.faithfulness` returns; the random edges are those of the first.
        title: the finding, in place of the question.

    Raises:
        InputError: nothing given.
    """
    if not circuits:
        raise InputError("no circuits given: expected names with datasets of rlcircuits.faithfulness")
    figure = go.Figure()
    baseline = next(iter(circuits.values()))
    share = 100 * baseline["share"].values
    if baseline.sizes.get("seed", 0) > 1:
        low, high = baseline["random_faithfulness_interval"].transpose("bound", "share").values
        band = go.Scatter(
            x=[*share, *share[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor="rgba(127,127,127,0.25)",
            line={"width": 0},
            hoverinfo="skip",
            name="random edges, interval over draws",
        )
        figure.add_trace(band)
    for i, (name, one) in enumerate(circuits.items()):
        curve = one["faithfulness"].sel(ranking="signed").values
        trace = go.Scatter(
            x=100 * one["share"].values,
            y=curve,
            mode="lines+markers",
            line=line_of(i),
            marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
            name=as_text(name),
            customdata=one["edges"].values,
            hovertemplate="%{x:.3g} % of edges (%{customdata}): %{y:.3f}<extra>%{fullData.name}</extra>",
        )
        figure.add_trace(trace)
    for level in (0, 1):
        figure.add_hline(y=level, line={"color": NEUTRAL, "dash": "dot", "width": 1})
    figure.update_xaxes(type="log", title_text="edges kept, %")
    figure.update_yaxes(title_text="faithfulness")
    areas = "; ".join(f"{name} {float(one['CPR']):.2f}" for name, one in circuits.items())
    return dress(
        figure,
        title or "Do the strongest edges do the work of all?",
        "1 is the whole model, 0 the model without edges; strongest helpful edges first",
        f"Faithfulness against the share of edges kept. Areas under the curves (CPR): {areas}.",
        height=440,
    )


def agreement_intervals(
    table: pd.DataFrame, quantities: Sequence[str] | None = None, title: str | None = None
) -> go.Figure:
    """What each method's scores have in common with exact removal: one panel per quantity, one row per method.

    Args:
        table: by method and quantity, with columns value, low and high, as `rlcircuits.trust` gives; the method
            "random" is drawn as a line.
        quantities: which to show; by default all that some method has a value of.
        title: the finding, in place of the question.

    Raises:
        InputError: another table, no quantity with a value, or an unknown one.
    """
    if list(table.index.names) != ["method", "quantity"] or {"value", "low", "high"} - set(table.columns):
        raise InputError(
            "expected the table of rlcircuits.trust: by method and quantity, with columns value, low and high"
        )
    methods = [name for name in dict.fromkeys(table.index.get_level_values("method")) if name != "random"]
    known = [
        name
        for name in dict.fromkeys(table.index.get_level_values("quantity"))
        if table.loc[(methods, name), "value"].notna().any()
    ]
    shown = known if quantities is None else [choose("quantity", name, known) for name in quantities]
    if not shown:
        raise InputError("no quantity has a value: expected at least one to draw")
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    height, gap = grid(rows, 50 + 28 * len(methods))
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=gap, subplot_titles=shown
    )
    for place, quantity in enumerate(shown):
        row, column = place // columns + 1, place % columns + 1
        values = table.xs(quantity, level="quantity").loc[methods, ["value", "low", "high"]].to_numpy(float)
        middle, low, high = values.T
        dots = go.Scatter(
            x=middle,
            y=[as_text(name) for name in methods],
            mode="markers",
            error_x={
                "type": "data",
                "symmetric": False,
                "array": high - middle,
                "arrayminus": middle - low,
                "color": "#444444",
            },
            marker={"size": 9, "color": PALETTE[0]},
            customdata=values[:, 1:],
            hovertemplate="%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<extra></extra>",
            showlegend=False,
            name=quantity,
        )
        figure.add_trace(dots, row=row, col=column)
        if ("random", quantity) in table.index and math.isfinite(table.loc[("random", quantity), "value"]):
            at = float(table.loc[("random", quantity), "value"])
            figure.add_vline(x=at, line={"color": NEUTRAL, "dash": "dot"}, row=row, col=column)
    names = [as_text(name) for name in methods][::-1]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names)
    figure.update_xaxes(nticks=5)
    said = "; ".join(
        f"{quantity}: " + ", ".join(f"{name} {table.loc[(name, quantity), 'value']:.2f}" for name in methods)
        for quantity in shown
    )
    return dress(
        figure,
        title or "What are the scores good for?",
        "Scores against exact removal; bars: intervals; dotted: a random ranking",
        f"Agreement of edge scores with exact removal. {said}.",
        height=height,
    )


def ablation_scatter(
    scores: xr.DataArray, exact: xr.DataArray, max_points: int = 4000, title: str | None = None
) -> go.Figure:
    """Estimated edge scores against the exact effect of removing the edge, with rank correlation and slope.

    Both statistics are over all edges that have both values; of more than `max_points` only an even selection
    is drawn. The slope is of exact on estimate, through the origin. Both axes are logarithmic away from 0, as effects
    of both signs span orders of magnitude.

    Raises:
        InputError: the two are not of the same problems and graph, or fewer than two edges have both values.
    """
    from scipy import stats

    try:
        exact = exact.transpose(*scores.dims)
        exact = exact.sel({dim: scores[dim].values for dim in scores.dims})
    except (KeyError, ValueError):
        raise InputError(
            "scores and exact must be of the same problems and graph; ablate what was attributed"
        ) from None
    x, y = scores.values.astype(np.float64), exact.values.astype(np.float64)
    both = np.isfinite(x) & np.isfinite(y)
    if both.sum() < 2:
        raise InputError(f"{int(both.sum())} edges have both a score and an exact effect: expected at least 2")
    where = np.argwhere(both)
    x, y = x[both], y[both]
    rank = float(stats.spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else math.nan
    slope = float(x @ y / (x @ x)) if x.any() else math.nan
    drawn = np.unique(np.linspace(0, len(x) - 1, min(max_points, len(x))).astype(int))
    names = [scores[dim].values.astype(str) for dim in scores.dims]
    at = {dim: [names[k][i] for i in where[drawn, k]] for k, dim in enumerate(scores.dims)}
    text = [as_text(f"{s}->{d}, {p}") for s, d, p in zip(at["source"], at["destination"], at["sample"], strict=True)]
    shown = {"x": SignedLog(x, y), "y": SignedLog(y, x)}
    figure = go.Figure()
    ends = shown["x"].line()
    for name, factor, line in (
        ("exact = estimate", 1.0, {"color": NEUTRAL, "dash": "dash"}),
        (f"exact = {slope:.3g} × estimate (least squares)", slope, {"color": PALETTE[1]}),
    ):
        if math.isfinite(factor):
            inside = np.abs(factor * ends) <= shown["y"].reach
            figure.add_scatter(
                x=shown["x"](ends[inside]),
                y=shown["y"](factor * ends[inside]),
                mode="lines",
                name=name,
                line=line,
                hoverinfo="skip",
            )
    figure.add_scatter(
        x=shown["x"](x[drawn]),
        y=shown["y"](y[drawn]),
        customdata=np.stack([x[drawn], y[drawn]], axis=-1),
        mode="markers",
        name="edges",
        marker={"color": PALETTE[0], "size": 5, "opacity": 0.4},
        text=text,
        hovertemplate="%{text}<br>estimate %{customdata[0]:.3g}<br>exact %{customdata[1]:.3g}<extra></extra>",
    )
    figure.update_xaxes(title_text="edge score, first order (nats)", **shown["x"].axis())
    figure.update_yaxes(title_text="loss without the edge − loss (nats)", **shown["y"].axis())
    said = f"{len(x):,} edges; rank correlation {rank:.3f}, slope {slope:.3f}"
    part = f" ({len(drawn):,} drawn)" if len(drawn) < len(x) else ""
    return dress(
        figure,
        title or "Is the first-order estimate right about removing an edge?",
        f"{said}{part}; axes logarithmic away from 0",
        f"Scatter of exact ablation against estimated edge scores: {said}.",
        560,
    )
