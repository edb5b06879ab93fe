"""One rule for "supported": every outcome, every reason, and a comparison that one problem makes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlcircuits.errors import InputError
from rlcircuits.metrics import compare, compare_values, influence, support, supported
from tests.metrics.test_inference import constant_scores

NAN = math.nan


@pytest.mark.parametrize(
    ("given", "more", "word", "reason"),
    [
        ((1.0, 0.5, 1.5), {}, "supported", "the claimed side"),
        ((-1.0, -1.5, -0.5), {}, "contradicted", "the other side"),
        ((-1.0, -1.5, -0.5, -1), {}, "supported", "the claimed side"),
        ((1.0, -0.5, 1.5), {}, "open", "the interval includes 0"),
        ((0.4, -0.2, 1.1), {"factor": True}, "open", "the interval includes 1"),
        ((0.0, 0.0, 0.0), {}, "open", "includes 0"),
        ((NAN, NAN, NAN), {}, "open", "not measured"),
        ((1.0, NAN, NAN), {}, "open", "no interval"),
        ((1.0, 0.5, 1.5), {"p": 1.0}, "open", "p = 1"),
        ((1.0, 0.5, 1.5), {"p": NAN}, "open", "no test"),
        ((1.0, 0.5, 1.5), {"p": 0.04}, "supported", "claimed"),
        ((1.0, 0.5, 1.5), {"share": 0.96, "p": 0.01}, "open", "one problem is 96% of the change"),
        ((1.0, 0.5, 1.5), {"share": NAN}, "supported", "claimed"),
        ((1.0, 0.5, 1.5), {"null": 1.0}, "open", "no larger than the nulls"),
        ((1.0, 0.5, 1.5), {"null": NAN}, "open", "no null was measured"),
        ((1.0, 0.5, 1.5), {"null": 0.9}, "supported", "beyond the nulls"),
        ((-1.0, -1.5, -0.5), {"null": 0.9}, "contradicted", "beyond the nulls"),
    ],
)
def test_every_outcome(given, more, word, reason):
    found = support(*given, **more)
    assert found.word == word and reason in found.reason


def test_a_direction_is_up_or_down():
    with pytest.raises(InputError, match="direction is 0"):
        support(1.0, 0.5, 1.5, 0)


def test_a_change_that_one_problem_makes_is_open_though_its_interval_excludes_no_change():
    """Ninety-nine problems that rise a little and one that rises a hundredfold."""
    base = 1 + np.arange(100) / 1000
    tuned = base * 1.01
    tuned[40] = 100.0
    row = compare(constant_scores(base), constant_scores(tuned), ["activation_intensity"], n_resamples=999).iloc[0]
    assert row["low"] > 0 and row["p"] < 0.05 and row["problem"] == "40" and row["share"] > 0.98
    assert row["ratio_without"] == pytest.approx(1.01)
    assert supported(row).word == "open" and "one problem" in supported(row).reason
    even = compare(constant_scores(base), constant_scores(base * 1.01), ["activation_intensity"], n_resamples=999).iloc[
        0
    ]
    assert supported(even).word == "supported" and supported(even, -1).word == "contradicted"
    even["p_holm"] = 1.0  # corrected for a family of comparisons
    assert supported(even).word == "open"


def test_a_comparison_of_values_reports_the_same_influence():
    rng = np.random.default_rng(3)
    scores = [constant_scores(rng.uniform(1, 2, 9)) for _ in range(2)]
    found = influence(*scores, ["activation_intensity"]).iloc[0]
    values = [abs(one.isel(source=0, destination=0)).to_series().rename("x").to_frame() for one in scores]
    row = compare_values(*values, n_resamples=9).iloc[0]
    assert row["problem"] == found["problem"] and row["share"] == pytest.approx(found["share"])
    assert row["ratio_without"] == pytest.approx(found["ratio_without"])
