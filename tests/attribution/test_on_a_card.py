"""On a CUDA device every computation gives what it gives on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlcircuits as rc
from tests.fixtures.models import KINDS, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
LEVELS = ("block", "qkv", "head")
TRACES = [rc.Trace("a", [5, 9, 33, 7], [11, 3, 3]), rc.Trace("b", [5, 9], [11, 3, 3, 8])]
PARTNERS = [rc.Trace("a", [5, 8, 33, 7], [11, 3, 3]), rc.Trace("b", [4, 9], [11, 3, 3, 8])]
LABELS = [["p"] * 4 + ["w", "w", "r"], ["p", "p", "w", "w", "w", "r"]]
QUIET = {"progress": False}


def both(compute, kind="qwen2", dtype=torch.float32):
    """What `compute` gives of one model on the CPU and on the device."""
    hf = tiny(kind, dtype, layers=2)
    on_host = compute(hf)
    return on_host, compute(hf.cuda())


def close(found, expected, tolerance=1e-4):
    scale = float(np.nanmax(np.abs(np.asarray(expected))))
    np.testing.assert_allclose(found, expected, atol=tolerance * scale)


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("mixtral", "qwen2-moe")])
def test_scores(kind, level, memory):
    try:
        expected, found = both(lambda hf: rc.attribute(hf, TRACES, level, memory=memory, **QUIET), kind)
    except rc.InputError as error:
        pytest.skip(str(error))
    close(found, expected)
    close(found.loss, expected.loss)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        {"groups": LABELS},
        {"intervention": "mean"},
        {"intervention": "mean", "ig_steps": 3},
        {"intervention": "corrupted", "corrupted": PARTNERS},
        {"loss": [[1.0, 0.0, 2.0], [0.5, 0.5, 1.0, 1.0]]},
    ],
    ids=lambda options: " ".join(options),
)
def test_scores_by_other_questions(options, level):
    expected, found = both(lambda hf: rc.attribute(hf, TRACES, level, **options, **QUIET))
    close(found, expected)


@pytest.mark.parametrize("level", LEVELS)
def test_scores_against_another_model(level):
    def compute(hf):
        other = tiny("qwen2", torch.float32, layers=2, seed=1).to(hf.device)
        return rc.attribute(hf, TRACES, level, intervention="model", other=other, **QUIET)

    expected, found = both(compute)
    close(found, expected)


@pytest.mark.parametrize("level", LEVELS)
def test_edges_removed(level):
    expected, found = both(lambda hf: rc.ablate(hf, TRACES, level, **QUIET))
    close(found, expected, 1e-3)


def test_circuits():
    def compute(hf):
        scores = rc.attribute(hf, TRACES, **QUIET)
        return rc.faithfulness(hf, TRACES, scores, shares=[0.1, 0.5], seeds=1, **QUIET)

    expected, found = both(compute)
    for name, values in expected.data_vars.items():
        if values.dtype.kind == "f" and np.isfinite(values).any():
            np.testing.assert_allclose(found[name], values, atol=1e-3 * float(np.nanmax(np.abs(values))), err_msg=name)


def test_losses_of_tokens():
    expected, found = both(lambda hf: rc.token_losses(hf, TRACES, **QUIET))
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_exact_metrics_and_what_to_trust():
    def metrics(hf):
        return rc.exact_metrics(hf, TRACES, rc.attribute(hf, TRACES, "head", **QUIET), budget=40, **QUIET).effects

    expected, found = both(metrics)
    run_in_both = np.isfinite(expected) & np.isfinite(found)
    assert run_in_both.sum() >= 20
    close(found.where(run_in_both), expected.where(run_in_both), 1e-3)
    rc.trust(tiny("qwen2", torch.float32, layers=2).cuda(), TRACES, budget=20, **QUIET)


def test_half_precision_is_near_single():
    expected = rc.attribute(tiny("qwen2", torch.float32, layers=2), TRACES, **QUIET)
    found = rc.attribute(tiny("qwen2", torch.float32, layers=2).to("cuda", torch.bfloat16), TRACES, **QUIET)
    assert np.corrcoef(np.nan_to_num(found).ravel(), np.nan_to_num(expected).ravel())[0, 1] > 0.98
