"""Sentences on the real model say what its tables hold, also where those are thin."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from paradigms.study import real_words as told
from rlcircuits.errors import InputError

METRIC = told.INTENSITY


def tables(factors: dict[str, tuple[float, float, float]], gains: dict[str, tuple[float, float, float]], halves=1.2):
    """Tables in which each paradigm's intensity changes by a factor with an interval, and accuracy by points."""
    effects = [
        {"paradigm": name, "metric": METRIC, "alpha": 1.0, "level": "block", "tokens": "own", "p": 0.01,
         **dict(zip(("log_ratio", "log_low", "log_high"), map(math.log, values)))}
        for name, values in factors.items()
    ]  # fmt: skip
    members = [{"member": "sft", "accuracy": 0.5, "problems": 100.0}]
    members += [{"member": n, **dict(zip(("gain", "gain_low", "gain_high"), values))} for n, values in gains.items()]
    spread = [{"metric": METRIC, "alpha": 1.0, "level": "block", "spread": math.log(halves)}]
    columns = ["paradigm", "metric", "alpha", "level", "tokens", "log_ratio", "log_low", "log_high", "p"]
    return {
        "members": pd.DataFrame(members, columns=["member", "accuracy", "problems", "gain", "gain_low", "gain_high"]),
        "effects": pd.DataFrame(effects, columns=columns),
        "halves": pd.DataFrame(spread),
    }


GAINS = {"grpo": (0.1, 0.05, 0.15), "ppo": (-0.1, -0.15, -0.05), "sft-more": (0.0, -0.02, 0.02)}


def test_a_change_counts_only_beyond_the_largest_null():
    made = tables(
        {"grpo": (2, 1.5, 2.5), "ppo": (1.4, 1.1, 1.8), "dpo": (3, 0.9, 9), "sft-more": (1.5, 1.4, 1.6)}, GAINS
    )
    assert told.largest_null(made, METRIC, 1.0) == (pytest.approx(math.log(1.5)), "more supervised steps")
    assert told.beyond(made, METRIC, 1.0) == ["grpo"]  # ppo is within the null, and dpo, no member here, holds 1
    made["members"] = pd.concat([made["members"], pd.DataFrame([{"member": "dpo"}])], ignore_index=True)
    assert told.beyond(made, METRIC, 1.0) == ["grpo"]
    said = told.changes(made, 1.0)
    assert "grpo × 2.00 [1.50, 2.50]" in said and "factor of 1.50 either way (more supervised steps)" in said
    assert "leaves out 1: grpo." in said


def test_members_that_answer_better_or_worse_are_named():
    said = told.gains(tables({}, GAINS))
    assert "1 answer better (grpo)" in said and "1 answer worse (ppo)" in said and "50% of 100" in said
    alike = told.gains(tables({}, {"grpo": (0.01, -0.02, 0.04)}))
    assert "no member is shown to answer better or worse (+1.0 to +1.0 points" in alike
    assert told.gains(tables({}, {})).endswith("correctly.")


def test_where_wrong_answers_first_go_wrong_is_said():
    of = {"sft": ["calculation", "step", ""], "grpo": ["calculation", "", ""], "sft-more": ["step"] * 3}
    problems = pd.DataFrame([{"member": m, "mistake": one} for m, some in of.items() for one in some])
    said = told.mistakes({**tables({}, GAINS), "problems": problems})
    assert "Of the base's 2 wrong answers 1 first go wrong" in said and said.endswith(
        "of the 1 of its descendants by a paradigm 1."
    )


def test_how_far_the_trainings_went_is_said():
    made = tables({}, GAINS)
    kls = {"sft": math.nan, "grpo": 0.012, "ppo": 0.032, "sft-more": 0.5}  # the control is no paradigm
    made["members"]["kl"] = made["members"]["member"].map(kls)
    assert "of 0.012 (grpo) to 0.032 (ppo) nats a token, at a median of 0.022." in told.drifts(made)
    assert told.drifts({"members": made["members"].head(1)}) == "No training's divergence is on record."


def test_the_answer_names_what_moves_beyond_every_null():
    made = tables({"grpo": (2, 1.5, 2.5), "ppo": (1.1, 1.05, 1.15), "sft-more": (1.5, 1.4, 1.6)}, GAINS)
    assert told.answer(made).startswith(
        "Activation intensity on 100% of an answer moves beyond every null after grpo (up) of 2 paradigms. How far scores agree"
    )
    rows = made["effects"].assign(metric=told.PER_GRADIENT, log_ratio=0.0, log_low=-0.1, log_high=0.1)
    made["effects"] = pd.concat([made["effects"], rows], ignore_index=True)
    assert "after grpo (up) of 2 paradigms, and with the model's confidence taken out after none. How" in told.answer(
        made
    )
    assert told.answer(tables({}, {})).startswith("No paradigm has been measured. How far")


def test_what_removal_says_is_told_beside_first_order():
    made = tables({"grpo": (2, 1.6, 2.5), "ppo": (1, 0.9, 1.1), "sft-more": (1, 0.9, 1.1)}, GAINS)
    rows = {
        "sft": (1.0, 0.8, 1.2, 4.0),
        "grpo": (0.5, 0.4, 0.7, 8.0),
        "ppo": (1.1, 0.9, 2.0, 1.0),
        "sft-more": (1.25, 1.0, 1.5, 9.0),
    }
    columns = ("estimate", "low", "high", "first_order")
    made["exact"] = pd.DataFrame([{"member": m, "metric": METRIC, **dict(zip(columns, v))} for m, v in rows.items()])
    assert told.removed(made) == ["grpo"]  # the control is no paradigm
    assert ", and by removing edges, on few problems, after grpo of 2. How" in told.answer(made)
    said = told.exact_told(made)
    # the ends' distances from the estimates, in logarithms, add up in squares
    low, high = (
        math.exp(math.log(0.5) + s * math.hypot(math.log(a), math.log(b)))
        for s, a, b in ((-1, 1.25, 1.2), (1, 1.4, 1.25))
    )
    assert f"re-run: grpo × 0.50 [{low:.2f}, {high:.2f}]; ppo × 1.10" in said
    assert said.endswith("by a factor of 1.25 either way; beyond that, with an interval that leaves out 1: grpo.")


def test_what_a_pair_costs_is_said():
    rows = [("from nothing", 600.0, 2.5), ("answers there", 120.0, 2.6)]
    study = [
        {"suite": "study", "case": c, "asked": 500, "problems": 100, "seconds": s, "peak_gib": g} for c, s, g in rows
    ]
    said = told.spent(pd.DataFrame([*study, {"suite": "graft", "case": "from nothing", "seconds": 1.0}]))
    assert "from 500 questions to the comparison of 100 problems" in said
    assert said.endswith("10.0 minutes, or 2.0 when the answers are there, with at most 2.6 GiB of memory.")
    assert "not measured" in told.spent(pd.DataFrame(study).assign(suite="graft"))


def test_thin_tables_are_said_to_be():
    assert told.changes(tables({}, {}), 1.0) == "No paradigm has been measured."
    assert "was not measured" in told.trusted({}) and "was not measured" in told.exact_told(tables({}, {}))
    alone = tables({"grpo": (2, 1.5, 2.5)}, GAINS)
    alone["halves"] = alone["halves"].iloc[:0]
    said = told.changes(alone, 1.0)
    assert "largest null is not measured" in said and told.beyond(alone, METRIC, 1.0) == []
    with pytest.raises(InputError, match=r"members\.parquet"):
        told.load("nowhere")


def test_every_cell_that_was_measured_is_counted_with_its_side():
    made = tables({"grpo": (2, 1.5, 2.5), "ppo": (1.1, 0.9, 1.3), "sft-more": (1.1, 1.0, 1.2)}, GAINS)
    shorter = made["effects"].assign(alpha=0.3)
    shorter.loc[shorter["paradigm"] == "grpo", ["log_ratio", "log_low", "log_high"]] *= -1
    made["effects"] = pd.concat([made["effects"], shorter], ignore_index=True)
    made["halves"] = pd.concat([made["halves"], made["halves"].assign(alpha=0.3)], ignore_index=True)
    assert told.cells(made) == [("block", 0.3), ("block", 1.0)]
    assert told.agreeing(made) == "Beyond the largest null, of 2 cells: grpo up in 1 and down in 1 and ppo in none."
    table = told.everywhere(made)
    assert table.loc["grpo", ("block", "α = 0.3")] == "× 0.50 [0.67, 0.40]"  # the ends as the table has them
    assert table.loc["largest null", ("block", "α = 1")] == "1.20 (another half of the problems)"
    assert told.agreeing(tables({}, {})) == "No paradigm has been measured."


def test_all_answers_and_unseen_problems_are_told():
    made = tables({"grpo": (2, 1.5, 2.5)}, GAINS)
    columns = {"problems": 100, "strict": 0.2, "low": 0.1, "high": 0.3}
    rows = [{"set": some, "member": "sft", "accuracy": 0.2, **columns} for some in ("stories/test", "gsm8k")]
    effect = {"metric": METRIC, "compared": 40, "log_ratio": 0.0, "log_low": -1.0, "log_high": 1.0}
    rows += [{"set": "gsm8k", "member": "grpo", "accuracy": 0.6, **columns, "low": 0.5, "high": 0.7, **effect}]
    made["all_answers"] = pd.DataFrame(rows)
    said = told.unseen(made)
    assert "Of 100 problems of gsm8k" in said and "base answers 20% [10%, 30%]" in said
    assert "of them grpo outside the base's interval" in said and "between 20 % and 60 %" in said
    table = told.all_answers(made)
    assert table.loc[("gsm8k", "grpo"), METRIC] == "× 1.00 [0.37, 2.72]" and table.loc[("gsm8k", "sft"), METRIC] == "–"
    made["all_answers"] = made["all_answers"].iloc[:1]
    assert "were not asked" in told.unseen(made)


def test_trust_is_told_by_member_and_method_without_intervals_that_are_none():
    rows = [
        {"member": "sft", "method": "EAP", "quantity": "rank correlation", "value": 0.5, "low": 0.4, "high": 0.6},
        {"member": "sft", "method": "random", "quantity": "rank correlation", "value": 0.0, "low": math.nan, "high": math.nan},
        {"member": "sft", "method": "EAP", "quantity": "CPR", "value": math.nan, "low": math.nan, "high": math.nan},
    ]  # fmt: skip
    table = told.trust_table({"trust": pd.DataFrame(rows)})
    assert table.to_numpy().tolist() == [["0.50 [0.40, 0.60]", "0.00"]] and list(table.index) == ["rank correlation"]
