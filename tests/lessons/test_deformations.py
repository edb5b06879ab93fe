"""What moves a metric, against what is known of each metric on paper."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

import rlcircuits as rc
from rlcircuits.errors import InputError
from rlcircuits.lessons import figures as lesson_figures
from rlcircuits.lessons.deformations import DEFORMATIONS, responses


@pytest.fixture(scope="module")
def scores() -> xr.DataArray:
    generator = np.random.default_rng(0)
    values = generator.standard_t(3, (12, 5, 5))
    values[:, *np.tril_indices(5, -1)] = np.nan
    names = [f"x{i}" for i in range(5)]
    return xr.DataArray(
        values,
        dims=("sample", "source", "destination"),
        coords={"source": names, "destination": names, "sample": range(12)},
    )


@pytest.mark.parametrize("name", DEFORMATIONS)
def test_a_factor_of_one_changes_nothing(name: str, scores: xr.DataArray) -> None:
    before = scores.copy(deep=True)
    np.testing.assert_allclose(DEFORMATIONS[name](scores, 1.0), scores, atol=1e-12)
    xr.testing.assert_identical(scores, before)


def test_what_each_changes(scores: xr.DataArray) -> None:
    changed = {name: ~np.isclose(f(scores, 3.0), scores, equal_nan=True) for name, f in DEFORMATIONS.items()}
    edges = int(scores[0].notnull().sum())
    assert [int(c.sum()) for c in changed.values()] == [12 * edges, 1, 12, 12 * edges]
    assert np.nanmax(np.abs(DEFORMATIONS["one score of one sample"](scores, 3.0))) == pytest.approx(
        3 * np.nanmax(np.abs(scores))
    )


def test_metrics_move_as_they_must(scores: xr.DataArray) -> None:
    table = responses(scores, (0.5, 1.0, 4.0)).set_index(["deformation", "factor", "metric"]).share
    scaled = table["all edges"]
    assert scaled[4.0]["activation_intensity"] == pytest.approx(4)
    for name in set(rc.METRICS) - {"activation_intensity"}:
        assert scaled[4.0][name] == pytest.approx(1, abs=1e-6), f"{name} depends on scale"
    assert (
        table["what samples share"][4.0]["inter_sample_diversity"]
        < 1
        < table["what samples share"][0.5]["inter_sample_diversity"]
    )
    assert table["one score of one sample"][4.0]["information_complexity"] < 0.8
    assert table["one score of one sample"][4.0]["edge_entropy"] > 0.95


def test_only_positive_factors(scores: xr.DataArray) -> None:
    for factors in ([], [0.0], [-1.0], [float("inf")]):
        with pytest.raises(InputError, match="expected positive numbers"):
            responses(scores, factors)


def test_the_pictures_say_what_they_show(scores: xr.DataArray) -> None:
    figure = lesson_figures.metric_responses(responses(scores, (0.5, 1.0, 2.0), ["gini", "activation_intensity"]))
    assert len(figure.data) == 2 * len(DEFORMATIONS)
    assert "activation intensity by all edges" in figure.layout.meta["alt"]
    curves = lesson_figures.removal_curves([0, 0.5, 1], {"a0->m1": [0, 0.1, 0.7]}, {"a0->m1": -0.3})
    assert list(curves.data[1].y) == pytest.approx([0, -0.15, -0.3])
    assert "first order -0.30, exact +0.70" in curves.layout.meta["alt"]
    with pytest.raises(InputError, match="expected for every edge"):
        lesson_figures.removal_curves([0, 1], {"a": [0, 1]}, {})
    with pytest.raises(InputError, match="expected a table with"):
        lesson_figures.metric_responses(responses(scores)[["metric"]])
