"""Figures of the chapters that teach: one edge removed little by little, and what moves a metric.

1. Each takes numbers and returns a plotly figure of the theme of `rlcircuits.figures`; none computes results.
2. `removal_curves`: the loss against the share of an edge that is removed, beside the tangent that the score is the
   slope of.
3. `metric_responses`: one panel a metric, one line a deformation (see `rlcircuits.lessons.deformations`).
4. `scored_tokens`: an answer's tokens, the loss of each, and how many of them each α scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError
from rlcircuits.figures import DASHES, NEUTRAL, NO_EDGE, PALETTE, SEQUENTIAL, SYMBOLS, as_text, dress
from rlcircuits.metrics import METRICS


def removal_curves(
    shares: Sequence[float],
    effects: Mapping[str, Sequence[float]],
    scores: Mapping[str, float],
    title: str | None = None,
) -> go.Figure:
    """The change of the loss when a share of an edge is removed, and the straight line that the score stands for.

    Args:
        shares: of the edge that is removed, from 0 to 1.
        effects: for each edge, loss minus clean loss at these shares, in nats.
        scores: W of the same edges, in nats: the slopes at share 0.
        title: the finding, in place of the question.

    Raises:
        InputError: no edge, or edges with other lengths or without a score.
    """
    if not effects or set(effects) != set(scores) or any(len(e) != len(shares) for e in effects.values()):
        raise InputError("removal_curves: expected for every edge one effect for each share, and its score")
    figure = make_subplots(
        rows=1, cols=len(effects), subplot_titles=[as_text(edge) for edge in effects], horizontal_spacing=0.08
    )
    x = np.asarray(shares, float)
    for column, (edge, effect) in enumerate(effects.items(), start=1):
        lines = (
            ("run again", effect, {"color": PALETTE[1], "width": 3}, "solid"),
            ("first order: score × share", scores[edge] * x, {"color": PALETTE[0], "width": 2}, "dash"),
        )
        for name, y, line, dash in lines:
            figure.add_scatter(
                x=x, y=np.asarray(y, float), name=name, mode="lines", line={**line, "dash": dash}, legendgroup=name,
                showlegend=column == 1, row=1, col=column,
                hovertemplate="share %{x:.2f}<br>%{y:+.3f} nats<extra>" + name + "</extra>",
            )  # fmt: skip
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    figure.update_xaxes(title_text="share removed", range=[0, 1])
    figure.update_yaxes(title_text="change of loss (nats)", col=1)
    ends = "; ".join(
        f"{edge}: first order {scores[edge]:+.2f}, exact {effect[-1]:+.2f} nats" for edge, effect in effects.items()
    )
    return dress(figure, title or "How long does the slope tell the truth?", "", f"At share 1, {ends}.", 440)


def metric_responses(table: pd.DataFrame, title: str | None = None, columns: int = 2) -> go.Figure:
    """How each metric answers to known changes of the scores: its value over that of unchanged scores.

    Args:
        table: as `rlcircuits.lessons.deformations.responses` gives it.
        title: the finding, in place of the question.
        columns: panels side by side.

    Raises:
        InputError: the table lacks a column, or is empty.
    """
    needed = {"deformation", "factor", "metric", "share"}
    if not needed <= set(table.columns) or not len(table):
        raise InputError(
            f"metric_responses: expected a table with {', '.join(sorted(needed))}, as `responses` gives it"
        )
    metrics = list(dict.fromkeys(table["metric"]))
    rows = -(-len(metrics) // columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=[METRICS[m].label for m in metrics], horizontal_spacing=0.12,
        vertical_spacing=0.3 / rows,
    )  # fmt: skip
    for number, metric in enumerate(metrics):
        at = {"row": number // columns + 1, "col": number % columns + 1}
        part = table[table["metric"] == metric]
        for i, (name, line) in enumerate(part.groupby("deformation", sort=False)):
            figure.add_scatter(
                x=line["factor"], y=line["share"], name=name, legendgroup=name, showlegend=number == 0,
                mode="lines+markers",
                line={"color": PALETTE[i], "dash": DASHES[i]}, marker={"symbol": SYMBOLS[i], "size": 7},
                hovertemplate="× %{x}<br>%{y:.3g} of its value<extra>" + name + "</extra>", **at,
            )  # fmt: skip
        # A metric that moves little is drawn on an axis of its own, but never so closely that nothing looks like much.
        low, high = min(0.9, 0.95 * part["share"].min()), max(1.1, 1.05 * part["share"].max())
        wide = high > 2.5
        figure.update_yaxes(
            type="log" if wide else "linear", range=[np.log10(max(low, 0.05)), np.log10(high)] if wide else [low, high],
            tickvals=[0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50] if wide else None, **at,
        )  # fmt: skip
    figure.update_yaxes(title_text="share of its value", title_font_size=12, col=1)
    figure.update_xaxes(
        type="log", tickvals=sorted(set(table["factor"])), ticktext=[f"{f:g}" for f in sorted(set(table["factor"]))]
    )
    for number in range(max(0, len(metrics) - columns), len(metrics)):
        figure.update_xaxes(title_text="multiplied by", row=number // columns + 1, col=number % columns + 1)
    moved = (
        table.assign(by=np.abs(np.log(table["share"].clip(lower=1e-9)))).groupby(["metric", "deformation"])["by"].max()
    )
    most = "; ".join(f"{METRICS[m].label} by {moved[m].idxmax()}" for m in metrics if moved[m].max() > 0.01)
    return dress(figure, title or "What moves each metric?", "", f"Moved most: {most}.", 150 + 260 * rows)


def scored_tokens(
    tokens: Sequence[str], losses: Sequence[float], cuts: Mapping[str, int], title: str | None = None
) -> go.Figure:
    """An answer's tokens with the loss of each, and below, a row for each cut: which of them are scored.

    Args:
        tokens: as text, in order.
        losses: of each token, in nats.
        cuts: what a row is called, to how many of the first tokens it scores.
        title: the finding, in place of the question.

    Raises:
        InputError: no token or no cut, or losses of another number.
    """
    if not len(tokens) or not cuts or len(losses) != len(tokens):
        raise InputError("scored_tokens: expected tokens, a loss for each, and at least one cut")
    place = np.arange(len(tokens))
    names = [as_text(name) for name in cuts]
    scored = np.array([place < cut for cut in cuts.values()], float)
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, row_heights=[0.45, 0.55], vertical_spacing=0.06)
    figure.add_scatter(
        x=place, y=np.asarray(losses, float), mode="lines+markers", marker={"size": 9}, line={"color": PALETTE[1], "width": 1},
        text=[as_text(token) for token in tokens], hovertemplate="%{text}: %{y:.2g} nats<extra></extra>", row=1, col=1,
    )  # fmt: skip
    figure.add_heatmap(
        x=place, y=names, z=scored, zmin=0, zmax=1, colorscale=[[0, NO_EDGE], [1, SEQUENTIAL[-1][1]]], showscale=False,
        text=[[as_text(token) for token in tokens]] * len(names), texttemplate="%{text}", xgap=2, ygap=2,
        textfont={"color": "#111111"}, hovertemplate="%{y}: %{text}<extra></extra>", row=2, col=1,
    )  # fmt: skip
    figure.update_yaxes(type="log", exponentformat="power", dtick=1, title_text="loss (nats)", row=1, col=1)
    figure.update_yaxes(autorange="reversed", row=2, col=1)
    figure.update_xaxes(showticklabels=False, showgrid=False)
    figure.update_layout(showlegend=False)
    said = "; ".join(f"{name}: {' '.join(tokens[:cut])}" for name, cut in cuts.items())
    return dress(
        figure, title or "Which tokens of an answer does each α score?", "", f"Scored at {said}.", 330 + 34 * len(names)
    )
