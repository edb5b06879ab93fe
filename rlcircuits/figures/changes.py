"""What fine-tuning changed, several pairs side by side: each angle with its null, circuits in the other model, edges patched
together, and modules grafted.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError, choose
from rlcircuits.figures.theme import DIVERGING, NEUTRAL, PALETTE, SYMBOLS, as_text, dress, grid, line_of, some


def change_forest(
    summaries: Mapping[str, pd.DataFrame], quantities: Mapping[str, int], title: str | None = None
) -> go.Figure:
    """Some quantities of several pairs with their intervals, each beside its null: one panel per quantity, one row per pair.

    Args:
        summaries: name of a pair -> ``summary`` of what `rlcircuits.change` gives.
        quantities: angles of the summaries, each with which of its lines (0: the first); one panel for each.
        title: the finding, in place of the question.

    Raises:
        InputError: nothing given, or an angle that no summary has.
    """
    summaries = some(summaries)
    known = sorted({angle for one in summaries.values() for angle in one.index.get_level_values("angle")})
    chosen = [(choose("angle", angle, known), at) for angle, at in quantities.items()]
    if not chosen:
        raise InputError(f"no quantities given: expected angles of {', '.join(known)}")
    rows_of = {name: [_line(one, angle, at) for angle, at in chosen] for name, one in summaries.items()}
    columns = min(2, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    height, gap = grid(rows, 40 + 28 * len(summaries), 110)
    heads = [next((r[i]["quantity"] for r in rows_of.values() if r[i]), "") for i in range(len(chosen))]
    heads = [_general(head, angle) for head, (angle, _) in zip(heads, chosen)]
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, horizontal_spacing=0.05, vertical_spacing=gap,
        subplot_titles=["<br>".join(textwrap.wrap(as_text(head), 44)) for head in heads],
    )  # fmt: skip
    for i in range(len(chosen)):
        place = {"row": i // columns + 1, "col": i % columns + 1}
        here = {name: lines[i] for name, lines in rows_of.items() if lines[i]}
        for kind, color, symbol in (("null", NEUTRAL, "line-ns-open"), ("value", PALETTE[0], "circle")):
            prefix = "null_" if kind == "null" else ""
            middle, low, high = (
                np.array([float(line[name]) for line in here.values()])
                for name in (kind, f"{prefix}low", f"{prefix}high")
            )
            figure.add_trace(
                go.Scatter(
                    x=middle, y=[as_text(name) for name in here], mode="markers",
                    marker={"size": 9 if kind == "value" else 16, "color": color, "symbol": symbol, "line": {"width": 2, "color": color}},
                    error_x={"type": "data", "symmetric": False, "array": np.nan_to_num(high - middle),
                             "arrayminus": np.nan_to_num(middle - low), "thickness": 1.5, "width": 4, "color": color},
                    customdata=[as_text(line["against"] if kind == "null" else "value") for line in here.values()],
                    hovertemplate="%{y}: %{x:.3g}<extra>%{customdata}</extra>",
                    name="value" if kind == "value" else "its null", legendgroup=kind, showlegend=i == 0,
                ),
                **place,
            )  # fmt: skip
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=[as_text(n) for n in summaries][::-1])
    figure.update_xaxes(nticks=5)
    said = "; ".join(
        f"{name}: " + ", ".join(f"{line['value']:.2g} (null {line['null']:.2g})" for line in lines if line)
        for name, lines in rows_of.items()
    )
    dress(
        figure, title or "What did fine-tuning change, from every side?",
        "Dots: value with 95 % interval over problems; grey: what chance, or no change, would give",
        f"Panels: {'; '.join(heads)}. {said}.", height=height, heads=12,
    )  # fmt: skip
    return figure


def _line(summary: pd.DataFrame, angle: str, at: int) -> dict[str, Any]:
    if angle not in summary.index.get_level_values("angle"):
        return {}
    rows = summary.loc[[angle]].reset_index()
    return {str(k): v for k, v in rows.iloc[at].items()} if at < len(rows) else {}


def _general(head: str, angle: str) -> str:
    """What is asked of every pair: without the name of one pair's module."""
    return "share of the change that the best single module brings" if angle == "graft" and "alone" in head else head


def graft_depth(tables: Mapping[str, pd.DataFrame], answers: str = "tuned", title: str | None = None) -> go.Figure:
    """Where chimaeras stand between base and tuned model, by how many of the first layers are the tuned model's.

    Args:
        tables: name of a pair -> the table of a `rlcircuits.Graft`.
        answers: whose answers' loss is looked at.
        title: the finding, in place of the question.

    Raises:
        InputError: nothing given, or tables without prefixes on those answers.
    """
    figure, said = go.Figure(), []
    for i, (name, table) in enumerate(some(tables).items()):
        one = table[(table["kind"] == "prefix") & (table["into"] == "base") & (table["answers"] == answers)]
        if not len(one):
            raise InputError(
                f"the grafts of {name!r} have no prefixes of layers on {answers!r} answers: graft all modules"
            )
        one = one.sort_values("depth")
        x = one["depth"].to_numpy() / one["depth"].max()
        color = line_of(i)
        figure.add_trace(_band(x, one["stands_low"], one["stands_high"], str(color["color"])))
        figure.add_trace(
            go.Scatter(
                x=x, y=one["stands"], mode="lines+markers", line=color, name=as_text(name),
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7}, customdata=one["modules"],
                hovertemplate="%{customdata}: %{y:.2f}<extra>%{fullData.name}</extra>",
            )
        )  # fmt: skip
        half = one["depth"][one["stands"] >= 0.5]
        said.append(f"{name} " + (f"after {half.iloc[0]:.0f} layers" if len(half) else "never"))
    figure.add_trace(
        go.Scatter(
            x=[0, 1],
            y=[0, 1],
            mode="lines",
            line={"color": NEUTRAL, "dash": "dot", "width": 1},
            name="all layers alike",
        )
    )
    figure.update_xaxes(title_text="share of the first layers that are the tuned model's", range=[0, 1.03])
    figure.update_yaxes(title_text="from base (0) to tuned (1)")
    return dress(
        figure, title or "From which depth on is it the tuned model?",
        "Embeddings and first layers grafted into the base; bands: 95 % over problems",
        f"Where chimaeras stand by depth. Half of the way: {'; '.join(said)}.", height=460,
    )  # fmt: skip


def graft_modules(tables: Mapping[str, pd.DataFrame], answers: str = "tuned", title: str | None = None) -> go.Figure:
    """What each module alone brings of the change, and what the tuned model loses without it, for several pairs.

    Args:
        tables: name of a pair -> the table of a `rlcircuits.Graft`.
        answers: whose answers' loss is looked at.
        title: the finding, in place of the question.

    Raises:
        InputError: nothing given.
    """
    tables = some(tables)
    figure = make_subplots(
        rows=2, cols=1, vertical_spacing=0.25, subplot_titles=["brought by it alone", "lost without it"]
    )
    strongest = []
    for row, into in enumerate(("base", "tuned"), start=1):
        columns: dict[str, pd.Series] = {}
        for name, table in tables.items():
            one = table[(table["kind"] == "module") & (table["into"] == into) & (table["answers"] == answers)]
            values = one.set_index("modules")["stands"]
            columns[as_text(name)] = values if into == "base" else 1 - values
        frame = pd.DataFrame(columns).T
        order = list(next(iter(columns.values())).index)
        frame = frame[order]
        reach = max(float(np.nanmax(np.abs(frame.to_numpy(float)), initial=0.0)), 1e-9)
        figure.add_trace(
            go.Heatmap(
                z=frame.to_numpy(float), x=order, y=list(frame.index), colorscale=[list(c) for c in DIVERGING],
                zmin=-reach, zmax=reach, xgap=1, ygap=1, showscale=True,
                colorbar={"len": 0.42, "y": 0.8 if row == 1 else 0.2, "title": {"text": "share"}},
                hovertemplate="%{y}, %{x}: %{z:.2f}<extra></extra>",
            ),
            row=row, col=1,
        )  # fmt: skip
        figure.update_yaxes(autorange="reversed", row=row, col=1)
        if into == "base":
            strongest = [
                f"{name} {frame.loc[name].astype(float).idxmax()}"
                for name in frame.index
                if frame.loc[name].notna().any()
            ]
    height, _ = grid(2, 40 + 26 * len(tables), 100)
    return dress(
        figure, title or "Which module carries the change?",
        "Share of the way from base to tuned model on the tuned model's answers, a module at a time",
        f"Heat maps of modules by pair. Most brought alone by: {'; '.join(strongest)}.", height=height,
    )  # fmt: skip


def patching_curves(curves: Mapping[str, pd.DataFrame], title: str | None = None) -> go.Figure:
    """Where a model stands with the edges that carry most of the change patched together, and with random ones.

    Args:
        curves: name of a pair -> ``curves()`` of a `rlcircuits.Patching`.
        title: the finding, in place of the question.

    Raises:
        InputError: nothing given.
    """
    curves = some(curves)
    directions = list(dict.fromkeys(d for one in curves.values() for d in one["direction"]))
    heads = {"bring": "base, with edges of the tuned model", "undo": "tuned model, with edges of the base"}
    figure = make_subplots(rows=1, cols=len(directions), shared_yaxes=True, horizontal_spacing=0.05,
                           subplot_titles=[heads[d] for d in directions])  # fmt: skip
    said = []
    for i, (name, table) in enumerate(curves.items()):
        for column, direction in enumerate(directions, start=1):
            for ranking in ("integrated", "random"):
                one = table[(table["direction"] == direction) & (table["ranking"] == ranking)].sort_values("patched")
                if not len(one):
                    continue
                line = (
                    line_of(i)
                    if ranking == "integrated"
                    else {"color": PALETTE[i % len(PALETTE)], "dash": "dot", "width": 1}
                )
                if ranking == "integrated":
                    color = PALETTE[i % len(PALETTE)]
                    figure.add_trace(_band(100 * one["share"], one["low"], one["high"], color), row=1, col=column)
                figure.add_trace(
                    go.Scatter(
                        x=100 * one["share"], y=one["stands"], mode="lines+markers" if ranking == "integrated" else "lines",
                        line=line, marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7},
                        name=as_text(name) if ranking == "integrated" else f"{as_text(name)}, random edges",
                        legendgroup=f"{name} {ranking}", showlegend=column == 1 and (ranking == "integrated" or i == 0),
                        customdata=one["patched"],
                        hovertemplate="%{customdata} edges (%{x:.2g} %): %{y:.2f}<extra>%{fullData.name}</extra>",
                    ),
                    row=1, col=column,
                )  # fmt: skip
        first = table[(table["direction"] == directions[0]) & (table["ranking"] == "integrated")]
        half = first["patched"][(first["stands"] >= 0.5) if directions[0] == "bring" else (first["stands"] <= 0.5)]
        said.append(f"{name} " + (f"{half.iloc[0]:.0f} edges" if len(half) else "none tried"))
    figure.update_xaxes(type="log", title_text="edges patched, %")
    figure.update_yaxes(title_text="from base (0) to tuned (1)", col=1)
    return dress(
        figure, title or "Do few edges carry the change?",
        "Edges in order of their integrated effects, patched together and run; dotted: random edges",
        f"Where the model stands against the share of edges patched. Half of the change: {'; '.join(said)}.", height=460,
    )  # fmt: skip


def transfer_curves(
    curves: Mapping[str, pd.DataFrame], intervention: str = "zero", model: str = "tuned", title: str | None = None
) -> go.Figure:
    """Faithfulness by share of edges of one model's own circuit, the other's and random ones: a panel for each pair.

    Args:
        curves: name of a pair -> ``curves()`` of a `rlcircuits.Transfer`.
        intervention: what takes the place of edges outside a circuit.
        model: which model is run.
        title: the finding, in place of the question.

    Raises:
        InputError: nothing given, or no such intervention or model.
    """
    curves = some(curves)
    rows = math.ceil(len(curves) / 3)
    columns = math.ceil(len(curves) / rows)
    height, gap = grid(rows, 220)
    figure = make_subplots(rows=rows, cols=columns, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.04,
                           vertical_spacing=gap, subplot_titles=[as_text(name) for name in curves])  # fmt: skip
    other = "base" if model == "tuned" else "tuned"
    names = {"own": "its own circuit", "other": f"the {other} model's circuit", "random": "random edges"}
    said = []
    for i, (name, table) in enumerate(curves.items()):
        choose("intervention", intervention, list(dict.fromkeys(table["intervention"])))
        choose("model", model, list(dict.fromkeys(table["model"])))
        ends: Sequence[str] = []
        for k, circuit in enumerate(names):
            one = table[
                (table["intervention"] == intervention) & (table["model"] == model) & (table["circuit"] == circuit)
            ]
            place = {"row": i // columns + 1, "col": i % columns + 1}
            color = NEUTRAL if circuit == "random" else PALETTE[k]
            figure.add_trace(_band(100 * one["share"], one["low"], one["high"], color), **place)
            figure.add_trace(
                go.Scatter(
                    x=100 * one["share"], y=one["faithfulness"], mode="lines+markers", name=names[circuit],
                    line={**line_of(k), "color": color}, marker={"symbol": SYMBOLS[k], "size": 6}, legendgroup=circuit,
                    showlegend=i == 0, customdata=one["edges"],
                    hovertemplate="%{customdata} edges: %{y:.2f}<extra>%{fullData.name}</extra>",
                ),
                **place,
            )  # fmt: skip
            middle = one.iloc[(one["share"] - 0.5).abs().argmin()]
            ends = [*ends, f"{names[circuit]} {middle['faithfulness']:.2f}"]
        said.append(f"{name}: {', '.join(ends)}")
    figure.update_xaxes(type="log")
    for i in range(
        max(0, len(curves) - columns), len(curves)
    ):  # the lowest of each column, also where the last row ends
        at = {"row": i // columns + 1, "col": i % columns + 1}
        figure.update_xaxes(title_text="edges kept, %", showticklabels=True, **at)
    figure.update_yaxes(title_text="faithfulness", col=1)
    return dress(
        figure, title or f"Does the {model} model still run on the {other} model's circuit?",
        f"The rest replaced ({intervention}); 1 is the whole model; bands: 95 % over problems",
        f"Faithfulness by share of edges; with half of them: {'; '.join(said)}.", height=height,
    )  # fmt: skip


def _band(x: Sequence[float], low: Sequence[float], high: Sequence[float], color: str) -> go.Scatter:
    """An interval along a curve."""
    places, lowest, highest = (np.asarray(one, float) for one in (x, low, high))
    known = np.isfinite(lowest) & np.isfinite(highest)
    places, lowest, highest = places[known], lowest[known], highest[known]
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return go.Scatter(
        x=[*places, *places[::-1]], y=[*highest, *lowest[::-1]], fill="toself", fillcolor=f"rgba({red},{green},{blue},0.15)",
        line={"width": 0}, hoverinfo="skip", showlegend=False, mode="lines",
    )  # fmt: skip
