"""The design and its estimators, on populations made by hand whose totals are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlcircuits.exactness.sampling import Draws, inclusion_probabilities, systematic

RNG = np.random.default_rng(7)
N = 600
STRATA = np.repeat(np.arange(4), N // 4)
LOGS = RNG.normal(size=N) * 1.5
VALUES = np.exp(LOGS) * np.where(RNG.random(N) < 0.6, 1, -1)
GUESS = np.exp(LOGS + RNG.normal(size=N) * 0.6)  # what a regression may know of the sizes


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=30), share=st.floats(0, 1))
def test_probabilities_are_in_proportion_and_sum_to_the_draws(sizes, share):
    sizes, n = np.array(sizes), round(share * len(sizes))
    found = inclusion_probabilities(sizes, n)
    assert found.sum() == pytest.approx(n) and found.min() >= 0 and found.max() <= 1
    open_ = found < 1
    if n and open_.any():
        ratio = found[open_] / sizes[open_]
        assert np.allclose(ratio, ratio[0])
        assert (sizes[~open_] >= sizes[open_].max() * (1 - 1e-9)).all()  # only the largest are certain


def test_every_cell_is_drawn_as_often_as_its_probability_says():
    sizes = np.array([0.1, 1, 1, 2, 3, 5, 8, 13, 30, 200.0])
    probabilities = inclusion_probabilities(sizes, 4)
    rng, times = np.random.default_rng(0), 20_000
    counts = np.zeros(len(sizes))
    for _ in range(times):
        drawn = systematic(probabilities, rng)
        assert len(set(drawn)) == 4
        counts[drawn] += 1
    open_ = probabilities < 1
    error = np.sqrt(times * probabilities[open_] * (1 - probabilities[open_]))
    assert np.abs((counts - times * probabilities)[open_] / error).max() < 4
    assert (counts[~open_] == times).all()


def test_each_stratum_has_its_share_of_the_draws():
    probabilities = inclusion_probabilities(GUESS, 50)
    wanted = np.bincount(STRATA, probabilities)
    for seed in range(30):
        found = np.bincount(STRATA[systematic(probabilities, np.random.default_rng(seed), STRATA)], minlength=4)
        assert found.sum() == 50 and (np.abs(found - wanted) < 2).all()


def _staged(seed: int, sizes: np.ndarray, adaptive: bool) -> tuple[Draws, np.ndarray]:
    """A pilot of the largest guesses, a stage, and a last one whose sizes depend on what the first found."""
    rng, draws = np.random.default_rng(seed), Draws(N)
    draws.pilot(np.argsort(-sizes)[:10])
    for _ in range(2):
        wanted = sizes[draws.rest]
        if adaptive and np.abs(VALUES[draws.cells]).max() > 20:
            wanted = np.sqrt(wanted)
        draws.draw(0.7 * wanted / wanted.mean() + 0.3, 60, rng, STRATA)
    return draws, VALUES[draws.cells]


@pytest.mark.parametrize("of", [np.abs, np.asarray, lambda y: (y > 0).astype(float)])
def test_totals_are_unbiased_though_later_stages_look_at_earlier_ones(of):
    total = float(of(VALUES).sum())
    found = []
    for seed in range(1500):
        draws, values = _staged(seed, GUESS, adaptive=True)
        found.append(draws.weights() @ of(values))
    assert abs(np.mean(found) - total) < 3.5 * np.std(found) / math.sqrt(len(found))


def test_intervals_cover_and_say_how_wide_the_estimates_spread():
    total = np.abs(VALUES).sum()
    inside, found, variances = [], [], []
    for seed in range(1000):
        draws, values = _staged(seed, GUESS, adaptive=True)
        variance, freedom = draws.variance(np.abs(values))
        estimate = draws.weights() @ np.abs(values)
        half = stats.t.ppf(0.975, freedom) * math.sqrt(variance) / estimate
        inside.append(abs(math.log(estimate / total)) < half)
        found.append(estimate)
        variances.append(variance)
    assert 0.92 < np.mean(inside) < 0.99
    assert math.sqrt(np.mean(variances)) == pytest.approx(np.std(found), rel=0.15)


def test_sizes_that_know_the_values_beat_uniform_and_stratified_draws():
    def spread(draw) -> float:
        return float(np.std([draw(np.random.default_rng(seed)) for seed in range(400)]))

    def learned(rng):
        draws, values = _staged(int(rng.integers(1 << 30)), GUESS, adaptive=False)
        return draws.weights() @ np.abs(values)

    def uniform(rng, strata=None):
        draws = Draws(N)
        drawn = draws.draw(np.ones(N), 130, rng, strata)
        return draws.weights() @ np.abs(VALUES[drawn])

    assert spread(learned) < 0.5 * min(spread(uniform), spread(lambda rng: uniform(rng, STRATA)))


def test_the_bootstrap_varies_as_the_variance_says():
    draws, values = _staged(3, GUESS, adaptive=False)
    resampled = draws.resampled(np.random.default_rng(0), 4000) @ np.abs(values)
    assert resampled.mean() == pytest.approx(draws.weights() @ np.abs(values), rel=0.02)
    assert resampled.std() == pytest.approx(math.sqrt(draws.variance(np.abs(values))[0]), rel=0.12)


def test_everything_run_is_exact():
    draws = Draws(N)
    draws.pilot(np.arange(50))
    draws.draw(np.ones(N - 50), N - 50, np.random.default_rng(0))
    assert (draws.weights() == 1).all() and not len(draws.rest)
    assert draws.variance(VALUES[draws.cells])[0] == 0


def test_a_single_draw_has_no_variance():
    draws = Draws(10)
    draws.draw(np.ones(10), 1, np.random.default_rng(0))
    assert math.isnan(draws.variance(np.ones(1))[0])
    assert draws.weights().tolist() == [10]
