"""One sentence for each use of edge scores, from the table of `rlcircuits.trust`.

A use is judged by one quantity. The method with the best value is named, with its interval; methods whose intervals
overlap with its own are said to be no different; where the interval reaches what a random order gives, the sentence
says that the scores say nothing.
"""

from __future__ import annotations

import math
from typing import Any, cast

import pandas as pd

RANDOM = "random"
#: values from which a use is served well, and roughly
GOOD = {"rank correlation of sizes": (0.8, 0.5), "overlap": (0.7, 0.4), "sign agreement": (0.9, 0.75)}
GOOD |= {"stability of ranks": (0.9, 0.7)}
#: largest factor between score and effect that still counts as the right size, and as the right order of magnitude
FACTORS = (1.5, 4.0)
UNKNOWN = "cannot be told from these runs."


def sentences(table: pd.DataFrame, strongest: float) -> dict[str, str]:
    """By use one sentence.

    Args:
        table: by method and quantity: value, low, high.
        strongest: share that counts as the strongest.
    """
    few = f"{100 * strongest:.3g} %"
    return {
        "ranking many edges": _ranked(
            table, "rank correlation of sizes", "rank correlation of sizes", "orders edges by size"
        ),
        "finding the few large ones": _ranked(
            table, "overlap", f"part of the strongest {few} found", f"finds the strongest {few}"
        ),
        "size": _size(table),
        "sign": _ranked(table, "sign agreement", "same sign", "has the effect's sign"),
        "circuit": _circuit(table),
        "other problems": _ranked(
            table,
            "stability of ranks",
            "rank correlation of two halves of the problems",
            "keeps its order on other problems",
        ),
    }


def with_interval(value: float, low: float, high: float) -> str:
    """A value with its interval, if it has one: where every edge was run there is nothing left to be unsure of."""
    certain = math.isnan(low) or math.isnan(high) or low == high
    return f"{value:.2f}" + ("" if certain else f" [{low:.2f}, {high:.2f}]")


def _value(row: pd.Series) -> str:
    return with_interval(row["value"], row["low"], row["high"])


def _rows(table: pd.DataFrame, quantity: str) -> tuple[Any, float]:
    """The methods' rows that have a value, and the random ranking's value."""
    rows = table.xs(quantity, level="quantity")
    chance = float(cast(Any, rows.loc[RANDOM, "value"])) if RANDOM in rows.index else math.nan
    rows = rows.drop(index=RANDOM, errors="ignore")
    return rows[rows["value"].notna()], chance


def _alike(rows: pd.DataFrame, best: str) -> str:
    """Which others the interval of the best does not tell from it."""
    chosen = rows.loc[best]
    others = [
        str(name)
        for name, row in rows.drop(index=best).iterrows()
        if not (row["high"] < chosen["low"] or row["low"] > chosen["high"])  # a missing end tells nothing apart
    ]
    return f"; no clear difference to {' and '.join(others)}" if others else ""


def _ranked(table: pd.DataFrame, quantity: str, label: str, does: str) -> str:
    rows, chance = _rows(table, quantity)
    if rows.empty:
        return UNKNOWN
    best = str(rows["value"].idxmax())
    row: Any = rows.loc[best]
    bound = row["value"] if math.isnan(row["low"]) else row["low"]
    numbers = f"{label} {_value(row)}, {chance:.2f} at random" if math.isfinite(chance) else f"{label} {_value(row)}"
    if math.isfinite(chance) and bound <= chance:
        return f"no score is shown to be better than a random order; {best} comes nearest ({numbers})."
    well, roughly = GOOD[quantity]
    how = (
        "well"
        if row["value"] >= well
        else "roughly"
        if row["value"] >= roughly
        else "poorly, though better than chance"
    )
    return f"{best} {does} {how} ({numbers}){_alike(rows, best)}."


def _size(table: pd.DataFrame) -> str:
    rows, _ = _rows(table, "median slope")
    if rows.empty:
        return UNKNOWN
    positive = rows[rows["value"] > 0]
    if positive.empty:
        return "no score has the size of the effects: the median effect is against the score's sign."
    best = str(positive["value"].map(lambda slope: abs(math.log(slope))).idxmin())
    row: Any = positive.loc[best]
    factor = max(row["value"], 1 / row["value"])
    numbers = f"median effect / score {_value(row)}"
    if factor <= FACTORS[0]:
        return f"{best} has about the size of the effects ({numbers}); single edges differ from it."
    if factor <= FACTORS[1]:
        return f"{best} has the order of magnitude of the effects ({numbers})."
    return f"no score has the size of the effects ({best} comes nearest: {numbers}); take it from exact_metrics."


def _circuit(table: pd.DataFrame) -> str:
    rows, chance = _rows(table, "CMD")
    if rows.empty:
        return "not measured."
    best = str(rows["value"].idxmin())
    row: Any = rows.loc[best]
    low: Any = table.loc[(RANDOM, "CMD"), "low"] if RANDOM in table.index.get_level_values(0) else math.nan
    bar = chance if math.isnan(low) else float(low)
    numbers = f"CMD {_value(row)}" + (f", {chance:.2f} for random edges" if math.isfinite(chance) else "")
    worst = row["value"] if math.isnan(row["high"]) else row["high"]
    if math.isfinite(bar) and worst >= bar:
        return f"no circuit is shown to be nearer to the model than random edges; {best}'s comes nearest ({numbers})."
    return f"{best}'s strongest edges stay nearest to the model ({numbers}){_alike(rows, best)}."
