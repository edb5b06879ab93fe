"""How much would be needed to tell an effect from the nulls: problems of one pair, and runs of one recipe.

1. A log ratio of size |δ| is estimated from k independent units, problems or runs, whose log ratios have the standard
   deviation s: its error is about normal, of size s / √k.
2. It is **told from 1** when a two-sided test at 5 % rejects 1 with a probability of 80 %: k ≥ ((z₀.₉₇₅ + z₀.₈) s / |δ|)².
3. It is **told from a null** that goes as far as ν when the estimate is beyond ν with that probability:
   k ≥ (z₀.₈ s / (|δ| − ν))², and by no k when |δ| ≤ ν.
4. Between problems, s is read from the intervals of the real model, one run of each member: half of the width over z₀.₉₇₅,
   times √problems; the nulls are more supervised steps and weight noise, which do not shrink with problems.
5. Between runs, s is the standard deviation over seeds of the small families, pooled over bases and paradigms (it holds the
   draw of 100 problems, too); the nulls are the families' spreads between single pairs.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from paradigms.paper import published
from paradigms.study import real_words as real
from paradigms.study.controlled import Results
from paradigms.study.finding import INTENSITY, PER_GRADIENT, WHOLE, standing
from paradigms.study.nulls import CONTROL, NOISE
from rlcircuits.errors import InputError

LEVEL, POWER = 0.05, 0.8
NEVER = "none: within the nulls"


def needed(effect: float, deviation: float, null: float = 0.0, power: float = POWER) -> float:
    """Units (problems, runs) that tell an effect from 1 and from the nulls; infinite where no number does.

    Args:
        effect: a log ratio, whichever its sign.
        deviation: standard deviation of the units' log ratios.
        null: how far the nulls go, as a log ratio.
        power: the probability with which it is to be told.

    Raises:
        InputError: a deviation or null below 0, or a power that is no probability above the level's half.

    >>> needed(math.log(2), 0.5)
    5.0
    """
    from scipy.stats import norm

    if deviation < 0 or null < 0 or not LEVEL / 2 < power < 1:
        raise InputError(
            f"deviation {deviation:g}, null {null:g}, power {power:g}: expected sizes of at least 0 and a power between "
            f"{LEVEL / 2:g} and 1"
        )
    if not math.isfinite(effect + deviation + null):
        return math.nan
    if abs(effect) <= null:
        return math.inf
    test, beyond = (float(norm.ppf(share)) for share in (1 - LEVEL / 2, power))
    from_one = (test + beyond) * deviation / abs(effect)
    from_null = max(beyond, 0.0) * deviation / (abs(effect) - null)
    return float(max(1, math.ceil(max(from_one, from_null) ** 2)))


def between_problems(tables: real.Tables, metric: str) -> float:
    """Standard deviation of a metric's log ratio between problems: the median over the real model's members."""
    from scipy.stats import norm

    rows = tables["effects"]
    rows = rows[(rows["metric"] == metric) & (rows["alpha"] == WHOLE) & (rows["level"] == "block")]
    rows = rows[(rows["tokens"] == "own") & ~rows["paradigm"].str.startswith(NOISE) & (rows["n_seeds"] == 1)]
    half = (rows["log_high"] - rows["log_low"]).astype(float) / 2
    return float((half / norm.ppf(1 - LEVEL / 2) * np.sqrt(rows["n_problems"].astype(float))).median())


def between_runs(results: Results, metric: str) -> float:
    """Standard deviation of a metric's log ratio between seeds, pooled over the families' bases and paradigms."""
    rows = results.values
    rows = rows[(rows["metric"] == metric) & (rows["alpha"] == WHOLE) & (rows["level"] == "block")]
    rows = rows[rows["kind"] == "paradigm"]
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log((rows["tt"] / rows["bb"]).astype(float))
    groups = logs[np.isfinite(logs)].groupby([rows["base"], rows["paradigm"]])
    free = groups.size() - 1
    squares = groups.var(ddof=1) * free
    return float(np.sqrt(squares.sum() / free[free > 0].sum())) if (free > 0).any() else math.nan


def table(results: Results, tables: real.Tables) -> pd.DataFrame:
    """For effects of several sizes, how many problems of one pair and how many runs of one recipe would tell them.

    Returns:
        A row per measure and size. ``size``: a log ratio, the median over paradigms, or over the published cells;
        ``problems``, ``runs``: what `needed` gives against 1; ``problems_null``, ``runs_null``: against the nulls, too;
        ``null``, ``null_runs``: how far those go.
    """
    rows = []
    for measure, metric in (("first order", INTENSITY), ("per gradient", PER_GRADIENT)):
        found, changes = standing(results, metric), real.effects(tables, metric, WHOLE)["log_ratio"]
        problems, runs = between_problems(tables, metric), between_runs(results, metric)
        steady = [name == CONTROL or str(name).startswith(NOISE) for name in changes.index]
        nulls = float(changes[steady].abs().max()), float(found["null"].max())
        trained = found.index.get_level_values("paradigm") != CONTROL
        sizes = {
            "small families": found.loc[trained, "middle"].abs().median(),
            "SmolLM2": changes.reindex(real.paradigms_of(tables)).abs().median(),
        }
        if metric == INTENSITY:
            cells = [[float(value) for value in cell[metric]] for cell in published()["cells"]]
            sizes["published"] = np.median([abs(math.log(after / before)) for before, after in cells])
        for of, size in sizes.items():
            counts = {
                "problems": needed(size, problems), "problems_null": needed(size, problems, nulls[0]),
                "runs": needed(size, runs), "runs_null": needed(size, runs, nulls[1]),
            }  # fmt: skip
            rows.append(
                {
                    "measure": measure,
                    "as large as": of,
                    "size": float(size),
                    **counts,
                    "null": nulls[0],
                    "null_runs": nulls[1],
                }
            )
    return pd.DataFrame(rows).set_index(["measure", "as large as"])


def shown(found: pd.DataFrame) -> pd.DataFrame:
    """`table` for reading: factors, and whole numbers or why there is none."""
    columns = {("", "a change by"): [f"× {math.exp(size):.2f}" for size in found["size"]]}
    for unit, head in (("problems", "problems of one pair, to tell it"), ("runs", "runs of one recipe, to tell it")):
        columns[head, "from 1"] = [count(k) for k in found[unit]]
        columns[head, "from nulls"] = [count(k) for k in found[f"{unit}_null"]]
    return pd.DataFrame(columns, index=found.index)


def count(units: float) -> str:
    """A number of units as text.

    >>> count(1200.0), count(math.inf), count(math.nan)
    ('1,200', 'none: within the nulls', 'not measured')
    """
    return "not measured" if math.isnan(units) else NEVER if math.isinf(units) else f"{units:,.0f}"


def sentence(found: pd.DataFrame) -> str:
    """What would tell a first-order change of the published size, and of the small families', from 1 and from the nulls."""
    said = []
    for of, lead in (("published", "as was published"), ("small families", "as the small families'")):
        if ("first order", of) in found.index:
            row = found.loc[("first order", of)]
            both = [
                f"{_many(row[f'problems{end}'], 'problem')} or {_many(row[f'runs{end}'], 'run')}"
                for end in ("", "_null")
            ]
            if math.isinf(row["problems_null"]) and math.isinf(row["runs_null"]):
                both[1] = "no number"
            ends = "both" if both[0] == both[1] else "1"
            text = f"one as large {lead} (× {math.exp(row['size']):.2f}) from {ends} by {both[0]}"
            said.append(text + ("" if ends == "both" else f", from the nulls by {both[1]}"))
    if not said:
        return "What would tell a change of a published pair was not computed."
    return f"In four of five tries a change is told from 1 and from the nulls: {'; '.join(said)}."


def _many(units: float, noun: str) -> str:
    if math.isinf(units):
        return f"no number of {noun}s"
    return f"an unknown number of {noun}s" if math.isnan(units) else f"{units:,.0f} {noun}{'' if units == 1 else 's'}"
