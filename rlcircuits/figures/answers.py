"""Answers token by token, and which problems the rules of selection dropped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError
from rlcircuits.figures.theme import PALETTE, SEQUENTIAL, as_text, dress, some


def answer_tokens(
    answers: Mapping[str, Sequence[str]],
    losses: Mapping[str, Sequence[float]] | None = None,
    per_row: int = 12,
    title: str | None = None,
) -> go.Figure:
    """Answers token by token, one block per model, shaded by each token's loss where that is known.

    Args:
        answers: model's name to its tokens as text.
        losses: model's name to the negative log-likelihood of each token, in nats; as long as the answer.
        per_row: tokens in a line.
        title: the finding, in place of the question.

    Raises:
        InputError: no model, or losses that do not match the tokens.
    """
    answers = {name: [str(t) for t in tokens] for name, tokens in some(answers).items()}
    losses = losses or {}
    for name, values in losses.items():
        if name in answers and len(values) != len(answers[name]):
            raise InputError(
                f"{name!r} has {len(answers[name])} tokens and {len(values)} losses; expected one for each"
            )
    lines = {name: max(1, math.ceil(len(tokens) / per_row)) for name, tokens in answers.items()}
    figure = make_subplots(
        rows=len(answers),
        cols=1,
        row_heights=list(lines.values()),
        subplot_titles=[f"{as_text(n)}: {len(t)} tokens" for n, t in answers.items()],
        vertical_spacing=0.25 / len(answers),
    )
    for row, (name, tokens) in enumerate(answers.items(), start=1):
        shape = (lines[name], per_row)
        loss, text = np.full(shape, np.nan), np.full(shape, "", dtype=object)
        loss.flat[: len(tokens)] = losses.get(name, np.zeros(len(tokens)))
        text.flat[: len(tokens)] = [as_text(t if len(t) <= 9 else f"{t[:8]}…") for t in tokens]
        whole = np.full(shape, "", dtype=object)
        whole.flat[: len(tokens)] = [as_text(t) for t in tokens]
        place = np.arange(1, loss.size + 1).reshape(shape)
        known = name in losses
        figure.add_trace(
            go.Heatmap(
                z=loss,
                text=text,
                customdata=np.stack([place.astype(object), whole], axis=-1),
                texttemplate="%{text}",
                textfont={"size": 13, "color": "#111111"},
                coloraxis="coloraxis",
                xgap=2,
                ygap=2,
                name=as_text(name),
                hovertemplate="token %{customdata[0]}: %{customdata[1]}"
                + ("<br>loss %{z:.3g} nats" if known else "")
                + "<extra></extra>",
                hoverongaps=False,
            ),
            row=row,
            col=1,
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    top = max((float(np.nanmax(v)) for v in losses.values() if len(v)), default=0.0) or 1.0
    inside = 55 * (len(answers) - 1) + 34 * sum(lines.values())
    figure.update_layout(
        coloraxis={
            "colorscale": [list(stop) for stop in SEQUENTIAL],
            "cmin": 0,
            "cmax": top,
            "showscale": bool(losses) and inside >= 100,
            "colorbar": {
                "title": {"text": "loss (nats)"}, "thickness": 10, "nticks": 3, "lenmode": "pixels", "len": min(140, inside),
            },
        }
    )  # fmt: skip
    said = " ".join(f"{name}: {' '.join(tokens)}." for name, tokens in answers.items())
    shading = f"Shaded by the loss of each token, up to {top:.2g} nats" if losses else "In reading order"
    return dress(
        figure,
        title or "What did the models answer?",
        shading,
        f"Answers token by token. {said}",
        205 + inside,
    )


def dropped_by_rule(dropped: pd.DataFrame | Mapping[str, pd.DataFrame], title: str | None = None) -> go.Figure:
    """How many problems each selection rule dropped and left, as `Selection.dropped` counts them.

    Args:
        dropped: a table with columns ``rule``, ``dropped``, ``left``, or a dictionary from pair to such
            tables.

    Raises:
        InputError: no table, or one without these columns.
    """
    tables = some({"": dropped} if isinstance(dropped, pd.DataFrame) else dropped)
    for name, table in tables.items():
        missing = [c for c in ("rule", "dropped", "left") if c not in table]
        if missing:
            raise InputError(f"table {name!r} has no column {missing[0]!r}: expected rule, dropped and left")
    figure = make_subplots(
        rows=1,
        cols=len(tables),
        shared_yaxes=True,
        subplot_titles=[as_text(n) for n in tables] if len(tables) > 1 else None,
        horizontal_spacing=0.03,
    )
    said = []
    for column, (name, table) in enumerate(tables.items(), start=1):
        rules = [as_text(r) for r in table["rule"]]
        for field, colour, pattern in (("left", PALETTE[0], ""), ("dropped", PALETTE[4], "/")):
            bar = go.Bar(
                y=rules,
                x=table[field],
                orientation="h",
                name=field,
                legendgroup=field,
                showlegend=column == 1,
                marker={"color": colour, "pattern": {"shape": pattern}},
                text=table[field],
                textposition="inside",
                hovertemplate="%{y}: %{x} " + field + "<extra></extra>",
            )
            figure.add_trace(bar, row=1, col=column)
        who = f"{name}: " if name else ""
        said.append(who + ", ".join(f"{r} dropped {d}" for r, d in zip(table["rule"], table["dropped"], strict=True)))
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="problems")
    figure.update_yaxes(type="category", autorange="reversed")
    most = max(len(t) for t in tables.values())
    return dress(
        figure,
        title or "Which rule dropped which problems?",
        "Rules from top to bottom, in the order they are applied",
        f"Problems left and dropped by each rule. {'; '.join(said)}.",
        height=190 + 40 * most,
    )
