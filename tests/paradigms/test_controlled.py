"""The controlled study: its statistics against known truths, its rules on synthetic tables, and a tiny study killed and
resumed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from scipy import stats

import rlcircuits as rc
from paradigms.study import controlled, measurement, verdicts
from paradigms.study import figures as study_figures
from paradigms.study import words as study_words
from paradigms.study.dynamics import lagged_correlation, lead_and_lag, student_interval
from paradigms.study.effects import (
    CONTRASTS,
    CORNERS,
    SeedCell,
    cell_effects,
    contrast_of,
    equal_loss,
    hierarchical_interval,
    permutation_p,
    seed_p,
)
from paradigms.study.interventions import mean_intensity, push_intensity, scale_logits
from paradigms.study.nulls import add_noise, neighbours, spread
from paradigms.study.resampling import problem_counts, swap_signs
from paradigms.study.tables import NULLS, null_of, null_spreads
from paradigms.study.tasks import Settings, Task
from paradigms.study.work import perform
from rlcircuits.attribution.traces import Trace
from rlcircuits.errors import InputError
from tests.fixtures.models import tiny
from tests.fixtures.waiting import PATIENCE, ended, until

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results" / "study"


def traces(n: int = 6, prompt: int = 4, answer: int = 5, seed: int = 0) -> list[Trace]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(3, 61, size=(n, prompt + answer))
    return [Trace(f"p{i}", tuple(row[:prompt]), tuple(row[prompt:])) for i, row in enumerate(rows.tolist())]


def cell(values: np.ndarray, seed: int = 0, corners=("bb", "tt"), resamples: int = 200) -> SeedCell:
    """A cell of per-sample values ``(corner, sample, metric)`` and no pooled metric."""
    names = ("activation_intensity", "loss", *(f"metric {i}" for i in range(values.shape[2] - 2)))[: values.shape[2]]
    none = np.empty((len(corners), 0))
    return SeedCell(names, tuple(corners), values, none, np.empty((len(corners), 0, resamples), np.float32), None, seed)


# --- effects --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_seeds", "between", "within"), [(8, 1.0, 1.0), (4, 1.0, 1.0), (4, 0.3, 3.0), (2, 1.0, 1.0)])
def test_hierarchical_interval_covers_the_truth(n_seeds, between, within) -> None:
    rng = np.random.default_rng(0)
    covered, n, worlds = 0, 30, 300
    counts = problem_counts(n, 200)
    for _ in range(worlds):
        data = 0.5 + between * rng.normal(size=(n_seeds, 1)) + within * rng.normal(size=(n_seeds, n))
        boot = np.stack([counts @ row / n for row in data])[:, None, :]
        _, low, high = hierarchical_interval(data.mean(axis=1, keepdims=True), boot)
        covered += low[0] <= 0.5 <= high[0]
    assert covered / worlds >= 0.92, f"a 95 % interval covers {covered / worlds:.1%}"
    assert n_seeds < 4 or between < within or covered / worlds <= 0.985, (
        f"a 95 % interval covers {covered / worlds:.1%}: it is too wide"
    )


def test_hierarchical_interval_covers_the_truth_of_skewed_differences() -> None:
    rng = np.random.default_rng(3)
    covered, counts = 0, problem_counts(30, 200)
    for _ in range(300):
        data = rng.exponential(size=(8, 1)) + rng.exponential(size=(8, 30))
        boot = np.stack([counts @ row / 30 for row in data])[:, None, :]
        _, low, high = hierarchical_interval(data.mean(axis=1, keepdims=True), boot)
        covered += low[0] <= 2.0 <= high[0]
    assert covered / 300 >= 0.9, f"a 95 % interval covers {covered / 300:.1%}"


def test_a_change_in_one_problem_of_one_seed_is_no_finding() -> None:
    data = np.zeros((8, 100))
    data[3, 7] = 5.0
    boot = (data @ problem_counts(100, 500).T / 100)[:, None, :]
    effect, low, high = hierarchical_interval(data.mean(axis=1, keepdims=True), boot)
    assert low[0] <= 0 < effect[0] < high[0]


def test_one_seed_gives_the_interval_over_problems() -> None:
    data = np.random.default_rng(1).normal(size=200)
    boot = (problem_counts(200) @ data / 200)[None, None, :]
    _, low, high = hierarchical_interval(np.array([[data.mean()]]), boot)
    half = 1.96 * data.std() / np.sqrt(200)
    assert low[0] == pytest.approx(data.mean() - half, abs=0.15 * half)
    assert high[0] == pytest.approx(data.mean() + half, abs=0.15 * half)


def test_p_is_uniform_under_the_null_and_small_off_it() -> None:
    rng = np.random.default_rng(2)
    found, off = [], []
    for world in range(300):
        cells = [cell(rng.normal(size=(2, 20, 1)), seed=10 * world + s) for s in range(3)]
        swapped = np.stack([one.swapped("own", swaps=499) for one in cells])
        observed = contrast_of(cells, "own", logarithm=False)[0]
        found.append(permutation_p(observed, swapped)[0])
        off.append(permutation_p(observed + 1.5, swapped)[0])
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) <= 0.09
    assert np.mean(np.array(off) <= 0.05) > 0.95


def test_p_by_whole_seeds_is_scipys_exact_test() -> None:
    d = np.array([0.3, -0.1, 0.8, 0.5, 0.2])
    expected = stats.permutation_test(
        (d, np.zeros(5)), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    ).pvalue
    assert seed_p(d[:, None])[0] == pytest.approx(expected)
    assert seed_p(np.ones((8, 1)))[0] == 2**-7


def test_holm_by_hand_and_as_the_closure_of_bonferroni() -> None:
    assert rc.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    p = np.random.default_rng(0).uniform(size=7) ** 3
    sets = [np.array(chosen, bool) for chosen in product((0, 1), repeat=7) if any(chosen)]
    closed = [max(min(1.0, one.sum() * p[one].min()) for one in sets if one[i]) for i in range(7)]
    assert rc.holm(p) == pytest.approx(closed)


def test_own_tokens_are_other_tokens_plus_other_circuit() -> None:
    weights = {name: np.array([CONTRASTS[name].get(c, 0) for c in CORNERS]) for name in CONTRASTS}
    assert (weights["own"] == weights["other circuit"] + weights["other tokens"]).all()
    cells = [cell(np.random.default_rng(s).gamma(2.0, size=(4, 25, 3)), s, CORNERS) for s in range(3)]
    found = {name: cell_effects(cells, name, tests=False) for name in CONTRASTS}
    for column in ("effect", "log_ratio"):
        parts = found["other circuit"][column] + found["other tokens"][column]
        assert found["own"][column][:3] == pytest.approx(parts, abs=1e-12)


def test_the_split_gives_all_to_what_alone_differs() -> None:
    base, tuned = np.random.default_rng(0).gamma(2.0, size=(2, 25, 2))
    same_answers = cell(np.stack([base, tuned, tuned, base]), corners=CORNERS)  # bt = bb, tb = tt
    same_models = cell(np.stack([base, tuned, base, tuned]), corners=CORNERS)  # tb = bb, bt = tt
    for one, none, everything in (
        (same_answers, "other tokens", "other circuit"),
        (same_models, "other circuit", "other tokens"),
    ):
        assert cell_effects([one], none, tests=False)["effect"] == pytest.approx(0, abs=1e-15)
        assert cell_effects([one], everything, tests=False)["effect"] == pytest.approx((tuned - base).mean(axis=0))


def test_equal_loss_against_numpys_least_squares() -> None:
    rng = np.random.default_rng(0)
    loss, after_loss = rng.normal(size=(2, 40))
    intensity, after = 0.7 * loss + rng.normal(size=40), 0.7 * after_loss + rng.normal(size=40) + 2
    chosen = rng.integers(40, size=40)
    counts = np.bincount(chosen, minlength=40)[None].astype(float)
    slope, level = np.polyfit(loss[chosen], intensity[chosen], 1)
    expected = (after[chosen] - level - slope * after_loss[chosen]).mean()
    assert equal_loss(intensity, loss, after, after_loss, counts)[0] == pytest.approx(expected)


def test_draws_of_a_seed_are_one_seed() -> None:
    rng = np.random.default_rng(0)
    cells = [cell(rng.gamma(2.0, size=(2, 25, 2)), seed) for seed in (0, 0, 1, 1)]
    found = cell_effects(cells, "own", tests=False)
    assert (found["n_seeds"] == 2).all()
    with pytest.raises(InputError, match="needs the corner 'tb'"):
        cell_effects(cells, "base's")


# --- measurement ----------------------------------------------------------------------------------


def test_gradient_at_the_logits_by_automatic_differentiation() -> None:
    hf, rows = tiny("llama"), traces(3)
    found = measurement.logit_gradient(hf, rows, cut=3)
    for trace, value in zip(rows, found):
        ids = torch.tensor([[*trace.prompt, *trace.answer[:3]]])
        logits = hf(ids).logits[0, len(trace.prompt) - 1 : -1].detach().requires_grad_()
        torch.nn.functional.cross_entropy(logits, ids[0, len(trace.prompt) :]).backward()
        assert value == pytest.approx(float(logits.grad.norm()), rel=1e-6)


def test_scores_that_are_known_are_those_of_one_call():
    hf, rows = tiny("qwen2"), traces(4)
    whole, known = measurement.attributed(hf, rows, "block", 3), {}
    first = measurement._with_known(known, hf, rows[:3], "block", 3)
    more = measurement._with_known(known, hf, rows[1:], "block", 3)
    again = measurement._with_known(known, None, rows, "block", 3)  # nothing is left to ask a model
    for found, wanted in ((first, whole[:3]), (more, whole[1:]), (again, whole)):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found["logit_gradient"], wanted["logit_gradient"], rtol=1e-5)
        assert [*found["sample"].values] == [*wanted["sample"].values] and found["tokens"].dims == ("sample",)


def test_a_cell_holds_the_metrics_resampled_as_they_are_defined(tmp_path) -> None:
    rows = traces(8)
    scores = {
        corner: measurement.attributed(tiny("qwen2", seed=s), rows, "block", None)
        for s, corner in enumerate(("bb", "tt"))
    }
    found = measurement.seed_cell(scores, tests=True, seed=5, resamples=20, swaps=30)
    observed = pd.DataFrame(found.observed(), columns=found.metrics)
    for k, corner in enumerate(scores):
        for name, value in rc.summary(scores[corner]).items():
            assert observed.loc[k, name] == pytest.approx(value), name
    counts, boot = problem_counts(8, 20), found.boot()
    for name in ("information_complexity", "inter_sample_diversity", "gini"):
        chosen = np.repeat(np.arange(8), counts[3].astype(int))
        again = scores["tt"].isel(sample=chosen)
        if name == "inter_sample_diversity":  # a problem is not paired with its own copy
            z = measurement.standardised(rc.metrics.edge_values(again))
            other = chosen[:, None] != chosen[None, :]
            expected = 1 - (z @ z.T)[other].mean()
        else:
            expected = rc.METRICS[name].value(again)
        assert boot[1, found.metrics.index(name), 3] == pytest.approx(expected, rel=1e-5), name
    sign = swap_signs(8, 5, 30)[4]
    swapped = {
        c: scores[c].copy(data=np.where(sign[:, None, None] > 0, scores[c].values, scores[o].values))
        for c, o in (("bb", "tt"), ("tt", "bb"))
    }
    for name in ("information_complexity", "inter_sample_diversity", "edge_entropy"):
        expected = rc.METRICS[name].value(swapped["tt"]) - rc.METRICS[name].value(swapped["bb"])
        assert found.swapped("own", swaps=30)[found.metrics.index(name), 4] == pytest.approx(expected, abs=1e-6), name
    whole = measurement.Measurement({("block", 0.3): found}, {"t_cut": {"0.3": 4}})
    measurement.save(whole, tmp_path / "m.npz")
    again = measurement.load(tmp_path / "m.npz")
    assert again.facts == whole.facts
    assert (again.cells["block", 0.3].swapped("own", 30) == found.swapped("own", 30)).all()


def test_other_bins_are_the_metric_with_other_bins() -> None:
    scores = rc.attribute(tiny("llama"), traces(7), progress=False)
    values, ones = rc.metrics.edge_values(scores), np.ones((1, 7))
    for bins, epsilon in product((20, 500), (1e-12, 1e-3)):
        found = measurement.complexity_statistic(values, ones, bins, epsilon)[0]
        assert found == pytest.approx(rc.information_complexity(scores, bins, epsilon))
    assert measurement.diversity_statistic(values, ones)[0] == pytest.approx(rc.inter_sample_diversity(scores))


# --- nulls and interventions ----------------------------------------------------------------------


def test_noise_has_the_norm_of_the_update_in_every_tensor() -> None:
    base, tuned, noisy, other = (tiny("qwen2", seed=s) for s in (0, 1, 0, 0))
    add_noise(noisy, tuned, draw=0)
    add_noise(other, tuned, draw=1)
    for (name, w), t, x, y in zip(base.named_parameters(), tuned.parameters(), noisy.parameters(), other.parameters()):
        assert float((x - w).norm()) == pytest.approx(float((t - w).norm()), rel=1e-9), name
        cosine = float(((x - w) * (y - w)).sum() / (x - w).norm() / (y - w).norm())
        assert abs(cosine) < 0.9, "two draws must differ"
    with pytest.raises(InputError, match="same parameters"):
        add_noise(base, tiny("qwen2", layers=2), 0)


def test_neighbours_and_spread() -> None:
    assert neighbours([3, 5, 9]) == [(3, 5), (5, 9), (9, 3)]
    assert neighbours([3, 5]) == [(3, 5)] and neighbours([3]) == []
    assert spread([3.0, -4.0, np.nan]) == pytest.approx(np.sqrt(12.5))
    assert np.isnan(spread([np.nan]))


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scaled_logits_keep_greedy_answers_and_change_the_loss(factor) -> None:
    hf, scaled = tiny("llama"), tiny("llama")
    scale_logits(scaled, factor)
    ids = torch.tensor([t.prompt for t in traces(5)])
    both = [
        m.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False) for m in (hf, scaled)
    ]
    assert torch.equal(*both)
    assert torch.allclose(scaled(ids).logits, factor * hf(ids).logits)
    before, after = (rc.attribute(m, traces(5), progress=False) for m in (hf, scaled))
    assert not np.allclose(before.loss, after.loss)
    with pytest.raises(InputError, match="positive"):
        scale_logits(hf, 0.0)
    with pytest.raises(InputError, match="shared|input embedding"):
        scale_logits(tiny("llama", tie_word_embeddings=True), 2.0)


def test_differentiable_intensity_is_the_metric_and_its_gradient_that_of_finite_differences() -> None:

    hf = tiny("qwen2", layers=2, attn_implementation="eager")
    rows = traces(4)
    expected = rc.activation_intensity(rc.attribute(hf, rows, progress=False))
    hf.requires_grad_(True)
    found = mean_intensity(hf, rows)
    assert found.item() == pytest.approx(expected, rel=1e-6)
    weight = hf.model.layers[0].mlp.down_proj.weight
    gradient = torch.autograd.grad(found, weight)[0][3, 5].item()
    values = []
    for step in (1e-3, -1e-3):
        with torch.no_grad():
            weight[3, 5] += step
            values.append(rc.activation_intensity(rc.attribute(hf, rows, progress=False)))
            weight[3, 5] -= step
    assert gradient == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-2, abs=1e-7)


def test_a_pushed_intensity_goes_where_it_is_pushed() -> None:
    rows = traces(64, seed=1)
    after = {}
    for factor in (0.5, None, 2.0):
        hf = tiny("llama", layers=2, attn_implementation="eager")
        before = rc.activation_intensity(rc.attribute(hf, rows[:16], progress=False))
        push_intensity(hf, rows, rows[:16], factor, strength=3.0, batch=4, learning_rate=3e-4)
        after[factor] = rc.activation_intensity(rc.attribute(hf, rows[:16], progress=False)) / before
    assert after[0.5] < after[None] < after[2.0]


# --- dynamics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [-2, 0, 2])
def test_lags_find_the_lag_that_was_put_in(shift) -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(8, 20))
    lead = np.cumsum(steps[:, 4:-4], axis=1)
    follow = np.cumsum(steps[:, 4 - shift : 16 - shift], axis=1) ** 1  # Δfollow_t = Δlead_{t−shift}
    found = lead_and_lag(lead, follow).set_index("lag")
    assert found["correlation"].drop("lead").astype(float).idxmax() == str(shift)
    assert found.loc[str(shift), "correlation"] == pytest.approx(1.0)
    assert np.sign(round(found.loc["lead", "correlation"], 1)) == np.sign(shift)
    if shift:
        assert shift * found.loc["lead", "low"] > 0 or shift * found.loc["lead", "high"] > 0


def test_lags_of_short_or_constant_series_are_undefined() -> None:
    assert np.isnan(lagged_correlation(np.arange(5), np.arange(5), 3))
    assert np.isnan(lagged_correlation(np.arange(9) ** 2, np.ones(9), 0))
    with pytest.raises(InputError, match="same checkpoints"):
        lagged_correlation(np.arange(5), np.arange(6), 0)
    expected = stats.ttest_1samp([1.0, 2.0, 4.0], 0).confidence_interval()
    assert student_interval(np.array([1.0, np.nan, 2.0, 4.0]))[1:3] == pytest.approx(tuple(expected))


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "low", "high", "direction", "spreads", "expected", "reason"),
    [
        (0.5, 0.3, 0.7, 1, {"weight noise": 0.1}, "holds", "claimed side"),
        (-0.5, -0.7, -0.3, -1, {"weight noise": 0.1}, "holds", "claimed side"),
        (0.5, 0.3, 0.7, -1, {"weight noise": 0.1}, "contradicted", "other side"),
        (0.5, -0.1, 0.9, 1, {"weight noise": 0.1}, "not resolved", "includes 0"),
        (0.5, 0.3, 0.7, 1, {"weight noise": 0.1, "two seeds": 0.6}, "not resolved", "nulls' spread"),
        (-0.5, -0.7, -0.3, 1, {"weight noise": 0.6}, "not resolved", "nulls' spread"),
        (0.5, 0.3, 0.7, 1, {}, "not resolved", "no null"),
        (0.5, np.nan, np.nan, 1, {"weight noise": 0.1}, "not resolved", "two seeds"),
        (np.nan, np.nan, np.nan, 1, {"weight noise": 0.1}, "not resolved", "not measured"),
    ],
)
def test_every_verdict_can_be_reached(effect, low, high, direction, spreads, expected, reason) -> None:
    found = verdicts.judge(effect, low, high, direction, spreads)
    assert found.verdict == expected
    assert reason in found.reason


def test_dpo_that_rises_contradicts_that_it_does_not() -> None:
    claim = next(c for c in verdicts.CLAIMS if c.name == verdicts.NOT_DPO)

    def judged(dpo: tuple[float, float, float]) -> str:
        return verdicts.judge_claim(
            claim, lambda one: dpo if set(one.paradigms) == {"dpo"} else (0.5, 0.3, 0.7), {"n": 0.1}
        ).verdict

    assert judged((0.0, -0.1, 0.1)) == "holds"
    assert judged((0.3, 0.2, 0.4)) == "contradicted"


def test_nulls_are_told_apart_and_their_spread_is_of_the_claims_own_sum() -> None:
    labels = {
        "null: another base": NULLS[0],
        "sft-more": NULLS[1],
        "null: two seeds of ppo": NULLS[2],
        "null: weight noise like dpo": NULLS[3],
    }
    assert {label: null_of(label) for label in labels} == labels
    assert null_of("grpo") is None
    rows = [
        {
            "paradigm": p,
            "seed": s,
            "draw": 0,
            "level": "block",
            "alpha": a,
            "metric": "activation_intensity",
            "bb": 1.0,
            "tt": float(np.exp(x)),
        }
        for p, s, a, x in (
            ("sft-more", 0, 0.3, 0.3),
            ("sft-more", 1, 0.3, -0.4),
            ("grpo", 0, 0.3, 9.0),
            ("sft-more", 0, 0.5, 7.0),
        )
    ]
    found = null_spreads(verdicts.CLAIMS[0], pd.DataFrame(rows), logarithm=True)
    assert found == {NULLS[1]: pytest.approx(np.sqrt((0.09 + 0.16) / 2))}


def test_slope_weights_are_least_squares() -> None:
    alphas, values = np.array(verdicts.PAPER_ALPHAS), np.array([0.1, 0.5, 0.4, 0.9])
    found = sum(w * v for w, v in zip(verdicts.slope_weights(list(alphas)).values(), values))
    assert found == pytest.approx(np.polyfit(alphas, values, 1)[0])


@pytest.mark.parametrize("verdict", verdicts.VERDICTS)
def test_words_follow_the_verdict(verdict) -> None:
    row = {
        "claim": "intensity up",
        "verdict": verdict,
        "effect": np.log(2),
        "low": np.log(1.5),
        "high": np.log(3),
        "scale": "log ratio",
    }
    row |= {"reason": "because", "null": "weight noise", "spread": 0.25, "base": "qwen2", "scope": "PPO and GRPO"}
    said = study_words.verdict_sentence(pd.Series(row))
    assert said.lower().startswith(f"**{verdict}**")
    assert "× 2.00 [1.50, 3.00]" in said and "because" in said and "a factor of 1.28 either way (weight noise)" in said
    overall = study_words.overall(pd.DataFrame([row]))
    counts = {v: int(v == verdict) for v in verdicts.VERDICTS}
    assert f"{counts['holds']} hold" in overall and f"{counts['contradicted']} contradicted" in overall
    assert overall.startswith("PPO and GRPO pooled, as the rule was fixed.")
    assert study_words.overall(pd.DataFrame([row]).iloc[:0]) == "No claim was judged."


def test_words_say_who_leads() -> None:
    rows = [
        ("ppo", 0.1, 0.3, "leads"),
        ("grpo", -0.3, -0.1, "follows"),
        ("dpo", -0.2, 0.2, "neither measurably leads nor follows"),
    ]
    table = pd.DataFrame(
        [
            {
                "base": "b",
                "paradigm": p,
                "metric": "activation_intensity",
                "alpha": 0.3,
                "lag": "lead",
                "correlation": (lo + hi) / 2,
                "low": lo,
                "high": hi,
            }
            for p, lo, hi, _ in rows
        ]
    )
    lines = study_words.lead_sentences(table).splitlines()
    for paradigm, _, _, word in rows:
        assert any(f"**{word}**" in line and f"{paradigm} (b;" in line for line in lines)


# --- a tiny study, killed and resumed -------------------------------------------------------------

TINY_SETTINGS = Settings(
    alphas=(0.3, 1.0), levels=("block",), problems=24, n=12, keep="all", noise_draws=1, exact_problems=3, exact_alphas=(0.3,), ig_steps=2,
    cause_seeds=1, factors=(2.0,), push_demonstrations=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> pd.DataFrame:
    """Two seeds of a tiny family with checkpoints, and a member whose training is said to have diverged."""
    from paradigms.family import TINY, make_families

    store = tmp_path_factory.mktemp("family")
    recipe = replace(TINY, sft=replace(TINY.sft, steps=60))
    table = make_families([0, 1], ("sft", "sft-more", "grpo"), recipe, store, processes=2, progress=False).assign(
        base="tiny"
    )
    lost = {
        "base": "tiny",
        "seed": 0,
        "member": "ppo",
        "folder": None,
        "status": "diverged: step 3",
        "accuracy": np.nan,
    }
    return pd.concat([table, pd.DataFrame([lost])], ignore_index=True)


_DOOMED = """
import sys, threading
import pandas as pd
from paradigms.study import controlled
from tests.paradigms.test_controlled import TINY_SETTINGS
controlled._tables = lambda *_: threading.Event().wait()  # measured or not, it does not come to its end
if __name__ == "__main__":
    controlled.analyse(pd.read_pickle(sys.argv[1]), sys.argv[2], sys.argv[3], 2, TINY_SETTINGS)
"""


@pytest.fixture(scope="module")
def studies(trained, tmp_path_factory) -> tuple[controlled.Results, controlled.Results, dict[Path, int]]:
    """A study that was killed and goes on; the same with what the killed one measured measured anew; and when it
    was.
    """
    folder = tmp_path_factory.mktemp("study")
    trained.to_pickle(folder / "trained.pkl")
    (folder / "doomed.py").write_text(_DOOMED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "doomed.py", "trained.pkl", "killed", "store"]
    run = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def measured() -> list[Path]:
        return list(folder.glob("store/study-*/*/manifest.json"))

    with ended(run):
        until(lambda: len(measured()) >= 4, "four measurements", run)
        workers = psutil.Process(run.pid).children(recursive=True)
    _, left = psutil.wait_procs(workers, PATIENCE)
    assert run.returncode == -signal.SIGKILL and not left
    finished = {manifest: manifest.stat().st_mtime_ns for manifest in measured()}
    resumed = controlled.analyse(trained, folder / "resumed", folder / "store", 2, TINY_SETTINGS)
    assert {manifest: manifest.stat().st_mtime_ns for manifest in finished} == finished
    for manifest in finished:
        shutil.rmtree(manifest.parent)
    anew = controlled.analyse(trained, folder / "anew", folder / "store", 2, TINY_SETTINGS)
    return resumed, anew, finished


@pytest.mark.slow
def test_a_killed_study_goes_on_and_ends_with_the_tables_of_one_that_was_not(studies) -> None:
    resumed, anew, finished = studies
    assert len(finished) >= 4
    for name in controlled.TABLES:
        pd.testing.assert_frame_equal(resumed.tables[name], anew.tables[name], check_exact=True)


@pytest.mark.slow
def test_the_tables_of_a_study(studies, trained) -> None:
    found = studies[0]
    assert {"base", "seed", "paradigm", "accuracy", "kl", "entropy", "length", "status"} <= set(found.members)
    lost = found.members[found.members["paradigm"] == "ppo"]
    assert list(lost["status"]) == ["diverged: step 3"]
    wanted = {
        "base",
        "paradigm",
        "metric",
        "alpha",
        "level",
        "tokens",
        "effect",
        "low",
        "high",
        "p",
        "p_holm",
        "n_seeds",
        "n_problems",
    }
    assert wanted <= set(found.effects)
    assert set(rc.METRICS) <= set(found.effects["metric"])
    grpo = found.effects[(found.effects["paradigm"] == "grpo") & found.effects["metric"].isin(list(rc.METRICS))]
    assert set(grpo["tokens"]) == set(CONTRASTS) and (grpo["n_seeds"] == 2).all()
    own = grpo[grpo["tokens"] == "own"]
    assert own["p"].notna().all() and (own["p_holm"] >= own["p"]).all()
    assert ((own["low"] <= own["effect"]) & (own["effect"] <= own["high"])).all()
    assert {null_of(p) for p in found.values["paradigm"]} >= set(NULLS)
    assert len(found.dynamics) and found.dynamics["accuracy"].notna().all()
    assert set(found.exactness["method"]) == {"EAP", "EAP-IG", "exact", "random"}
    assert set(found.verdicts["verdict"]) <= set(verdicts.VERDICTS)
    scaled = found.cause[(found.cause["intervention"] == "logits scaled") & (found.cause["quantity"] == "loss")]
    assert len(scaled) and (scaled["effect"] != 0).all()
    kept = found.cause[(found.cause["intervention"] == "logits scaled") & (found.cause["quantity"] == "accuracy")]
    assert len(kept) and (kept["effect"] == 0).all()
    words = [
        study_words.overall(found.verdicts),
        study_words.token_sentences(found.effects),
        study_words.lead_sentences(found.lags),
    ]
    words += [
        study_words.exactness_sentences(found.exactness, found.exact_effects),
        study_words.cause_sentences(found.cause),
    ]
    words += [study_words.sensitivity_sentences(found.sensitivity), study_words.member_grid(found).to_string()]
    assert all(words) and "nan" not in words[0]


@pytest.mark.slow
def test_effects_are_the_mean_over_seeds_of_the_values(studies) -> None:
    found = studies[0]
    for row in found.effects[found.effects["tokens"] == "own"].itertuples():
        one = found.values
        one = one[
            (one["paradigm"] == row.paradigm)
            & (one["alpha"] == row.alpha)
            & (one["level"] == row.level)
            & (one["metric"] == row.metric)
        ]
        if len(one):
            assert row.effect == pytest.approx(float((one["tt"] - one["bb"]).mean()), rel=1e-9, abs=1e-12), row.metric


@pytest.mark.slow
def test_figures_of_a_study(studies) -> None:
    found = studies[0]
    paper = [name for name, metric in rc.METRICS.items() if metric.paper]
    figures = [
        study_figures.effect_forest(found.effects, found.values, paper[:2]),
        study_figures.seed_dots(found.values),
        study_figures.alpha_curves(found.effects),
        study_figures.token_split(found.effects),
        study_figures.dynamics(found.dynamics),
        study_figures.exactness(found.exactness),
        study_figures.sensitivity(found.sensitivity),
    ]
    for figure in figures:
        assert figure.data and figure.layout.title.text and figure.layout.meta["alt"]
    bands = [shape for shape in figures[0].layout.shapes if shape.type == "rect"]
    spread = max(study_figures.null_spread(found.values, "tiny", paper[0], 0.3).values())
    assert len(bands) == 2 and {bands[0].x0, bands[0].x1} == {-spread, spread}


def test_a_model_that_answers_nothing_right_is_reported_not_dropped(trained, tmp_path) -> None:
    from paradigms.study.tasks import ModelSpec, failure

    folder = trained["folder"].iloc[0]
    spec = ModelSpec(folder)
    options = {"alphas": [0.3], "levels": ["block"], "crossed": False, "tests": False, "n": 5, "keep": "both-correct"}
    few = replace(TINY_SETTINGS, problems=2)
    task = Task("pair", "tiny", 0, "grpo", (spec, spec), options)
    found = perform(str(tmp_path), few, task)
    correct = sum(a["correct"] for a in _answers(tmp_path))
    assert (failure(found) is None) == (correct >= 2)
    if correct < 2:
        assert "problem" in failure(found)


def _answers(store: Path) -> list[dict]:
    return [
        row
        for file in store.glob("study-answers/*/answers.parquet")
        for row in pd.read_parquet(file).to_dict("records")
    ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: controlled.run(seeds=[], second_seeds=[]), "no seeds"),
        (lambda: controlled.load("nowhere"), "no finished study"),
        (lambda: Settings(alphas=(0.1,)), "alphas must hold 0.3"),
        (lambda: Settings(problems=1), "two problems"),
    ],
)
def test_wrong_input(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


# --- the committed study --------------------------------------------------------------------------


def test_one_member_trained_again_gives_the_committed_numbers(family, tmp_path) -> None:
    """The base and its further-supervised descendant of the first seed, as this machine trains them, measured anew."""
    if not (RESULTS / "manifest.json").is_file():
        pytest.skip("results/study is not there: no study has been committed yet")
    from paradigms.family import BASES, make_families
    from paradigms.study.tasks import ModelSpec

    found = controlled.load(RESULTS)
    base = next(iter(BASES))
    seed = found.manifest["seeds"][base][0]
    given = found.manifest["settings"]
    settings = Settings(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})
    table = make_families(
        [seed], ("sft", "sft-more"), BASES[base], ROOT / "runs", processes=1, progress=False
    ).set_index("member")
    members = found.members[(found.members["base"] == base) & (found.members["seed"] == seed)].set_index("paradigm")
    for member in table.index:
        assert table.loc[member, "accuracy"] == pytest.approx(members.loc[member, "accuracy"], abs=0.01), member
    options = {
        "alphas": list(settings.alphas),
        "levels": ["block"],
        "crossed": False,
        "tests": False,
        "n": settings.n,
        "keep": settings.keep,
    }
    specs = tuple(ModelSpec(table.loc[m, "folder"]) for m in ("sft", "sft-more"))
    folder = perform(str(tmp_path), settings, Task("pair", base, seed, "sft-more", specs, options))
    values = found.values
    values = values[
        (values["base"] == base)
        & (values["seed"] == seed)
        & (values["paradigm"] == "sft-more")
        & (values["level"] == "block")
    ]
    for (_, alpha), one in measurement.load(Path(folder) / "measurement.npz").cells.items():
        committed = values[values["alpha"] == alpha].set_index("metric")
        for k, corner in enumerate(one.corners):
            for metric, value in zip(one.metrics, one.observed()[k]):
                assert value == pytest.approx(committed.loc[metric, corner], rel=0.02, abs=1e-6), (
                    alpha,
                    corner,
                    metric,
                )
    assert json.dumps(given)
