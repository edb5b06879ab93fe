"""Metrics against closed forms, scipy and brute force; invariances by hypothesis."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlcircuits.errors import InputError
from rlcircuits.metrics import definitions as metrics
from rlcircuits.metrics.definitions import METRICS

ROBUST = [name for name, metric in METRICS.items() if not metric.paper]
SET_WIDE = [name for name, metric in METRICS.items() if metric.per_sample is None]


def scores_of(rows, sources: int = 1) -> xr.DataArray:
    """Scores whose samples are the given rows of edges, all real, over `sources` sources."""
    w = np.asarray(rows, dtype=np.float64)
    w = w.reshape(len(w), sources, -1)
    names = {"sample": [f"p/{i}" for i in range(len(w))], "source": [f"s{i}" for i in range(sources)]}
    return xr.DataArray(
        w, dims=metrics.DIMS, coords=names | {"destination": [f"d{i}" for i in range(w.shape[2])]}, name="score"
    )


def triangle(values) -> xr.DataArray:
    """One sample on three sources and three destinations, where only the 6 pairs s ≤ d are edges."""
    w = np.full((1, 3, 3), np.nan)
    w[0][np.triu_indices(3)] = values
    return scores_of(w.reshape(1, -1), sources=3)


def random_scores(seed: int, n: int = 6, sources: int = 3, destinations: int = 8) -> xr.DataArray:
    rng = np.random.default_rng(seed)
    return scores_of(rng.laplace(size=(n, sources * destinations)), sources)


# --- intensity ---


def test_intensity_is_the_mean_size():
    assert metrics.activation_intensity(scores_of([[1, -3], [0, 4]])) == 2.0
    assert metrics.sample_intensity(scores_of([[1, -3], [0, 4]])).values.tolist() == [2.0, 2.0]


def test_only_real_edges_count_unless_structural_zeros():
    w = triangle([1, -2, 3, 4, 5, -6])
    assert metrics.activation_intensity(w) == pytest.approx(21 / 6)
    assert metrics.activation_intensity(w, structural_zeros=True) == pytest.approx(21 / 9)


def test_float32_scores_are_accumulated_in_float64():
    """16,777,217 ones: a float32 running sum would stop at 16,777,216."""
    w = xr.DataArray(np.ones((1, 1, 2**24 + 2), dtype=np.float32), dims=metrics.DIMS)
    w[0, 0, 0] = 3.0
    assert metrics.activation_intensity(w) == (2**24 + 4) / (2**24 + 2)


# --- complexity ---


def test_complexity_of_constant_and_zero_scores_is_zero():
    assert metrics.information_complexity(scores_of([[2.0] * 9])) == pytest.approx(0, abs=1e-11)
    assert metrics.information_complexity(scores_of([[0.0] * 9])) == pytest.approx(0, abs=1e-11)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_complexity_of_two_values_is_the_binary_entropy(share):
    low = int(40 * share)
    value = metrics.information_complexity(scores_of([[0.001] * low + [-1.0] * (40 - low)]))
    assert value == pytest.approx(stats.entropy([share, 1 - share]), abs=1e-10)


def test_complexity_of_one_value_per_bin_is_ln_bins():
    centres = (np.arange(16) + 0.5) / 16
    centres[-1] = 1.0  # the last bin is closed
    assert metrics.information_complexity(scores_of([centres]), bins=16) == pytest.approx(math.log(16), abs=1e-9)


def test_the_last_bin_holds_the_largest_too():
    assert metrics.information_complexity(scores_of([[0.99, 1.0, 0.92]]), bins=10) == pytest.approx(0, abs=1e-11)


def test_complexity_follows_numpy_histogram_and_scipy_entropy():
    w = random_scores(0, n=20)
    counts, _ = np.histogram(np.abs(w.values), bins=37, range=(0, np.abs(w.values).max()))
    assert metrics.information_complexity(w, bins=37) == pytest.approx(stats.entropy(counts), abs=1e-9)


def test_epsilon_is_inside_the_logarithm():
    w = scores_of([[0.001] * 5 + [1.0] * 5])
    assert metrics.information_complexity(w, epsilon=0.5) == pytest.approx(0.0, abs=1e-12)  # ln(1/2 + 1/2) = 0


def test_structural_zeros_fill_the_first_bin():
    w = triangle([1.0] * 6)  # 6 in the last bin, 3 pairs without an edge
    assert metrics.information_complexity(w) == pytest.approx(0, abs=1e-11)
    expected = stats.entropy([6 / 9, 3 / 9])
    assert metrics.information_complexity(w, structural_zeros=True) == pytest.approx(expected, abs=1e-9)


def test_one_large_edge_rules_complexity_but_hardly_moves_the_rest():
    """One edge of one sample of 644,100, five times larger: the weakness that the robust metrics answer."""
    rng = np.random.default_rng(42)
    w = rng.laplace(size=(100, 6441)) * np.exp(1.5 * rng.normal(size=(1, 6441)))
    before, after = scores_of(w), w.copy()
    row, column = np.unravel_index(np.abs(w).argmax(), w.shape)
    after[row, column] *= 5
    after = scores_of(after)
    ratio = {name: METRICS[name].value(after) / METRICS[name].value(before) for name in METRICS}
    assert ratio["information_complexity"] < 0.4
    assert abs(ratio["activation_intensity"] - 1) < 0.01
    assert all(abs(ratio[name] - 1) < 0.02 for name in ROBUST), ratio


# --- kurtosis, L-kurtosis ---


def test_kurtosis_of_two_equally_frequent_values_is_minus_two():
    assert metrics.distribution_kurtosis(scores_of([[-1, 1, -1, 1], [5, 9, 9, 5]])) == pytest.approx(-2)


@pytest.mark.parametrize("n_edges", [4, 45, 1000])
def test_kurtosis_of_one_hot_scores(n_edges):
    """A Bernoulli variable with q = 1/E: (1 − 6q(1−q)) / (q(1−q))."""
    q = 1 / n_edges
    expected = (1 - 6 * q * (1 - q)) / (q * (1 - q))
    assert metrics.distribution_kurtosis(scores_of([np.eye(n_edges)[2]])) == pytest.approx(expected)


def test_kurtosis_is_scipys_averaged_over_samples():
    w = random_scores(1)
    expected = stats.kurtosis(w.values.reshape(6, -1), axis=1)
    np.testing.assert_allclose(metrics.sample_kurtosis(w), expected, rtol=1e-12)
    assert metrics.distribution_kurtosis(w) == pytest.approx(expected.mean())


def test_structural_zeros_about_double_kurtosis_of_half_full_scores():
    rng = np.random.default_rng(0)
    w = np.where(np.triu(np.ones((200, 200), bool)), rng.normal(size=(5, 200, 200)), np.nan)
    full = metrics.distribution_kurtosis(scores_of(w.reshape(5, -1), 200))
    padded = metrics.distribution_kurtosis(scores_of(w.reshape(5, -1), 200), structural_zeros=True)
    assert full == pytest.approx(0, abs=0.1)
    assert padded + 3 == pytest.approx(2 * (full + 3), rel=0.02)  # m4/m2² of a half-zero mixture doubles


@pytest.mark.parametrize(
    ("draw", "kurtosis", "tau"),
    [("normal", 0.0, 30 / math.pi * math.atan(math.sqrt(2)) - 9), ("laplace", 3.0, 17 / 72), ("uniform", -1.2, 0.0)],
)
def test_large_samples_reach_the_distributions_kurtosis_and_l_kurtosis(draw, kurtosis, tau):
    w = scores_of(getattr(np.random.default_rng(3), draw)(size=(1, 400_000)))
    assert metrics.distribution_kurtosis(w) == pytest.approx(kurtosis, abs=0.15)
    assert float(metrics.l_kurtosis(w)[0]) == pytest.approx(tau, abs=0.005)


def test_l_kurtosis_by_its_definition_over_all_subsets():
    """λ4 = ¼ E[x4 − 3 x3 + 3 x2 − x1] over ordered 4-subsets, λ2 = ½ E[x2 − x1] over ordered pairs."""
    x = np.array([0.3, -1.2, 2.5, 0.1, 7.0, -0.4, 0.9])
    lambda4 = np.mean([np.dot(sorted(s), [-1, 3, -3, 1]) for s in itertools.combinations(x, 4)]) / 4
    lambda2 = np.mean([np.ptp(s) for s in itertools.combinations(x, 2)]) / 2
    assert float(metrics.l_kurtosis(scores_of([x]))[0]) == pytest.approx(lambda4 / lambda2, rel=1e-12)


def test_l_kurtosis_is_scipys():
    w = random_scores(2)
    expected = stats.lmoment(w.values.reshape(6, -1), order=4, axis=1, standardize=True)
    np.testing.assert_allclose(metrics.l_kurtosis(w), expected, rtol=1e-9)


# --- diversity ---


def test_diversity_of_proportional_and_of_opposed_samples():
    row = np.arange(5.0)
    assert metrics.inter_sample_diversity(scores_of([row, 3 * row + 1, 0.5 * row])) == pytest.approx(0, abs=1e-12)
    assert metrics.inter_sample_diversity(scores_of([row, -row])) == pytest.approx(2)


def test_diversity_of_one_hot_samples():
    """Different one-hot vectors of length E correlate at −1/(E−1)."""
    assert metrics.inter_sample_diversity(scores_of(np.eye(6)[:4])) == pytest.approx(1 + 1 / 5)


def test_diversity_averages_scipys_pearson_over_pairs():
    w = random_scores(4)
    rows = w.values.reshape(6, -1)
    r = [stats.pearsonr(a, b).statistic for a, b in itertools.combinations(rows, 2)]
    assert metrics.inter_sample_diversity(w) == pytest.approx(1 - np.mean(r), rel=1e-12)


def test_diversity_with_structural_zeros_correlates_the_rectangle():
    w = xr.concat([triangle([1, -2, 3, 4, 5, -6]), triangle([2, 2, -1, 0, 1, 3])], "sample")
    rows = np.nan_to_num(w.values).reshape(2, -1)
    expected = 1 - stats.pearsonr(*rows).statistic
    assert metrics.inter_sample_diversity(w, structural_zeros=True) == pytest.approx(expected)
    assert metrics.inter_sample_diversity(w) != pytest.approx(expected, rel=1e-3)


# --- output-edge entropy ---


def test_output_edge_entropy_per_source():
    w = scores_of([[1, -1, 1, 1, 0, 0, 0, 9, 1, 1, 2, 0]], sources=3)
    found = metrics.output_edge_entropy(w)
    assert found.dims == ("sample", "source") and found.source.values.tolist() == ["s0", "s1", "s2"]
    np.testing.assert_allclose(found[0], [math.log(4), 0, 1.5 * math.log(2)], atol=1e-12)


def test_output_edge_entropy_counts_edges_only_and_is_nan_for_a_silent_source():
    w = triangle([1, 1, 1, 0, 0, 7])  # s0: three edges alike; s1: two silent ones; s2: a single one
    np.testing.assert_allclose(metrics.output_edge_entropy(w)[0], [math.log(3), np.nan, 0], atol=1e-12)
    assert METRICS["output_edge_entropy"].value(w) == pytest.approx(math.log(3) / 2)


# --- shares ---


def test_shares_of_constant_and_one_hot_scores():
    flat, hot = scores_of([[-2.0] * 50]), scores_of([np.eye(50)[7] * 3])
    for name, of_flat, of_hot in [
        ("edge_entropy", math.log(50), 0),
        ("effective_edges", 50, 1),
        ("gini", 0, 1 - 1 / 50),
        ("participation_ratio", 50, 1),
        ("top_share", 1 / 50, 1),
        ("log_histogram_entropy", 0, 0),
    ]:
        assert METRICS[name].value(flat) == pytest.approx(of_flat, abs=1e-12), name
        assert METRICS[name].value(hot) == pytest.approx(of_hot, abs=1e-12), name


def test_edge_entropy_is_scipys():
    w = random_scores(5)
    sizes = np.abs(w.values.reshape(6, -1))
    np.testing.assert_allclose(metrics.edge_entropy(w), stats.entropy(sizes, axis=1), rtol=1e-12)
    np.testing.assert_allclose(metrics.effective_edges(w), np.exp(stats.entropy(sizes, axis=1)), rtol=1e-12)


def test_gini_is_half_the_relative_mean_difference():
    w = random_scores(6)
    for row, found in zip(np.abs(w.values.reshape(6, -1)), metrics.gini(w).values, strict=True):
        difference = np.abs(row[:, None] - row[None]).mean()
        assert found == pytest.approx(difference / (2 * row.mean()), rel=1e-12)


def test_participation_ratio_of_two_to_one():
    assert float(metrics.participation_ratio(scores_of([[2, -1]]))[0]) == pytest.approx(9 / 5)


@pytest.mark.parametrize(("fraction", "edges"), [(0.001, 1), (0.01, 1), (0.07, 7), (0.075, 8), (1.0, 100)])
def test_top_share_rounds_the_number_of_edges_up(fraction, edges):
    w = scores_of([np.arange(1.0, 101)])
    expected = sum(range(101 - edges, 101)) / 5050
    assert float(metrics.top_share(w, fraction)[0]) == pytest.approx(expected)


def test_log_histogram_entropy_of_values_whole_bins_apart():
    h = 0.25
    w = scores_of([np.exp(h * np.array([-2, -1, 0, 1, 2.0])) * 7, [1, 1, 1, math.exp(4 * h), -math.exp(4 * h)]])
    np.testing.assert_allclose(metrics.log_histogram_entropy(w, h), [math.log(5), stats.entropy([3, 2])], rtol=1e-12)


def test_log_histogram_entropy_is_the_differential_entropy_of_ln_w():
    sigma, h = 1.7, 0.25
    w = scores_of(np.exp(np.random.default_rng(0).normal(-9, sigma, size=(1, 300_000))))
    expected = 0.5 * math.log(2 * math.pi * math.e * sigma**2) - math.log(h)
    assert float(metrics.log_histogram_entropy(w, h)[0]) == pytest.approx(expected, abs=0.01)


def test_log_histogram_entropy_leaves_zeros_out():
    with_zeros = metrics.log_histogram_entropy(scores_of([[0, 1, 0, 20.0, 300.0]]))
    assert float(with_zeros[0]) == pytest.approx(math.log(3))


# --- where nothing is defined, and bad input ---


def test_all_zero_scores():
    found = metrics.summary(scores_of([[0.0] * 8, [0.0] * 8], sources=2))
    assert found["activation_intensity"] == 0
    assert found["information_complexity"] == pytest.approx(0, abs=1e-11)
    rest = found.drop(["activation_intensity", "information_complexity"])
    assert rest.isna().all(), rest


def test_constant_scores_have_no_kurtosis_and_no_correlation():
    found = metrics.summary(scores_of([[0.1] * 7, [0.1] * 7]))
    undefined = ["distribution_kurtosis", "inter_sample_diversity", "l_kurtosis"]
    assert found[undefined].isna().all()
    assert found.drop(undefined).notna().all()


def test_one_sample_has_no_diversity_but_all_else():
    found = metrics.summary(random_scores(7, n=1))
    assert math.isnan(found["inter_sample_diversity"])
    assert found.drop("inter_sample_diversity").notna().all()


def test_l_kurtosis_needs_four_edges():
    assert np.isnan(metrics.l_kurtosis(scores_of([[1.0, 2, 4]]))).all()
    assert np.isfinite(metrics.l_kurtosis(scores_of([[1.0, 2, 4, 9]]))).all()


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_score_that_is_no_number_is_named(name, bad):
    w = random_scores(8)
    w[3, 1, 2] = bad
    with pytest.raises(InputError, match=r"'p/3'.*s1->d2"):
        METRICS[name].function(w)


@pytest.mark.parametrize("name", METRICS)
def test_no_sample_no_edge_no_array(name):
    with pytest.raises(InputError, match="no sample"):
        METRICS[name].function(random_scores(9).isel(sample=[]))
    with pytest.raises(InputError, match="no edge"):
        METRICS[name].function(random_scores(9) * np.nan)
    with pytest.raises(InputError, match="expected a DataArray"):
        METRICS[name].function(np.ones((2, 3, 4)))
    with pytest.raises(InputError, match="dims"):
        METRICS[name].function(random_scores(9)[0])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda w: metrics.information_complexity(w, bins=0), "bins is 0"),
        (lambda w: metrics.information_complexity(w, bins=2.5), "bins is 2.5"),
        (lambda w: metrics.information_complexity(w, epsilon=0), "epsilon is 0"),
        (lambda w: metrics.top_share(w, fraction=0), "fraction is 0"),
        (lambda w: metrics.top_share(w, fraction=1.5), "fraction is 1.5"),
        (lambda w: metrics.log_histogram_entropy(w, width=-1), "width is -1"),
        (lambda w: metrics.summary(w, ["ginni"]), "did you mean 'gini'"),
        (lambda w: metrics.summary(w, []), "metrics is empty"),
    ],
)
def test_parameters_out_of_range(call, said):
    with pytest.raises(InputError, match=said):
        call(random_scores(10))


# --- all of them ---


def test_summary_is_the_metrics_in_order():
    w = random_scores(11)
    found = metrics.summary(w)
    assert list(found.index) == list(METRICS) and found.dtype == float
    assert found["information_complexity"] == metrics.information_complexity(w)
    assert found["inter_sample_diversity"] == metrics.inter_sample_diversity(w)
    assert found["activation_intensity"] == metrics.activation_intensity(w)
    assert found["gini"] == pytest.approx(metrics.gini(w).values.mean())
    assert list(metrics.summary(w, ["gini"]).index) == ["gini"]


def test_per_sample_values_carry_the_sample_names():
    w = random_scores(12)
    for name, metric in METRICS.items():
        if metric.per_sample:
            values = metric.per_sample(w)
            assert values.dims == ("sample",) and values.sample.values.tolist() == w.sample.values.tolist(), name


def test_dims_may_come_in_any_order():
    w = random_scores(13)
    moved = w.transpose("destination", "sample", "source")
    np.testing.assert_array_equal(metrics.summary(w), metrics.summary(moved))


# Edge scores in general position: continuous values, so that no two tie or sit on the edge of a bin.
seeds = st.integers(0, 10_000)


@settings(max_examples=25)
@given(seed=seeds, c=st.floats(1e-6, 1e6), sign=st.sampled_from([-1, 1]))
def test_scaling_scales_intensity_alone(seed, c, sign):
    w = random_scores(seed)
    before, after = metrics.summary(w), metrics.summary(w * (sign * c))
    assert after["activation_intensity"] == pytest.approx(c * before["activation_intensity"], rel=1e-9)
    others = before.index.drop("activation_intensity")
    np.testing.assert_allclose(after[others], before[others], rtol=1e-7)


@settings(max_examples=25)
@given(seed=seeds)
def test_order_of_samples_and_edges_does_not_matter(seed):
    w = random_scores(seed)
    rng = np.random.default_rng(seed)
    moved = w.isel(sample=rng.permutation(6), source=rng.permutation(3), destination=rng.permutation(8))
    np.testing.assert_allclose(metrics.summary(moved), metrics.summary(w), rtol=1e-9)


@settings(max_examples=25)
@given(seed=seeds)
def test_signs_matter_to_kurtosis_and_diversity_only(seed):
    w = random_scores(seed)
    before, after = metrics.summary(w), metrics.summary(np.abs(w))
    signed = ["distribution_kurtosis", "inter_sample_diversity", "l_kurtosis"]
    np.testing.assert_allclose(after.drop(signed), before.drop(signed), rtol=1e-12)
    assert (after[signed] != before[signed]).all()


@settings(max_examples=25)
@given(seed=seeds, n_edges=st.integers(4, 60))
def test_ranges(seed, n_edges):
    w = scores_of(np.random.default_rng(seed).standard_t(1.5, size=(3, n_edges)))
    found = metrics.summary(w)
    assert 0 <= found["information_complexity"] <= math.log(100)
    assert found["distribution_kurtosis"] >= -2
    assert 0 <= found["inter_sample_diversity"] <= 2
    assert 0 <= found["edge_entropy"] <= math.log(n_edges) + 1e-12
    assert 1 <= found["participation_ratio"] <= found["effective_edges"] + 1e-9 <= n_edges + 1e-8
    assert 0 <= found["gini"] <= 1 - 1 / n_edges
    assert 1 / n_edges <= found["top_share"] <= 1
    assert found["l_kurtosis"] <= 1 + 1e-12


@settings(max_examples=40)
@given(st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=5, max_size=5), min_size=2, max_size=4))
def test_any_float32_scores_give_a_number_or_nan(rows):
    """No overflow, no warning, no infinity, whatever the scores: subnormal, huge, tied or zero."""
    with np.errstate(all="raise", under="ignore"):
        found = metrics.summary(scores_of(rows))
    assert not np.isinf(found).any(), found
