"""Training: its curves, and how far it moved each weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError, choose
from rlcircuits.figures.theme import SEQUENTIAL, SYMBOLS, as_text, dress, grid, line_of, some

CURVE_UNITS = {
    "loss": "loss",
    "reward": "reward",
    "accuracy": "greedy accuracy",
    "kl": "KL from base (nats per token)",
    "entropy": "entropy (nats per token)",
    "length": "answer length (tokens)",
}


def training_curves(
    curves: pd.DataFrame | Mapping[str, pd.DataFrame],
    x: str = "prompts_seen",
    columns: Sequence[str] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Each member's training: a panel for reward, accuracy, KL from the base, entropy, length and loss.

    Args:
        curves: one table with a column ``member``, or a dictionary from member to table; columns as in
        `CURVE_UNITS`.
        x: the column on the horizontal axis, ``"prompts_seen"`` or ``"step"``.
        columns: which to show; by default all of `CURVE_UNITS` that any member has.
        title: the finding, in place of the question.

    Raises:
        InputError: no member, or a column that no table holds.
    """
    if isinstance(curves, pd.DataFrame):
        if "member" not in curves:
            raise InputError("curves have no column 'member': expected `load_curves`, or a dictionary of tables")
        curves = {str(name): table for name, table in curves.groupby("member", sort=False)}
    curves = some(curves)
    held = list(dict.fromkeys(c for table in curves.values() for c in table.columns if table[c].notna().any()))
    choose("column", x, held)
    if columns is None:
        columns = [c for c in ("accuracy", "reward", "kl", "entropy", "length", "loss") if c in held]
    columns = [choose("column", c, held) for c in columns]
    if not columns:
        raise InputError(f"curves hold nothing to draw: expected at least one of {', '.join(CURVE_UNITS)}")
    wide = min(3, len(columns))
    rows = math.ceil(len(columns) / wide)
    height, gap = grid(rows, 170, 115)
    figure = make_subplots(
        rows=rows,
        cols=wide,
        subplot_titles=[as_text(CURVE_UNITS.get(c, c)) for c in columns],
        horizontal_spacing=0.08,
        vertical_spacing=gap,
    )
    for i, (name, table) in enumerate(curves.items()):
        first = True
        for index, column in enumerate(columns):
            if column not in table or x not in table:
                continue
            points = table[[x, column]].dropna().sort_values(x)
            if points.empty:
                continue
            row, col = divmod(index, wide)
            trace = go.Scatter(
                x=points[x],
                y=points[column],
                mode="lines+markers" if len(points) < 30 else "lines",
                line=line_of(i),
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 6},
                name=as_text(name),
                legendgroup=str(i),
                showlegend=first,
                hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
            figure.add_trace(trace, row=row + 1, col=col + 1)
            first = False
    figure.update_xaxes(title_text=as_text(x.replace("_", " ")), nticks=4)
    ends = "; ".join(
        f"{n} ends at {CURVE_UNITS.get(columns[0], columns[0])} {t[columns[0]].dropna().iloc[-1]:.3g}"
        for n, t in curves.items()
        if columns[0] in t and t[columns[0]].notna().any()
    )
    return dress(
        figure,
        title or "What did each member learn, and how far did it move?",
        "Measured while training",
        f"Training curves of {', '.join(curves)}. {ends}.",
        height=height,
    )


def weight_change(changes: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Heatmaps of ‖ΔW‖ / ‖W‖, modules by layers, one per tuned model on one colour scale.

    Args:
        changes: the table of `rlcircuits.weight_change`.
        title: the finding, in place of the question.

    Raises:
        InputError: a table without its columns, or without rows.
    """
    missing = {"model", "layer", "module", "relative"} - set(changes.columns)
    if missing or changes.empty:
        raise InputError(
            f"changes lack {', '.join(sorted(missing)) or 'rows'}: expected the table of rlcircuits.weight_change"
        )
    inside = changes[changes["layer"] >= 0]
    models, modules = list(dict.fromkeys(inside["model"])), list(dict.fromkeys(inside["module"]))[::-1]
    figure = make_subplots(
        rows=1, cols=len(models), subplot_titles=[as_text(m) for m in models], horizontal_spacing=0.03
    )
    for column, model in enumerate(models, start=1):
        table = (
            inside[inside["model"] == model].pivot(index="module", columns="layer", values="relative").reindex(modules)
        )
        trace = go.Heatmap(
            z=table.values,
            x=[str(layer) for layer in table.columns],
            y=[as_text(m) for m in modules],
            name=as_text(model),
            coloraxis="coloraxis",
            hovertemplate="layer %{x}, %{y}: %{z:.3g}<extra></extra>",
        )
        figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(type="category", title_text="layer", showgrid=False)
    figure.update_yaxes(type="category", showgrid=False, showticklabels=False)
    figure.update_yaxes(showticklabels=True, row=1, col=1)
    bar = {"title": {"text": "‖ΔW‖ / ‖W‖", "side": "top"}, "thickness": 10, "len": 0.85}
    figure.update_layout(coloraxis={"colorscale": SEQUENTIAL, "cmin": 0.0, "colorbar": bar})
    means = inside.groupby("model", sort=False)["relative"].mean()
    alt = "Mean over modules: " + "; ".join(f"{m} {v:.3g}" for m, v in means.items()) + "."
    return dress(
        figure, title or "How far did each weight move?", "Relative change of each module's weights", alt, heads=12
    )
