"""Overlap against its definitions, written out by sets, permutations and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom, pearsonr, spearmanr

import rlcircuits as rc
from rlcircuits.changes import overlaps, rankings
from rlcircuits.changes.rankings import Agreement
from tests.fixtures.models import in_float64, tiny

QUANTITIES = ["rank-biased overlap", "Pearson", "Spearman", "Pearson of sizes", "Spearman of sizes"]


def array(values, samples=None, **attrs):
    """Scores ``(sample, source, destination)``; the first pair of each is no edge."""
    values = np.array(values)
    values[:, 0, 0] = np.nan
    names = {
        "source": [f"s{i}" for i in range(values.shape[1])],
        "destination": [f"d{i}" for i in range(values.shape[2])],
    }
    samples = [f"p{i}" for i in range(len(values))] if samples is None else samples
    return xr.DataArray(values, {"sample": samples, **names}, ("sample", *names), attrs=attrs)


def drawn(n=8, seed=0, dtype=float, noise=1.0, shape=(5, 7)):
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal(shape) ** 3
    return [array((shared + noise * rng.standard_normal((n, *shape))).astype(dtype)) for _ in range(2)]


def by_definition(x, y, shares, p, by=np.abs):
    """Every quantity of two vectors, from sets."""
    n = len(x)
    first, second = (sorted(range(n), key=lambda i, v=v: (-by(v[i]), i)) for v in (x, y))
    found = []
    for share in shares:
        k = max(1, math.floor(round(share * n, 9)))
        one, other = set(first[:k]), set(second[:k])
        found.append(len(one & other) / len(one | other))
    agreements = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, n + 1)]
    found.append((1 - p) / p * sum(p**d * a for d, a in enumerate(agreements, 1)) + p**n * agreements[-1])
    sizes = np.abs(x), np.abs(y)
    return [*found, pearsonr(x, y)[0], spearmanr(x, y)[0], pearsonr(*sizes)[0], spearmanr(*sizes)[0]]


@pytest.mark.parametrize(("rank", "by"), [("absolute", np.abs), ("signed", lambda v: v)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decimals", [0, 9])  # with none, most values are tied
def test_every_quantity_is_as_defined(rank, by, dtype, decimals):
    rng = np.random.default_rng(3)
    x = rng.standard_normal(300).round(decimals).astype(dtype)
    y = (x + rng.standard_normal(300)).round(decimals).astype(dtype)
    agreement = Agreement(300, (0.01, 0.1, 0.29, 1.0), p=0.9, rank=rank)
    found = agreement.of(agreement.ranked(x), agreement.ranked(y))
    np.testing.assert_allclose(found, by_definition(x, y, agreement.shares, 0.9, by), atol=1e-6)


def test_long_lists_are_ranked_as_short_ones(monkeypatch):
    """With long lists only candidates are sorted, and rank-biased overlap is extrapolated from there: eq. 32 at depth K."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(3000).astype(np.float32) ** 3
    y = (x + rng.standard_normal(3000)).astype(np.float32)
    monkeypatch.setattr(rankings, "_LISTED", 40)
    agreement = Agreement(3000, (0.02, 0.2))
    assert agreement.depth == 150
    found = agreement.of(agreement.ranked(x, every=True), agreement.ranked(y, every=True))
    p = 1 - 1 / 30
    expected = by_definition(x, y, agreement.shares, p)
    first, second = (np.argsort(-np.abs(v), kind="stable") for v in (x, y))
    common = [len(set(first[:d]) & set(second[:d])) for d in range(1, 151)]
    expected[2] = (1 - p) / p * sum(p**d * c / d for d, c in enumerate(common, 1)) + p**150 * common[-1] / 150
    np.testing.assert_allclose(found, expected, atol=1e-6)


@given(
    x=st.lists(st.integers(-2, 2), min_size=100, max_size=100),
    k=st.integers(1, 100),
)
@settings(max_examples=30)
def test_candidates_hold_the_largest_whatever_the_ties(x, k):
    values = np.array(x, float)
    before = rankings._LISTED
    rankings._LISTED = 10
    try:
        found = rankings._candidates(values, k)
    finally:
        rankings._LISTED = before
    assert np.sort(values[found])[::-1][:k].tolist() == np.sort(values)[::-1][:k].tolist()
    assert np.array_equal(np.sort(found), found)  # so that equal ones come in their order
    first = sorted(range(100), key=lambda i: (-x[i], i))[:k]
    assert np.flatnonzero(rankings._largest(values, k)).tolist() == sorted(first)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (1e-30, 0.0), (1e25, 0.0), (1.0, 1e4), (1e-42, 0.0)])
def test_correlations_hold_at_any_scale(dtype, scale, offset):
    """Squares that are 0 or infinite in float32, means beside which the differences are small, subnormal numbers."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal(2000)
    y = x + rng.standard_normal(2000)
    x, y = ((one * scale + offset).astype(dtype) for one in (x, y))
    agreement = Agreement(2000, (0.1,))
    found = agreement.of(agreement.ranked(x, every=True), agreement.ranked(y, every=True))
    expected = pearsonr(x.astype(float) / scale, y.astype(float) / scale)[0]
    assert found[2] == pytest.approx(expected, abs=1e-3 if scale == 1e-42 else 1e-5)
    same = np.full(2000, offset + scale, dtype)
    assert np.isnan(agreement.of(agreement.ranked(same), agreement.ranked(y))[2])


def test_chance_is_what_all_orders_give_on_average():
    """All 720 orders of six items."""
    agreement = Agreement(6, (0.34, 0.5), p=0.8)
    x = np.arange(6, 0, -1.0)
    first = agreement.ranked(x)
    orders = np.array([agreement.of(first, agreement.ranked(x[list(o)])) for o in itertools.permutations(range(6))])
    chance = agreement.random(0.95)
    np.testing.assert_allclose(chance[:3, 0], orders[:, :3].mean(0), rtol=1e-12)
    np.testing.assert_allclose(agreement._moments()[1], orders[:, 2].std(), rtol=1e-12)
    half = 1.959964 * orders[:, 3:].std(0)
    np.testing.assert_allclose(chance[3:], np.column_stack([0 * half, -half, half]), atol=1e-6)


def test_chance_of_a_share_is_hypergeometric():
    chance = Agreement(400, (0.1,)).random(0.9)[0]
    x = np.arange(41)
    jaccard = x / (80 - x)
    assert chance[0] == pytest.approx(float(hypergeom.pmf(x, 400, 40, 40) @ jaccard))
    assert chance[1:].tolist() == [jaccard[int(hypergeom.ppf(q, 400, 40, 40))] for q in (0.05, 0.95)]


def test_scores_are_compared_by_the_means_of_edges_and_nodes():
    a, b = drawn()
    found = rc.overlap(a, b, shares=(0.1, 0.3), p=0.7, resamples=5, splits=2)
    edges = [one.mean("sample").values.ravel()[1:] for one in (a, b)]
    np.testing.assert_allclose(found.table.loc["edges", "value"], by_definition(*edges, (0.1, 0.3), 0.7))
    nodes = [one.sum("destination").mean("sample").values for one in (a, b)]
    np.testing.assert_allclose(found.table.loc["nodes", "value"], by_definition(*nodes, (0.1, 0.3), 0.7))
    assert found.table.loc["edges"].index.tolist() == ["Jaccard 0.1", "Jaccard 0.3", *QUANTITIES]
    np.testing.assert_allclose(found.means.sel(model="b"), b.mean("sample"))


def test_a_circuit_overlaps_with_itself_wholly():
    a, _ = drawn(dtype=np.float32)
    found = rc.overlap(a, a.isel(sample=slice(None, None, -1)), resamples=20, splits=5)
    np.testing.assert_allclose(found.table[["value", "low", "high"]], 1, rtol=1e-6)
    np.testing.assert_allclose(found.table["own_a"], found.table["own_b"], rtol=1e-6)
    np.testing.assert_allclose(found.table["across"], found.table["own_a"], rtol=1e-6)


def test_one_edge_that_was_added_is_found():
    """Known by hand: b is a but for one edge that was weak and now is the strongest."""
    a, _ = drawn(n=4)
    values = np.abs(a.mean("sample").values)
    weakest = np.unravel_index(np.nanargmin(values), values.shape)
    b = a.copy(deep=True)
    b[:, weakest[0], weakest[1]] = 100.0
    found = rc.overlap(a, b, shares=(0.1,), resamples=20, splits=5)
    k = math.floor(0.1 * (a[0].size - 1))
    assert found.table.loc[("edges", "Jaccard 0.1"), "value"] == pytest.approx((k - 1) / (k + 1))
    first = found.edges().iloc[0]
    assert first.name == f"s{weakest[0]}->d{weakest[1]}"
    assert (first["in_a"], first["in_b"]) == (False, True)
    assert first["change"] == pytest.approx(100 - float(a.mean("sample")[weakest]))
    assert len(found.edges()) == k + 1
    assert found.edges(0.5)["in_b"].sum() == math.floor(0.5 * (a[0].size - 1))


def test_intervals_and_halves_are_those_of_their_resamples():
    """Each resample and each split made again by hand."""
    a, b = drawn(n=6)
    found = rc.overlap(a, b, shares=(0.2,), p=0.8, resamples=7, splits=3, seed=5, confidence=0.9)
    flat = [one.values.reshape(6, -1)[:, 1:] for one in (a, b)]
    weights = np.random.default_rng(5).multinomial(6, np.full(6, 1 / 6), size=7) / 6
    again = np.array([by_definition(w @ flat[0], w @ flat[1], (0.2,), 0.8) for w in weights])
    value = by_definition(flat[0].mean(0), flat[1].mean(0), (0.2,), 0.8)
    low = np.maximum(value - 1.6448536 * again.std(0, ddof=1), [0, 0, -1, -1, -1, -1])
    table = found.table.loc["edges"]
    np.testing.assert_allclose(table["low"], low, atol=1e-7)
    rng = np.random.default_rng([5, 1])
    own, across = [], []
    for _ in range(3):
        order = rng.permutation(6)
        (a1, a2), (b1, b2) = ([one[order[half]].mean(0) for half in (slice(3), slice(3, 6))] for one in flat)
        own.append(by_definition(a1, a2, (0.2,), 0.8))
        across.append(np.mean([by_definition(a1, b2, (0.2,), 0.8), by_definition(a2, b1, (0.2,), 0.8)], axis=0))
    np.testing.assert_allclose(table["own_a"], np.mean(own, axis=0), atol=1e-9)
    np.testing.assert_allclose(table["across"], np.mean(across, axis=0), atol=1e-9)
    np.testing.assert_allclose(table["across_high"], np.quantile(across, 0.95, axis=0), atol=1e-9)


@pytest.mark.slow
def test_intervals_cover_what_samples_of_this_size_give_on_average():
    """Of 40 samples of 30 problems, nearly all intervals hold the mean over 200 samples."""
    rng = np.random.default_rng(0)
    shared = [rng.standard_normal(300) ** 3 for _ in range(2)]
    shared[1] = 0.7 * shared[0] + 0.5 * shared[1]
    agreement = Agreement(300, (0.05, 0.2))

    def sample():
        return [one + 3 * rng.standard_normal((30, 300)) for one in shared]

    expected = np.mean([agreement.of(*(agreement.ranked(x.mean(0)) for x in sample())) for _ in range(200)], axis=0)
    inside = []
    for seed in range(40):
        two = sample()
        table = overlaps._table(agreement, two, [one.mean(0) for one in two], 0.95, 50, 1, seed)
        inside.append((table["low"] <= expected) & (expected <= table["high"]))
    assert (np.mean(inside, axis=0) >= 0.85).all()


def test_two_unrelated_circuits_overlap_as_chance_has_it():
    rng = np.random.default_rng(2)
    a, b = (array(rng.standard_normal((6, 40, 60))) for _ in range(2))
    table = rc.overlap(a, b, resamples=50, splits=10).table.loc["edges"]
    inside = (table["random_low"] <= table["value"]) & (table["value"] <= table["random_high"])
    assert inside.sum() >= len(table) - 1
    assert ((table["own_a"] - table["random"]).abs() < 0.05).all()


def test_one_problem_has_neither_interval_nor_halves():
    a, b = drawn(n=1)
    table = rc.overlap(a, b).table
    assert table[["value", "random"]].notna().all(axis=None)
    assert table[["low", "high", "own_a", "own_b_low", "across"]].isna().all(axis=None)


def test_results_do_not_depend_on_order_of_problems_memory_layout_or_pieces(monkeypatch):
    a, b = drawn(n=5)
    whole = rc.overlap(a, b, resamples=30, splits=4).table
    monkeypatch.setattr(overlaps, "_NUMBERS", 1)
    pieces = rc.overlap(
        a.transpose("destination", "sample", "source"), b.isel(sample=[4, 2, 0, 1, 3]), resamples=30, splits=4
    )
    np.testing.assert_allclose(pieces.table, whole, atol=1e-9)


def test_a_layer_with_other_weights_changes_the_circuit_of_a_model():
    """Real scores: the same model, and one of other weights, at every level."""
    models = [in_float64(tiny("llama", seed=seed)) for seed in (0, 0, 1)]
    with torch.no_grad():
        models[1].model.layers[2].mlp.down_proj.weight.mul_(1.01)
    traces = [rc.Trace(str(i), (3 + i, 9, 22), (7, 41 + i, 5)) for i in range(4)]
    scores = [rc.attribute(model, traces, "head") for model in models]
    near, far = (rc.overlap(scores[0], one, resamples=20, splits=3).table["value"] for one in scores[1:])
    assert near["edges", "Spearman"] > 0.99 > 0.5 > far["edges", "Spearman"]
    assert near["nodes", "Jaccard 0.2"] >= far["nodes", "Jaccard 0.2"]


def test_it_shows_itself():
    a, b = drawn(n=4)
    a.attrs["model"] = "<b>base</b>"
    found = rc.overlap(a, b, resamples=10, splits=3)
    assert "<b>base</b>" in repr(found) and "&lt;b&gt;base" in found._repr_html_()
    assert list(found.shown()) == ["value", "random", "own_a", "own_b", "across"]
    assert found.shown().loc[("edges", "Pearson"), "value"].count(",") == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": np.ones(3)}, "expected a DataArray"),
        ({"shares": ()}, "shares are ()"),
        ({"shares": (0.1, 2)}, "above 0 and at most 1"),
        ({"shares": (0.1, 0.1)}, "different numbers"),
        ({"p": 1}, "p is 1: expected a number between 0 and 1"),
        ({"rank": "size"}, "unknown rank 'size'"),
        ({"resamples": 1}, "resamples is 1"),
        ({"splits": 0}, "splits is 0"),
        ({"confidence": 2}, "confidence is 2"),
        ({"b": drawn()[1].isel(sample=slice(3))}, "a and b must hold scores of the same problems: 5 only in a"),
        ({"b": drawn()[1].isel(source=slice(3))}, "same graph: their sources differ"),
        ({"b": drawn()[1].where(drawn()[1]["source"] != "s2")}, "same edges"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message):
    a, b = drawn()
    with pytest.raises(rc.InputError, match=message.replace("(", r"\(").replace(")", r"\)")):
        rc.overlap(**{"a": a, "b": b, **change})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_damaged_score_is_named(value):
    a, b = drawn()
    b[3, 2, 1] = value
    with pytest.raises(rc.InputError, match="'p3' has .* on edge s2->d1"):
        rc.overlap(a, b)
