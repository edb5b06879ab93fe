"""Intervals of shares against published ones, of edges by how often they hold, leave-one-out against leaving one out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import xarray as xr

from rlcircuits.errors import InputError
from rlcircuits.metrics import (
    METRICS,
    Edges,
    compare,
    edge_changes,
    influence,
    mean_interval,
    metric_intervals,
    paired_shares,
    share_interval,
)
from tests.lab.test_explorer import graph_scores


def scores_of(values: np.ndarray) -> xr.DataArray:
    """Scores ``(sample, 1, edge)`` of a graph with one source."""
    n, edges = values.shape
    coords = {
        "sample": [f"p{i}" for i in range(n)],
        "source": ["input"],
        "destination": [f"m{i}" for i in range(edges)],
    }
    return xr.DataArray(values[:, None, :], coords, ("sample", "source", "destination"))


def test_wilson_is_as_published():
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    for right, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = share_interval(right, n)
        assert (found.value, found.low, found.high) == pytest.approx((right / n, low, high), abs=5e-5)
    assert all(math.isnan(x) for x in share_interval(0, 0))


@pytest.mark.parametrize(("before", "gain", "loss"), [(0.5, 0.2, 0.1), (0.95, 0.04, 0.02), (0.3, 0.0, 0.0)])
def test_the_interval_of_a_paired_difference_holds_as_often_as_it_says(before, gain, loss):
    """Problems drawn from known chances: right before, and turned right or wrong by the tuning."""
    rng, held, times = np.random.default_rng(1), 0, 600
    truth = (1 - before) * gain - before * loss
    for _ in range(times):
        base = rng.random(40) < before
        tuned = np.where(base, rng.random(40) >= loss, rng.random(40) < gain)
        found = paired_shares(base, tuned)
        held += found.low <= truth <= found.high
        assert found.low <= found.difference <= found.high
    assert held / times > 0.93


def test_a_paired_difference_that_never_varies_still_has_a_width():
    found = paired_shares([True] * 12, [True] * 12)
    assert found.difference == 0 and found.low < -0.05 and found.high > 0.05 and found.p == 1
    found = paired_shares([False] * 6, [True] * 6)
    assert found.difference == 1 and found.p == pytest.approx(2 / 2**6) and found.high == pytest.approx(1)
    assert all(math.isnan(x) for x in paired_shares([], []))


def test_means_and_metrics_of_one_model():
    values = np.random.default_rng(0).normal(3, 2, 50)
    found = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(50)
    assert found.value == values.mean() and (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)
    assert math.isnan(mean_interval([1.0]).low) and math.isnan(mean_interval([]).value)
    assert math.isnan(mean_interval([1.0, math.nan]).low)
    scores = graph_scores(0, n=12)
    table = metric_intervals(scores)
    assert list(table.index) == list(METRICS)
    for name, row in table.iterrows():
        assert row["value"] == pytest.approx(METRICS[name].value(scores))
        assert math.isnan(row["low"]) is (name == "information_complexity")
    mean = table.loc["activation_intensity"]
    assert mean["low"] < mean["value"] < mean["high"]
    assert metric_intervals(scores[:1])["low"].isna().all()


def test_leaving_one_out_is_comparing_the_others():
    base, tuned = graph_scores(0, n=7), graph_scores(1, n=7)
    tuned[3] = tuned[3] * 30
    found = influence(base, tuned)
    for name, row in found.iterrows():
        without = [
            compare(one.drop_sel(sample=p), other.drop_sel(sample=p), [name], n_resamples=1).loc[name]
            for one, other in [(base, tuned)]
            for p in base["sample"].values
        ]
        differences = [one["difference"] for one in without]
        assert (row["lowest"], row["highest"]) == pytest.approx((min(differences), max(differences)))
        at = list(base["sample"].values).index(row["problem"])
        assert row["without"] == pytest.approx(differences[at])
        assert row["ratio_without"] == pytest.approx(without[at]["ratio"])
    row = found.loc["activation_intensity"]
    each = np.nanmean(abs(tuned.values), (1, 2)) - np.nanmean(abs(base.values), (1, 2))
    assert (
        row["problem"] == "p/3" and row["share"] == pytest.approx(abs(each[3]) / abs(each).sum()) and row["share"] > 0.5
    )


def test_influence_of_one_problem_or_one_model():
    one = influence(graph_scores(0, n=1), graph_scores(1, n=1))
    assert (one["problem"] == "").all() and one[["share", "without", "lowest"]].isna().all().all()
    alone = influence(graph_scores(0, n=5))
    assert alone.loc["gini", "value"] == pytest.approx(METRICS["gini"].value(graph_scores(0, n=5)))
    assert alone["ratio"].isna().all() and alone.loc["gini", "share"] >= 1 / 5
    same = influence(graph_scores(0, n=3), graph_scores(0, n=3))
    assert (same["value"] == 0).all() and same["share"].isna().all()


def test_edges_by_every_choice_of_signs():
    """With six problems all 32 choices are tried: p by hand, from scipy's t."""
    from scipy.stats import ttest_1samp

    d = np.random.default_rng(3).normal(0, 1, (6, 4))
    d[:, 1] += 2
    table = edge_changes(scores_of(np.zeros((6, 4))), scores_of(d), n=4)
    t = np.abs(ttest_1samp(d, 0).statistic)
    largest = [
        np.abs(ttest_1samp(d * np.array([1, *signs])[:, None], 0).statistic).max()
        for signs in itertools.product((1, -1), repeat=5)
    ]
    for edge, row in table.iterrows():
        at = int(edge.removeprefix("input->m"))
        assert row["difference"] == pytest.approx(d[:, at].mean()) and row["base"] == 0
        assert row["p"] == pytest.approx(np.mean([x >= t[at] * (1 - 1e-9) for x in largest]))
        assert (row["p"] <= 0.05) == (row["low"] > 0 or row["high"] < 0)
    assert table.attrs["choices"] == 32 and table.attrs["edges"] == 4


def test_intervals_of_all_edges_hold_together():
    rng, held, false, times = np.random.default_rng(2), 0, 0, 150
    truth = np.r_[np.zeros(20), 0.5]
    for k in range(times):
        common = rng.normal(0, 1, (16, 1))
        d = truth + 0.7 * common + rng.normal(0, 1, (16, 21))
        table = edge_changes(scores_of(np.zeros_like(d)), scores_of(d), n=21, n_resamples=199, seed=k)
        at = [int(edge.removeprefix("input->m")) for edge in table.index]
        held += ((table["low"] <= truth[at]) & (truth[at] <= table["high"])).all()
        false += (table["p"].to_numpy()[np.array(at) < 20] <= 0.05).any()
    assert held / times > 0.9 and false / times < 0.1


def test_edges_of_few_problems_and_of_none_that_differ():
    few = edge_changes(graph_scores(0, n=4), graph_scores(1, n=4))
    assert few["low"].isna().all() and (few["p"] >= 1 / 8).all() and few.attrs["smallest"] == 1 / 8
    assert few.attrs["differ"] == 0 and len(few) == 20
    alone = edge_changes(graph_scores(0, n=1), graph_scores(1, n=1), n=3)
    assert alone["p"].isna().all() and len(alone) == 3
    same = edge_changes(graph_scores(0, n=9), graph_scores(0, n=9))
    assert (same["difference"] == 0).all() and (same["p"] == 1).all() and same.attrs["differ"] == 0
    constant = edge_changes(scores_of(np.zeros((8, 2))), scores_of(np.full((8, 2), 0.1)))
    assert (constant["p"] == 1 / 128).all() and constant["low"].to_numpy() == pytest.approx(0.1)


def test_the_strongest_edges_of_one_model():
    scores = graph_scores(0, n=8)
    table = edge_changes(scores, n=5)
    assert list(table.index) == list(Edges(scores).strongest(5).index)
    assert "tuned" not in table and table["base"].to_numpy() == pytest.approx(table["difference"].to_numpy())


@pytest.mark.parametrize(
    ("given", "says"),
    [({"n": 0}, "n is 0"), ({"confidence": 95}, "confidence"), ({"n_resamples": True}, "n_resamples")],
)
def test_parameters_out_of_range(given, says):
    with pytest.raises(InputError, match=says):
        edge_changes(graph_scores(0), graph_scores(1), **given)
