"""The finding's sentences say what the committed tables hold, and no more where tables are thin."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from paradigms.study import controlled, finding, finding_figures, words
from paradigms.study.nulls import ANOTHER_BASE, CONTROL, NOISE
from rlcircuits.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def study() -> controlled.Results:
    return controlled.load(ROOT / "results" / "study")


def made(factors: dict[str, tuple[float, float, float]], null: float = 1.2, seeds: int = 2) -> controlled.Results:
    """A study of one base in which each paradigm's intensity changes by a factor with an interval."""
    where = {"base": "qwen2", "metric": finding.INTENSITY, "alpha": 1.0, "level": "block"}
    effects = [
        {**where, "tokens": "own", "paradigm": name, "kind": "control" if name == CONTROL else "paradigm", "n_seeds": seeds,
         **dict(zip(("log_ratio", "log_low", "log_high"), map(math.log, found))), "effect": 0.0, "low": 0.0, "high": 0.0}
        for name, found in factors.items()
    ]  # fmt: skip
    values = [
        {**where, "paradigm": name, "seed": seed, "draw": 0, "bb": 1.0, "tt": found[0], "t_cut": 15}
        for name, found in [*factors.items(), (ANOTHER_BASE, (null,))]
        for seed in range(seeds)
    ]
    columns = ["base", "metric", "alpha", "level", "tokens", "paradigm", "kind", "n_seeds", "log_ratio", "log_low",
               "log_high", "effect", "low", "high"]  # fmt: skip
    tables = {name: pd.DataFrame() for name in controlled.TABLES}
    tables["effects"] = pd.DataFrame(effects, columns=columns)
    tables["values"] = pd.DataFrame(values)
    tables["verdicts"] = pd.DataFrame(columns=["scope", "base", "claim", "verdict"])
    return controlled.Results(tables, {})


# --- the committed study --------------------------------------------------------------------------


def test_the_finding_is_in_the_tables(study) -> None:
    """Every number of the sentence, found again in the tables by other means."""
    rows = study.effects.query(
        "metric == 'activation_intensity' and alpha == 1 and level == 'block' and tokens == 'own'"
    )
    wide = rows.pivot(index="paradigm", columns="base", values="ratio")
    said = finding.in_one_sentence(study)
    up = wide.loc[["ppo", "grpo", "dpo"]].to_numpy()
    assert f"rises × {up.min():.1f} to × {up.max():.1f} on both bases after PPO, GRPO and DPO" in said
    exact = study.exact_effects.query("metric == 'activation_intensity' and alpha == 1 and method == 'exact'")[
        "log_ratio"
    ]
    assert len(exact) == 12 and f"× {np.exp(exact.min()):.2f} to × {np.exp(exact.max()):.2f} after every" in said
    assert "after online DPO on Qwen2 alone" in said and "not shown after RFT and more SFT" in said
    low = rows[rows["paradigm"] == "online-dpo"].set_index("base")["log_low"]
    assert low["qwen2"] > 0 > low["llama"]


def test_each_paradigm_alone_at_the_fixed_alpha_is_the_committed_verdict(study) -> None:
    """The grid's rule is the one fixed beforehand: it gives the verdicts that were written when the study was made."""
    for row in study.verdicts[study.verdicts["scope"] != "PPO and GRPO"].itertuples():
        if row.claim == "grows with α":
            continue
        found = finding.standing(study, row.metric, 0.3).loc[(row.base, row.scope)]
        assert found["middle"] == pytest.approx(row.effect) and found["left"] == pytest.approx(row.low)
        word = finding.support(row.effect, row.low, row.high, row.direction, null=found["null"]).word
        assert word == {"holds": "supported", "not resolved": "open"}.get(row.verdict, row.verdict)


def test_the_grid_shows_every_cell_and_marks_the_fixed_one(study) -> None:
    grid = finding.claims_grid(study)
    assert [a for _, a in grid.columns] == ["0.03, 0.1", "0.3 ◆", "0.5", "1"] * 2
    assert len(grid) == 12 and (grid.drop(index="grows with α", level=0) != "").all(axis=None)
    assert grid.loc[("intensity up", "PPO"), ("Qwen2", "1")] == "✓ 9.5"
    assert sum(finding.counts(grid).values()) == 4 * 2 * 10 + 4
    assert "intensity up: 10 supported, 6 open;" in finding.grid_sentence(grid)
    first = study.values[study.values["alpha"].isin([0.03, 0.1])]
    assert set(first["t_cut"]) == {1}  # so the column of the two is of the same tokens


def test_the_pooled_outcome_stays_visible_as_what_was_fixed(study) -> None:
    pooled = study.verdicts[study.verdicts["scope"] == "PPO and GRPO"]
    assert (pooled["verdict"] == "holds").sum() == 0
    said = finding.prefixed_sentence(study)
    assert "α = 0.3, PPO and GRPO pooled" in said and said.count("of 6 claims 0 supported") == 2
    assert "1 contradicted (PPO and GRPO but not DPO)" in said


def test_removal_does_not_tell_reward_from_imitation(study) -> None:
    """Against a difference of means by hand."""
    exact = study.exactness.query("quantity == 'activation_intensity' and alpha == 1 and method == 'exact'")
    logs = exact.assign(v=np.log(exact["value"])).pivot(index=["base", "seed", "paradigm"], columns="side", values="v")
    means = (logs["tuned"] - logs["base"]).groupby(["base", "paradigm"]).mean()
    found = finding.removal_contrasts(study)
    assert found.loc[("qwen2", "ppo"), "middle"] == pytest.approx(means["qwen2", "ppo"] - means["qwen2", "rft"])
    assert len(found) == 8 and ((found["left"] < 0) & (found["right"] > 0)).all()
    assert "all 8 intervals include 1" in finding.removal_sentence(study)


def test_confidence_taken_out_leaves_a_rise_beyond_noise_of_the_same_size(study) -> None:
    table = finding.standing(study, finding.PER_GRADIENT)
    for paradigm in ("ppo", "grpo", "dpo", "online-dpo"):
        rows = table.xs(paradigm, level="paradigm")
        assert (rows["word"] == "supported").all() and (rows["middle"] > rows["noise"]).all()
    said = finding.confidence_sentence(study)
    assert "Beyond every null on every base: PPO, GRPO, DPO and online DPO; RFT on Qwen2 alone." in said


def test_a_factor_is_judged_against_one(study) -> None:
    for _, row in study.verdicts.iterrows():
        said = words.verdict_sentence(row)
        assert ("cludes 0" in said) <= (row["claim"] == "grows with α"), said


def test_signs_are_counted_metric_by_metric(study) -> None:
    said = words.signs(study.exact_effects, 0.3)
    assert "activation intensity 11 of 12" in said and "information complexity 2 of 12" in said and " of 60" not in said


def test_the_readme_says_the_same_numbers(study) -> None:
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    numbers = re.findall(r"× [\d.]+", finding.in_one_sentence(study))
    assert len(numbers) == 4
    assert f"rises {numbers[0]} to {numbers[1]} on both bases after PPO, GRPO and DPO" in readme
    assert f"intensity is {numbers[2]} to {numbers[3]} after every one of them" in readme


# --- edge cases -----------------------------------------------------------------------------------


def test_nothing_measured_is_said_to_be() -> None:
    empty = made({})
    assert finding.in_one_sentence(empty) == "Whole answers were not measured."
    assert "not measured" in finding.confidence_sentence(empty)
    assert finding.sure_table(empty).empty
    assert "not compared" in finding.removal_sentence(empty) and "not compared" in words.signs(empty.exact_effects, 1.0)
    assert "not applied" in finding.prefixed_sentence(empty)
    with pytest.raises(InputError, match="no whole answers"):
        finding_figures.intensity_figure(empty)


def test_no_member_beyond_the_nulls() -> None:
    said = finding.in_one_sentence(made({"ppo": (1.1, 0.9, 1.3), "grpo": (1.1, 1.05, 1.15), CONTROL: (1.0, 0.9, 1.1)}))
    assert "no paradigm raises the paper's intensity beyond the nulls on the one base" in said
    assert "nothing was removed for real" in said and "not shown" not in said


def test_every_member_beyond_the_nulls() -> None:
    study = made({"ppo": (9, 8, 10), "dpo": (4, 3, 5)})
    said = finding.in_one_sentence(study)
    assert "rises × 4.0 to × 9.0 on the one base after PPO and DPO" in said and "not shown" not in said
    assert list(finding.sure_table(study).loc["PPO"]) == ["× 9.00 [8.00, 10.00]", "supported", "2/2"]
    figure = finding_figures.intensity_figure(study)
    assert list(figure.data[0].x) == pytest.approx([9, 4]) and "× 9.00 [8.00, 10.00]" in figure.layout.meta["alt"]


def test_a_fall_beyond_the_nulls_is_no_rise() -> None:
    said = finding.in_one_sentence(made({"ppo": (9, 8, 10), "rft": (0.2, 0.1, 0.4)}))
    assert "after PPO (not shown after RFT)" in said


def test_what_is_undefined_is_open_and_not_a_number() -> None:
    nan = math.nan
    study = made({"ppo": (2.0, nan, nan), "grpo": (nan, nan, nan), "dpo": (9, 8, 10)})
    table = finding.standing(study)
    assert table["word"].to_dict() == {
        ("qwen2", "ppo"): "open",
        ("qwen2", "grpo"): "open",
        ("qwen2", "dpo"): "supported",
    }
    assert table["reason"].to_list()[:2] == ["no interval", "not measured"]
    assert "nan" not in finding.in_one_sentence(study) + finding.sure_table(study).to_string()
    assert finding.factor(nan, nan, nan) == "not measured" and finding.factor(0.0, nan, nan) == "× 1.00 (no interval)"
    assert finding.span([nan]) == "not measured" and finding.span([0.0, 0.0]) == "× 1.0"


def test_bases_that_differ_are_told_apart(study) -> None:
    table = finding.standing(study)
    assert finding.by_word(table)["differs"] == ["online-dpo"]
    one = finding.by_word(table.loc[["qwen2"]])
    assert one["differs"] == [] and "online-dpo" in one["supported"]


def test_the_figures_hold_the_tables(study) -> None:
    first, second = finding_figures.intensity_figure(study), finding_figures.confidence_figure(study)
    assert len(first.data) == 4 * 2 and len(second.data) == 3 * 2
    assert first.data[0].x[0] == pytest.approx(math.exp(finding.standing(study).loc[("qwen2", "ppo"), "middle"]))
    assert [shape.type for shape in first.layout.shapes].count("rect") == 2
    noise = study.effects[study.effects["paradigm"].str.startswith(NOISE)].query(
        "metric == 'activation_intensity' and alpha == 1 and level == 'block' and tokens == 'own' and base == 'qwen2'"
    )
    assert max(noise["ratio"]) == pytest.approx(second.data[0].x[-2])
