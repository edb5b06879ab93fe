"""A change in a table, a line for each angle, and as a report: a section for each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from rlcircuits.answers import STRATA, stratum_of
from rlcircuits.changes import overlap
from rlcircuits.metrics import Interval
from rlcircuits.reports import Report, Section, Table, number, percent

#: a `rlcircuits.studies.Change`, whose module imports this one
Change = Any
#: share of edges at which circuits are compared
SHARE = 0.1
#: problems of a stratum below which little can be read
FEWEST = 10
_NONE = (np.nan, np.nan, np.nan)
COLUMNS = ("angle", "quantity", "value", "low", "high", "null", "null_low", "null_high", "against")


def summary_of(found: Change) -> pd.DataFrame:
    """See `rlcircuits.studies.Change.summary`."""
    rows = [row for make in (_overlap, _transfer, _patching, _graft, _divergence, _weights) for row in make(found)]
    return pd.DataFrame(rows, columns=list(COLUMNS)).set_index(["angle", "quantity"])


def by_stratum(found: Change) -> pd.DataFrame:
    """See `rlcircuits.studies.Change.strata`."""
    one = found.study
    of = {problem: stratum_of(one.base_answers[problem], one.tuned_answers[problem]) for problem in one.problems}
    frames = []
    for stratum in STRATA:
        some = {problem for problem in one.selection.problems if of[problem] == stratum}
        lines = summary_of(_on(found, some)).reset_index() if some else pd.DataFrame(columns=list(COLUMNS))
        if lines.empty:
            lines = pd.DataFrame([{"angle": "", "quantity": "no problem is in this stratum"}], columns=list(COLUMNS))
        asked = sum(name == stratum for name in of.values())
        frames.append(lines.assign(stratum=stratum, problems=len(some), asked=asked))
    numbers = dict.fromkeys(COLUMNS[2:-1], float)
    table = pd.concat([frame.astype(numbers) for frame in frames], ignore_index=True)
    return table.set_index(["stratum", "angle", "quantity"])


def _on(found: Change, problems: set[str]) -> Change:
    """What was measured on some of the problems alone; weights are no problem's."""
    parts: dict[str, Any] = {
        name: part.on(problems)
        for name in ("transfer", "patching", "graft")
        if (part := getattr(found, name)) is not None
    }
    parts["divergence"] = {side: one.on(problems) for side, one in found.divergence.items()}
    if found.overlap is not None:
        a, b = (
            scores.sel(sample=[name in problems for name in scores["sample"].values])
            for scores in (found.study.base_scores, found.study.tuned_scores)
        )
        parts["overlap"] = overlap(a, b, rank=found.overlap.rank)
    if "transfer" in parts and not parts["transfer"].data:  # of problems that have partners, none
        parts["transfer"] = None
    return replace(found, weights=None, **parts)


def _overlap(found: Change) -> Iterator[tuple]:
    if found.overlap is None:
        return
    table = found.overlap.table.loc["edges"]
    row = table.loc[f"Jaccard {SHARE:g}"]
    across = [row[name] for name in ("across", "across_low", "across_high")]
    own = [float(np.mean([row[f"own_a{end}"], row[f"own_b{end}"]])) for end in ("", "_low", "_high")]
    value = [row[name] for name in ("value", "low", "high")]
    random = [row[name] for name in ("random", "random_low", "random_high")]
    quantity = f"Jaccard index of the strongest {SHARE:.0%} of edges"
    yield ("overlap", quantity, *value, *random, "random edges")
    yield ("overlap", f"{quantity}, across halves", *across, *own, "one model on two halves")


def _transfer(found: Change) -> Iterator[tuple]:
    if found.transfer is None:
        return
    table = found.transfer.table().query("area == 'CPR'")
    keys = zip(table["intervention"], table["model"], table["circuit"])
    by_name = dict(zip(keys, table[["value", "low", "high"]].to_numpy().tolist()))
    for intervention in found.transfer.data:
        for model, other in (("tuned", "base"), ("base", "tuned")):
            values = {circuit: by_name[intervention, model, circuit] for circuit in ("own", "other", "random")}
            quantity = f"CPR of the {model} model on the {other}'s circuit, {intervention}"
            yield ("transfer", quantity, *values["other"], *values["own"], "its own circuit")
            yield ("transfer", quantity, *values["other"], *values["random"], "random circuits")


def _patching(found: Change) -> Iterator[tuple]:
    if found.patching is None:
        return
    curves = found.patching.curves()
    for direction, data in found.patching.data.items():
        one = curves[curves["direction"] == direction].set_index("ranking")
        wanted = SHARE * data.attrs["n_edges"]
        tried = sorted({int(n) for n in one["patched"]})
        at = tried[int(np.abs(np.array(tried) - wanted).argmin())]
        rows = one[one["patched"] == at]

        def done(name: str, rows: pd.DataFrame = rows, direction: str = direction) -> tuple[float, ...]:
            if name not in rows.index:
                return _NONE
            value, low, high = (float(rows[column][name]) for column in ("stands", "low", "high"))
            return (value, low, high) if direction == "bring" else (1 - value, 1 - high, 1 - low)

        verb = {"bring": "brought", "undo": "undone"}[direction]
        quantity = f"share of the change {verb} by the {at} edges that carry most"
        yield ("patching", quantity, *done("integrated"), *done("random"), "random edges")


def _graft(found: Change) -> Iterator[tuple]:
    if found.graft is None:
        return
    table = found.graft.table()
    into = table[(table["into"] == "base") & (table["answers"] == "tuned")]
    single, alike = into[into["kind"] == "module"], "all modules alike"
    if single.empty:  # whole layers, where only these were grafted
        single, alike = into[into["modules"].str.fullmatch(r"l\d+")], "all layers alike"
    single = single.sort_values("stands", kind="stable")
    if len(single) and single["stands"].notna().any():
        best = single.iloc[-1] if single["stands"].notna().all() else single.dropna(subset="stands").iloc[-1]
        quantity = f"share of the change that {best['modules']} alone brings"
        value = (best["stands"], best["stands_low"], best["stands_high"])
        yield ("graft", quantity, *value, 1 / len(single), np.nan, np.nan, alike)
    prefixes = into[into["kind"] == "prefix"].sort_values("depth")
    if len(prefixes):
        middle = prefixes.iloc[(len(prefixes) - 1) // 2]
        quantity = f"share that the embeddings and the first {middle['depth']:.0f} layers bring"
        value = (middle["stands"], middle["stands_low"], middle["stands_high"])
        yield ("graft", quantity, *value, middle["depth"] / len(prefixes), np.nan, np.nan, "all layers alike")


def _divergence(found: Change) -> Iterator[tuple]:
    for side, one in found.divergence.items():
        row = one.summary.loc["kl_tuned_base"]
        name = {"base": "the base's", "tuned": "the tuned model's"}.get(side, side)
        quantity = f"KL(tuned ‖ base) per token on {name} answers, nats"
        yield ("divergence", quantity, row["value"], row["low"], row["high"], 0.0, np.nan, np.nan, "the same model")
        held, all_alike = one.summary.loc["critical_js"], one.summary.loc["critical", "value"]
        value = (held["value"], held["low"], held["high"])
        quantity = f"share of the divergence at the most critical tokens, {name} answers"
        yield ("divergence", quantity, *value, all_alike, np.nan, np.nan, "all tokens alike")


def _weights(found: Change) -> Iterator[tuple]:
    if found.weights is None:
        return
    table = found.weights
    size = float(np.sqrt((table["change"] ** 2).sum() / (table["norm"] ** 2).sum()))
    same = float((table["unchanged"] * table["parameters"]).sum() / table["parameters"].sum())
    against = (*_NONE[:2], 0.0, *_NONE[:2], "the same model")
    yield ("weights", "size of the change of all weights, relative", size, *against)
    yield ("weights", "share of weights that are unchanged", same, *_NONE[:2], 1.0, *_NONE[:2], "the same model")
    if "left" in table and (matrices := table[table["left"].notna()])["change"].any():
        energy = matrices["change"] ** 2 / (matrices["change"] ** 2).sum()
        within, chance = (float((energy * matrices[name]).sum()) for name in ("left", "left_random"))
        quantity = "share of the change within the directions that each matrix writes most in"
        yield ("weights", quantity, within, *_NONE[:2], chance, *_NONE[:2], "a change that knows nothing of them")


def change_report(found: Change) -> Report:
    """See `rlcircuits.studies.Change.report`."""
    sections = [make(found) for name, make in _SECTIONS.items() if _has(found, name)]
    if any(section.name != "weights" for section in sections):
        sections.append(_strata_section(found))
    facts = {"base": found.pair.base, "tuned": found.pair.tuned, "tuned by": found.pair.method}
    (before, after), n = found.study.accuracy, len(found.study.selection.problems)
    short = [
        f"{percent(before, 1)} of problems right before, {percent(after, 1)} after; the change is looked at on {n}."
    ]
    short += [section.says for section in sections]
    return Report(
        f"What changed: {found.pair.name}", facts, short, sections, {k: str(v) for k, v in found.settings.items()}
    )


def _has(found: Change, name: str) -> bool:
    part = getattr(found, name)
    return part is not None and (name != "divergence" or bool(part))


def _row(found: Change, angle: str, at: int = 0) -> tuple[str, Any]:
    rows = found.summary.loc[[angle]]
    return rows.index.get_level_values("quantity")[at], rows.iloc[at]


def _shown(row: Any) -> tuple[Interval, float] | None:
    if not np.isfinite([row["value"], row["low"], row["high"], row["null"]]).all():
        return None
    return Interval(row["value"], row["low"], row["high"]), float(row["null"])


def _apart(row: Any, below: bool = False) -> bool:
    """Whether the interval lies beyond the null's, above it or below."""
    null = row["null_low" if below else "null_high"]
    null = row["null"] if np.isnan(null) else null
    return bool(row["high"] < null if below else row["low"] > null)


def _beside(row: Any, shares: bool = True) -> str:
    shown = percent if shares else number
    ends = "" if np.isnan(row["low"]) else f" [{shown(row['low'])}, {shown(row['high'])}]"
    return f"{shown(row['value'])}{ends}; {row['against']}: {shown(row['null'])}"


def _overlap_section(found: Change) -> Section:
    assert found.overlap is not None
    _, across = _row(found, "overlap", 1)
    differ = bool(across["high"] < across["null_low"])
    says = (
        f"On different halves of the problems the two models' strongest edges overlap by {number(across['value'], 2)}, one "
        f"model's with its own by {number(across['null'], 2)}: "
        + ("the circuits differ." if differ else "no more apart than a model is from itself on other problems.")
    )
    needs = "Needs two models on different halves to overlap less than one model does, beyond the splits' quantiles."
    table = found.overlap.shown().reset_index()
    return Section(
        "overlap", "Overlap of the circuits", "Is it the same circuit?", number(across["value"], 2),
        f"own halves {number(across['null'], 2)}", says, needs, differ, _shown(across), [Table("Overlap and its nulls", table)],
    )  # fmt: skip


def _transfer_section(found: Change) -> Section:
    assert found.transfer is not None
    table = found.transfer.table()
    lost = table.query("area == 'CPR' and model == 'tuned' and circuit == 'other'").iloc[0]
    own = table.query("area == 'CPR' and model == 'tuned' and circuit == 'own'").iloc[0]
    sure = bool(lost["lost_low"] > 0 or lost["lost_high"] < 0)
    says = (
        f"On the base's circuit the tuned model has a CPR of {number(lost['value'], 2)}, on its own {number(own['value'], 2)} "
        f"(lost {number(lost['lost'], 2)} [{number(lost['lost_low'], 2)}, {number(lost['lost_high'], 2)}], "
        f"{lost['intervention']} replacement)."
    )
    needs = "Needs the interval of what is lost to leave out 0, and both to lie above random circuits."
    return Section(
        "transfer", "Transfer of the circuits", "Does the old circuit still run the new model?", number(lost["value"], 2),
        f"own circuit {number(own['value'], 2)}", says, needs, sure, None,
        [Table("CPR and CMD on own, other's and random circuits; lost: against one's own", table)],
    )  # fmt: skip


def _patching_section(found: Change) -> Section:
    assert found.patching is not None
    quantity, row = _row(found, "patching")
    gap = max(float(abs(data["gap"]).sum() / max(float(abs(data["all"] - data["here"]).sum()), 1e-12))
              for data in found.patching.data.values())  # fmt: skip
    says = f"{quantity[0].upper()}{quantity[1:]}: {_beside(row)}."
    needs = (
        f"Needs to lie above as many random edges. The integrated effects of all edges miss what patching all of them does by "
        f"{percent(gap, 1)}."
    )
    tables = [
        Table("The edges that carry most, nats", found.patching.edges(10)),
        Table("What the edges account for, nats", found.patching.accounts().reset_index()),
        Table("Where the model stands with edges patched together: 0 base, 1 tuned", found.patching.curves()),
    ]
    return Section(
        "patching", "The change, edge by edge", "Which edges carry it?", percent(row["value"]), _beside(row), says, needs,
        _apart(row), _shown(row), tables,
    )  # fmt: skip


def _graft_section(found: Change) -> Section:
    assert found.graft is not None
    rows = found.summary.loc[["graft"]] if "graft" in found.summary.index else found.summary.iloc[:0]
    names = rows.index.get_level_values("quantity")
    quantities = [f"{name[0].upper()}{name[1:]}: {_beside(rows.iloc[i])}" for i, name in enumerate(names)]
    says = f"{'; '.join(quantities)}." if quantities else found.graft.title + "."
    needs = (
        "Needs an interval that leaves out its share if all modules were alike; alone, a module may miss what it needs."
    )
    first = rows.iloc[0] if len(rows) else None
    return Section(
        "graft", "The change, module by module", "Which weights carry it?", "" if first is None else percent(first["value"]),
        rows.index[0][1] if len(rows) else "", says, needs, None if first is None else _apart(first),
        None if first is None else _shown(first), [Table("Chimaeras; stands: 0 base, 1 tuned", found.graft.table())],
    )  # fmt: skip


def _divergence_section(found: Change) -> Section:
    _, row = _row(found, "divergence", 2 if len(found.divergence) > 1 else 0)
    _, held = _row(found, "divergence", 3 if len(found.divergence) > 1 else 1)
    last = found.divergence[list(found.divergence)[-1]]
    says = (
        f"The tuned model is {number(row['value'])} nats per token from the base on its own answers; "
        f"{percent(held['null'])} of the tokens hold {percent(held['value'])} of the divergence."
    )
    needs = "Needs an interval above 0; KL from the base stands beside every other difference."
    tables = [
        Table(f"Means over problems, {side}'s answers", one.summary.reset_index())
        for side, one in found.divergence.items()
    ]
    tables.append(Table("Where they part most, tuned model's answers", last.critical(10).reset_index()))
    return Section(
        "divergence", "The change, token by token", "Where do they part?", f"{number(row['value'])} nats",
        f"{percent(held['value'])} at {percent(held['null'])} of tokens", says, needs, bool(row["low"] > 0), _shown(row), tables,
    )  # fmt: skip


def _weights_section(found: Change) -> Section:
    assert found.weights is not None
    _, size = _row(found, "weights")
    _, same = _row(found, "weights", 1)
    says = f"The weights moved by {percent(size['value'], 2)} of their size; {percent(same['value'], 1)} are exactly as before."
    rows = found.summary.loc[["weights"]]
    if len(rows) > 2:
        says += f" {percent(rows['value'].iloc[2], 1)} of the change lies within the directions that each matrix writes most in; by chance {percent(rows['null'].iloc[2], 1)}."
    needs = "Exact; a share that is unchanged may be rounding of the stored precision."
    return Section(
        "weights", "The weights", "How far did the weights move?", percent(size["value"], 2),
        f"{percent(same['value'], 1)} unchanged", says, needs, None, None, [Table("By parameter", found.weights)],
    )  # fmt: skip


def _strata_section(found: Change) -> Section:
    table = found.strata
    counts = table.groupby("stratum", sort=False)[["problems", "asked"]].first()
    told = "; ".join(f"{text}: {counts.loc[name, 'problems']}" for name, text in STRATA.items())
    says = f"Of the problems looked at, {told}."
    if empty := [str(name) for name in counts.index[counts["problems"] == 0]]:
        says += f" Nothing can be said of {', '.join(empty)}: no problem is there."
    needs = (
        f"Needs {FEWEST} problems in each stratum that is read; a change may show on those alone whose answers changed."
    )
    lines = table[table["problems"] > 0].reset_index()
    return Section(
        "strata", "By who answers right", "On which problems does it show?", f"{counts.loc['only-tuned', 'problems']} only tuned",
        f"{counts.loc['both-correct', 'problems']} both", says, needs, bool((counts["problems"][counts["problems"] > 0] >= FEWEST).all()),
        None, [Table("Every line by stratum; asked: problems of it among all", lines)],
    )  # fmt: skip


_SECTIONS = {
    "overlap": _overlap_section,
    "transfer": _transfer_section,
    "patching": _patching_section,
    "graft": _graft_section,
    "divergence": _divergence_section,
    "weights": _weights_section,
}
