"""Figures of the controlled study: from the tables of `paradigms.study.controlled.load` to plotly figures of one theme.

1. `effect_forest`: effects with their intervals over seeds and problems, the nulls' spread as a grey band behind them.
2. `seed_dots`: the same claim, every seed a dot, so that nobody has to trust an interval.
3. `alpha_curves`: effects along α. 4. `token_split`: other tokens against other circuit.
5. `dynamics`: a metric against accuracy along training. 6. `lags`: which leads. 7. `exactness`: EAP and EAP-IG against
   ablation.
8. `sensitivity`: which conclusions survive other settings. 9. `interventions`: what forcing intensity did to accuracy.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from paradigms.study.nulls import spread
from paradigms.study.tables import null_of
from rlcircuits.errors import InputError
from rlcircuits.figures import DASHES, NEUTRAL, PALETTE, SYMBOLS, as_text, dress
from rlcircuits.metrics import METRICS

ORDER = ("sft", "sft-more", "rft", "grpo", "ppo", "dpo", "online-dpo")
_BAND = "rgba(127,127,127,0.22)"


def label_of(metric: str) -> str:
    """A metric's name in the text."""
    return METRICS[metric].label if metric in METRICS else metric.replace("_", " ")


def colour_of(paradigm: str) -> str:
    """A paradigm's colour, the same in every figure."""
    known = [p for p in ORDER if p != "sft-more"]
    return (
        NEUTRAL if paradigm == "sft-more" else PALETTE[known.index(paradigm) % 7] if paradigm in known else PALETTE[6]
    )


def in_order(paradigms: Sequence[str]) -> list[str]:
    """Distinct paradigms in the family's order, any others after them."""
    distinct = list(dict.fromkeys(paradigms))
    return [p for p in ORDER if p in distinct] + sorted(p for p in distinct if p not in ORDER)


def change(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``effects`` with ``middle``, ``left``, ``right``: log ratios, for a metric without them differences."""
    use_logs = bool(np.isfinite(table["log_ratio"].astype(float)).all())
    names = ("log_ratio", "log_low", "log_high") if use_logs else ("effect", "low", "high")
    return table.assign(
        **dict(zip(("middle", "left", "right"), (table[n].astype(float) for n in names))), logs=use_logs
    )


def null_spread(values: pd.DataFrame, base: str, metric: str, alpha: float, level: str = "block") -> dict[str, float]:
    """Spread of each null's log ratios (root mean square over seeds and draws); differences where a value is not above
    0.
    """
    rows = values[
        (values["base"] == base)
        & (values["metric"] == metric)
        & (values["alpha"] == alpha)
        & (values["level"] == level)
    ]
    rows = rows.assign(null=rows["paradigm"].map(null_of))
    rows = rows[rows["null"].notna()]
    before, after = rows["bb"].to_numpy(float), rows["tt"].to_numpy(float)
    positive = (before > 0).all() and (after > 0).all()
    rows = rows.assign(part=np.log(after) - np.log(before) if positive else after - before)
    return {null: spread(group["part"]) for null, group in rows.groupby("null")}


def effect_forest(
    effects: pd.DataFrame,
    values: pd.DataFrame,
    metrics: Sequence[str],
    alpha: float = 0.3,
    level: str = "block",
    title: str | None = None,
) -> go.Figure:
    """Log ratios to the base with intervals over seeds and problems; a column per metric, a row per base.

    Args:
        effects, values: of a study.
        metrics: which to show.
        alpha, level: the cell.
        title: the finding, in place of the question.

    Raises:
        InputError: no such rows.
    """
    rows = effects[(effects["alpha"] == alpha) & (effects["level"] == level) & (effects["tokens"] == "own")]
    rows = rows[rows["kind"].isin(["paradigm", "control"]) & rows["metric"].isin(list(metrics))]
    if rows.empty:
        raise InputError(f"the study holds no effects at α = {alpha:g} and level {level!r}")
    bases = list(dict.fromkeys(rows["base"]))
    names = in_order(rows["paradigm"])
    figure = make_subplots(
        rows=len(bases), cols=len(metrics), shared_yaxes=True, shared_xaxes="columns", horizontal_spacing=0.03,
        vertical_spacing=0.12,
        subplot_titles=["<br>".join(textwrap.wrap(label_of(m), 18)) for m in metrics],
        row_titles=[as_text(b) for b in bases] if len(bases) > 1 else None,
    )  # fmt: skip
    said = []
    for r, base in enumerate(bases, start=1):
        for c, metric in enumerate(metrics, start=1):
            one = change(
                rows[(rows["base"] == base) & (rows["metric"] == metric)]
                .set_index("paradigm")
                .reindex(names)
                .dropna(how="all")
            )
            band = max(
                (v for v in null_spread(values, base, metric, alpha, level).values() if np.isfinite(v)), default=np.nan
            )
            figure.add_trace(_dots(one, metric), row=r, col=c)  # first: plotly adds no shapes to an empty panel
            if np.isfinite(band):
                figure.add_vrect(x0=-band, x1=band, fillcolor=_BAND, line_width=0, layer="below", row=r, col=c)
            figure.add_vline(x=0, line={"color": "#333333", "width": 1}, row=r, col=c)
            clear = [n for n in one.index if one["left"][n] > 0 or one["right"][n] < 0]
            said.append(f"{base}, {label_of(metric)}: interval excludes 0 for {', '.join(clear) or 'none'}")
            if r == len(bases):
                unit = "ln(tuned / base)" if one["logs"].all() else "difference"
                figure.update_xaxes(title_text=unit, title_font_size=12, row=r, col=c)
    figure.update_xaxes(nticks=4)
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=[as_text(n) for n in names][::-1])
    over = "seeds and problems" if rows["n_seeds"].max() > 1 else "problems"
    subtitle = f"α = {alpha:g}, {level} level; bars: 95 % over {over}; grey band: the largest null's spread"
    return _dress(
        figure,
        title or "What does each paradigm change, beside the nulls?",
        subtitle,
        ". ".join(said),
        200 + 210 * len(bases),
    )


def _dots(one: pd.DataFrame, metric: str) -> go.Scatter:
    middle, left, right = (one[name].to_numpy(float) for name in ("middle", "left", "right"))
    return go.Scatter(
        x=middle,
        y=[as_text(n) for n in one.index],
        mode="markers",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": right - middle,
            "arrayminus": middle - left,
            "thickness": 1.5,
            "width": 4,
        },
        marker={
            "size": 9,
            "color": [colour_of(n) for n in one.index],
            "symbol": ["diamond-open" if n == "sft-more" else "circle" for n in one.index],
        },
        customdata=np.stack([left, right, one["p_holm"].to_numpy(float), one["n_seeds"].to_numpy(float)], axis=-1),
        hovertemplate="%{y}: %{x:.3g} [%{customdata[0]:.3g}, %{customdata[1]:.3g}]<br>p (Holm) %{customdata[2]:.2g}, "
        "%{customdata[3]} seeds<extra></extra>",
        showlegend=False,
        name=label_of(metric),
    )


def seed_dots(
    values: pd.DataFrame, metric: str = "activation_intensity", alpha: float = 0.3, title: str | None = None
) -> go.Figure:
    """ln(tuned / base) of every seed, paradigms and nulls side by side, block level."""
    rows = values[(values["metric"] == metric) & (values["alpha"] == alpha) & (values["level"] == "block")]
    rows = rows[rows["kind"].isin(["paradigm", "control", "null"])]
    if rows.empty:
        raise InputError(f"the study holds no values of {metric!r} at α = {alpha:g}")
    positive = bool((rows[["bb", "tt"]] > 0).all(axis=None))
    rows = rows.assign(change=np.log(rows["tt"] / rows["bb"]) if positive else rows["tt"] - rows["bb"])
    rows = rows.assign(
        group=[p if k != "null" else f"null: {null_of(p)}" for p, k in zip(rows["paradigm"], rows["kind"])]
    )
    figure = go.Figure()
    for i, (base, part) in enumerate(rows.groupby("base", sort=False)):
        figure.add_trace(
            go.Box(
                x=[as_text(g) for g in part["group"]], y=part["change"], name=as_text(base), boxpoints="all",
                pointpos=0, jitter=0.5,
                fillcolor="rgba(0,0,0,0)", line={"color": "rgba(0,0,0,0)"},
                customdata=part[["seed", "paradigm"]].to_numpy(),
                marker={"color": PALETTE[i], "symbol": SYMBOLS[i], "size": 7}, offsetgroup=str(i),
                hovertemplate="%{customdata[1]}, seed %{customdata[0]}: %{y:.3g}<extra></extra>",
            )
        )  # fmt: skip
    nulls = sorted({g for g in rows["group"] if g.startswith("null: ")})
    order = [as_text(g) for g in (*in_order([g for g in rows["group"] if not g.startswith("null: ")]), *nulls)]
    figure.update_xaxes(categoryorder="array", categoryarray=order)
    figure.update_yaxes(title_text="ln(tuned / base)" if positive else "tuned − base")
    figure.add_hline(y=0, line={"color": "#333333", "width": 1})
    figure.update_layout(boxmode="group")
    means = ", ".join(f"{g} {v:+.2f}" for g, v in rows.groupby("group")["change"].mean().items())
    return _dress(
        figure,
        title or f"Does {label_of(metric)} agree between seeds?",
        f"every dot a seed (or draw); α = {alpha:g}",
        f"Means: {means}.",
        480,
    )


def alpha_curves(effects: pd.DataFrame, metric: str = "activation_intensity", title: str | None = None) -> go.Figure:
    """Effects along α, own tokens, block level; a panel per base."""
    rows = effects[(effects["metric"] == metric) & (effects["level"] == "block") & (effects["tokens"] == "own")]
    rows = change(rows[rows["kind"].isin(["paradigm", "control"])])
    figure, bases = _panels(rows)
    for c, base in enumerate(bases, start=1):
        for i, paradigm in enumerate(in_order(rows["paradigm"])):
            one = rows[(rows["base"] == base) & (rows["paradigm"] == paradigm)].sort_values("alpha")
            middle, left, right = (one[n].to_numpy(float) for n in ("middle", "left", "right"))
            figure.add_trace(
                go.Scatter(
                    x=one["alpha"], y=middle, mode="lines+markers", name=as_text(paradigm), legendgroup=paradigm,
                    showlegend=c == 1,
                    line={"color": colour_of(paradigm), "dash": DASHES[i % len(DASHES)]},
                    marker={"symbol": SYMBOLS[i % len(SYMBOLS)]},
                    error_y={"type": "data", "symmetric": False, "array": right - middle, "arrayminus": middle - left,
                             "width": 3, "thickness": 1},
                ),
                row=1, col=c,
            )  # fmt: skip
    shown = sorted(rows["alpha"].unique())
    figure.update_xaxes(
        title_text="α, share of the answer that is scored",
        type="log",
        tickvals=shown,
        ticktext=[f"{a:g}" for a in shown],
    )
    figure.update_yaxes(title_text="ln(tuned / base)" if rows["logs"].all() else "tuned − base", col=1)
    return _dress(
        figure,
        title or f"Does the change of {label_of(metric)} grow with α?",
        "bars: 95 % over seeds and problems",
        "",
        480,
    )


def token_split(
    effects: pd.DataFrame, metric: str = "activation_intensity", alpha: float = 0.3, title: str | None = None
) -> go.Figure:
    """The effect on own tokens as the sum of other tokens and another circuit; a panel per base."""
    parts = ("other tokens", "other circuit", "own")
    rows = effects[
        (effects["metric"] == metric)
        & (effects["level"] == "block")
        & (effects["alpha"] == alpha)
        & effects["tokens"].isin(parts)
    ]
    rows = change(rows[rows["kind"].isin(["paradigm", "control"])])
    figure, bases = _panels(rows)
    for c, base in enumerate(bases, start=1):
        for i, part in enumerate(parts):
            one = rows[(rows["base"] == base) & (rows["tokens"] == part)].set_index("paradigm")
            one = one.loc[in_order(one.index)]
            middle, left, right = (one[n].to_numpy(float) for n in ("middle", "left", "right"))
            figure.add_trace(
                go.Bar(
                    x=[as_text(n) for n in one.index], y=middle, name="both: own tokens" if part == "own" else part,
                    legendgroup=part,
                    showlegend=c == 1,
                    marker={"color": (PALETTE[5], PALETTE[1], NEUTRAL)[i], "pattern": {"shape": ("", "/", ".")[i]}},
                    error_y={"type": "data", "symmetric": False, "array": right - middle, "arrayminus": middle - left,
                             "width": 3, "thickness": 1},
                ),
                row=1, col=c,
            )  # fmt: skip
    figure.update_layout(barmode="group")
    figure.update_yaxes(title_text="ln(tuned / base)" if rows["logs"].all() else "tuned − base", col=1)
    return _dress(
        figure,
        title or "Other tokens, or another circuit?",
        f"{label_of(metric)}, α = {alpha:g}; the first two add up to the third",
        "",
        460,
    )


def dynamics(
    table: pd.DataFrame, metric: str = "activation_intensity", alpha: float = 0.3, title: str | None = None
) -> go.Figure:
    """A metric against accuracy along training: mean over seeds, one line a paradigm, a panel per base."""
    rows = table[(table["alpha"] == alpha) & (table["paradigm"] != "sft")] if len(table) else table
    if rows.empty:
        raise InputError("the study holds no checkpoints: train families that keep them, and run the study again")
    figure, bases = _panels(rows)
    for c, base in enumerate(bases, start=1):
        for i, paradigm in enumerate(in_order(rows["paradigm"])):
            one = (
                rows[(rows["base"] == base) & (rows["paradigm"] == paradigm)]
                .groupby("update")[[metric, "accuracy", "kl"]]
                .mean()
            )
            figure.add_trace(
                go.Scatter(
                    x=one["accuracy"], y=one[metric], mode="lines+markers", name=as_text(paradigm),
                    legendgroup=paradigm, showlegend=c == 1,
                    line={"color": colour_of(paradigm), "dash": DASHES[i % len(DASHES)]},
                    customdata=np.stack([one.index, one["kl"]], -1),
                    marker={"symbol": SYMBOLS[i % len(SYMBOLS)], "size": np.linspace(4, 11, max(len(one), 1))},
                    hovertemplate="update %{customdata[0]}: accuracy %{x:.3f}, KL %{customdata[1]:.3g}, "
                                  "%{y:.3g}<extra></extra>",
                ),
                row=1, col=c,
            )  # fmt: skip
    figure.update_xaxes(title_text="greedy accuracy")
    unit = METRICS[metric].unit
    figure.update_yaxes(title_text=f"{label_of(metric)}{f' ({unit})' if unit else ''}", col=1)
    if metric == "activation_intensity":
        steps = [m * 10.0**e for e in range(-7, 2) for m in (1, 2, 5)]
        figure.update_yaxes(type="log", tickvals=steps, ticktext=[f"{v:.0e}".replace("e-0", "e-") for v in steps])
    return _dress(
        figure,
        title or f"How do {label_of(metric)} and accuracy move together?",
        "mean over seeds; larger marks are later checkpoints",
        "",
        480,
    )


def lags(
    table: pd.DataFrame, metric: str = "activation_intensity", alpha: float = 0.3, title: str | None = None
) -> go.Figure:
    """Lagged rank correlations of changes of a metric and of accuracy, with intervals over seeds; a panel per base."""
    rows = (
        table[(table["metric"] == metric) & (table["alpha"] == alpha) & (table["lag"] != "lead")]
        if len(table)
        else table
    )
    if rows.empty:
        raise InputError("the study holds no lagged correlations")
    rows = rows.assign(lag=rows["lag"].astype(int))
    figure, bases = _panels(rows)
    names = in_order(rows["paradigm"])
    for c, base in enumerate(bases, start=1):
        for i, paradigm in enumerate(names):
            one = rows[(rows["base"] == base) & (rows["paradigm"] == paradigm)].sort_values("lag")
            figure.add_trace(
                go.Scatter(
                    x=one["lag"] + 0.06 * (i - len(names) / 2), y=one["correlation"], mode="lines+markers",
                    name=as_text(paradigm),
                    legendgroup=paradigm, showlegend=c == 1,
                    line={"color": colour_of(paradigm), "dash": DASHES[i % len(DASHES)], "width": 1},
                    marker={"symbol": SYMBOLS[i % len(SYMBOLS)]},
                    error_y={"type": "data", "symmetric": False, "array": one["high"] - one["correlation"],
                             "arrayminus": one["correlation"] - one["low"], "width": 2, "thickness": 1},
                ),
                row=1, col=c,
            )  # fmt: skip
        figure.add_hline(y=0, line={"color": "#333333", "width": 1}, row=1, col=c)
    figure.update_xaxes(title_text="lag in checkpoints")
    figure.update_yaxes(title_text="rank correlation of changes", range=[-1.05, 1.05], col=1)
    return _dress(
        figure,
        title or f"Does {label_of(metric)} lead accuracy, or follow it?",
        "above 0: the metric comes first; bars: 95 % over seeds",
        "",
        480,
    )


def exactness(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """EAP and EAP-IG against exact ablation: rank correlation, slope, CPR and CMD of every model."""
    quantities = ("rank correlation", "slope", "CPR", "CMD")
    rows = table[table["quantity"].isin(quantities)]
    if rows.empty:
        raise InputError("the study holds no exact ablations")
    rows = rows.assign(model=np.where(rows["side"] == "base", "sft", rows["paradigm"]))
    figure = make_subplots(rows=1, cols=len(quantities), subplot_titles=quantities, horizontal_spacing=0.06)
    names = in_order(rows["model"])
    said = []
    for c, quantity in enumerate(quantities, start=1):
        for i, method in enumerate(("EAP", "EAP-IG", "random")):
            one = rows[(rows["quantity"] == quantity) & (rows["method"] == method)]
            if one.empty:
                continue
            figure.add_trace(
                go.Box(
                    x=[as_text(n) for n in one["model"]], y=one["value"], name=method, legendgroup=method,
                    showlegend=quantity == "CPR",
                    boxpoints="all", pointpos=0, jitter=0.4, fillcolor="rgba(0,0,0,0)",
                    line={"color": "rgba(0,0,0,0)"}, offsetgroup=str(i),
                    marker={"color": (PALETTE[0], PALETTE[1], NEUTRAL)[i], "symbol": SYMBOLS[i], "size": 5},
                ),
                row=1, col=c,
            )  # fmt: skip
            said.append(f"{quantity} of {method}: median {one['value'].median():.2f}")
    figure.update_xaxes(categoryorder="array", categoryarray=[as_text(n) for n in names], tickangle=-60)
    slopes = rows.loc[rows["quantity"] == "slope", "value"]
    if len(slopes):  # a few, of scores that are almost 0, would hide all others
        figure.update_yaxes(range=list(slopes.quantile([0.05, 0.95])), col=1 + quantities.index("slope"))
    figure.update_layout(boxmode="group")
    subtitle = (
        "a dot a model of one seed; slope: exact effect over score, the middle 90 %; "
        "CPR: more is better, CMD: 0 is best"
    )
    return _dress(figure, title or "Is EAP right here?", subtitle, "; ".join(said), 520)


def sensitivity(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Share of conclusions (paradigm × base) that survive each other setting, per metric of the paper."""
    rows = table[table["metric"].isin([m for m, metric in METRICS.items() if metric.paper])] if len(table) else table
    if rows.empty:
        raise InputError("the study holds no other settings")
    rows = rows[~rows["variant"].isin(["reference", "100 bins", "ε = 1e-12"])]
    share = rows.pivot_table(
        index="metric",
        columns="variant",
        values="survives",
        aggfunc=lambda s: float(np.mean(s.astype(float))),
        sort=False,
    )
    count = rows.pivot_table(index="metric", columns="variant", values="survives", aggfunc="size", sort=False)
    text = [[("" if np.isnan(v) else f"{v:.0%}") for v in line] for line in share.to_numpy(float)]
    figure = go.Figure(
        go.Heatmap(
            z=share.to_numpy(float), x=[as_text(v) for v in share.columns], y=[label_of(m) for m in share.index],
            zmin=0, zmax=1, text=text,
            texttemplate="%{text}", customdata=count.to_numpy(float), colorscale=[(0, "#FFFFFF"), (1, PALETTE[5])],
            hoverongaps=False,
            colorbar={"title": {"text": "survive"}, "tickformat": ".0%"}, hovertemplate="%{y}, %{x}: %{z:.0%} of "
                                                                                        "%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(tickangle=-90)
    subtitle = "share of paradigms and bases of the same sign, the interval as before with or without 0"
    return _dress(figure, title or "Which conclusions survive other settings?", subtitle, "", 560)


def interventions(table: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Change of intensity against change of accuracy, for logits scaled and for intensity pushed."""
    rows = table[table["intervention"].isin(["logits scaled", "intensity pushed"])] if len(table) else table
    accuracy = (
        rows[rows["quantity"] == "accuracy"].set_index(["base", "intervention", "setting"]) if len(rows) else rows
    )
    if not len(accuracy):
        raise InputError("the study holds no interventions")
    intensity = rows[rows["quantity"] == "activation_intensity"]
    intensity = intensity[intensity["alpha"] == intensity["alpha"].max()].set_index(["base", "intervention", "setting"])
    both = intensity.join(accuracy, lsuffix="_x", rsuffix="_y", how="inner").reset_index()
    figure = go.Figure()
    for i, ((base, intervention), one) in enumerate(both.groupby(["base", "intervention"], sort=False)):
        arms = {
            f"error_{a}": {
                "type": "data",
                "symmetric": False,
                "array": one[f"high_{a}"] - one[f"effect_{a}"],
                "arrayminus": one[f"effect_{a}"] - one[f"low_{a}"],
                "thickness": 1,
            }
            for a in "xy"
        }
        figure.add_trace(
            go.Scatter(
                x=one["effect_x"], y=one["effect_y"], mode="markers+text",
                text=[as_text(f"× {s}" if intervention == "logits scaled" else s) for s in one["setting"]],
                textposition=("top center", "bottom center", "middle right", "middle left")[i % 4], name=as_text(f"{base}: {intervention}"),
                marker={"color": PALETTE[i], "symbol": SYMBOLS[i], "size": 10}, **arms,
            )
        )  # fmt: skip
    figure.add_hline(y=0, line={"color": "#333333", "width": 1})
    figure.update_xaxes(title_text="change of ln intensity")
    figure.update_yaxes(title_text="change of accuracy")
    return _dress(
        figure,
        title or "Does accuracy follow intensity when it is forced?",
        "bars: 95 % over seeds (and problems, for scaled logits)",
        "",
        480,
    )


def _panels(rows: pd.DataFrame) -> tuple[go.Figure, list[str]]:
    bases = list(dict.fromkeys(rows["base"]))
    if not bases:
        raise InputError("the study holds no such rows")
    titles = [as_text(b) for b in bases]
    return make_subplots(
        rows=1, cols=len(bases), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.05
    ), bases


def _dress(figure: go.Figure, title: str, subtitle: str, alt: str, height: int) -> go.Figure:
    return dress(figure, title, subtitle, f"{subtitle}. {alt}".strip(), height)
