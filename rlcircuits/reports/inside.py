"""Sections on what scores say of the inside: metrics, edges, own and shared words, single problems, and exact removals
beside them.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from rlcircuits.errors import counted
from rlcircuits.metrics import LARGEST_SHARE, LEVEL, METRICS, Interval, holm, supported
from rlcircuits.reports.behaviour import not_measured
from rlcircuits.reports.findings import Findings
from rlcircuits.reports.numbers import interval, number, p_value, percent, signed
from rlcircuits.reports.report import Section, Table

ALPHA, MOST = LEVEL, LARGEST_SHARE  # the rule's
LEADING = "activation_intensity"
#: values from which scores rank sizes and have signs well enough to be read edge by edge
RANKS, SIGNS = 0.5, 0.75
#: quantities of the trust check that the page shows
TRUSTED = (
    "rank correlation of sizes",
    "rank correlation",
    "sign agreement",
    "median slope",
    "overlap",
    "stability of ranks",
)


def metrics(found: Findings) -> Section:
    """The paper's and the robust metrics."""
    title, question = "Metrics of the scores", "What changed inside?"
    if found.selection is None or not found.scores:
        return not_measured("metrics", title, question, _why(found, "metrics"))
    if found.alone:
        return _one_models_metrics(found, title)
    assert found.comparison is not None
    table = found.comparison.assign(p_holm=holm(found.comparison["p"]))
    defined = table[table[["base", "tuned"]].notna().all(axis=1)]
    data = defined[["base", "tuned", "difference", "low", "high", "p", "p_holm", "ratio"]].rename(
        columns={"p_holm": "p (Holm)"}
    )
    paper = [name for name in data.index if METRICS[name].paper]
    robust = [name for name in data.index if not METRICS[name].paper]
    row: Any = table.loc[LEADING]
    changed = [name for name in defined.index if table.loc[name, "p_holm"] <= ALPHA]
    missing = [METRICS[name].label for name in table.index if name not in defined.index]
    tested = int(table["p"].notna().sum())
    if tested:
        which = (
            f"{len(changed)} of {tested} metrics differ beyond chance: {_listed(changed)}"
            if changed
            else f"none of {tested} metrics is shown to differ"
        )
        says = f"Activation intensity from base to tuned: {_factor(row)}; {which}."
        detail = f"intensity {signed(row['difference'])} {interval(row['low'], row['high'])}, Holm {p_value(row['p_holm'])}; {len(changed)} of {tested} metrics differ"
    else:
        why = "one problem allows" if found.kept < 2 else "these scores allow"
        says = f"Activation intensity from base to tuned: {_factor(row)}; {why} no interval and no test."
        detail = f"activation intensity; {why} no interval, no test"
    if missing:
        says += f" Not defined here: {', '.join(missing)}."
    needs = (
        "Needs several problems, p (Holm) of .05 or less, an interval without 0, and no problem that is more than half of the "
        "change; the null swaps base and tuned within each problem. Information complexity "
        "hangs on the single largest score, so prefer the robust metrics. It speaks of these two checkpoints, not of another "
        "seed of the training."
    )
    holds = bool(tested and supported(row).word != "open")
    tables = [
        Table(f"{kind}: base, tuned, difference with interval over problems", _labelled(data.loc[names]))
        for kind, names in (("The paper's metrics", paper), ("Robust metrics", robust))
        if names
    ]
    shown = (Interval(row["difference"], row["low"], row["high"]), 0.0)
    answer = f"intensity {_factor(row)}"
    return Section("metrics", title, question, answer, detail, says, needs, holds, shown, tables)


def _one_models_metrics(found: Findings, title: str) -> Section:
    assert found.single is not None
    data = found.single[found.single["value"].notna()]
    row: Any = found.single.loc[LEADING]
    within = interval(row["low"], row["high"])
    says = f"The mean size of a score is {number(row['value'])} nats per edge {within}."
    needs = "Needs a second model to mean anything: metrics of one model depend on its loss and on the problems."
    table = Table("Metrics with intervals over problems", _labelled(data))
    return Section(
        "metrics", title, "What do its scores look like?", f"{number(row['value'])} nats", f"per edge {within}", says, needs,
        bool(within), None, [table],
    )  # fmt: skip


def edges(found: Findings) -> Section:
    """The edges that changed most."""
    title, question = "Edges that changed most", "Which edges changed?"
    if found.alone:
        title, question = "Strongest edges", "Which edges are strongest?"
    if found.edges is None or not len(found.edges):
        return not_measured("edges", title, question, _why(found, "edges"))
    table = found.edges
    facts: Any = table.attrs
    top: Any = table.iloc[0]
    differ, total = int(facts["differ"]), int(facts["edges"])
    what = "differ from 0" if found.alone else "differ"
    first = f"{table.index[0]} {signed(top['difference'])} {interval(top['low'], top['high'])}".strip()
    seen = math.isfinite(facts["smallest"]) and facts["smallest"] <= ALPHA
    if differ:
        says = (
            f"{differ:,} of {total:,} edges {what} beyond chance, looked at all together; the largest is {first} nats."
        )
    elif seen:
        says = f"No single edge of {total:,} is shown to {what}; the largest is {first} nats."
    else:
        says = f"The largest of {total:,} edges is {first} nats; so few problems cannot show that any of them differs."
    needs = (
        "Needs at least 6 problems"
        + (
            f" (here {facts['problems']}: the smallest possible p is {number(facts['smallest'], 2)})"
            if not seen
            else ""
        )
        + "; intervals and p hold for all edges at once (max-T over sign flips within problems). Scores are first order: removal "
        "itself is checked below."
    )
    columns = ["base", "difference", "low", "high", "p"] if found.alone else list(table.columns)
    if found.alone:
        columns.remove("difference")
    shown = table[columns].rename(columns={"base": "score"} if found.alone else {})
    if not table["low"].notna().any():
        shown = shown.drop(columns=["low", "high"])
    caption = "Mean scores, nats; intervals hold for all edges together"
    return Section(
        "edges",
        title,
        question,
        f"{differ:,} of {total:,}" if differ or seen else f"{table.index[0]}",
        f"most: {first}",
        says,
        needs,
        differ > 0,
        (Interval(top["difference"], top["low"], top["high"]), 0.0),
        [Table(caption, shown)],
    )


def shared(found: Findings) -> Section:
    """Each model on each model's answers: is it the model or its words that changed?"""
    title, question = "Own and shared words", "The model, or its words?"
    if found.alone:
        return not_measured("shared", title, "", "one model")
    if found.selection is None or found.crossed is None:
        return not_measured("shared", title, question, _why(found, "shared"))
    tables = [Table("Loss of each model on each model's scored tokens, nats per token", found.crossed)]
    rows: dict[str, Any] = {}
    if found.shared and found.comparison is not None:
        rows = {"own answers": found.comparison.loc[LEADING]}
        rows |= {f"the {side}'s answers": table.loc[LEADING] for side, table in found.shared.items()}
        columns = ["base", "tuned", "difference", "low", "high", "p", "ratio"]
        data = (
            pd.DataFrame({name: row[columns] for name, row in rows.items()})
            .T.astype(float)
            .rename_axis("both scored on")
        )
        tables.append(Table("Activation intensity, nats per edge, of both models", data))
    losses = found.crossed
    on_base: Any = losses.loc["base"]
    on_tuned: Any = losses.loc["tuned"]
    says = (
        f"The base's words cost the base {number(on_base['base'])} nats per token and the tuned model "
        f"{number(on_base['tuned'])}; the tuned model's words cost {number(on_tuned['base'])} and "
        f"{number(on_tuned['tuned'])}."
    )
    if not rows:
        why = found.absent.get("shared", "scores on the other model's words were not asked for")
        needs = f"Needs both models' scores on the same words: {why}."
        answer = f"{number(on_base['base'])} / {number(on_base['tuned'])} nats"
        return Section(
            "shared", title, question, answer, "base / tuned, on the base's words", says, needs, None, None, tables
        )
    own, *same = rows.values()
    agree = all(_sign(row) == _sign(own) != 0 for row in same)
    says += (
        f" Activation intensity: {_factor(own)} on own words, {_factor(same[0])} on the base's and "
        f"{_factor(same[1])} on the tuned model's."
    )
    needs = (
        "Needs the change on the same words to be like that on own words: "
        + (
            "it is, so it is not only other words."
            if agree
            else "it is not, or not beyond chance, so what differs on own words may be the words."
        )
    )  # fmt: skip
    detail = f"intensity on the same words; own words {_factor(own)}; losses {number(on_base['base'])} and {number(on_base['tuned'])} on the base's"
    answer = f"{_factor(same[0])} and {_factor(same[1])}"
    return Section("shared", title, question, answer, detail, says, needs, agree, None, tables)


def single_problems(found: Findings) -> Section:
    """What single problems do."""
    title, question = "Influence of single problems", "Does one problem carry it?"
    if found.influence is None:
        return not_measured("influence", title, question, _why(found, "influence"))
    table = found.influence[found.influence["value"].notna()]
    row: Any = found.influence.loc[LEADING]
    what = "scores" if found.alone else "change"
    turning: list[str] = []
    if not found.alone:
        assert found.comparison is not None
        changed: Any = holm(found.comparison["p"]) <= ALPHA
        turning = [
            str(n) for n, r in table.iterrows() if r["lowest"] < 0 < r["highest"] and (changed[n] or n == LEADING)
        ]
    if not row["problem"]:
        return not_measured("influence", title, question, "one problem is all there is")
    without = _without(row, found.alone)
    hangs = LEADING in turning
    share = row["share"]
    says = (
        f"Problem {row['problem']} makes {percent(share)} of the {what} of activation intensity"
        if share == share
        else "No problem changes activation intensity"
    )
    says += f"; {without}."
    if not found.alone:
        says += (
            f" Leaving out one problem turns the sign of {_listed(turning)}."
            if turning
            else " Neither its sign nor that of any metric that differs turns when one problem is left out."
        )
    needs = f"Needs no problem to hold more than {percent(MOST)}" + (
        "." if found.alone else ", and the same sign without any one of them."
    )
    holds = bool(share == share and share <= MOST and not hangs)
    columns = ["value", "problem", "share", "without", "lowest", "highest"]
    data = _labelled(table[columns]).rename(
        columns={"value": "value" if found.alone else "difference", "without": "without it", "lowest": "least without one",
                 "highest": "most without one"}
    )  # fmt: skip
    caption = "The most influential problem of each metric, and what is left without it or without any one"
    return Section(
        "influence", title, question, f"largest share {percent(share)}", f"{row['problem']}: {without}", says, needs, holds,
        None, [Table(caption, data, ("share",))],
    )  # fmt: skip


def _without(row: pd.Series, alone: bool) -> str:
    if alone or not math.isfinite(row["ratio_without"]):
        return f"without it {number(row['without'])}, with it {number(row['value'])}"
    return f"without it {_times(row['ratio_without'])}, with it {_times(row['ratio'])}"


def trust(found: Findings) -> Section:
    """Scores beside removing edges for real."""
    title, question = "Scores beside removing edges for real", "Can the scores be trusted?"
    if not found.trust:
        return not_measured("trust", title, question, _why(found, "trust"))
    values: dict[str, list[str]] = {}
    good, rows = [], []
    cells: dict[str, dict[str, str]] = {quantity: {} for quantity in TRUSTED}
    for side, one in found.trust.items():
        table: Any = one.table.loc[one.method]
        for quantity in ("rank correlation of sizes", "sign agreement", "median slope"):
            values.setdefault(quantity, []).append(number(float(table.loc[quantity, "value"]), 2))
        ranks: Any = table.loc["rank correlation of sizes"]
        chance = not ranks["low"] > 0
        good.append(ranks["value"] >= RANKS and not chance and table.loc["sign agreement", "value"] >= SIGNS)
        rows += [(use, side, sentence) for use, sentence in one.answers.items()]
        for name in dict.fromkeys(one.table.index.get_level_values("method")):
            for quantity in TRUSTED:
                row: Any = one.table.loc[(name, quantity)]
                within = "" if one.runs == one.cells else interval(row["low"], row["high"])
                cells[quantity][f"{side}, {name}"] = f"{number(row['value'], 2)} {within}".strip()
    first = next(iter(found.trust.values()))
    runs = _and([f"{one.runs:,} of {one.cells:,}" for one in found.trust.values()])
    each = " in each model" if len(found.trust) > 1 else ""
    says = (
        f"{runs} edges of {counted(first.problems, 'problem')} were removed for real{each}. {first.method} orders edges by size with a "
        f"rank correlation of {_and(values['rank correlation of sizes'])}, has the effect's sign in a share of "
        f"{_and(values['sign agreement'])}, and the median effect is {_and(values['median slope'])} times the score"
        f"{' (base and tuned)' if len(found.trust) > 1 else ''}."
    )
    holds = all(good)
    needs = (
        f"Needs a rank correlation of sizes above {RANKS:g} that is above 0 beyond chance, and {percent(SIGNS)} of signs right, to "
        "read single edges; where it is less, compare metrics of exact removals instead (rlcircuits.exact_metrics)."
    )
    return Section(
        "trust",
        title,
        question,
        f"rank corr. {_and(values['rank correlation of sizes'])}",
        f"signs right {_and(values['sign agreement'])}; effect / score {_and(values['median slope'])}; {runs} removals",
        says,
        needs,
        holds,
        None,
        [
            Table(
                "Scores against exact effects; intervals over the edges that were drawn, of these problems",
                pd.DataFrame.from_dict(cells, orient="index").rename_axis("quantity"),
            ),
            Table("What they are good for", pd.DataFrame(rows, columns=["use", "model", "finding"]).set_index("use")),
        ],
    )


def _why(found: Findings, section: str) -> str:
    return "no problem is kept" if found.selection is None else found.absent.get(section, "it was not asked for")


def _factor(row: pd.Series) -> str:
    """How a value changed: by which factor, or from 0 to what."""
    if math.isfinite(row["ratio"]):
        return _times(row["ratio"])
    return f"{number(row['base'])} → {number(row['tuned'])}"


def _times(ratio: float) -> str:
    return f"× {number(float(ratio))}"


def _sign(row: pd.Series) -> int:
    """The sign of a difference whose interval leaves out 0; else 0."""
    return int(row["low"] > 0) - int(row["high"] < 0)


def _and(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else " and ".join(values)


def _listed(names: list[Any]) -> str:
    return ", ".join(METRICS[name].label if name in METRICS else str(name) for name in names)


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    return table.rename(index={name: metric.label for name, metric in METRICS.items()}).rename_axis("metric")
