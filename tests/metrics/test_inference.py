"""Intervals and p-values against enumeration, scipy on plain numbers, and simulation of their promises."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rlcircuits.errors import InputError
from rlcircuits.metrics import definitions as metrics
from rlcircuits.metrics import multisets
from rlcircuits.metrics.definitions import METRICS
from rlcircuits.metrics.inference import SureAnswers, compare, holm

SET_WIDE = [name for name, metric in METRICS.items() if metric.per_sample is None]


def random_scores(seed, n: int = 12, sources: int = 3, destinations: int = 6, ids=None) -> xr.DataArray:
    """Scores on a triangular graph, heavy-tailed."""
    rng = np.random.default_rng(seed)
    w = rng.standard_t(3, size=(n, sources, destinations))
    w[:, np.tri(sources, destinations, -1, dtype=bool)] = np.nan
    coords = {
        "sample": ids or [f"p/{i}" for i in range(n)],
        "source": [f"s{i}" for i in range(sources)],
        "destination": [f"d{i}" for i in range(destinations)],
    }
    return xr.DataArray(w, dims=metrics.DIMS, coords=coords, name="score")


def constant_scores(values) -> xr.DataArray:
    """Two edges of opposite sign and equal size per sample, so that a sample's intensity is its value."""
    values = np.asarray(values, float)
    w = np.stack([values, -values], axis=-1)[:, None, :]
    coords = {"sample": [str(i) for i in range(len(w))], "source": ["a"], "destination": ["b", "c"]}
    return xr.DataArray(w, dims=metrics.DIMS, coords=coords)


# --- the table ---


def test_table_holds_the_metrics_of_both_and_their_difference_and_ratio():
    base, tuned = random_scores(0), random_scores(1)
    table = compare(base, tuned, n_resamples=99)
    columns = ["base", "tuned", "difference", "low", "high", "p", "ratio", "interval", "note"]
    columns += ["problem", "share", "ratio_without"]
    assert list(table.columns) == columns and list(table.index) == list(METRICS) and table.index.name == "metric"
    np.testing.assert_array_equal(table["base"], metrics.summary(base))
    np.testing.assert_array_equal(table["tuned"], metrics.summary(tuned))
    np.testing.assert_array_equal(table["difference"], table["tuned"] - table["base"])
    np.testing.assert_allclose(table["ratio"], table["tuned"] / table["base"])
    assert (table["low"] < table["high"]).all() and (table["p"] > 0).all() and (table["p"] <= 1).all()
    assert (table["note"] == "").all()
    assert table.attrs == {"n": 12, "confidence": 0.95, "n_resamples": 99, "seed": 0}


def test_same_seed_same_numbers_whatever_the_order_of_the_problems_given_as_tuned():
    base, tuned = random_scores(0), random_scores(1)
    table = compare(base, tuned, n_resamples=199, seed=3)
    pd.testing.assert_frame_equal(table, compare(base, tuned, n_resamples=199, seed=3))
    pd.testing.assert_frame_equal(table, compare(base, tuned.isel(sample=slice(None, None, -1)), None, 0.95, 199, 3))
    assert not table["low"].equals(compare(base, tuned, n_resamples=199, seed=4)["low"])


def test_one_metric_gives_the_same_row_as_all():
    base, tuned = random_scores(0), random_scores(1)
    table = compare(base, tuned, n_resamples=199)
    row = compare(base, tuned, metrics=["gini"], n_resamples=199)
    pd.testing.assert_frame_equal(row, table.loc[["gini"]])


def test_identical_scores_differ_by_nothing():
    w = random_scores(2)
    table = compare(w, w.copy(), n_resamples=499)
    assert (table[["difference", "low", "high"]] == 0).all(axis=None)
    assert (table["p"] == 1).all() and (table["ratio"] == 1).all()
    assert (table["interval"] == "percentile").all()


def test_exchanging_base_and_tuned_turns_the_difference_round():
    base, tuned = random_scores(0, n=8), random_scores(1, n=8)
    there, back = compare(base, tuned), compare(tuned, base)
    np.testing.assert_allclose(there["difference"], -back["difference"])
    np.testing.assert_allclose(there["p"], back["p"])  # 8 pairs: all 256 swaps are enumerated


def test_a_clear_difference_is_found_and_no_p_is_zero():
    base = random_scores(0, n=40)
    table = compare(base, 3 * base, metrics=["activation_intensity"], n_resamples=999)
    assert table["low"].item() > 0
    assert table["p"].item() == 2 / 1000  # the smallest that 999 swaps and the observed one allow


# --- the statistics ---


@pytest.mark.parametrize("name", METRICS)
def test_exact_test_enumerates_all_swaps(name):
    """p against the metric of the really swapped scores, all 2^6 of them."""
    base, tuned = random_scores(5, n=6), 1.5 * random_scores(6, n=6)
    metric, differences = METRICS[name], []
    for swap in itertools.product([False, True], repeat=6):
        kept = xr.DataArray(~np.array(swap), dims="sample")
        differences.append(metric.value(xr.where(kept, tuned, base)) - metric.value(xr.where(kept, base, tuned)))
    differences = np.array(differences)
    close = 1e-9 * (abs(metric.value(base)) + abs(metric.value(tuned)))
    above = np.mean(differences >= differences[0] - close)
    below = np.mean(differences <= differences[0] + close)
    table = compare(base, tuned, metrics=[name])
    assert table["p"].item() == pytest.approx(min(1, 2 * min(above, below)), abs=1e-12)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 11), min_size=2, max_size=14))
def test_complexity_of_any_multiset_is_that_of_the_samples_taken(indices):
    """The range of the pooled histogram follows the largest sample drawn, exactly."""
    w = random_scores(7)
    statistic = multisets._complexity_statistic(metrics.edge_values(w))
    found = statistic(np.bincount(indices, minlength=12)[None].astype(float))
    assert found[0] == pytest.approx(metrics.information_complexity(w.isel(sample=indices)), rel=1e-9)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 11), min_size=2, max_size=14).filter(lambda i: len(set(i)) > 1))
def test_diversity_of_any_multiset_averages_pairs_of_different_problems(indices):
    w = random_scores(7)
    rows = metrics.edge_values(w)
    statistic = multisets._diversity_statistic(rows)
    found = statistic(np.bincount(indices, minlength=12)[None].astype(float))
    r = [stats.pearsonr(rows[i], rows[j]).statistic for i, j in itertools.combinations(indices, 2) if i != j]
    assert found[0] == pytest.approx(1 - np.mean(r), rel=1e-9)


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_the_statistic_of_a_multiset(name):
    base, tuned = random_scores(0), random_scores(1)
    stacked = np.concatenate([metrics.edge_values(base), metrics.edge_values(tuned)])
    statistic = multisets.statistic_of(name, (base, tuned), stacked)
    counts = np.repeat(np.eye(2), 12, axis=1)  # all of base, all of tuned
    expected = [METRICS[name].value(base), METRICS[name].value(tuned)]
    np.testing.assert_allclose(statistic(counts), expected, rtol=1e-9)


def test_interval_of_a_mean_is_scipys_paired_bca():
    base, tuned = random_scores(0), random_scores(1)
    table = compare(base, tuned, metrics=["activation_intensity"], n_resamples=999, seed=5, confidence=0.9)
    b, t = (metrics.sample_intensity(s).values for s in (base, tuned))
    expected = stats.bootstrap(
        (b, t),
        lambda x, y, axis: y.mean(axis) - x.mean(axis),
        paired=True,
        n_resamples=999,
        confidence_level=0.9,
        method="BCa",
        rng=np.random.default_rng([5, 0]),
    ).confidence_interval
    assert table["interval"].item() == "BCa"
    assert table[["low", "high"]].values[0] == pytest.approx(expected, rel=1e-9)


# --- what they promise ---


@pytest.mark.slow
def test_interval_covers_a_known_difference_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n, true, covered = 40, 0.3, []
    for _ in range(300):
        level = rng.gamma(4, size=n)  # shared by the pair: without pairing the interval would be far too wide
        base, tuned = level + rng.gamma(1, 0.2, size=n), level + true + rng.gamma(1, 0.2, size=n)
        row = compare(constant_scores(base), constant_scores(tuned), ["activation_intensity"], n_resamples=399).iloc[0]
        covered.append(row["low"] <= true <= row["high"])
        assert row["high"] - row["low"] < 0.4
    assert 0.90 <= np.mean(covered) <= 0.98


@pytest.mark.slow
def test_p_is_uniform_when_base_and_tuned_are_alike():
    p = {name: [] for name in ("activation_intensity", "distribution_kurtosis", *SET_WIDE)}
    for seed in range(200):
        table = compare(random_scores((1, seed), n=15), random_scores((2, seed), n=15), list(p), n_resamples=199)
        for name, values in p.items():
            values.append(table.loc[name, "p"])
    for name, values in p.items():
        assert stats.kstest(values, "uniform").pvalue > 0.005, name
        assert np.mean(np.array(values) <= 0.05) <= 0.05 + 0.045, name  # three standard errors above


def test_the_scores_are_reduced_once_however_many_resamples(monkeypatch):
    """Resampling works on how often each sample is taken; a histogram is made for each largest sample, once."""
    reductions = []
    for name in ("standardised", "histogram_bins"):
        made = getattr(multisets, name)
        monkeypatch.setattr(multisets, name, lambda *given, made=made: reductions.append(made) or made(*given))
    n = 10
    compare(*(random_scores(seed, n=n) for seed in (0, 1)), n_resamples=9999)
    assert reductions.count(metrics.standardised) == 1
    assert reductions.count(metrics.histogram_bins) <= 2 * n  # one for each sample that can be the largest


# --- where nothing can be said, and bad input ---


def test_one_problem_has_no_interval():
    table = compare(random_scores(0, n=1), random_scores(1, n=1))
    assert table[["low", "high", "p"]].isna().all(axis=None)
    assert (table["interval"] == "none").all() and table["note"].str.startswith("one problem").all()
    assert table.loc["gini", "difference"] == table.loc["gini", "tuned"] - table.loc["gini", "base"]


def test_an_undefined_metric_leaves_the_others_alone():
    base, tuned = random_scores(0), random_scores(1)
    silent = tuned.where((tuned.sample != "p/3") | tuned.isnull(), 0.0)
    table = compare(base, silent, n_resamples=99)
    undefined = table["tuned"].isna()
    assert undefined["gini"] and undefined["inter_sample_diversity"] and not undefined["activation_intensity"]
    assert table.loc[undefined, ["difference", "low", "high", "p", "ratio"]].isna().all(axis=None)
    assert table.loc[undefined, "note"].str.contains("undefined for tuned").all()
    assert table.loc[~undefined, ["low", "high", "p"]].notna().all(axis=None)
    alone = compare(base, silent, metrics=list(table.index[~undefined]), n_resamples=99)
    pd.testing.assert_frame_equal(table[~undefined], alone)


def test_two_problems_are_enough_for_a_number():
    table = compare(random_scores(0, n=2), random_scores(1, n=2))
    assert (table["p"] >= 0.5).all() and table[["low", "high"]].notna().all(axis=None)


def test_zero_base_has_no_ratio():
    w = random_scores(0)
    assert math.isnan(compare(0 * w, w, ["activation_intensity"], n_resamples=49)["ratio"].item())


def test_other_problems_are_named():
    base = random_scores(0, n=3, ids=["a", "b", "c"])
    with pytest.raises(InputError, match="1 only in base, such as 'c'"):
        compare(base, random_scores(1, n=2, ids=["a", "b"]))
    with pytest.raises(InputError, match="2 only in tuned, such as 'd'"):
        compare(base, random_scores(1, n=5, ids=["a", "b", "c", "d", "e"]))
    with pytest.raises(InputError, match="problem 'a' more than once"):
        compare(base, random_scores(1, n=3, ids=["a", "a", "c"]))
    with pytest.raises(InputError, match="no coordinate 'sample'"):
        compare(base.drop_vars("sample"), base)


def test_other_graphs_are_refused():
    base = random_scores(0)
    with pytest.raises(InputError, match=r"destinations differ \(6 and 7\)"):
        compare(base, random_scores(1, destinations=7))
    with pytest.raises(InputError, match="sources differ"):
        compare(base, base.assign_coords(source=["a", "b", "c"]))
    with pytest.raises(InputError, match="NaN in one only"):
        compare(base, base.fillna(0.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"confidence": 95}, "confidence is 95"),
        ({"confidence": 0}, "confidence is 0"),
        ({"n_resamples": 0}, "n_resamples is 0"),
        ({"n_resamples": 99.5}, "n_resamples is 99.5"),
        ({"seed": -1}, "seed is -1"),
        ({"metrics": ["intensity"]}, "unknown metric 'intensity'"),
    ],
)
def test_parameters_out_of_range(given, said):
    with pytest.raises(InputError, match=said):
        compare(random_scores(0), random_scores(1), **given)


# --- holm ---


def test_holm_by_hand():
    found = holm(pd.Series([0.01, 0.04, 0.03], index=["a", "b", "c"]))
    assert found.to_dict() == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_holm_leaves_nan_out():
    np.testing.assert_allclose(holm([0.01, np.nan, 0.02]), [0.02, np.nan, 0.02])
    assert len(holm([])) == 0


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p):
    """Brute force: each hypothesis's largest Bonferroni p over all the sets of hypotheses that hold it."""
    subsets = [s for k in range(1, len(p) + 1) for s in itertools.combinations(range(len(p)), k)]
    expected = [max(min(1, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(len(p))]
    np.testing.assert_allclose(holm(p), expected)


def test_holm_refuses_what_is_no_probability():
    with pytest.raises(InputError, match=r"between 0 and 1; got 1\.2"):
        holm([0.1, 1.2])


@pytest.mark.parametrize(
    ("loss", "attrs", "warns"),
    [
        (0.01, {"method": "EAP"}, True),
        (0.01, {"method": "EAP-IG, 5 midpoints", "loss": "nll"}, True),
        (0.2, {"method": "EAP"}, False),
        (0.01, {"method": "exact ablation"}, False),
        (0.01, {"method": "EAP", "loss": "kl"}, False),
        (0.01, {}, False),
        (None, {"method": "EAP"}, False),
    ],
)
def test_first_order_scores_of_sure_answers_are_warned_of(loss, attrs, warns):
    values = np.random.default_rng(0).normal(size=(3, 2, 2))
    coords = {"sample": ["a", "b", "c"]} | ({} if loss is None else {"loss": ("sample", [loss] * 3)})
    scores = xr.DataArray(values, coords, dims=("sample", "source", "destination"), attrs=attrs)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        compare(scores, 2 * scores, ["gini"], n_resamples=9)
    assert [w.category for w in told] == [SureAnswers] * warns
    if warns:
        assert "0.01 nats per token" in str(told[0].message)
