"""The residual graph: adjacency heatmaps, and the graph drawn layer by layer with its strongest edges."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError, choose
from rlcircuits.figures.theme import DIVERGING, NEGATIVE, NO_EDGE, POSITIVE, as_text, dress
from rlcircuits.metrics import paired

MOST_CELLS = 60_000
"""Cells of a heatmap; a larger graph is drawn with the heads of each layer summed."""
BESIDE = 4.0
"""By how much the scores of one model may be larger before the other's heatmap has colours of its own."""
BARS = 30
"""Pixels for the colour bars below heatmaps."""
STRONG, NAMED = 1 / 3, 3
"""An edge is drawn strongly from this share of the strongest on, and so many are named above their panel."""


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
    pooled = len(sources) * len(destinations) > MOST_CELLS
    if pooled:
        panels, sources, destinations = _without_heads(panels, sources, destinations)
    figure = make_subplots(
        rows=1, cols=len(panels), subplot_titles=[as_text(name) for name in panels], horizontal_spacing=0.04
    )
    both = np.stack(list(panels.values()), axis=-1) if len(sources) * len(destinations) <= 5_000 else None
    rows = "".join(f"<br>{as_text(n)}: %{{customdata[{i}]:.3g}}" for i, n in enumerate(panels))
    rows = rows if both is not None else "<br>%{z:.3g}"  # a large graph: not every panel's scores in each
    for column, (name, matrix) in enumerate(panels.items(), start=1):
        trace = go.Heatmap(
            z=matrix if both is not None else matrix.astype(np.float32),
            x=[as_text(d) for d in destinations],
            y=[as_text(s) for s in sources],
            customdata=both,
            name=as_text(name),
            hovertemplate="%{y} → %{x}" + rows + "<extra></extra>",
        )
        figure.add_trace(trace, row=1, col=column)
    figure.update_xaxes(type="category", title_text="destination", showgrid=False, tickangle=-90, tickfont_size=11)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False, tickfont_size=11)
    figure.update_yaxes(showticklabels=False)
    figure.update_yaxes(title_text="source", showticklabels=True, row=1, col=1)
    height = max(380, min(900, 190 + 16 * len(sources)))
    shared = _shared_scales(list(panels.values()))
    for number, columns in enumerate(shared):
        axis = f"coloraxis{number + 1 if number else ''}"
        domains = [figure.layout[f"xaxis{column + 1 if column else ''}"].domain for column in columns]
        _signed_colours(figure, axis, [list(panels.values())[c] for c in columns], (domains[0][0], domains[-1][1]))
        for column in columns:
            figure.data[column].coloraxis = axis
    question = "Which edges carry the loss?" if tuned is None else "Which edges carry the loss, and which changed?"
    what = what_is_shown(base, sample)
    dress(
        figure,
        title or question,
        f"Edge scores (nats), {as_text(what)}; grey: no edge"
        + ("; summed over the heads of each layer" if pooled else "")
        + ("; each panel to its own scale" if len(shared) == len(panels) > 2 else ""),
        f"Heatmaps of edge scores, sources by destinations, {what}: " + _strongest(panels, sources, destinations),
        height + BARS,
    )
    return figure.update_layout(plot_bgcolor=NO_EDGE, margin_b=figure.layout.margin.b + BARS)


def _shared_scales(matrices: Sequence[np.ndarray]) -> list[list[int]]:
    """Which panels share their colours: base and tuned, unless one would be blank beside the other; the difference has its own."""
    if len(matrices) < 2:
        return [[0]]
    reaches = [robust_range([matrix]) for matrix in matrices[:2]]
    both = [[0, 1]] if max(reaches) <= BESIDE * min(reaches) else [[0], [1]]
    return [*both, *([column] for column in range(2, len(matrices)))]


def _without_heads(
    panels: Mapping[str, np.ndarray], sources: Sequence[str], destinations: Sequence[str]
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """The panels with heads summed within their layer, `a3.h5<q>` into `a3<q>`: what a page can hold of a large
    graph.
    """
    kept: list[list[str]] = []
    places = []
    for names in (sources, destinations):
        parts = [re.sub(r"\.(h|kv)\d+", "", name) for name in names]
        kept.append(list(dict.fromkeys(parts)))
        places.append([kept[-1].index(part) for part in parts])
    found = {}
    for name, matrix in panels.items():
        real = np.isfinite(matrix)
        sums, counts = np.zeros((2, len(kept[0]), len(kept[1])))
        np.add.at(sums, np.ix_(*places), np.where(real, matrix, 0.0))
        np.add.at(counts, np.ix_(*places), real)
        found[name] = np.where(counts > 0, sums, np.nan)
    return found, kept[0], kept[1]


def residual_graph(
    base: xr.DataArray,
    tuned: xr.DataArray | None = None,
    k: int = 30,
    sample: str | None = None,
    names: Sequence[str] = ("base", "tuned"),
    title: str | None = None,
) -> go.Figure:
    """The residual graph from the input (below) to the logits (above) with each panel's `k` strongest edges.

    Two line traces per sign and panel, of strong and of weak edges, so that thousands of edges stay fluid; the dot on an
    edge grows with |score| and shows, on hovering, the edge and its score in both models. The strongest edges of a panel are
    named above it.

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
    places, ticks = node_places([*sources, *destinations])
    figure = make_subplots(
        rows=1,
        cols=len(panels),
        shared_yaxes=True,
        subplot_titles=[
            "<br>".join(textwrap.wrap(as_text(name), 24)) + _named(matrix, sources, destinations)
            for name, matrix in panels.items()
        ],
        horizontal_spacing=0.02,
    )
    for column, matrix in enumerate(panels.values(), start=1):
        for trace in _edge_traces(matrix, k, places, sources, destinations, panels, first=column == 1):
            figure.add_trace(trace, row=1, col=column)
        figure.add_trace(_node_trace(places), row=1, col=column)
        if not np.isfinite(matrix).any():
            axis = "" if column == 1 else str(column)
            figure.add_annotation(
                text="no edge to show", xref=f"x{axis} domain", yref=f"y{axis} domain", x=0.5, y=0.5, showarrow=False
            )
    figure.update_xaxes(visible=False, range=[-1.45, 1.45])
    figure.update_yaxes(showgrid=False, zeroline=False, tickvals=[y for y, _ in ticks], ticktext=[t for _, t in ticks])
    figure.update_yaxes(title_text="depth", row=1, col=1)
    drawn = min(k, max(int(np.isfinite(m).sum()) for m in panels.values()))
    what = what_is_shown(base, sample)
    dress(
        figure,
        title or f"Through which edges does the answer come? The {drawn} strongest",
        f"Edge scores, {as_text(what)}; above zero: the loss rises without the edge"
        + ("; dots to each panel's scale" if len(panels) > 1 else ""),
        f"The residual graph with its {drawn} strongest edges, {what}: " + _strongest(panels, sources, destinations),
        height=max(440, min(1200, round(220 + (45 if has_heads(places) else 26) * max(y for _, y in places.values())))),
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


def what_is_shown(scores: xr.DataArray, sample: str | None) -> str:
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


def robust_range(matrices: Sequence[np.ndarray], quantile: float = 0.98) -> float:
    """The `quantile` of |score| over all matrices; their maximum when that is 0, and 1 when all are."""
    sizes = np.abs(np.concatenate([m[np.isfinite(m)] for m in matrices]))
    if not sizes.size or not sizes.max():
        return 1.0
    return float(np.quantile(sizes, quantile)) or float(sizes.max())


def _signed_colours(figure: go.Figure, axis: str, matrices: Sequence[np.ndarray], place: tuple[float, float]) -> None:
    """Colours of panels that stand from `place` to `place`, with their bar below."""
    reach, (left, right) = robust_range(matrices), place
    bar = {
        "thickness": 10, "exponentformat": "power", "tickvals": [-reach, 0, reach],
        "ticktext": [f"{-reach:.1g}".replace("-", "−"), "0", f"{reach:.1g}"], "orientation": "h", "xanchor": "center",
        "x": (left + right) / 2, "len": min(0.3, 0.85 * (right - left)), "yref": "container", "yanchor": "bottom", "y": 0.02,
    }  # fmt: skip
    colours = [list(stop) for stop in DIVERGING]
    figure.update_layout({axis: {"colorscale": colours, "cmin": -reach, "cmid": 0.0, "cmax": reach, "colorbar": bar}})


NODE = re.compile(r"(?P<kind>[am])(?P<layer>\d+)(?:\.(?P<part>h|kv)(?P<index>\d+))?|input|logits")


def node_of(name: str) -> str:
    """The node that a source or destination belongs to: `a3<q>` reads into `a3`, `a3.h1<q>` into `a3.h1`."""
    return re.sub(r"<[qkv]>$", "", name)


def node_places(names: Sequence[str]) -> tuple[dict[str, tuple[float, float]], list[tuple[float, str]]]:
    """Where to draw each node, x in [−1, 1] and y by depth, and the labelled depths.

    Attention to the left, MLP to the right; heads spread over the width. Nodes with other names go one above
    another.
    """
    nodes = list(dict.fromkeys(node_of(name) for name in names))
    found = {node: match for node in nodes if (match := NODE.fullmatch(node))}
    if len(found) < len(nodes):
        return {node: (0.0, float(i)) for i, node in enumerate(nodes)}, []
    layers = [int(m["layer"]) for m in found.values() if m["layer"]]
    top = 2 * (max(layers, default=-1) + 1) + 1
    width = {
        part: 1 + max((int(m["index"]) for m in found.values() if m["part"] == part), default=0) for part in ("h", "kv")
    }
    places = {}
    for node, m in found.items():
        if m["kind"] is None:
            places[node] = (0.0, 0.0 if node == "input" else float(top))
        elif m["part"] is None:
            y = 2 * int(m["layer"]) + (1 if m["kind"] == "a" else 2)
            places[node] = (-0.7 if m["kind"] == "a" else 0.7, float(y))
        else:
            x = -1 + 2 * (int(m["index"]) + 0.5) / width[m["part"]]
            places[node] = (x, 2 * int(m["layer"]) + (1 if m["part"] == "h" else 0.45))
    step = max(1, math.ceil(len(set(layers)) / 16))
    ticks = [(2 * layer + 1.5, f"layer {layer}") for layer in sorted(set(layers))[::step]]
    return places, [(0.0, "input"), *ticks, (float(top), "logits")]


def has_heads(places: Mapping[str, tuple[float, float]]) -> bool:
    """Whether attention nodes are single heads."""
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
    ends = [(sources[int(i)], destinations[int(j)]) for i, j in zip(rows, columns, strict=True)]
    start = np.array([places[node_of(source)] for source, _ in ends]).reshape(-1, 2)
    end = np.array([places[node_of(destination)] for _, destination in ends]).reshape(-1, 2)
    curves = edge_curves(start, end)
    size = 4 + 12 * np.sqrt(np.abs(values) / max(np.abs(values).max(initial=0), np.finfo(float).tiny))
    edge = [f"{as_text(source)} → {as_text(destination)}" for source, destination in ends]
    scores = [[m[i, j] for m in panels.values()] for i, j in zip(rows, columns, strict=True)]
    hover = "%{text}" + "".join(f"<br>{as_text(n)}: %{{customdata[{i}]:.3g}} nats" for i, n in enumerate(panels))
    strong = np.abs(values) >= STRONG * np.abs(values).max(initial=0)
    nothing = np.full((1, 1, 2), np.nan)
    traces = []
    for sign, colour, label in ((1, POSITIVE, "above zero"), (-1, NEGATIVE, "below zero")):
        for of, width, opacity in ((strong, 2.5, 0.75), (~strong, 1.0, 0.4)):
            chosen = np.flatnonzero((np.sign(values) == sign) & of)
            gaps = np.full((len(chosen), 1, 2), np.nan)
            lines = np.concatenate([curves[chosen], gaps], axis=1) if len(chosen) else nothing
            traces.append(
                go.Scatter(
                    x=lines[..., 0].ravel(), y=lines[..., 1].ravel(), mode="lines",
                    line={"color": colour, "width": width}, opacity=opacity,
                    name=label, legendgroup=label, showlegend=first and of is strong, hoverinfo="skip", connectgaps=False,
                )
            )  # fmt: skip
        chosen = np.flatnonzero(np.sign(values) == sign)
        middle = curves[chosen, curves.shape[1] // 2]
        traces.append(
            go.Scatter(
                x=middle[:, 0], y=middle[:, 1], mode="markers",
                showlegend=False, legendgroup=label, name=label,
                marker={"color": colour, "size": size[chosen], "line": {"width": 0}},
                text=[edge[i] for i in chosen], customdata=[scores[i] for i in chosen],
                hovertemplate=hover + "<extra></extra>",
            )
        )  # fmt: skip
    return traces


def _named(matrix: np.ndarray, sources: Sequence[str], destinations: Sequence[str]) -> str:
    """A second line for a panel's title: its strongest edges by name, as many as have room."""
    rows, columns = np.nonzero(np.isfinite(matrix) & (matrix != 0))
    order = np.argsort(-np.abs(matrix[rows, columns]), kind="stable")[:NAMED]
    names = [f"{sources[int(rows[i])]}→{destinations[int(columns[i])]}" for i in order]
    while len(", ".join(names)) > 24 and len(names) > 1:
        names.pop()
    return f'<br><span style="font-size: 11px">{as_text(", ".join(names))}</span>' if names else ""


def edge_curves(start: np.ndarray, end: np.ndarray, n_points: int = 13) -> np.ndarray:
    """Quadratic curves from start to end that swing out to their own side, `(edge, point, 2)`."""
    t = np.linspace(0, 1, n_points)[None, :, None]
    swing = np.where(start[:, 0] + end[:, 0] > 0, 1.0, -1.0) * 0.09 * np.abs(end[:, 1] - start[:, 1])
    control = (start + end) / 2
    control[:, 0] = np.clip(control[:, 0] + swing, -1.9, 1.9)
    start, end, control = start[:, None], end[:, None], control[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def _node_trace(places: dict[str, tuple[float, float]]) -> go.Scatter:
    crowded, heads = len(places) > 60, has_heads(places)
    return go.Scatter(
        x=[x for x, _ in places.values()],
        y=[y for _, y in places.values()],
        mode="markers" if crowded else "markers+text",
        text=[as_text(node.rpartition(".")[2] if heads else node) for node in places],
        customdata=[as_text(node) for node in places],
        textposition="middle center",
        textfont={"size": 8 if heads else 9},
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
            i, j = map(int, np.unravel_index(np.nanargmax(np.abs(matrix)), matrix.shape))
            said.append(f"largest in {name} is {sources[i]}->{destinations[j]} at {matrix[i, j]:.3g} nats")
    return "; ".join(said) + "." if said else "no edge."
