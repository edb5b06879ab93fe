"""The real model's study in words and tables, computed from its tables.

A factor is tuned over base; a **null** is the largest of what more supervised steps, weight noise and another half of the
problems do to the same metric. One seed was trained: intervals are over problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from paradigms.study.figures import in_order
from paradigms.study.nulls import CONTROL, NOISE
from paradigms.study.words import amount, counted, listed
from rlcircuits.errors import InputError
from rlcircuits.exactness import with_interval
from rlcircuits.metrics import support

Tables = Mapping[str, pd.DataFrame]
NAMES = ("members", "problems", "shown", "effects", "values", "halves", "all_answers", "trust", "exact")
INTENSITY, PER_GRADIENT = "activation_intensity", "intensity_per_gradient"


def load(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables that `paradigms.study.real` wrote, by name; those that are not there are left out.

    Raises:
        InputError: a folder without ``members.parquet``.
    """
    found = {
        name: pd.read_parquet(Path(folder) / f"{name}.parquet")
        for name in NAMES
        if (Path(folder) / f"{name}.parquet").is_file()
    }
    if "members" not in found:
        raise InputError(
            f"{str(folder)!r} holds no members.parquet: expected the tables of `python -m paradigms.study.real`"
        )
    return found


def paradigms_of(tables: Tables) -> list[str]:
    """The members that some paradigm made: all but the base and the nulls."""
    known = [
        name for name in tables["members"]["member"] if name != "sft" and name != CONTROL and not name.startswith(NOISE)
    ]
    return in_order(known)


def effects(tables: Tables, metric: str, alpha: float, level: str = "block", tokens: str = "own") -> pd.DataFrame:
    """By member and null, the factor with its interval, p, and the spread between halves of the problems.

    Returns:
        Index paradigm; columns log_ratio, log_low, log_high, p.
    """
    table = tables["effects"]
    rows = table[
        (table["metric"] == metric)
        & (table["alpha"] == alpha)
        & (table["level"] == level)
        & (table["tokens"] == tokens)
    ]
    return rows.set_index("paradigm")[["log_ratio", "log_low", "log_high", "p"]].astype(float)


def largest_null(tables: Tables, metric: str, alpha: float, level: str = "block") -> tuple[float, str]:
    """The largest absolute log ratio of the nulls, and which one it is; NaN and nothing when there is none."""
    found = {}
    for name, row in effects(tables, metric, alpha, level).iterrows():
        if name == CONTROL:
            found["more supervised steps"] = abs(row["log_ratio"])
        elif str(name).startswith(NOISE):
            found["weight noise"] = abs(row["log_ratio"])
    halves = tables["halves"]
    rows = halves[(halves["metric"] == metric) & (halves["alpha"] == alpha) & (halves["level"] == level)]
    if len(rows):
        found["another half of the problems"] = float(rows["spread"].iloc[0])
    found = {name: size for name, size in found.items() if math.isfinite(size)}
    largest = max(found, key=lambda name: found[name], default="")
    return found.get(largest, math.nan), largest


def beyond(tables: Tables, metric: str, alpha: float, level: str = "block") -> list[str]:
    """The paradigms whose interval leaves out a factor of 1 and whose factor is beyond the largest null."""
    table, (null, _) = effects(tables, metric, alpha, level), largest_null(tables, metric, alpha, level)
    found = []
    for name in paradigms_of(tables):
        if name in table.index:
            row = table.loc[name]
            if support(row["log_ratio"], row["log_low"], row["log_high"], null=null).word != "open":
                found.append(name)
    return found


def factor(row: pd.Series) -> str:
    """A factor with its interval."""
    return amount(float(row["log_ratio"]), float(row["log_low"]), float(row["log_high"]), "log ratio")


def gains(tables: Tables) -> str:
    """Which members answer better than the base, in a sentence."""
    table = tables["members"].set_index("member")
    some = [name for name in table.index if name != "sft" and not name.startswith(NOISE)]
    better = [name for name in some if table.loc[name, "gain_low"] > 0]
    worse = [name for name in some if table.loc[name, "gain_high"] < 0]
    base = table.loc["sft"]
    said = f"The base answers {base['accuracy']:.0%} of {base['problems']:.0f} test problems correctly"
    if not some:
        return said + "."
    if not better and not worse:
        least, most = table.loc[some, "gain"].min(), table.loc[some, "gain"].max()
        return f"{said}; no member is shown to answer better or worse ({100 * least:+.1f} to {100 * most:+.1f} points, each interval holds 0)."
    parts = [f"{counted(better, 'answer better')}"] + ([counted(worse, "answer worse")] if worse else [])
    return f"{said}; of its descendants {' and '.join(parts)} beyond chance."


def mistakes(tables: Tables) -> str:
    """Where wrong answers first go wrong, of the base and of all its descendants by a paradigm, in a sentence."""
    table = tables["problems"]
    wrong = table[(table["mistake"] != "") & table["member"].isin(["sft", *paradigms_of(tables)])]
    base, others = (
        wrong.loc[rows, "mistake"] == "calculation" for rows in (wrong["member"] == "sft", wrong["member"] != "sft")
    )
    return (
        f"Of the base's {len(base)} wrong answers {base.sum()} first go wrong in a calculation that is the right one to make, of the "
        f"{len(others)} of its descendants by a paradigm {others.sum()}."
    )


def drifts(tables: Tables) -> str:
    """How far from the base each training ended, in a sentence."""
    table = tables["members"].set_index("member").loc[paradigms_of(tables), "kl"].dropna().sort_values()
    if table.empty:
        return "No training's divergence is on record."
    least, most = table.index[0], table.index[-1]
    return (
        f"The trainings end at a divergence from the base of {table[least]:.3f} ({least}) to {table[most]:.3f} ({most}) nats a "
        f"token, at a median of {table.median():.3f}."
    )


def changes(tables: Tables, alpha: float, metric: str = INTENSITY) -> str:
    """What the paradigms did to a metric, beside the largest null, in a few sentences."""
    table, (null, which) = effects(tables, metric, alpha), largest_null(tables, metric, alpha)
    known = [name for name in paradigms_of(tables) if name in table.index]
    if not known:
        return "No paradigm has been measured."
    single = "; ".join(f"{name} {factor(table.loc[name])}" for name in known)
    far = beyond(tables, metric, alpha)
    size = f"a factor of {math.exp(null):.2f} either way ({which})" if which else "not measured"
    verdict = (
        f"Beyond it, with an interval that leaves out 1: {listed(far)}."
        if far
        else "No paradigm's change is beyond it with an interval that leaves out 1."
    )
    return f"On {alpha:.0%} of an answer: {single}. The largest null is {size}. {verdict}"


def answer(tables: Tables, alpha: float = 1.0) -> str:
    """The page's answer: which paradigms move intensity beyond its nulls, and whether scores rank what removal does."""
    known = [name for name in paradigms_of(tables) if name in effects(tables, INTENSITY, alpha).index]
    if not known:
        return f"No paradigm has been measured. {trusted(tables)}"

    def moved(metric: str) -> str:
        rows = effects(tables, metric, alpha)
        far = beyond(tables, metric, alpha)
        return listed([f"{name} ({'up' if rows.loc[name, 'log_ratio'] > 0 else 'down'})" for name in far])

    said = f"Activation intensity on {alpha:.0%} of an answer moves beyond every null after {moved(INTENSITY)} of {len(known)} paradigms"
    others = []
    if len(effects(tables, PER_GRADIENT, alpha)):
        others.append(f"with the model's confidence taken out after {moved(PER_GRADIENT)}")
    if "exact" in tables:
        some = sum(name in set(tables["exact"]["member"]) for name in known)
        others.append(f"by removing edges, on few problems, after {listed(removed(tables))} of {some}")
    said += "".join(f", {'and ' * (other is others[-1])}{other}" for other in others)
    return f"{said}. {trusted(tables)}"


def trusted(tables: Tables) -> str:
    """Whether first-order scores rank what removing edges does, in a sentence."""
    table = tables.get("trust")
    if table is None or table.empty:
        return "How far scores agree with removing edges was not measured."
    rows = table[(table["member"] == "sft") & (table["quantity"] == "rank correlation of sizes")].set_index("method")
    rows = rows[rows["low"].notna()]  # of a random ranking it is 0
    parts = [f"{method} {with_interval(*row[['value', 'low', 'high']])}" for method, row in rows.iterrows()]
    return f"Against edges that were removed for real, sizes of scores rank with a correlation of {listed(parts)} (the base)."


def everywhere(tables: Tables, metric: str = INTENSITY) -> pd.DataFrame:
    """By member and null the factor with its interval in every cell (level, share α of an answer) that was measured, and
    last the largest null of each cell.
    """
    found = {}
    for level, alpha in cells(tables):
        column = {name: factor(row) for name, row in effects(tables, metric, alpha, level).iterrows()}
        null, which = largest_null(tables, metric, alpha, level)
        column["largest null"] = f"{math.exp(null):.2f} ({which})" if which else "not measured"
        found[level, f"α = {alpha:g}"] = column
    return pd.DataFrame(found).rename_axis("tuned over base")


def cells(tables: Tables) -> list[tuple[str, float]]:
    """What was measured on own answers: level and share α of an answer."""
    table = tables["effects"]
    return sorted(set(map(tuple, table.loc[table["tokens"] == "own", ["level", "alpha"]].to_numpy().tolist())))


def agreeing(tables: Tables, metric: str = INTENSITY) -> str:
    """In how many of the cells each paradigm's change is beyond the largest null, and on which side, in a sentence."""
    some, said = cells(tables), []
    for name in paradigms_of(tables):
        signs = [
            float(effects(tables, metric, alpha, level).loc[name, "log_ratio"])
            for level, alpha in some
            if name in beyond(tables, metric, alpha, level)
        ]
        sides = {"up": sum(sign > 0 for sign in signs), "down": sum(sign < 0 for sign in signs)}
        counts = " and ".join(f"{word} in {n}" for word, n in sides.items() if n)
        said.append(f"{name} {counts or 'in none'}")
    return (
        f"Beyond the largest null, of {len(some)} cells: {listed(said)}." if said else "No paradigm has been measured."
    )


def all_answers(tables: Tables) -> pd.DataFrame:
    """By set of problems and member: accuracy by both rules with the interval of the lenient one, in points, and, on all
    answers, right or wrong, the factors of what was measured of them.
    """
    table = tables["all_answers"]
    told = table.groupby(["set", "member"], sort=False)[
        ["problems", "accuracy", "low", "high", "strict", "compared"]
    ].first()
    points = {name: 100 * told[name] for name in ("accuracy", "low", "high", "strict")}
    known = table[table["metric"].notna()]
    wide = known.assign(factor=[factor(row) for _, row in known.iterrows()]).pivot_table(
        index=["set", "member"], columns="metric", values="factor", aggfunc="first", sort=False
    )
    found = told.assign(**points).round(1).join(wide).astype(object)
    return found.where(found.notna(), "–")


def unseen(tables: Tables) -> str:
    """What the members make of problems that none was trained for, in a sentence."""
    table = tables["all_answers"].drop_duplicates(["set", "member"])
    others = table[~table["set"].str.startswith("stories")].set_index("member")
    if others.empty:
        return "Problems that no member was trained for were not asked."
    base = others.loc["sft"]
    known = [name for name in paradigms_of(tables) if name in others.index]
    apart = [name for name in known if others.loc[name, "low"] > base["high"] or others.loc[name, "high"] < base["low"]]
    least, most = (100 * float(value) for value in (others["accuracy"].min(), others["accuracy"].max()))
    told = f"of them {listed(apart)} outside the base's interval" if apart else "none outside the base's interval"
    return (
        f"Of {base['problems']:.0f} problems of {base['set']}, which no member was trained for, the base answers "
        f"{base['accuracy']:.0%} [{base['low']:.0%}, {base['high']:.0%}] correctly, all members between {least:.0f} % and {most:.0f} %, {told}."
    )


def trust_table(tables: Tables) -> pd.DataFrame:
    """How far each method's scores agree with removals, by member, with intervals over the edges that were drawn."""
    table = tables["trust"].dropna(subset="value")
    told = [with_interval(*row) for row in table[["value", "low", "high"]].to_numpy()]
    wide = table.assign(told=told).pivot_table(
        index="quantity", columns=["member", "method"], values="told", aggfunc="first", sort=False
    )
    return wide.fillna("–")


def exact_factors(tables: Tables, metric: str = INTENSITY) -> pd.DataFrame:
    """By member: the exact metric, estimated from removals, with its interval, beside the first-order one; and both as
    factors of the base's.
    """
    table = tables["exact"]
    rows = (
        table[table["metric"] == metric].set_index("member")[["estimate", "low", "high", "first_order"]].astype(float)
    )
    base = rows.loc["sft"]
    return rows.assign(
        exact_factor=rows["estimate"] / base["estimate"], first_order_factor=rows["first_order"] / base["first_order"]
    )


def removals(tables: Tables, metric: str = INTENSITY) -> pd.DataFrame:
    """By member, the factor of the base's exact metric, and the null: what more supervised steps do to it.

    The two estimates are taken as independent.

    Returns:
        Index member; columns log_ratio, log_low, log_high, null.
    """
    columns = ["log_ratio", "log_low", "log_high", "null"]
    rows = tables.get("exact", pd.DataFrame())
    rows = rows[rows["metric"] == metric].set_index("member") if len(rows) else rows
    if "sft" not in rows.index:
        return pd.DataFrame(columns=columns)
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(rows[["estimate", "low", "high"]].astype(float))
    below, above = logs["estimate"] - logs["low"], logs["high"] - logs["estimate"]
    middle = logs["estimate"] - logs.loc["sft", "estimate"]
    limits = middle - np.hypot(below, above["sft"]), middle + np.hypot(above, below["sft"])
    null = abs(middle[CONTROL]) if CONTROL in middle.index else math.nan
    return pd.DataFrame(dict(zip(columns, (middle, *limits, null)))).drop(index="sft")


def removed(tables: Tables, metric: str = INTENSITY) -> list[str]:
    """The paradigms whose change by removal leaves out a factor of 1 and is beyond the null."""
    table = removals(tables, metric)
    known = [table.loc[name] for name in paradigms_of(tables) if name in table.index]
    return [
        str(row.name)
        for row in known
        if support(row["log_ratio"], row["log_low"], row["log_high"], null=row["null"]).word != "open"
    ]


def exact_told(tables: Tables, metric: str = INTENSITY) -> str:
    """What removing edges says of each paradigm, in a few words."""
    table = removals(tables, metric)
    known = [name for name in paradigms_of(tables) if name in table.index]
    if not known:
        return "What removing edges says was not measured."
    single = "; ".join(f"{name} {factor(table.loc[name])}" for name in known)
    null = math.exp(table["null"].iloc[0])
    return (
        f"By removal, on the few problems that were re-run: {single}. More supervised steps change it by a factor of {null:.2f} "
        f"either way; beyond that, with an interval that leaves out 1: {listed(removed(tables, metric))}."
    )


def spent(costs: pd.DataFrame) -> str:
    """Time and memory of a pair, of the benchmark's table, in a sentence."""
    if not (costs["suite"] == "study").any():
        return "Time and memory of a pair were not measured."
    table = costs[costs["suite"] == "study"].set_index("case")
    whole, again = table.loc["from nothing"], table.loc["answers there"]
    return (
        f"Measured on one thread of a CPU, from {whole['asked']:.0f} questions to the comparison of {whole['problems']:.0f} problems by blocks: "
        f"{whole['seconds'] / 60:.1f} minutes, or {again['seconds'] / 60:.1f} when the answers are there, with at most {table['peak_gib'].max():.1f} GiB of memory."
    )


def members_table(tables: Tables) -> pd.DataFrame:
    """What the members are, for reading."""
    table = tables["members"].set_index("member")
    points = {
        name: 100 * table[name] for name in ("accuracy", "low", "high", "strict", "gain", "gain_low", "gain_high")
    }
    return (
        table.assign(**points)[[*points, "prompts_seen", "updates", "kl", "entropy", "length"]]
        .rename(columns={"kl": "KL from its start, nats a token", "entropy": "entropy, nats a token"})
        .round(3)
    )


def own_loss(tables: Tables) -> pd.DataFrame:
    """Each member's loss on its own answers: mean, median and the share of problems below a hundredth of a nat a token."""
    grouped = tables["problems"].groupby("member", sort=False)["loss"]
    return (
        pd.DataFrame(
            {
                "mean": grouped.mean(),
                "median": grouped.median(),
                "share below 0.01": grouped.apply(lambda x: float(np.mean(x < 0.01))),
            }
        )
        .rename_axis("nats a token")
        .round(4)
    )
