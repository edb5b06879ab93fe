"""The small families and the real model side by side: intensity of whole answers over each one's base, measured in three ways.

1. A **way** is one of `WAYS`: to first order, to first order per gradient at the logits, or by removing edges.
2. A **null** of a model and a way is how far the largest of its nulls goes. Of removals only more supervised steps are one.
3. Each change is judged by the one rule, `rlcircuits.metrics.support`, as "intensity rises".
4. Intervals of the families are over seeds; those of the real model, one seed, over problems, and of its removals also over
   the edges that were drawn, a member's taken as independent of the base's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from paradigms.study import real_words as real
from paradigms.study.controlled import Results
from paradigms.study.finding import INTENSITY, PER_GRADIENT, WHOLE, arranged, named, removals, span, standing
from paradigms.study.finding_figures import Series, factors_figure
from paradigms.study.nulls import CONTROL, spread
from paradigms.study.words import listed
from rlcircuits.figures import PALETTE
from rlcircuits.metrics import support

WAYS = {
    "first order": ("first-order (EAP)", "To first order", PALETTE[1], "circle"),
    "per gradient": ("per gradient at the logits (EAP)", "Per gradient at the logits", PALETTE[5], "square"),
    "exact": ("edges removed (exact)", "By removing edges", PALETTE[2], "diamond"),
}
REAL = "smollm2"
NULL = "largest null"
COLUMNS = {"log_ratio": "middle", "log_low": "left", "log_high": "right"}


def compared(results: Results, tables: real.Tables) -> pd.DataFrame:
    """Every change that was measured, in log ratios.

    Args:
        results: the controlled study.
        tables: the real model's study, as `paradigms.study.real_words.load` reads it.

    Returns:
        Index model, way, paradigm; ``middle``, ``left``, ``right``, ``null`` and ``word`` of `rlcircuits.metrics.support`.
    """
    found = []
    for way, metric in (("first order", INTENSITY), ("per gradient", PER_GRADIENT)):
        table = standing(results, metric)
        found += [_row(*index, way, row) for index, row in table.iterrows()]
        rows, (null, _) = real.effects(tables, metric, WHOLE), real.largest_null(tables, metric, WHOLE)
        rows = rows.rename(columns=COLUMNS).assign(null=null)
        found += [_row(REAL, name, way, rows.loc[name]) for name in _members(tables, rows.index)]
    exact = removals(results)
    for base in dict.fromkeys(exact.index.get_level_values("base")) if len(exact) else ():
        one = exact.xs((base, "exact"), level=("base", "method")).assign(null=_exact_null(results, base))
        found += [_row(base, name, "exact", one.loc[name]) for name in arranged(one.index)]
    rows = real.removals(tables).rename(columns=COLUMNS)
    found += [_row(REAL, name, "exact", rows.loc[name]) for name in _members(tables, rows.index)]
    columns = ["model", "way", "paradigm", "middle", "left", "right", "null", "word"]
    return pd.DataFrame(found, columns=columns).set_index(columns[:3])


def _members(tables: real.Tables, known: Sequence[str]) -> list[str]:
    return [name for name in arranged([*real.paradigms_of(tables), CONTROL]) if name in known]


def _row(model: str, paradigm: str, way: str, row: pd.Series) -> dict:
    numbers = {name: float(row[name]) for name in ("middle", "left", "right", "null")}
    word = support(numbers["middle"], numbers["left"], numbers["right"], null=numbers["null"], factor=True).word
    return {"model": model, "way": way, "paradigm": paradigm, **numbers, "word": word}


def _exact_null(results: Results, base: str) -> float:
    """Root mean square, over seeds, of what more supervised steps do to exact intensity."""
    rows = results.exactness
    rows = rows[
        (rows["base"] == base) & (rows["paradigm"] == CONTROL) & (rows["alpha"] == WHOLE) & (rows["method"] == "exact")
        & (rows["quantity"] == INTENSITY)
    ] if len(rows) else rows  # fmt: skip
    if not len(rows):
        return math.nan
    wide = rows.pivot_table(index="seed", columns="side", values="value")
    return spread(np.log(wide["tuned"] / wide["base"]))


def figure(
    results: Results, tables: real.Tables, title: str = "Does a real model show what the small families show?"
) -> go.Figure:
    """Every change that was measured with its interval: a panel a model, a row a paradigm, the largest nulls last."""
    table = compared(results, tables)
    series: list[Series] = []
    for way, (name, _, colour, symbol) in WAYS.items():
        one = table[table.index.get_level_values("way") == way].droplevel("way")
        nulls = one.groupby(level="model", sort=False)["null"].first()
        index = pd.MultiIndex.from_product([nulls.index, [NULL]], names=one.index.names)
        reach = pd.DataFrame(
            {"middle": 0.0 * nulls.to_numpy(), "left": -nulls.to_numpy(), "right": nulls.to_numpy()}, index
        )
        series.append((name, colour, symbol, pd.concat([one[["middle", "left", "right"]], reach])))
    rows = [named(name) for name in arranged(table.index.get_level_values("paradigm"))]
    subtitle = "whole answers; bars: 95 % over seeds (SmolLM2: one, over problems); last row: nulls"
    heads = {REAL: named(REAL)}
    return factors_figure(series, [*rows, NULL], {}, title, subtitle, "tuned / base", heads)


def sentences(table: pd.DataFrame) -> str:
    """What `compared` holds, as a list: way by way and model by model, which paradigms raise intensity, and by how much."""
    models = list(dict.fromkeys(table.index.get_level_values("model")))
    return "\n".join(
        f"- *{lead}*: {'; '.join(_of(table, one, way) for one in models)}." for way, (_, lead, *_) in WAYS.items()
    )


def on_every_model(table: pd.DataFrame) -> str:
    """Which paradigms raise intensity beyond the nulls on every model, of those that every model has; "" for one model."""
    models = list(dict.fromkeys(table.index.get_level_values("model")))
    said = []
    for way, (_, lead, *_) in WAYS.items() if len(models) > 1 else ():
        one = table[table.index.get_level_values("way") == way].droplevel("way")
        words = one["word"].unstack("model").reindex(columns=models).dropna()
        words = words[words.index != CONTROL]
        if len(words):
            every = [name for name in arranged(words.index) if (words.loc[name] == "supported").all()]
            by = f" ({span(one.loc[one.index.isin(every, level='paradigm'), 'middle'], 2)})" if every else ""
            said.append(f"{lead[0].lower()}{lead[1:]} after {listed([named(name) for name in every])}{by}")
    return f"**A rise beyond the nulls on every model**: {'; '.join(said)}." if said else ""


def _of(table: pd.DataFrame, model: str, way: str) -> str:
    """One model in one way: "SmolLM2 × 0.74 to × 1.00, a rise after none of 4, a fall after GRPO"."""
    rows = table[(table.index.get_level_values("model") == model) & (table.index.get_level_values("way") == way)]
    rows = rows.droplevel(["model", "way"])
    rows = rows[(rows.index != CONTROL) & np.isfinite(rows["middle"])]
    if not len(rows):
        return f"{named(model)} not measured"
    up, down = ([named(p) for p in rows.index[rows["word"] == word]] for word in ("supported", "contradicted"))
    if len(rows) > 1 and len(up) in (0, len(rows)):
        which = f"{'all' if up else 'none of'} {len(rows)}"
    else:
        which = f"{len(up)} of {len(rows)} ({listed(up)})" if len(rows) > 1 else listed(up)
    fall = f", a fall after {listed(down)}" if down else ""
    return f"{named(model)} {span(rows['middle'], 2)}, a rise after {which}{fall}"
