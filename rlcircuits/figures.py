"""Figures: from scores and tables to plotly figures of one theme.

1. Each function takes data (scores, a table, or a dictionary from a model's name to either) and returns a
   figure; none computes results or writes files.
2. Colours are Okabe and Ito's, told apart by colour-blind readers; models also differ in dash and symbol.
   Signed scores go from blue (below zero) over white to vermilion (above), centred on zero, and reach to the
   98th percentile of |score|, so that one edge does not bleach the others; hovering shows the exact value.
3. A title asks the figure's question unless `title` states its finding; ``figure.layout.meta["alt"]``
   describes the figure in plain text for readers who do not see it (escape it when it goes into a page).
4. Names, tokens and answers come from models: `as_text` makes plotly show them as they are, never as markup
   or TeX.

Scores are in nats: by how much the loss would rise, to first order, without the edge.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError, choose
from rlcircuits.inference import paired
from rlcircuits.metrics import METRICS, edge_values, output_edge_entropy

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
THEME = go.layout.Template(
    layout={
        "font": {
            "family": "Source Sans Pro, Segoe UI, Helvetica, Arial, sans-serif",
            "size": 14,
            "color": "#222222",
        },
        "title": {"x": 0.0, "xref": "container", "xanchor": "left", "pad": {"l": 12}, "font": {"size": 18}},
        "colorway": PALETTE,
        "paper_bgcolor": "#FFFFFF",
        "plot_bgcolor": "#FFFFFF",
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "margin": {"l": 70, "r": 30, "t": 115, "b": 90},
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


# --- the graph ------------------------------------------------------------------------------------


def adjacency(
    base: xr.DataArray,
    tuned: xr.DataArray | None = None,
    sample: str | None = None,
    names: Sequence[str] = ("base", "tuned"),
    title: str | None = None,
) -> go.Figure:
    """Heatmaps of edge scores, sources by destinations: base, tuned and their difference side by side.

    Args:
        base, tuned: scores of one or two models on the same problems and graph.
        sample: the problem to show; the mean over problems by default.
        names: what to call the two models.
        title: the finding, in place of the question.

    Raises:
        InputError: an unknown problem, or two models that cannot be paired.
    """
    panels, sources, destinations = panels_of(base, tuned, sample, names)
    figure = make_subplots(
        rows=1, cols=len(panels), subplot_titles=[as_text(name) for name in panels], horizontal_spacing=0.1
    )
    both = np.stack(list(panels.values()), axis=-1) if len(sources) * len(destinations) <= 10_000 else None
    rows = "".join(f"<br>{as_text(n)}: %{{customdata[{i}]:.3g}}" for i, n in enumerate(panels))
    rows = rows if both is not None else "<br>%{z:.3g}"  # a large graph: not every panel's scores in each
    for column, (name, matrix) in enumerate(panels.items(), start=1):
        trace = go.Heatmap(
            z=matrix if both is not None else matrix.astype(np.float32),
            x=[as_text(d) for d in destinations],
            y=[as_text(s) for s in sources],
            customdata=both,
            name=as_text(name),
            coloraxis="coloraxis2" if column == 3 else "coloraxis",
            hovertemplate="%{y} → %{x}" + rows + "<extra></extra>",
        )
        figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(type="category", title_text="destination", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(showticklabels=False)
    figure.update_yaxes(title_text="source", showticklabels=True, row=1, col=1)
    _signed_colours(
        figure, "coloraxis", list(panels.values())[:2], "nats", x=1.0 if len(panels) < 3 else None
    )
    if len(panels) == 3:
        _signed_colours(figure, "coloraxis2", list(panels.values())[2:], "Δ nats", x=1.0)
        # The difference has colours of its own, so the bar of the first two stands before it and needs room.
        starts = (0.0, 0.28, 0.74)
        for axis, above, start in zip(("", "2", "3"), figure.layout.annotations, starts, strict=True):
            figure.layout[f"xaxis{axis}"].domain = (start, start + 0.24)
            above.x = start + 0.12
        figure.layout.coloraxis.colorbar.update(x=0.53)
        figure.update_xaxes(tickfont_size=12)
    question = (
        "Which edges carry the loss?" if tuned is None else "Which edges carry the loss, and which changed?"
    )
    what = _what(base, sample)
    _dress(
        figure,
        title or question,
        f"Edge scores, {as_text(what)}; grey: no edge",
        f"Heatmaps of edge scores, sources by destinations, {what}: "
        + _strongest(panels, sources, destinations),
        height=max(380, min(900, 190 + 16 * len(sources))),
    )
    figure.update_layout(plot_bgcolor=NO_EDGE)
    return figure


def residual_graph(
    base: xr.DataArray,
    tuned: xr.DataArray | None = None,
    k: int = 30,
    sample: str | None = None,
    names: Sequence[str] = ("base", "tuned"),
    title: str | None = None,
) -> go.Figure:
    """The residual graph from the input (below) to the logits (above) with each panel's `k` strongest edges.

    One line trace per sign and panel, so that thousands of edges stay fluid; the dot on an edge grows with
    |score| and shows, on hovering, the edge and its score in both models.

    Args:
        base, tuned: scores of one or two models; NaN edges are not drawn, so a filter is `scores.where(…)`.
        k: edges drawn per panel.
        sample: the problem to show; the mean over problems by default.
        names: what to call the two models.
        title: the finding, in place of the question.

    Raises:
        InputError: `k` below 1, an unknown problem, or two models that cannot be paired.
    """
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InputError(f"k is {k!r}: expected the number of edges to draw, at least 1")
    panels, sources, destinations = panels_of(base, tuned, sample, names)
    places, ticks = _places([*sources, *destinations])
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        shared_yaxes=True,
        subplot_titles=[as_text(name) for name in panels],
        horizontal_spacing=0.02,
    )
    for column, (name, matrix) in enumerate(panels.items(), start=1):
        for trace in _edge_traces(matrix, k, places, sources, destinations, panels, first=column == 1):
            figure.add_trace(trace, row=1, col=column)
        figure.add_trace(_node_trace(places), row=1, col=column)
        if not np.isfinite(matrix).any():
            axis = "" if column == 1 else str(column)
            figure.add_annotation(
                text="no edge to show",
                xref=f"x{axis} domain",
                yref=f"y{axis} domain",
                x=0.5,
                y=0.5,
                showarrow=False,
            )
    figure.update_xaxes(visible=False, range=[-1.45, 1.45])
    figure.update_yaxes(
        showgrid=False, zeroline=False, tickvals=[y for y, _ in ticks], ticktext=[t for _, t in ticks]
    )
    figure.update_yaxes(title_text="depth", row=1, col=1)
    drawn = min(k, max(int(np.isfinite(m).sum()) for m in panels.values()))
    what = _what(base, sample)
    _dress(
        figure,
        title or f"Through which edges does the answer come? The {drawn} strongest",
        f"Edge scores, {as_text(what)}; above zero: the loss rises without the edge"
        + ("; dots to each panel's scale" if len(panels) > 1 else ""),
        f"The residual graph with its {drawn} strongest edges, {what}: "
        + _strongest(panels, sources, destinations),
        height=max(
            440,
            min(1200, round(220 + (45 if _has_heads(places) else 26) * max(y for _, y in places.values()))),
        ),
    )
    return figure


def panels_of(
    base: xr.DataArray, tuned: xr.DataArray | None, sample: str | None, names: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The matrices to show, `(source, destination)`, by name, and the names of rows and columns."""
    given = [base] if tuned is None else list(paired_shown(base, tuned))
    if tuned is not None and len(set(names)) < 2:
        raise InputError(f"names is {tuple(names)!r}: expected two different names, of base and of tuned")
    sources, destinations = ([str(n) for n in base[dim].values] for dim in ("source", "destination"))
    panels = {str(name): _matrix(scores, sample) for name, scores in zip(names, given, strict=False)}
    if tuned is not None:
        first, second = panels.values()
        panels[f"{names[1]} − {names[0]}"] = second - first
    return panels, sources, destinations


def _what(scores: xr.DataArray, sample: str | None) -> str:
    """What is shown: one problem, or a mean."""
    if sample is None and scores.sizes["sample"] == 1:
        sample = str(scores["sample"].values[0])
    return f"the mean of {scores.sizes['sample']} problems" if sample is None else f"problem {sample}"


def paired_shown(base: xr.DataArray, tuned: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
    """`inference.paired`, for scores that a filter may have left without any edge."""
    if base.isnull().all() and tuned.isnull().all() and base.shape == tuned.shape:
        return base, tuned
    return paired(base, tuned)


def _matrix(scores: xr.DataArray, sample: str | None) -> np.ndarray:
    """Scores of one sample or their mean, float64 `(source, destination)`."""
    scores = scores.transpose("sample", "source", "destination")
    values = scores.values.astype(np.float64)
    if sample is None:
        return values.sum(axis=0) / len(values)  # NaN where there is no edge, without a warning
    known = [str(i) for i in scores["sample"].values]
    return values[known.index(choose("problem", sample, known))]


def _robust_range(matrices: Sequence[np.ndarray], quantile: float = 0.98) -> float:
    """The `quantile` of |score| over all matrices; their maximum when that is 0, and 1 when all are."""
    sizes = np.abs(np.concatenate([m[np.isfinite(m)] for m in matrices]))
    if not sizes.size or not sizes.max():
        return 1.0
    return float(np.quantile(sizes, quantile)) or float(sizes.max())


def _signed_colours(
    figure: go.Figure, axis: str, matrices: Sequence[np.ndarray], unit: str, x: float | None
) -> None:
    reach = _robust_range(matrices)
    bar = {
        "title": {"text": unit, "side": "top"},
        "thickness": 10,
        "len": 0.9,
        "exponentformat": "power",
        "nticks": 5,
    }
    figure.update_layout(
        {
            axis: {
                "colorscale": [list(stop) for stop in DIVERGING],
                "cmin": -reach,
                "cmid": 0.0,
                "cmax": reach,
                "colorbar": bar | ({"x": x} if x is not None else {}),
            }
        }
    )


NODE = re.compile(r"(?P<kind>[am])(?P<layer>\d+)(?:\.(?P<part>h|kv)(?P<index>\d+))?|input|logits")


def node_of(name: str) -> str:
    """The node that a source or destination belongs to: `a3<q>` reads into `a3`, `a3.h1<q>` into `a3.h1`."""
    return re.sub(r"<[qkv]>$", "", name)


def _places(names: Sequence[str]) -> tuple[dict[str, tuple[float, float]], list[tuple[float, str]]]:
    """Where to draw each node, x in [−1, 1] and y by depth, and the labelled depths.

    Attention to the left, MLP to the right; heads spread over the width. Nodes with other names go one above
    another.
    """
    nodes = list(dict.fromkeys(node_of(name) for name in names))
    found = {node: NODE.fullmatch(node) for node in nodes}
    if not all(found.values()):
        return {node: (0.0, float(i)) for i, node in enumerate(nodes)}, []
    layers = [int(m["layer"]) for m in found.values() if m["layer"]]
    top = 2 * (max(layers, default=-1) + 1) + 1
    width = {
        part: 1 + max((int(m["index"]) for m in found.values() if m["part"] == part), default=0)
        for part in ("h", "kv")
    }
    places = {}
    for node, m in found.items():
        if m["kind"] is None:
            places[node] = (0.0, 0.0 if node == "input" else float(top))
        elif m["part"] is None:
            y = 2 * int(m["layer"]) + (1 if m["kind"] == "a" else 2)
            places[node] = (-0.55 if m["kind"] == "a" else 0.55, float(y))
        else:
            x = -1 + 2 * (int(m["index"]) + 0.5) / width[m["part"]]
            places[node] = (x, 2 * int(m["layer"]) + (1 if m["part"] == "h" else 0.45))
    step = max(1, math.ceil(len(set(layers)) / 16))
    ticks = [(2 * layer + 1.5, f"layer {layer}") for layer in sorted(set(layers))[::step]]
    return places, [(0.0, "input"), *ticks, (float(top), "logits")]


def _has_heads(places: Mapping[str, tuple[float, float]]) -> bool:
    return any((m := NODE.fullmatch(node)) and m["part"] for node in places)


def _edge_traces(
    matrix: np.ndarray,
    k: int,
    places: dict[str, tuple[float, float]],
    sources: Sequence[str],
    destinations: Sequence[str],
    panels: Mapping[str, np.ndarray],
    first: bool,
) -> list[go.Scatter]:
    """Lines and dots of the strongest edges above zero, and of those below."""
    rows, columns = np.nonzero(np.isfinite(matrix) & (matrix != 0))
    order = np.argsort(-np.abs(matrix[rows, columns]), kind="stable")[:k]
    rows, columns = rows[order], columns[order]
    values = matrix[rows, columns]
    start = np.array([places[node_of(sources[i])] for i in rows]).reshape(-1, 2)
    end = np.array([places[node_of(destinations[j])] for j in columns]).reshape(-1, 2)
    curves = _curves(start, end)
    size = 4 + 12 * np.sqrt(np.abs(values) / max(np.abs(values).max(initial=0), np.finfo(float).tiny))
    edge = [f"{as_text(sources[i])} → {as_text(destinations[j])}" for i, j in zip(rows, columns, strict=True)]
    scores = [[m[i, j] for m in panels.values()] for i, j in zip(rows, columns, strict=True)]
    hover = "%{text}" + "".join(
        f"<br>{as_text(n)}: %{{customdata[{i}]:.3g}} nats" for i, n in enumerate(panels)
    )
    traces = []
    for sign, colour, label in (
        (1, POSITIVE, "above zero"),
        (-1, NEGATIVE, "below zero"),
    ):
        chosen = np.flatnonzero(np.sign(values) == sign)
        lines = np.concatenate([curves[chosen], np.full((len(chosen), 1, 2), np.nan)], axis=1).reshape(-1, 2)
        middle = curves[chosen, curves.shape[1] // 2]
        traces += [
            go.Scatter(
                x=lines[:, 0], y=lines[:, 1], mode="lines",
                line={"color": colour, "width": 1.5}, opacity=0.55,
                name=label, legendgroup=label, showlegend=first, hoverinfo="skip", connectgaps=False,
            ),
            go.Scatter(
                x=middle[:, 0], y=middle[:, 1], mode="markers",
                showlegend=False, legendgroup=label, name=label,
                marker={"color": colour, "size": size[chosen], "line": {"width": 0}},
                text=[edge[i] for i in chosen], customdata=[scores[i] for i in chosen],
                hovertemplate=hover + "<extra></extra>",
            ),
        ]  # fmt: skip
    return traces


def _curves(start: np.ndarray, end: np.ndarray, n_points: int = 13) -> np.ndarray:
    """Quadratic curves from start to end that swing out to their own side, `(edge, point, 2)`."""
    t = np.linspace(0, 1, n_points)[None, :, None]
    swing = np.where(start[:, 0] + end[:, 0] > 0, 1.0, -1.0) * 0.09 * np.abs(end[:, 1] - start[:, 1])
    control = (start + end) / 2
    control[:, 0] = np.clip(control[:, 0] + swing, -1.9, 1.9)
    start, end, control = start[:, None], end[:, None], control[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _node_trace(places: dict[str, tuple[float, float]]) -> go.Scatter:
    crowded, heads = len(places) > 60, _has_heads(places)
    return go.Scatter(
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        mode="markers" if crowded else "markers+text",
        text=[as_text(node.rpartition(".")[2] if heads else node) for node in places],
        customdata=[as_text(node) for node in places],
        textposition="middle center",
        textfont={"size": 8 if heads else 10},
        marker={
            "size": 7 if crowded else 19 if heads else 24,
            "color": "#FFFFFF",
            "line": {"color": "#555555", "width": 1},
        },
        hovertemplate="%{customdata}<extra></extra>",
        showlegend=False,
        name="nodes",
    )


def _strongest(panels: Mapping[str, np.ndarray], sources: Sequence[str], destinations: Sequence[str]) -> str:
    """The strongest edge of each panel, in words."""
    said = []
    for name, matrix in panels.items():
        if np.isfinite(matrix).any():
            i, j = np.unravel_index(np.nanargmax(np.abs(matrix)), matrix.shape)
            said.append(f"largest in {name} is {sources[i]}->{destinations[j]} at {matrix[i, j]:.3g} nats")
    return "; ".join(said) + "." if said else "no edge."


# --- many edges at once ---------------------------------------------------------------------------


def size_distribution(scores: Scores, bins: int = 60, title: str | None = None) -> go.Figure:
    """How |W| is distributed over all edges and problems of each model, both axes logarithmic.

    Raises:
        InputError: no model given, or unusable scores.
    """
    sizes = {name: np.abs(edge_values(s)).ravel() for name, s in _some(scores).items()}
    logs = {name: np.log10(s[s > 0]) for name, s in sizes.items()}
    every = np.concatenate(list(logs.values()))
    edges = (
        np.linspace(every.min(), every.max(), bins + 1)
        if every.size and np.ptp(every)
        else np.linspace(-1, 1, bins + 1)
    )
    if every.size and not np.ptp(every):
        edges = edges + every[0]
    figure = go.Figure()
    for i, (name, values) in enumerate(logs.items()):
        share = np.histogram(values, edges)[0] / max(len(sizes[name]), 1)
        figure.add_scatter(
            x=10 ** ((edges[1:] + edges[:-1]) / 2),
            y=np.where(share > 0, share, np.nan),
            mode="lines",
            line={"shape": "hvh", "width": 2, **_line(i)},
            name=as_text(name),
            hovertemplate="|W| about %{x:.2g}<br>%{y:.2%} of edges<extra>%{fullData.name}</extra>",
        )
    figure.update_xaxes(type="log", title_text="|W| (nats)", exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", title_text="share of edges per bin", exponentformat="power", dtick=1)
    if every.size:  # a stray score near zero must not take half of the axis
        figure.update_xaxes(range=[min(np.quantile(every, 1e-3), edges[-1] - 1), edges[-1] + 0.1])
    zeros = sum(int((s == 0).sum()) for s in sizes.values())
    medians = "; ".join(f"{n}: median {10 ** np.median(v):.2g}" for n, v in logs.items() if v.size)
    note = f"; {zeros} scores that are exactly zero are left out" if zeros else ""
    alt = f"Distributions of |W| on logarithmic axes. {medians}."
    return _dress(
        figure, title or "How are edge strengths distributed?", f"All problems and edges{note}", alt
    )


def layer_profile(scores: Scores, title: str | None = None) -> go.Figure:
    """Mean |W| of the edges that leave and that enter each layer's attention and MLP, for several models.

    Raises:
        InputError: no model given, unusable scores, or names that are not those of a residual graph.
    """
    figure = make_subplots(
        rows=1,
        cols=2,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        subplot_titles=["edges that leave the layer", "edges that enter the layer"],
    )
    said = []
    for i, (name, array) in enumerate(_some(scores).items()):
        for column, dim in enumerate(("source", "destination"), start=1):
            for kind, symbol, dash in (("a", "circle", "solid"), ("m", "square", "dash")):
                profile = _by_layer(array, dim, kind)
                part = "attention" if kind == "a" else "MLP"
                figure.add_trace(
                    go.Scatter(
                        x=profile.index,
                        y=profile.values,
                        mode="lines+markers",
                        line={"color": PALETTE[i % len(PALETTE)], "dash": dash},
                        marker={"symbol": symbol, "size": 8},
                        name=f"{as_text(name)}, {part}",
                        legendgroup=f"{i}{kind}",
                        showlegend=column == 1,
                        hovertemplate="layer %{x}: %{y:.3g} nats<extra>%{fullData.name}</extra>",
                    ),
                    row=1,
                    col=column,
                )
                if dim == "destination" and len(profile):
                    said.append(f"{name}, {part}: most into layer {profile.idxmax()}")
    figure.update_xaxes(title_text="layer", dtick=1 if _n_layers(scores) <= 16 else None)
    figure.update_yaxes(title_text="mean |W| (nats per edge)", exponentformat="power", col=1)
    _strengths_from_zero(figure, figure.data, row=1)
    alt = f"Mean edge strength by layer. {'; '.join(said)}."
    return _dress(
        figure, title or "In which layers are the strong edges?", "Mean over problems and edges", alt
    )


def _strengths_from_zero(figure: go.Figure, traces: Sequence[go.Scatter], row: int) -> None:
    """A row's strengths from zero, or on a logarithmic axis where the smaller of them would all lie on zero."""
    sizes = np.concatenate([np.asarray(trace.y, float) for trace in traces])
    sizes = sizes[np.isfinite(sizes)]
    wide = len(sizes) > 0 and sizes.min() > 0 and sizes.max() > 30 * sizes.min()
    figure.update_yaxes(**({"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}), row=row)


def _by_layer(scores: xr.DataArray, dim: str, kind: str) -> pd.Series:
    """Mean |W| per layer over the edges whose source (destination) is attention ("a") or MLP ("m")."""
    sizes = np.abs(scores.transpose("sample", dim, ...).values.astype(np.float64)).mean(
        axis=0
    )  # NaN: no edge
    found = [NODE.fullmatch(node_of(str(n))) for n in scores[dim].values]
    if not all(found):
        raise InputError(
            f"scores have {dim}s that are no nodes of a residual graph; expected input, a0, m0, …, logits"
        )
    table = pd.DataFrame(
        {
            "layer": [int(m["layer"]) if m["kind"] == kind else -1 for m in found],
            "total": np.nansum(sizes, axis=1),
            "edges": np.isfinite(sizes).sum(axis=1),
        }
    )
    sums = table[table["layer"] >= 0].groupby("layer")[["total", "edges"]].sum()
    sums = sums[sums["edges"] > 0]
    return sums["total"] / sums["edges"]


def _n_layers(scores: Scores) -> int:
    names = next(iter(scores.values()))["source"].values
    return 1 + max(
        (int(m["layer"]) for n in names if (m := NODE.fullmatch(str(n))) and m["layer"]), default=0
    )


def source_profile(scores: Scores, title: str | None = None) -> go.Figure:
    """Each source's mean |W| over its outgoing edges, and their output-edge entropy, for several models.

    Raises:
        InputError: no model given, or unusable scores.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    said = []
    for i, (name, array) in enumerate(_some(scores).items()):
        edge_values(array)  # its checks
        array = array.transpose("sample", "source", "destination")
        sizes = np.abs(array.values.astype(np.float64)).mean(axis=0)
        real = np.isfinite(sizes).sum(axis=1)
        mean = np.divide(np.nansum(sizes, axis=1), real, out=np.full(len(real), np.nan), where=real > 0)
        entropy = output_edge_entropy(array).values
        defined = np.isfinite(entropy).sum(axis=0)
        entropy = np.divide(
            np.nansum(entropy, axis=0), defined, out=np.full(len(real), np.nan), where=defined > 0
        )
        names = [str(n) for n in array["source"].values]
        for row, values in enumerate((mean, entropy), start=1):
            figure.add_trace(
                go.Scatter(
                    x=[as_text(n) for n in names],
                    y=values,
                    mode="lines+markers",
                    line=_line(i),
                    marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 7},
                    name=as_text(name),
                    legendgroup=str(i),
                    showlegend=row == 1,
                    hovertemplate="%{x}: %{y:.3g} nats<extra>%{fullData.name}</extra>",
                ),
                row=row,
                col=1,
            )
        if np.isfinite(mean).any():
            said.append(f"{name}: strongest source {names[int(np.nanargmax(mean))]}")
    figure.update_xaxes(type="category")
    figure.update_xaxes(title_text="source, in the order of writing", row=2, col=1)
    figure.update_yaxes(title_text="mean |W| (nats)", exponentformat="power", row=1, col=1)
    _strengths_from_zero(figure, figure.data[::2], row=1)
    figure.update_yaxes(title_text="output-edge entropy (nats)", rangemode="tozero", row=2, col=1)
    alt = f"Strength and output-edge entropy of each source. {'; '.join(said)}."
    return _dress(
        figure, title or "Which sources write strongly, and how widely?", "Mean over problems", alt, 560
    )


def sample_scatter(
    base: xr.DataArray,
    tuned: xr.DataArray,
    metric: str = "activation_intensity",
    names: Sequence[str] = ("base", "tuned"),
    title: str | None = None,
) -> go.Figure:
    """One metric of each problem, base against tuned; on the diagonal nothing changed.

    Raises:
        InputError: an unknown metric or one of the whole set of problems, or two models that cannot be
            paired.
    """
    known = METRICS[choose("metric", metric, [m for m in METRICS if METRICS[m].per_sample])]
    base, tuned = paired(base, tuned)
    x, y = (known.per_sample(s).values for s in (base, tuned))
    finite = np.concatenate([x, y])[np.isfinite(np.concatenate([x, y]))]
    log = finite.size > 0 and finite.min() > 0 and finite.max() > 20 * finite.min()
    figure = go.Figure()
    if finite.size:
        ends = [finite.min(), finite.max()]
        figure.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            line={"color": NEUTRAL, "dash": "dash"},
            name="no change",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"color": PALETTE[0], "size": 8, "opacity": 0.7},
        text=[as_text(i) for i in base["sample"].values],
        name="problems",
        hovertemplate="%{text}<br>%{x:.4g} → %{y:.4g}<extra></extra>",
    )
    unit = f" ({known.unit})" if known.unit else ""
    if finite.size:
        ends = np.log10([finite.min(), finite.max()]) if log else np.array([finite.min(), finite.max()])
        pad = 0.05 * np.ptp(ends) or 0.05 * abs(ends[0]) or 1.0
        figure.update_xaxes(range=[ends[0] - pad, ends[1] + pad])
        figure.update_yaxes(range=[ends[0] - pad, ends[1] + pad])
    for update, name in ((figure.update_xaxes, names[0]), (figure.update_yaxes, names[1])):
        update(title_text=f"{as_text(name)}{unit}", type="log" if log else "linear", exponentformat="power")
    up = int((y > x).sum())
    return _dress(
        figure,
        title or f"Does {known.label} change on each problem?",
        f"One dot a problem; it is higher in {as_text(names[1])} on {up} of {len(x)}",
        f"{known.label} of {len(x)} problems, {names[0]} against {names[1]}: higher in {names[1]} on {up}.",
        520,
    )


# --- comparisons ----------------------------------------------------------------------------------


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
    tables = _some(tables)
    shared = [m for m in next(iter(tables.values())).index if all(m in t.index for t in tables.values())]
    shown = [choose("metric", m, shared) for m in metrics] if metrics is not None else shared
    if not shown:
        raise InputError(
            "the tables share no metric: expected tables of `compare` with at least one in common"
        )
    columns = min(3, len(shown))
    rows = math.ceil(len(shown) / columns)
    height, gap = _grid(rows, 40 + 26 * len(tables))
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
            title_text=f"difference{f' ({unit})' if unit else ''}",
            row=row + 1,
            col=column + 1,
            exponentformat="power",
        )
        figure.add_vline(x=0, line={"color": "#333333", "width": 1}, row=row + 1, col=column + 1)
    figure.update_xaxes(nticks=4, title_font_size=12)
    figure.update_yaxes(
        type="category", categoryorder="array", categoryarray=[as_text(n) for n in names][::-1]
    )
    level = next(iter(tables.values())).attrs.get("confidence")
    bars = f"bars: {level:.0%} paired bootstrap intervals" if level else "bars: intervals"
    said = [
        f"{METRICS[m].label if m in METRICS else m} differs from 0 in: {', '.join(clear) or 'none'}"
        for m in shown
        for clear in [[n for n in names if tables[n].loc[m, "low"] > 0 or tables[n].loc[m, "high"] < 0]]
    ]
    return _dress(
        figure,
        title or "What does each paradigm change, against the base?",
        f"Tuned minus base; {bars}" + ("; grey: controls" if len(nulls) else ""),
        f"Forest plot of differences from the base for {', '.join(names)}. {'; '.join(said)}.",
        height=height,
    )


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
            raise InputError(
                "curves have no column 'member': expected `load_curves`, or a dictionary of tables"
            )
        curves = {str(name): table for name, table in curves.groupby("member", sort=False)}
    curves = _some(curves)
    held = list(
        dict.fromkeys(c for table in curves.values() for c in table.columns if table[c].notna().any())
    )
    choose("column", x, held)
    if columns is None:
        columns = [c for c in ("accuracy", "reward", "kl", "entropy", "length", "loss") if c in held]
    columns = [choose("column", c, held) for c in columns]
    if not columns:
        raise InputError(f"curves hold nothing to draw: expected at least one of {', '.join(CURVE_UNITS)}")
    wide = min(3, len(columns))
    rows = math.ceil(len(columns) / wide)
    height, gap = _grid(rows, 170)
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
                line=_line(i),
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 6},
                name=as_text(name),
                legendgroup=str(i),
                showlegend=first,
                hovertemplate="%{x}: %{y:.4g}<extra>%{fullData.name}</extra>",
            )
            figure.add_trace(trace, row=row + 1, col=col + 1)
            first = False
    figure.update_xaxes(title_text=as_text(x.replace("_", " ")))
    ends = "; ".join(
        f"{n} ends at {CURVE_UNITS.get(columns[0], columns[0])} {t[columns[0]].dropna().iloc[-1]:.3g}"
        for n, t in curves.items()
        if columns[0] in t and t[columns[0]].notna().any()
    )
    return _dress(
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
        raise InputError(f"changes lack {', '.join(sorted(missing)) or 'rows'}: expected the table of rlcircuits.weight_change")
    inside = changes[changes["layer"] >= 0]
    models, modules = list(dict.fromkeys(inside["model"])), list(dict.fromkeys(inside["module"]))[::-1]
    figure = make_subplots(rows=1, cols=len(models), subplot_titles=[as_text(m) for m in models], horizontal_spacing=0.03)
    for column, model in enumerate(models, start=1):
        table = inside[inside["model"] == model].pivot(index="module", columns="layer", values="relative").reindex(modules)
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
    return _dress(figure, title or "How far did each weight move?", "Relative change of each module's weights", alt)



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
        raise InputError(f"the table lacks {', '.join(sorted(missing)) or 'rows'}: expected the benchmark's suite growth")
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
                line=_line(i),
                marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": 8},
                name=as_text(case),
                legendgroup=str(i),
                showlegend=column == 1,
                hovertemplate=f"%{{x}} {size}: %{{y:.3g}} s<extra>%{{fullData.name}}</extra>",
            )
            figure.add_trace(trace, row=1, col=column)
        values = sorted(rows.index.get_level_values(size).unique())
        figure.update_xaxes(
            type="log", tickvals=values, ticktext=[f"{v:,}" for v in values], title_text=f"{size} ({usual} {other})", col=column
        )
        figure.update_yaxes(type="log", title_text="seconds" if column == 1 else None, col=column)
    largest = table.loc[table["tokens"] == table["tokens"].max()].groupby("case")["seconds"].median()
    ends = "; ".join(f"{case} {seconds:.3g} s" for case, seconds in largest.items())
    return _dress(
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
            line=_line(i),
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
    return _dress(
        figure,
        title or "Do the strongest edges do the work of all?",
        "1 is the whole model, 0 the model without edges; strongest helpful edges first",
        f"Faithfulness against the share of edges kept. Areas under the curves (CPR): {areas}.",
        height=440,
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
        raise InputError(
            f"{int(both.sum())} edges have both a score and an exact effect: expected at least 2"
        )
    where = np.argwhere(both)
    x, y = x[both], y[both]
    rank = float(stats.spearmanr(x, y).statistic) if np.ptp(x) and np.ptp(y) else math.nan
    slope = float(x @ y / (x @ x)) if x.any() else math.nan
    drawn = np.unique(np.linspace(0, len(x) - 1, min(max_points, len(x))).astype(int))
    names = [scores[dim].values.astype(str) for dim in scores.dims]
    at = {dim: [names[k][i] for i in where[drawn, k]] for k, dim in enumerate(scores.dims)}
    text = [
        as_text(f"{s}->{d}, {p}")
        for s, d, p in zip(at["source"], at["destination"], at["sample"], strict=True)
    ]
    shown = {"x": _SignedLog(x, y), "y": _SignedLog(y, x)}
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
    return _dress(
        figure,
        title or "Is the first-order estimate right about removing an edge?",
        f"{said}{part}; axes logarithmic away from 0",
        f"Scatter of exact ablation against estimated edge scores: {said}.",
        560,
    )


class _SignedLog:
    """An axis for values of both signs over orders of magnitude: asinh(value / unit), the same unit on both axes.

    The unit is the power of ten below the smallest tenth of all sizes on either axis, so few values are in its linear part.
    """

    def __init__(self, values: np.ndarray, others: np.ndarray) -> None:
        sizes = np.abs(np.concatenate([values, others]))
        sizes = sizes[sizes > 0]
        self.unit = 10.0 ** math.floor(math.log10(np.quantile(sizes, 0.1))) if len(sizes) else 1.0
        self.reach = 1.2 * float(np.abs(values).max()) or 1.0

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return np.arcsinh(np.asarray(values) / self.unit)

    def line(self) -> np.ndarray:
        """Values from end to end, evenly spaced on the axis."""
        end = math.asinh(self.reach / self.unit)
        return self.unit * np.sinh(np.linspace(-end, end, 201))

    def axis(self) -> dict[str, Any]:
        """Range and ticks, at powers of ten."""
        first, last = round(math.log10(self.unit)), math.floor(math.log10(self.reach))
        powers = np.arange(last, first - 1, -max(1, math.ceil((last - first + 1) / 4)))[::-1]
        ticks = [*(-(10.0 ** powers[::-1])), 0.0, *(10.0**powers)]
        text = [f"−10<sup>{p}</sup>" for p in powers[::-1]] + ["0"] + [f"10<sup>{p}</sup>" for p in powers]
        end = float(self([self.reach])[0])
        return {"range": [-end, end], "tickvals": self(np.array(ticks)), "ticktext": text}


# --- answers --------------------------------------------------------------------------------------


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
    answers = {name: [str(t) for t in tokens] for name, tokens in _some(answers).items()}
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
    figure.update_layout(
        coloraxis={
            "colorscale": [list(stop) for stop in SEQUENTIAL],
            "cmin": 0,
            "cmax": top,
            "showscale": bool(losses),
            "colorbar": {"title": {"text": "loss (nats)"}, "thickness": 10},
        }
    )
    said = " ".join(f"{name}: {' '.join(tokens)}." for name, tokens in answers.items())
    shading = "Shaded by the loss of each token" if losses else "In reading order"
    return _dress(
        figure,
        title or "What did the models answer?",
        shading,
        f"Answers token by token. {said}",
        150 + 55 * len(answers) + 34 * sum(lines.values()),
    )


def dropped_by_rule(
    dropped: pd.DataFrame | Mapping[str, pd.DataFrame], title: str | None = None
) -> go.Figure:
    """How many problems each selection rule dropped and left, as `Selection.dropped` counts them.

    Args:
        dropped: a table with columns ``rule``, ``dropped``, ``left``, or a dictionary from pair to such
            tables.

    Raises:
        InputError: no table, or one without these columns.
    """
    tables = _some({"": dropped} if isinstance(dropped, pd.DataFrame) else dropped)
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
        said.append(
            who + ", ".join(f"{r} dropped {d}" for r, d in zip(table["rule"], table["dropped"], strict=True))
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(title_text="problems")
    figure.update_yaxes(type="category", autorange="reversed")
    most = max(len(t) for t in tables.values())
    return _dress(
        figure,
        title or "Which rule dropped which problems?",
        "Rules from top to bottom, in the order they are applied",
        f"Problems left and dropped by each rule. {'; '.join(said)}.",
        height=190 + 40 * most,
    )


# --- what they share ------------------------------------------------------------------------------


def _some(given: Mapping) -> dict:
    """The dictionary, with at least one entry.

    Raises:
        InputError: it is none, or empty.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"expected a dictionary from a model's name to its data, not {type(given).__name__}")
    if not given:
        raise InputError("nothing to draw: expected a dictionary with at least one model")
    return {str(name): value for name, value in given.items()}


def _grid(rows: int, panel: int, between: int = 90) -> tuple[int, float]:
    """Height of a figure of `rows` rows of panels, in pixels, and the share of it between two rows."""
    inside = rows * panel + (rows - 1) * between
    return inside + 205, between / inside if rows > 1 else 0.0


def _line(i: int) -> dict[str, str]:
    """Colour and dash of the i-th model."""
    return {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i % len(DASHES)]}


def _dress(figure: go.Figure, title: str, subtitle: str, alt: str, height: int = 460) -> go.Figure:
    """Give a figure the theme, its title and its description, and return it."""
    figure.update_layout(
        template=THEME,
        title={"text": title, "subtitle": {"text": subtitle, "font": {"size": 13, "color": "#555555"}}},
        height=height,
        meta={"alt": f"{title} {alt}"},
    )
    figure.update_annotations(font_size=14)
    return figure
