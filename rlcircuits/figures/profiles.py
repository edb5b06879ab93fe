"""Many edges at once: how strong they are, in which layers, from which sources, on which problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from rlcircuits.errors import InputError, choose
from rlcircuits.figures.graph import NODE, node_of
from rlcircuits.figures.theme import NEUTRAL, PALETTE, SYMBOLS, Scores, SignedLog, as_text, dress, line_of, some
from rlcircuits.metrics import METRICS, Edges, compare, edge_values, output_edge_entropy, paired


def size_distribution(scores: Scores, bins: int = 60, title: str | None = None) -> go.Figure:
    """How |W| is distributed over all edges and problems of each model, both axes logarithmic.

    Raises:
        InputError: no model given, or unusable scores.
    """
    sizes = {name: np.abs(edge_values(s)).ravel() for name, s in some(scores).items()}
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
            line={"shape": "hvh", "width": 2, **line_of(i)},
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
    return dress(figure, title or "How are edge strengths distributed?", f"All problems and edges{note}", alt)


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
    for i, (name, array) in enumerate(some(scores).items()):
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
    return dress(figure, title or "In which layers are the strong edges?", "Mean over problems and edges", alt)


def _strengths_from_zero(figure: go.Figure, traces: Sequence[go.Scatter], row: int) -> None:
    """A row's strengths from zero, or on a logarithmic axis where the smaller of them would all lie on zero."""
    sizes = np.concatenate([np.asarray(trace.y, float) for trace in traces])
    sizes = sizes[np.isfinite(sizes)]
    wide = len(sizes) > 0 and sizes.min() > 0 and sizes.max() > 30 * sizes.min()
    figure.update_yaxes(**({"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}), row=row)


def _by_layer(scores: xr.DataArray, dim: str, kind: str) -> pd.Series:
    """Mean |W| per layer over the edges whose source (destination) is attention ("a") or MLP ("m")."""
    sizes = np.abs(scores.transpose("sample", dim, ...).values.astype(np.float64)).mean(axis=0)  # NaN: no edge
    found = [match for n in scores[dim].values if (match := NODE.fullmatch(node_of(str(n))))]
    if len(found) < scores.sizes[dim]:
        raise InputError(f"scores have {dim}s that are no nodes of a residual graph; expected input, a0, m0, …, logits")
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
    return 1 + max((int(m["layer"]) for n in names if (m := NODE.fullmatch(str(n))) and m["layer"]), default=0)


def source_profile(scores: Scores, title: str | None = None) -> go.Figure:
    """Each source's mean |W| over its outgoing edges, and their output-edge entropy, for several models.

    Raises:
        InputError: no model given, or unusable scores.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    said = []
    for i, (name, array) in enumerate(some(scores).items()):
        edge_values(array)  # its checks
        array = array.transpose("sample", "source", "destination")
        sizes = np.abs(array.values.astype(np.float64)).mean(axis=0)
        real = np.isfinite(sizes).sum(axis=1)
        mean = np.divide(np.nansum(sizes, axis=1), real, out=np.full(len(real), np.nan), where=real > 0)
        entropy = output_edge_entropy(array).values
        defined = np.isfinite(entropy).sum(axis=0)
        entropy = np.divide(np.nansum(entropy, axis=0), defined, out=np.full(len(real), np.nan), where=defined > 0)
        names = [str(n) for n in array["source"].values]
        for row, values in enumerate((mean, entropy), start=1):
            figure.add_trace(
                go.Scatter(
                    x=[as_text(n) for n in names],
                    y=values,
                    mode="lines+markers",
                    line=line_of(i),
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
    return dress(figure, title or "Which sources write strongly, and how widely?", "Mean over problems", alt, 560)


def sample_scatter(
    base: xr.DataArray,
    tuned: xr.DataArray,
    metric: str = "activation_intensity",
    names: Sequence[str] = ("base", "tuned"),
    title: str | None = None,
) -> go.Figure:
    """One metric of each problem, base against tuned, and the two means with 95 % bootstrap intervals over problems.

    On the dashed diagonal nothing changed. The subtitle has the mean change, paired by problem, with its interval
    (`rlcircuits.compare`).

    Raises:
        InputError: an unknown metric or one of the whole set of problems, or two models that cannot be
            paired.
    """
    each = {name: function for name, one in METRICS.items() if (function := one.per_sample)}
    measure = each[choose("metric", metric, each)]
    known = METRICS[metric]
    base, tuned = paired(base, tuned)
    x, y = (measure(s).values for s in (base, tuned))
    finite = np.concatenate([x, y])[np.isfinite(np.concatenate([x, y]))]
    log = finite.size > 0 and finite.min() > 0 and finite.max() > 20 * finite.min()
    row = compare(base, tuned, [metric]).loc[metric]
    change, low, high = row["difference"], row["low"], row["high"]
    figure = go.Figure()
    if finite.size:
        ends = np.log10([finite.min(), finite.max()]) if log else np.array([finite.min(), finite.max()])
        pad = 0.05 * np.ptp(ends) or 0.05 * abs(ends[0]) or 1.0
        ends = ends + [-pad, pad]
        line = 10**ends if log else ends
        figure.add_scatter(
            x=line, y=line, mode="lines", line={"color": NEUTRAL, "dash": "dash"}, name="no change", hoverinfo="skip"
        )  # fmt: skip
        figure.update_xaxes(range=ends)
        figure.update_yaxes(range=ends)
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker={"color": PALETTE[0], "size": 8, "opacity": 0.7},
        text=[as_text(i) for i in base["sample"].values],
        name="problems",
        hovertemplate="%{text}<br>%{x:.4g} → %{y:.4g}<extra></extra>",
    )
    if len(x) > 1 and np.isfinite([x, y]).all():
        figure.add_trace(_means(*_mean_intervals(x, y), known.unit))
    unit = f" ({known.unit})" if known.unit else ""
    for update, name in ((figure.update_xaxes, names[0]), (figure.update_yaxes, names[1])):
        update(title_text=f"{as_text(name)}{unit}", type="log" if log else "linear", exponentformat="power")
        if log and finite.max() > 100 * finite.min():
            update(dtick=1)
    up = int((y > x).sum())
    moved = (
        f"mean change {change:+.3g} [{low:.3g}, {high:.3g}]"
        if np.isfinite([low, high]).all()
        else f"mean change {change:+.3g}"
    )
    return dress(
        figure,
        title or f"Does {known.label} change on each problem?",
        f"One dot a problem; higher in {as_text(names[1])} on {up} of {len(x)}; {moved}",
        f"{known.label} of {len(x)} problems, {names[0]} against {names[1]}: higher in {names[1]} on {up}; "
        f"{moved}{unit}.",
        520,
    )


def edge_scatter(
    base: xr.DataArray,
    tuned: xr.DataArray,
    edge: str,
    names: Sequence[str] = ("base", "tuned"),
    title: str | None = None,
) -> go.Figure:
    """One edge's score on each problem, base against tuned, and the two means with 95 % bootstrap intervals over
    problems.

    Raises:
        InputError: no such edge, or two models that cannot be paired.
    """
    base, tuned = paired(base, tuned)
    x, y = (Edges(scores)[edge].values.astype(np.float64) for scores in (base, tuned))
    if not np.isfinite(x).all():
        raise InputError(
            f"{edge!r} is not an edge of this graph: its destination reads the stream before its source writes"
        )
    middle, bounds = _mean_intervals(x, y)
    figure = go.Figure()
    across, along = SignedLog(x, y), SignedLog(y, x)
    ends = across.line()
    ends = ends[np.abs(ends) <= along.reach]
    figure.add_scatter(
        x=across(ends),
        y=along(ends),
        mode="lines",
        line={"color": NEUTRAL, "dash": "dash"},
        name="no change",
        hoverinfo="skip",
    )
    figure.add_scatter(
        x=across(x), y=along(y), mode="markers", name="problems",
        marker={"color": PALETTE[0], "size": 7, "opacity": 0.6},
        customdata=np.stack([x, y], axis=-1), text=[as_text(i) for i in base["sample"].values],
        hovertemplate="%{text}<br>%{customdata[0]:.3g} → %{customdata[1]:.3g} nats<extra></extra>",
    )  # fmt: skip
    figure.add_trace(_means(middle, bounds, "nats", across, along))
    figure.update_xaxes(title_text=f"{as_text(names[0])} (nats)", **across.axis())
    figure.update_yaxes(title_text=f"{as_text(names[1])} (nats)", **along.axis())
    up = int((y > x).sum())
    said = "; ".join(
        f"{name} {m:.3g} [{b[0]:.3g}, {b[1]:.3g}]" for name, m, b in zip(names, middle, bounds, strict=True)
    )
    return dress(
        figure,
        title or f"Does {as_text(edge)} carry more after tuning?",
        f"One dot a problem; higher in {as_text(names[1])} on {up} of {len(x)}; axes logarithmic away from 0",
        f"Scores of {edge} on {len(x)} problems, {names[0]} against {names[1]}; means {said} nats.",
        520,
    )


def _mean_intervals(x: np.ndarray, y: np.ndarray) -> tuple[list[float], list[np.ndarray]]:
    """The means of base and tuned, and the 95 % bootstrap interval of each, the same problems drawn for both."""
    draws = np.random.default_rng(0).integers(0, len(x), (2000, len(x)))
    return [v.mean() for v in (x, y)], [np.quantile(v[draws].mean(axis=1), [0.025, 0.975]) for v in (x, y)]


def _means(
    middle: list[float], bounds: list[np.ndarray], unit: str, across: Any = np.asarray, along: Any = np.asarray
) -> go.Scatter:
    """What `_mean_intervals` found as one mark with bars; `across` and `along` say where on the axes values are."""
    bars = [
        {
            "type": "data",
            "symmetric": False,
            "array": axis([b[1]]) - axis([m]),
            "arrayminus": axis([m]) - axis([b[0]]),
            "thickness": 2,
        }
        for axis, m, b in zip((across, along), middle, bounds, strict=True)
    ]
    return go.Scatter(
        x=across(middle[:1]), y=along(middle[1:]), mode="markers", name="mean, 95 % interval", error_x=bars[0],
        error_y=bars[1],
        marker={"color": PALETTE[1], "size": 12, "symbol": "diamond"}, customdata=[[*middle, *bounds[0], *bounds[1]]],
        hovertemplate="%{customdata[0]:.3g} [%{customdata[2]:.3g}, %{customdata[3]:.3g}] → "
        f"%{{customdata[1]:.3g}} [%{{customdata[4]:.3g}}, %{{customdata[5]:.3g}}] {unit}<extra>means</extra>",
    )  # fmt: skip
