"""Sections on what the models do: right answers, the loss of their own, how far they moved, which problems and tokens
count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rlcircuits.errors import counted
from rlcircuits.metrics import (
    SURE,
    Interval,
    compare_values,
    mean_interval,
    paired_shares,
    share_interval,
)
from rlcircuits.reports.findings import Findings
from rlcircuits.reports.numbers import interval, number, p_value, percent, points, signed
from rlcircuits.reports.report import ScoredAnswer, Section, Table

#: problems below which shares and differences say little; tokens that are scored below which too
FEW_PROBLEMS, FEW_TOKENS = 10, 4
#: mean divergence, in nats per token, below which two models are as good as the same
NOTHING_MOVED = 1e-4
#: answers whose tokens are shown, and tokens of each
ANSWERS_SHOWN, TOKENS_SHOWN = 3, 160
RULES = {"correct": "flexible rule", "strict": "strict rule"}


def not_measured(name: str, title: str, question: str, why: str) -> Section:
    """A section of what there is no number for."""
    return Section(name, title, question, "", why, f"Not measured: {why}.", "", None)


def accuracy(found: Findings) -> Section:
    """Shares of all problems answered correctly, by both rules."""
    rows, differences = [], {}
    for field, rule in RULES.items():
        right = {side: [bool(getattr(answer, field)) for answer in given] for side, given in found.answers.items()}
        for side, one in right.items():
            rows.append({"rule": rule, "model": side, **share_interval(sum(one), len(one))._asdict()})
        if not found.alone:
            differences[field] = paired_shares(right["base"], right["tuned"])
            named = dict(zip(("value", "low", "high", "p"), differences[field]))
            rows.append({"rule": rule, "model": "tuned − base", **named})
    data = pd.DataFrame(rows).rename(columns={"value": "share right"}).set_index("rule")
    tables = [Table("Share of all problems answered correctly", data, ("share right", "low", "high"))]
    n = len(next(iter(found.answers.values())))
    strict = {side: sum(a.strict for a in given) / n if n else math.nan for side, given in found.answers.items()}
    flexible = {side: sum(a.correct for a in given) / n if n else math.nan for side, given in found.answers.items()}
    title, question = "Right answers", "Does it answer better?" if not found.alone else "How well does it answer?"
    if found.alone:
        value, low, high = share_interval(sum(a.correct for a in found.answers["base"]), n)
        said = f"{percent(value)} of {counted(n, 'problem')} are answered correctly {interval(100 * low, 100 * high)}."
        detail = f"{interval(100 * low, 100 * high)} %; strictly {percent(strict['base'])}"
        enough = n >= FEW_PROBLEMS
        needs = f"Needs enough problems: with {n} the share is known to about ±{percent((high - low) / 2)}."
        return Section(
            "accuracy", title, question, f"{percent(value)} right", detail, said, needs, enough, None, tables
        )
    change, strictly = differences["correct"], differences["strict"]
    answer = f"{percent(flexible['base'])} → {percent(flexible['tuned'])} right"
    detail = (
        f"{points(change.difference)} points {interval(100 * change.low, 100 * change.high)}, {p_value(change.p)}; "
        f"strictly {percent(strict['base'])} → {percent(strict['tuned'])}"
    )
    shown = change.low > 0 or change.high < 0
    half = (change.high - change.low) / 2
    form = abs(strictly.difference - change.difference) > max(half, 1 / max(n, 1))
    says = (
        f"Of {counted(n, 'problem')} the base answers {percent(flexible['base'])} correctly and the tuned model "
        f"{percent(flexible['tuned'])}: {points(change.difference)} points by the flexible rule"
        + ("" if shown else ", which is no more than chance may do")
        + f"; {points(strictly.difference)} by the strict one, which asks for a form made for answers."
    )
    needs = f"Needs enough problems: {counted(n, 'problem')} tell{'s' * (n == 1)} changes of about {100 * half:.0f} points from chance."
    if form:
        needs += (
            " The two rules disagree by more than that: the form of the answers has changed, not only what is right."
        )
    holds = n >= FEW_PROBLEMS and not form
    return Section(
        "accuracy", title, question, answer, detail, says, needs, holds, (Interval(*change[:3]), 0.0), tables
    )


def own_loss(found: Findings) -> Section:
    """Each model's loss per token on its own answers."""
    title, question = "Loss on own answers", "How sure is it of its answers?"
    if why := _why_not(found, "losses", found.losses):
        return not_measured("loss", title, question, why)
    assert found.selection is not None
    cut, problems = found.selection.t_cut, found.selection.problems
    each = {
        side: pd.DataFrame(
            {
                "scored tokens": [float(np.mean(by_problem[p][:cut])) for p in problems],
                "whole answers": [float(np.mean(by_problem[p])) for p in problems],
            },
            index=list(problems),
        )
        for side, by_problem in found.losses.items()
    }
    means = {side: float(one["scored tokens"].mean()) for side, one in each.items()}
    sure = min(means.values()) < SURE
    needs = (
        f"Needs answers that the model is not too sure of: below {SURE:g} nats per token first-order scores say what the loss "
        "is sensitive to, not what removing edges does"
        f"; {'here it is' if found.alone else 'the smaller one is'} {number(min(means.values()))}."
    )
    if found.alone:
        rows = {name: mean_interval(each["base"][name].to_numpy()) for name in each["base"]}
        data = pd.DataFrame.from_dict(rows, orient="index", columns=["mean", "low", "high"]).rename_axis("tokens")
        value, low, high = rows["scored tokens"]
        says = f"The model's own answers cost it {number(value)} nats per scored token {interval(low, high)}."
        tables = [Table("Loss on own answers, nats per token, mean over problems", data)]
        detail = f"per scored token {interval(low, high)}"
        return Section("loss", title, question, f"{number(value)} nats", detail, says, needs, not sure, None, tables)
    data = compare_values(each["base"], each["tuned"])[["base", "tuned", "difference", "low", "high", "p"]]
    row: Any = data.loc["scored tokens"]
    says = (
        f"On their own answers the base loses {number(row['base'])} nats per scored token and the tuned model "
        f"{number(row['tuned'])}. The gradient of this loss shrinks with it, so scores of a surer model differ without any "
        "change of circuit."
    )
    detail = " ".join(filter(None, (f"difference {signed(row['difference'])}", interval(row["low"], row["high"]))))
    return Section(
        "loss",
        title,
        "How sure is each of its answers?",
        f"{number(row['base'])} → {number(row['tuned'])} nats",
        f"per scored token; {detail}",
        says,
        needs,
        not sure,
        (Interval(row["difference"], row["low"], row["high"]), 0.0),
        [Table("Loss on own answers, nats per token, mean over problems", data.rename_axis("tokens"))],
    )


def divergence(found: Findings) -> Section:
    """How far the tuned model's next-token distributions are from the base's."""
    title, question = "Divergence from the base", "How far did it move?"
    if why := _why_not(found, "divergence", found.divergence):
        return not_measured("divergence", title, question, why)
    table = found.divergence
    assert table is not None
    forth: Any
    back: Any
    forth, back = (table.loc[key] for key in (("tuned ‖ base", "tuned"), ("base ‖ tuned", "base")))
    moved = max(forth["value"], back["value"]) >= NOTHING_MOVED
    tables = [Table("Kullback–Leibler divergence at answer positions, nats per token, mean over problems", table)]
    if found.critical is not None:
        caption = (
            "Positions of the tuned model's answers where the two part most, by Jensen–Shannon divergence (js, nats)"
        )
        tables.append(Table(caption, found.critical))
    says = (
        f"On the tuned model's answers KL(tuned ‖ base) is {number(forth['value'])} nats per token; on the base's, "
        f"KL(base ‖ tuned) is {number(back['value'])}. The largest of one token is "
        f"{number(float(table['largest'].max()))}."
    )
    needs = f"Needs to be above {NOTHING_MOVED:g} nats, where two models are as good as the same: "
    needs += (
        "it is. To be called large it needs something beside it, such as that of as many steps of further supervised training. It "
        "is taken along greedy answers to the problems kept, not over samples."
        if moved
        else "it is not, so whatever differs below can be rounding."
    )
    return Section(
        "divergence",
        title,
        question,
        f"{number(forth['value'])} nats",
        f"per token, KL(tuned ‖ base) {interval(forth['low'], forth['high'])}; KL(base ‖ tuned) {number(back['value'])}",
        says,
        needs,
        moved,
        None,
        tables,
    )


def fallen(found: Findings) -> Section:
    """How many problems are left, and why the others are not."""
    n = len(next(iter(found.answers.values())))
    why = found.reasons
    gone = n - found.kept
    largest = why.sort_values("problems", ascending=False).head(3).to_dict("records") if len(why) else []
    listed = ", ".join(f"{_who(row)}{row['reason']} {row['problems']:,}" for row in largest)
    says = f"{found.kept:,} of {counted(n, 'problem')} are compared" + (
        f"; {gone:,} fell away: {listed}." if gone else "."
    )
    needs = (
        f"Needs at least {FEW_PROBLEMS} problems; here {'is' if found.kept == 1 else 'are'} {found.kept}. Problems that only one "
        "model solves are not among them, and a change may show just there."
    )
    if found.alone:
        needs = f"Needs at least {FEW_PROBLEMS} problems; here {'is' if found.kept == 1 else 'are'} {found.kept}."
    tables = []
    if found.selection is not None:
        dropped = found.selection.dropped.set_index("rule")
        tables.append(Table("Rules in the order in which they apply, and problems left after each", dropped))
    if len(why):
        tables.append(Table("Why problems fell away, with up to three answers each", why.set_index("rule")))
    return Section(
        "problems",
        "Problems that fell away",
        "Why did problems fall away?",
        f"{found.kept:,} of {n:,} kept",
        listed or "none did",
        says,
        needs,
        found.kept >= FEW_PROBLEMS,
        None,
        tables,
    )


def _who(row: dict[Any, Any]) -> str:
    return "" if row["model"] in ("", "both") else f"{row['model']} "


def scored(found: Findings) -> Section:
    """Which tokens the loss is taken over."""
    title, question = "What is scored", "What is scored?"
    if found.selection is None:
        return not_measured("tokens", title, question, "no problem is kept")
    chosen = found.selection
    cut, few = chosen.t_cut, chosen.t_cut <= FEW_TOKENS
    whole = max(len(t.answer) for t in (*chosen.base_traces, *chosen.tuned_traces)) if chosen.base_traces else 0
    says = (
        f"The first {counted(cut, 'token')} of each answer {'is' if cut == 1 else 'are'} scored: α = {chosen.alpha:g} of the mean "
        f"length T̄ = {chosen.t_bar:.1f}. They are marked below."
    )
    needs = (
        "Needs the marked part to hold what is asked about: "
        + (f"{counted(cut, 'token')} {'holds' if cut == 1 else 'hold'} hardly a step of working; a larger alpha scores more." if few else "read the answers below.")
    )  # fmt: skip
    answers = tuple(_shown(found)) if found.tokenizer is not None else ()
    return Section(
        "tokens",
        title,
        question,
        f"first {counted(cut, 'token')}" if cut < whole else "whole answers",
        f"α {chosen.alpha:g} of T̄ {chosen.t_bar:.1f} tokens"
        + (f", such as {''.join(_texts(found, answers))!r}" if answers else ""),
        says,
        needs,
        not few,
        None,
        (),
        answers,
    )


def _texts(found: Findings, answers: Sequence[ScoredAnswer]) -> list[str]:
    text = "".join(piece for piece, scored, _ in answers[0].pieces if scored).strip()
    return [text if len(text) <= 60 else f"{text[:59]}…"]


def _shown(found: Findings) -> Iterator[ScoredAnswer]:
    """The first few problems' answers, token by token."""
    assert found.selection is not None
    chosen = found.selection
    traces = {"base": chosen.base_traces, "tuned": chosen.tuned_traces}
    for at, name in enumerate(chosen.problems[:ANSWERS_SHOWN]):
        for side in found.models:
            if at >= len(traces[side]):
                continue
            ids = list(traces[side][at].answer)
            losses = list(found.losses.get(side, {}).get(name, ()))
            pieces = [
                (
                    str(found.tokenizer.decode([token], clean_up_tokenization_spaces=False)),
                    place < chosen.t_cut,
                    float(losses[place]) if place < len(losses) else math.nan,
                )
                for place, token in enumerate(ids[:TOKENS_SHOWN])
            ]
            asked = ""
            if side == "base":  # the first prompt as the models read it, of the others the question
                asked = found.problems[name].question if name in found.problems else ""
                asked = str(found.tokenizer.decode(list(traces[side][at].prompt))) if at == 0 else asked
            yield ScoredAnswer(f"{side}, {name}", asked, pieces, max(0, len(ids) - TOKENS_SHOWN))


def _why_not(found: Findings, section: str, value: Any) -> str:
    """Why a section cannot be; empty where it can."""
    if found.selection is None:
        return "no problem is kept"
    if value is None or (hasattr(value, "__len__") and not len(value)):
        return found.absent.get(section, "it was not asked for")
    return ""
