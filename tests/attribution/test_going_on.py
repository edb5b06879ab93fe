"""Attribution that is interrupted and goes on, batches that are short on a CPU, and the number of threads."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import xarray as xr

import rlcircuits as rc
from rlcircuits.attribution import batching, eap, threads
from rlcircuits.storage.journals import OtherInputs
from tests.fixtures.models import tiny

LENGTHS = ((5, 4), (3, 6), (7, 2), (2, 2), (6, 6))


def traces():
    rng = np.random.default_rng(0)
    return [
        rc.Trace(f"p{i}", rng.integers(3, 61, a).tolist(), rng.integers(3, 61, b).tolist())
        for i, (a, b) in enumerate(LENGTHS)
    ]


@pytest.fixture
def passes(monkeypatch):
    """Problems of each pass; the pass after `stop_after` of them raises KeyboardInterrupt."""
    real, run = eap.score_batch, []

    def counting(*args, **kwargs):
        if len(run) == counting.stop_after:
            raise KeyboardInterrupt
        run.append([trace.problem for trace in args[3]])
        return real(*args, **kwargs)

    counting.stop_after = None
    monkeypatch.setattr(eap, "score_batch", counting)
    return run, counting


GROUPS = [[("a", "b")[k % 2] for k in range(a + b)] for a, b in LENGTHS]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float64, {"level": "head", "intervention": "mean"}),
        (torch.float32, {"level": "qkv", "cut": 2, "groups": GROUPS}),
        (torch.float32, {"ig_steps": 2, "memory": "lean"}),
    ],
)
@pytest.mark.filterwarnings("ignore:integrated gradients")
def test_it_goes_on_with_the_same_bits(tmp_path, passes, dtype, options):
    run, counting = passes
    hf, options = tiny("qwen2", dtype, layers=2), {**options, "batch_size": 2, "progress": False}
    expected = rc.attribute(hf, traces(), **options)
    whole = list(run)
    assert len(whole) == 3
    for finished in range(3):
        run.clear()
        counting.stop_after, folder = finished, tmp_path / str(finished)
        with pytest.raises(KeyboardInterrupt):
            rc.attribute(hf, traces(), resume=folder, **options)
        counting.stop_after = None
        found = rc.attribute(hf, traces(), resume=folder, **options)
        xr.testing.assert_identical(found, expected)
        assert found.values.tobytes() == expected.values.tobytes()
        assert run == whole  # each pass once, over both calls
        assert rc.attribute(hf, traces(), resume=folder, **options).equals(expected) and run == whole


def test_other_batches_keep_what_was_finished(tmp_path, passes):
    run, counting = passes
    hf = tiny("llama", torch.float32, layers=2)
    expected = rc.attribute(hf, traces())
    run.clear()
    counting.stop_after = 1
    with pytest.raises(KeyboardInterrupt):
        rc.attribute(hf, traces(), batch_size=1, resume=tmp_path)
    counting.stop_after, [kept] = None, run.pop()
    found = rc.attribute(hf, traces(), batch_size=3, resume=tmp_path)
    assert [len(one) for one in run] == [3, 2] and kept in run[0]  # the batch of what was kept runs for the others
    again = rc.attribute(hf, traces(), batch_size=5, resume=tmp_path)
    xr.testing.assert_identical(again, found)
    assert len(run) == 2
    xr.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:integrated gradients")
def test_other_inputs_are_kept_apart_and_named(tmp_path):
    hf, other = (tiny("qwen2", torch.float32, layers=2, seed=seed) for seed in (0, 1))
    corrupted = [rc.Trace(t.problem, t.prompt[::-1], t.answer) for t in traces()]
    options = {"batch_size": 5, "progress": False}
    rc.attribute(hf, traces(), resume=tmp_path, **options)
    changes = {
        "model weights": (other, {}),
        "level": (hf, {"level": "qkv"}),
        "cut": (hf, {"cut": 1}),
        "ig_steps": (hf, {"ig_steps": 2}),
        "groups": (hf, {"groups": GROUPS}),
        "intervention": (hf, {"intervention": "corrupted", "corrupted": corrupted}),
        "loss": (hf, {"loss": [[1.0] * b for _, b in LENGTHS]}),
    }
    for name, (model, change) in changes.items():
        with pytest.warns(OtherInputs, match=rf"differs in {name}"):
            found = rc.attribute(model, traces(), resume=tmp_path, **options, **change)
        assert found.equals(rc.attribute(model, traces(), **options, **change))
    headers = [json.loads(file.read_bytes().split(b"\n")[0]) for file in tmp_path.glob("*.journal")]
    assert len(headers) == 1 + len(changes) and {header["kind"] for header in headers} == {"scores"}


def test_on_a_cpu_a_batch_is_short(monkeypatch):
    hf = tiny("llama", torch.float32, layers=1)
    rows = [rc.Trace(f"p{i}", [3] * 6, [4] * 5) for i in range(40)]  # 10 tokens are read of each

    def sizes(runs=1, batch_size="auto"):
        plans = [batching.Plan(len, 1, runs)]
        return [found for _, found in batching.in_batches(hf, rows, batch_size, plans, "", False)]

    assert sizes() == [40]
    monkeypatch.setattr(batching, "WORK", 100 * sum(p.numel() for p in hf.parameters()))
    assert sizes() == [10] * 4 and sizes(runs=2) == [5] * 8 and sizes(runs=1000) == [1] * 40
    assert sizes(batch_size=20) == [20, 20]


def test_one_thread_unless_the_environment_or_the_model_asks_for_more(monkeypatch):
    hf, before = tiny("llama", torch.float32, layers=1), torch.get_num_threads()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def within():
        with threads.suitable_threads(hf):
            return torch.get_num_threads()

    try:
        torch.set_num_threads(2)
        assert within() == 1 and torch.get_num_threads() == 2
        with pytest.raises(KeyboardInterrupt), threads.suitable_threads(hf):
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert within() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.setattr(threads, "LARGE", 1)
        assert within() == 2
    finally:
        torch.set_num_threads(before)
