"""How much would tell an effect from the nulls: against closed forms, drawn samples and the committed tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paradigms.paper import published
from paradigms.study import controlled, finding, power
from paradigms.study import real_words as real
from rlcircuits.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_against_one_it_is_the_text_book_s_7_85() -> None:
    """(z₀.₉₇₅ + z₀.₈)² is 7.849; a power of one half leaves z₀.₉₇₅² = 3.841."""
    for effect, deviation in ((0.1, 1.0), (-0.3, 0.7), (0.01, 0.2)):
        assert power.needed(effect, deviation) == math.ceil(7.8489 * (deviation / effect) ** 2)
        assert power.needed(effect, deviation, power=0.5) == math.ceil(3.8415 * (deviation / effect) ** 2)
    assert power.needed(2.0, 0.1) == 1 and power.needed(1.0, 0.0) == 1


def test_against_a_null_it_is_the_distance_that_counts() -> None:
    """(z₀.₈ / distance)² = 0.7083 / distance²; a null that is not reached, or of size 0, changes nothing."""
    assert power.needed(0.5, 1.0, 0.4) == math.ceil(0.70833 / 0.1**2)
    assert power.needed(-0.5, 1.0, 0.01) == power.needed(0.5, 1.0) == 32
    assert power.needed(0.4, 1.0, 0.4) == power.needed(0.0, 1.0) == math.inf
    assert power.needed(0.5, 1.0, 0.4, power=0.5) == math.ceil(3.8415 * 4)
    for given in ((math.nan, 1.0, 0.0), (1.0, math.nan, 0.0), (1.0, 1.0, math.nan)):
        assert math.isnan(power.needed(*given))


@pytest.mark.parametrize(("effect", "deviation", "null"), [(0.2, 1.0, 0.0), (0.5, 1.5, 0.45), (-0.3, 2.0, 0.05)])
def test_drawn_samples_are_told_as_often_as_was_asked(effect: float, deviation: float, null: float) -> None:
    """Means of so many draws: in four of five tries beyond the null and, by the test, not 0; with half as many, less often."""
    rng = np.random.default_rng(0)
    k = power.needed(effect, deviation, null)

    def told(k: int) -> float:
        means = effect + deviation / math.sqrt(k) * rng.standard_normal(40_000)
        signed = means * np.sign(effect)
        return float(np.mean((signed > null) & (signed > 1.959964 * deviation / math.sqrt(k))))

    assert told(int(k)) == pytest.approx(0.8, abs=0.02)
    assert told(int(k) // 2) < 0.75


def test_what_makes_no_sense_is_refused() -> None:
    for given in ({"deviation": -1.0}, {"null": -0.1}, {"power": 1.0}, {"power": 0.02}):
        with pytest.raises(InputError, match=r"expected sizes of at least 0 and a power between 0\.025 and 1"):
            power.needed(**{"effect": 1.0, "deviation": 1.0, **given})


def effects(**columns: list) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    same = {
        "metric": finding.INTENSITY,
        "alpha": 1.0,
        "level": "block",
        "tokens": "own",
        "n_seeds": 1,
        "kind": "paradigm",
    }
    return pd.DataFrame({**{name: [value] * n for name, value in same.items()}, **columns})


def test_the_spread_between_problems_is_read_from_the_interval() -> None:
    """Means of 100 draws of a known spread have intervals of ± 1.96 / 10 of it; noise, and what is over seeds, are left out."""
    half = 1.959964 * 0.8 / 10
    table = effects(
        paradigm=["ppo", "grpo", "rft", "null: weight noise like grpo", "dpo"], n_problems=[100.0] * 5,
        log_low=[1 - half, -half, 0.2 - 2 * half, 0.0, -9.0], log_high=[1 + half, half, 0.2 + 2 * half, 0.01, 9.0],
    )  # fmt: skip
    table.loc[4, "n_seeds"] = 8
    assert power.between_problems({"effects": table}, finding.INTENSITY) == pytest.approx(0.8, rel=1e-5)
    assert math.isnan(power.between_problems({"effects": table}, "gini"))


def test_the_spread_between_runs_is_pooled_over_recipes() -> None:
    """Of (1, 3) and (0, 0, 6) around their means: squares 2 and 24 over 1 + 2 degrees; a control and a 0 do not count."""
    logs = [("ppo", 0, 1.0), ("ppo", 1, 3.0), ("dpo", 0, 0.0), ("dpo", 1, 0.0), ("dpo", 2, 6.0), ("rft", 0, 5.0)]
    rows = [
        {"base": "qwen2", "paradigm": name, "seed": seed, "bb": 2.0, "tt": 2 * math.exp(value), "kind": "paradigm"}
        for name, seed, value in logs
    ]
    rows += [{**rows[0], "paradigm": "sft-more", "kind": "control", "seed": s, "tt": 10.0**s} for s in range(3)]
    rows += [{**rows[0], "seed": 2, "tt": 0.0}]
    values = pd.DataFrame(rows).assign(metric=finding.INTENSITY, alpha=1.0, level="block")
    study = controlled.Results({**dict.fromkeys(controlled.TABLES, pd.DataFrame()), "values": values}, {})
    assert power.between_runs(study, finding.INTENSITY) == pytest.approx(math.sqrt(26 / 3))
    assert math.isnan(power.between_runs(study, "gini"))


@pytest.fixture(scope="module")
def found() -> pd.DataFrame:
    return power.table(controlled.load(ROOT / "results" / "study"), real.load(ROOT / "results" / "smollm2"))


def test_the_published_sizes_are_those_that_are_printed(found: pd.DataFrame) -> None:
    printed = [[float(v) for v in cell["activation_intensity"]] for cell in published()["cells"]]
    sizes = sorted(max(a, b) / min(a, b) for a, b in printed)
    assert math.exp(found.loc[("first order", "published"), "size"]) == pytest.approx(math.sqrt(sizes[1] * sizes[2]))
    for row in found.itertuples():
        assert row.problems <= row.problems_null and row.runs <= row.runs_null
        assert (row.problems_null == math.inf) == (row.size <= row.null)
    assert f"(× {math.exp(found.loc[('first order', 'published'), 'size']):.2f})" in power.sentence(found)


def test_what_is_shown_says_where_no_number_would_do() -> None:
    index = pd.MultiIndex.from_tuples([("first order", "small families"), ("first order", "published")])
    rows = [[math.log(4), 5.0, 6.0, 1.0, 2.0], [math.log(1.1), 1200.0, math.inf, math.nan, math.inf]]
    made = pd.DataFrame(rows, index=index, columns=["size", "problems", "problems_null", "runs", "runs_null"])
    shown = power.shown(made)
    assert shown.iloc[1].tolist() == [
        "× 1.10",
        "1,200",
        "none: within the nulls",
        "not measured",
        "none: within the nulls",
    ]
    said = power.sentence(made)
    assert "(× 1.10) from 1 by 1,200 problems or an unknown number of runs, from the nulls by no number;" in said
    assert "(× 4.00) from 1 by 5 problems or 1 run, from the nulls by 6 problems or 2 runs." in said
    made.iloc[0, 1:] = 3.0
    assert "(× 4.00) from both by 3 problems or 3 runs." in power.sentence(made)
    assert power.sentence(made.iloc[:0]) == "What would tell a change of a published pair was not computed."
