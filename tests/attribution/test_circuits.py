"""Circuits against a model written out edge by edge, and ablation that is interrupted and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcircuits as rc
from rlcircuits.attribution import ablation, rankings, reruns
from rlcircuits.attribution.circuits import SHARES, areas
from rlcircuits.storage.files import DamagedArtefact, StoreError
from rlcircuits.storage.journals import OtherInputs
from tests.fixtures.models import in_float64, tiny
from tests.fixtures.reference import loss
from tests.fixtures.waiting import ended

ROOT = Path(__file__).resolve().parents[2]
LEVELS = ("block", "qkv", "head")
QUIET = "ignore:without any edge the loss"


def traces(n=3, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 8, (n, 2))
    return [
        rc.Trace(f"p{i}", rng.integers(3, 61, a).tolist(), rng.integers(3, 61, b).tolist())
        for i, (a, b) in enumerate(sizes)
    ]


def likely_traces(hf, n=3, seed=0):
    """Traces whose answers are the model's own, so that it does better than without any edge."""
    found = []
    for trace in traces(n, seed):
        ids = list(trace.prompt)
        for _ in trace.answer:
            ids.append(int(hf(torch.tensor([ids])).logits[0, -1].argmax()))
        found.append(rc.Trace(trace.problem, trace.prompt, ids[len(trace.prompt) :]))
    return found


def made(values, **attrs):
    """Scores ``(sample, source, destination)`` of nodes s0, s1, … and d0, d1, …."""
    values = np.asarray(values, float)
    names = {"sample": "p", "source": "s", "destination": "d"}
    coords = {dim: [f"{x}{i}" for i in range(n)] for (dim, x), n in zip(names.items(), values.shape)}
    return xr.DataArray(values, dims=tuple(names), coords=coords, attrs=attrs)


# --- which edges -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(-3, 3) | st.just(None), min_size=6, max_size=6), min_size=1, max_size=4),
    st.sampled_from(["absolute", "signed"]),
    st.data(),
)
def test_a_circuit_is_the_first_edges_of_a_sorted_list(rows, rank, data):
    rows = [[value if rows[0][i] is not None else None for i, value in enumerate(row)] for row in rows]
    rows = [[0 if value is None and rows[0][i] is not None else value for i, value in enumerate(row)] for row in rows]
    if all(value is None for value in rows[0]):
        return
    values = np.array([[np.nan if v is None else v for v in row] for row in rows]).reshape(-1, 2, 3)
    edges = []
    for s in range(2):
        for d in range(3):
            column = [row[3 * s + d] for row in rows]
            if column[0] is not None:
                mean = sum(column) / len(column)
                edges.append((-abs(mean) if rank == "absolute" else -mean, s, d))
    n = data.draw(st.integers(0, len(edges)))
    found = rc.circuit(made(values, level="block"), n, rank)
    assert {(s, d) for _, s, d in sorted(edges)[:n]} == {(int(s), int(d)) for s, d in np.argwhere(found.values)}
    assert found.attrs == {"edges": n, "rank": rank, "level": "block"}


def test_ranking_is_by_the_mean_and_shares_round_down():
    scores = made([[[5.0, 1.0, -3.0]], [[-5.0, 1.0, -3.0]]])
    assert rc.circuit(scores, 1).values.tolist() == [[False, False, True]]
    assert rc.circuit(scores, 1, "signed").values.tolist() == [[False, True, False]]
    assert rc.circuit(scores[0], 1).values.tolist() == [[True, False, False]]  # one sample without its dimension
    assert int(rc.circuit(scores, 0.67).sum()) == 2 and int(rc.circuit(scores, 0.66).sum()) == 1
    hundred = made(np.ones((1, 1, 100)))
    assert int(rc.circuit(hundred, 0.29).sum()) == 29  # 0.29 · 100 is 28.999… in binary
    assert int(rc.circuit(hundred, 1.0).sum()) == 100 and int(rc.circuit(hundred, 1).sum()) == 1


# --- how faithful ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_every_share_is_the_edge_by_edge_model_without_the_other_edges(architecture, level):
    hf = in_float64(tiny(architecture, layers=2))
    some = traces(2)
    scores = rc.attribute(hf, some, level)
    found = rc.faithfulness(hf, some, scores, seeds=0, progress=False)
    shape = scores.shape[1:]

    def reference(kept):
        return np.array(
            [float(loss(hf, t.prompt, t.answer, level, torch.from_numpy(kept.astype(float)))) for t in some]
        )

    full, empty = reference(np.ones(shape)), reference(np.zeros(shape))
    np.testing.assert_allclose(found.full_loss, full, rtol=1e-6)  # rotary angles are float32 in transformers
    np.testing.assert_allclose(found.empty_loss, empty, rtol=1e-12)
    mean, edges = scores.mean("sample").values, ~np.isnan(scores[0].values)
    for rank, strength in (("signed", mean), ("absolute", np.abs(mean))):
        for share in SHARES:
            n = int(found.edges.sel(share=share))
            assert n == int(share * edges.sum() + 1e-9)
            smallest = np.sort(strength[edges])[::-1][n - 1] if n else np.inf
            expected = reference(edges & (strength >= smallest))
            one = found.sel(ranking=rank, share=share)
            np.testing.assert_allclose(one.loss, expected, rtol=1e-6)
            np.testing.assert_allclose(one.sample_faithfulness, (empty - expected) / (empty - full), atol=1e-5)
            assert float(one.faithfulness) == pytest.approx((empty - expected).sum() / (empty - full).sum(), abs=1e-5)


@pytest.mark.filterwarnings(QUIET)
def test_all_edges_are_the_model_and_none_is_nothing():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        hf = tiny("qwen2", dtype, layers=2)
        some = traces()
        found = rc.faithfulness(hf, some, rc.attribute(hf, some), shares=[0, 0.5, 1], progress=False)
        for name in ("faithfulness", "sample_faithfulness", "random_faithfulness", "random_sample_faithfulness"):
            assert (found[name].sel(share=0) == 0).all() and (found[name].sel(share=1) == 1).all()
        # Without any edge every norm reads exactly 0, so that all tokens are equally likely, in bfloat16 too.
        np.testing.assert_allclose(found.empty_loss, np.log(61), rtol=1e-6)
        np.testing.assert_allclose(found.full_loss, [row.mean() for row in rc.token_losses(hf, some)], rtol=1e-3)


def test_areas_of_a_known_curve():
    """Straight lines from (0.1, 0.2) to (0.5, 1.2) and on to (1, 1), by hand."""
    cpr, cmd = areas([0.1, 0.5, 1.0], np.array([[0.2, 1.2, 1.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(cpr, [0.4 * 0.7 + 0.5 * 1.1, 0.9])
    np.testing.assert_allclose(cmd, [0.4 * (0.8 + 0.2) / 2 + 0.5 * 0.1, 0.0])


@pytest.fixture(scope="module")
def measured():
    hf = in_float64(tiny("llama", layers=2))
    some = likely_traces(hf, 4)
    scores = rc.attribute(hf, some, "qkv", cut=2)
    return hf, some, scores, rc.faithfulness(hf, some, scores, seeds=4, progress=False)


def test_areas_intervals_and_baseline_follow_from_the_losses(measured):
    from scipy import stats

    _, _, _, found = measured
    k = np.array(SHARES)
    gap = (found.empty_loss - found.full_loss).values

    def f(losses):
        return (found.empty_loss.values - losses).sum(-1) / gap.sum()

    def trapezoid(y):
        return sum((b - a) * (y[..., i] + y[..., i + 1]) / 2 for i, (a, b) in enumerate(pairwise(k)))

    signed, absolute = found.loss.sel(ranking="signed").values, found.loss.sel(ranking="absolute").values
    assert gap.mean() > 0
    assert float(found.CPR) == pytest.approx(trapezoid(f(signed)))
    assert float(found.CMD) == pytest.approx(trapezoid(np.abs(1 - f(absolute))))
    np.testing.assert_allclose(found.random_CPR, trapezoid(f(found.random_loss.values)))
    np.testing.assert_allclose(found.random_CMD, trapezoid(np.abs(1 - f(found.random_loss.values))))
    for name in ("random_CPR", "random_CMD"):
        values = found[name].values
        expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
        np.testing.assert_allclose(found[f"{name}_interval"], expected)
    for i in range(4):
        each = (found.empty_loss.values[i] - signed[:, i]) / gap[i]
        assert float(found.sample_CPR[i]) == pytest.approx(trapezoid(each))
    for which, name in ((signed, "CPR"), (absolute, "CMD")):
        rng, area = np.random.default_rng(7), []
        for _ in range(4000):
            drawn = rng.integers(4, size=4)
            one = (found.empty_loss.values - which)[:, drawn].mean(1) / gap[drawn].mean()
            area.append(trapezoid(one if name == "CPR" else np.abs(1 - one)))
        low, high = np.quantile(area, [0.025, 0.975])
        assert np.abs(found[f"{name}_interval"].values - [low, high]).max() <= 0.1 * (high - low)


def test_the_baseline_is_random_and_repeats(measured):
    hf, some, scores, found = measured
    again = rc.faithfulness(hf, some, scores, seeds=2, progress=False)
    np.testing.assert_allclose(again.random_loss, found.random_loss[:2], rtol=1e-10)
    xr.testing.assert_identical(again, rc.faithfulness(hf, some, scores, seeds=2, progress=False))
    assert len({tuple(row) for row in found.random_loss[:, 8].values.round(9)}) == 4  # other edges for every seed
    bare = rc.faithfulness(hf, some, scores, seeds=0, progress=False)
    assert bare.sizes["seed"] == 0 and np.isnan(bare.random_CPR_interval).all()


def test_circuits_follow_the_cut_of_their_scores_and_run_on_other_traces(measured):
    hf, some, scores, found = measured
    np.testing.assert_allclose(found.full_loss, scores.loss, rtol=1e-10)
    whole = rc.faithfulness(hf, some, scores, seeds=0, cut=None, progress=False)
    np.testing.assert_allclose(whole.full_loss, [x.mean() for x in rc.token_losses(hf, some)], rtol=1e-10)
    other = likely_traces(hf, 2, seed=5)
    assert rc.faithfulness(hf, other, scores, seeds=0, progress=False).sizes["sample"] == 2


def test_faithfulness_does_not_depend_on_the_batch(measured):
    hf, some, scores, found = measured
    kept, reruns.TOGETHER_BYTES = reruns.TOGETHER_BYTES, 1
    try:
        one = rc.faithfulness(hf, some, scores, seeds=1, batch_size=1, progress=False)
        seven = rc.faithfulness(hf, some, scores, seeds=1, batch_size=7, progress=False)
    finally:
        reruns.TOGETHER_BYTES = kept
    for other in (one, seven):
        np.testing.assert_allclose(other.loss, found.loss, rtol=1e-10)
        np.testing.assert_allclose(other.random_loss, found.random_loss[:1], rtol=1e-10)


def test_a_model_that_is_worse_than_nothing_is_said_to_be():
    hf = tiny("qwen2", layers=2)
    some = [rc.Trace("p", [5], [int(hf(torch.tensor([[5]])).logits[0, -1].argmin())])]
    with pytest.warns(UserWarning, match="without any edge the loss is 4.11 nats, not above"):
        found = rc.faithfulness(hf, some, rc.attribute(hf, some), progress=False)
    assert np.isnan(found.CPR_interval).all()  # a single sample


@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda hf, s: rc.circuit(s, 16), "n is 16: expected a whole number of edges, 0 to 15"),
        (lambda hf, s: rc.circuit(s, -1), "n is -1"),
        (lambda hf, s: rc.circuit(s, 1.5), "n is 1.5"),
        (lambda hf, s: rc.circuit(s, True), "n is True"),
        (lambda hf, s: rc.circuit(s, 1, "abs"), "unknown rank 'abs'"),
        (lambda hf, s: rc.circuit(np.ones((1, 2, 2)), 1), "expected a DataArray"),
        (lambda hf, s: rc.faithfulness(hf, [], s), "no traces"),
        (lambda hf, s: rc.faithfulness(hf, traces(), s, shares=[0.5, 0.1]), "rising numbers"),
        (lambda hf, s: rc.faithfulness(hf, traces(), s, shares=[0.5]), "at least two"),
        (lambda hf, s: rc.faithfulness(hf, traces(), s, shares=[0.5, 20]), "from 0 to 1"),
        (lambda hf, s: rc.faithfulness(hf, traces(), s, seeds=-1), "seeds is -1"),
        (lambda hf, s: rc.faithfulness(hf, traces(), s, confidence=95), "confidence is 95"),
        (lambda hf, s: rc.faithfulness(hf, traces(), s, cut=0), "cut is 0"),
        (lambda hf, s: rc.faithfulness(tiny("llama", layers=3), traces(), s), "5 sources and 5 destinations, the model's .* has 7 and 7"),
        (lambda hf, s: rc.faithfulness(hf, traces(), rc.ablate(hf, traces(), edges=["a0->m0"], progress=False)), "the scores lack input->a0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_message(make, says):
    hf = tiny("llama", layers=2)
    with pytest.raises(rc.InputError, match=says) as caught:
        make(hf, rc.attribute(hf, traces()))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.filterwarnings(QUIET)
def test_a_loss_that_is_not_finite_is_named():
    hf = tiny("llama", torch.float32, layers=2)
    scores = rc.attribute(hf, traces())
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(rc.InputError, match=r"loss of trace 'p\d' with \d+ of 15 edges is (nan|inf)"):
        rc.faithfulness(hf, traces(), scores, progress=False)
    with pytest.raises(rc.InputError, match=r"loss of trace 'p\d' is (nan|inf)"):
        rc.ablate(hf, traces(), progress=False)


# --- ablation that goes on -------------------------------------------------------------------------

OPTIONS = {"level": "qkv", "batch_size": 4, "progress": False}


@pytest.fixture
def runs(monkeypatch):
    """How many (trace, edge) runs each batch had; `stop_after` batches the next one raises KeyboardInterrupt."""
    counted: list[int] = []
    losses = ablation._losses

    def counting(*args):
        if len(counted) == counting.stop_after:
            raise KeyboardInterrupt
        counted.append(len(args[3]))
        return losses(*args)

    counting.stop_after = None
    monkeypatch.setattr(ablation, "_losses", counting)
    return counted, counting


def same_bits(a, b):
    assert a.values.tobytes() == b.values.tobytes() and a.loss.values.tobytes() == b.loss.values.tobytes()
    xr.testing.assert_identical(a, b)


def test_an_interrupted_ablation_goes_on_bit_for_bit(tmp_path, runs):
    counted, switch = runs
    hf, some = tiny("qwen2", torch.float32, layers=2), traces()
    expected = rc.ablate(hf, some, **OPTIONS)
    total = 3 * 23
    assert sum(counted) == total
    for stop in (1, 5, 9):
        counted.clear()
        switch.stop_after = stop
        folder = tmp_path / str(stop)
        with pytest.raises(KeyboardInterrupt):
            rc.ablate(hf, some, resume=folder, **OPTIONS)
        before = sum(counted)
        switch.stop_after = None
        same_bits(rc.ablate(hf, some, resume=folder, **OPTIONS), expected)
        assert sum(counted) == total and before > 0
        same_bits(rc.ablate(hf, some, resume=folder, **OPTIONS), expected)
        assert sum(counted) == total  # finished: nothing runs


@pytest.mark.filterwarnings(QUIET)
def test_interrupted_circuits_go_on_bit_for_bit(tmp_path, monkeypatch):
    hf, some = tiny("qwen2", torch.float32, layers=2), traces()
    scores = rc.attribute(hf, some, level="qkv")
    options = {"shares": [0.1, 0.5, 1.0], "seeds": 2, "batch_size": 4, "progress": False}
    rerun, sizes, stop = rankings.rerun, [], None

    def counting(*args):
        if len(sizes) == stop:
            raise KeyboardInterrupt
        sizes.append(len(args[3].ids))
        return rerun(*args)

    monkeypatch.setattr(rankings, "rerun", counting)
    expected = rc.faithfulness(hf, some, scores, **options)
    total = len(some) * (2 + 4 * 2)  # nothing, everything, and two shares of four rankings
    assert sum(sizes) == total
    for after in (1, 3, 6):
        sizes.clear()
        stop, folder = after, tmp_path / str(after)
        with pytest.raises(KeyboardInterrupt):
            rc.faithfulness(hf, some, scores, resume=folder, **options)
        assert 0 < sum(sizes) < total
        stop = None
        xr.testing.assert_identical(rc.faithfulness(hf, some, scores, resume=folder, **options), expected)
        assert sum(sizes) == total
        xr.testing.assert_identical(rc.faithfulness(hf, some, scores, resume=folder, **options), expected)
        assert sum(sizes) == total  # finished: nothing runs
    # Other scores have circuits of their own; those of nothing, of everything and of the random rankings are there already.
    other = rc.faithfulness(hf, some, rc.ablate(hf, some, level="qkv", progress=False), resume=folder, **options)
    assert total < sum(sizes) <= total + len(some) * 2 * 2
    np.testing.assert_array_equal(other["random_loss"], expected["random_loss"])
    # Another model finds nothing of this one's.
    with pytest.warns(OtherInputs, match="model weights"):
        elsewhere = rc.faithfulness(
            tiny("qwen2", torch.float32, layers=2, seed=1), some, scores, resume=folder, **options
        )
    assert (elsewhere["full_loss"].values != expected["full_loss"].values).all()
    with pytest.raises(StoreError, match="is a file"):
        rc.faithfulness(hf, some, scores, resume=next(folder.glob("*.journal")), **options)


_VICTIM = """
import sys, threading, torch
import rlcircuits as rc
from rlcircuits.attribution import ablation
from rlcircuits.attribution import circuits
from tests.fixtures.models import tiny
from tests.attribution.test_circuits import OPTIONS, traces
losses, counted = ablation._losses, []
def halting(*args):
    if len(counted) == 9:
        print(sum(counted), flush=True)
        threading.Event().wait()
    counted.append(len(args[3]))
    return losses(*args)
ablation._losses = halting
rc.ablate(tiny("qwen2", torch.float32, layers=2), traces(), resume=sys.argv[1], **OPTIONS)
"""


@pytest.mark.slow
def test_a_killed_ablation_goes_on_bit_for_bit(tmp_path, runs):
    counted, _ = runs
    hf, some = tiny("qwen2", torch.float32, layers=2), traces()
    victim = subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with ended(victim):
        finished = int(victim.stdout.readline())
    assert victim.returncode == -signal.SIGKILL
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a kill between two writes leaves no damage
        found = rc.ablate(hf, some, resume=tmp_path, **OPTIONS)
    assert 0 < finished < 3 * 23 and finished + sum(counted) == 3 * 23
    same_bits(found, rc.ablate(hf, some, **OPTIONS))


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-5],
        lambda content: content + b"\x03\x00\x00\x00half a block",
        lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
        lambda content: content[: content.index(b"\n") + 1] + b"\xff" * 100,
        lambda content: b"no header" + content,
        lambda content: content[:20],
    ],
)
def test_what_is_damaged_is_dropped_with_a_warning(tmp_path, runs, damage):
    counted, _ = runs
    hf, some = tiny("qwen2", torch.float32, layers=2), traces()
    expected = rc.ablate(hf, some, resume=tmp_path, **OPTIONS)
    total = sum(counted)
    (file,) = tmp_path.glob("*.journal")
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with pytest.warns(DamagedArtefact, match="damaged end|starting it anew"):
        found = rc.ablate(hf, some, resume=tmp_path, **OPTIONS)
    same_bits(found, expected)
    assert sum(counted) <= 2 * total
    assert file.read_bytes() == whole  # the same blocks again
    counted.clear()
    same_bits(rc.ablate(hf, some, resume=tmp_path, **OPTIONS), expected)
    assert not counted


def test_other_inputs_are_kept_apart_and_named(tmp_path, runs):
    counted, _ = runs
    hf, some = tiny("qwen2", torch.float32, layers=2), traces()
    base = {"resume": tmp_path, "edges": ["a0->m1", "input->logits"], "batch_size": 4, "progress": False}
    expected = rc.ablate(hf, some, **base)
    other = tiny("qwen2", torch.float32, layers=2)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    calls = [
        ("model weights", other, some, {}),
        ("traces", hf, some[:2], {}),
        ("level", hf, some, {"level": "qkv"}),
        ("cut", hf, some, {"cut": 2}),
        ("scale", hf, some, {"scale": 0.5}),
        ("edges", hf, some, {"edges": None}),
    ]
    for count, (name, model, chosen, options) in enumerate(calls, 2):
        counted.clear()
        with pytest.warns(OtherInputs, match=f"differs in .*{name}"):
            found = rc.ablate(model, chosen, **{**base, **options})
        assert counted and len(list(tmp_path.glob("*.journal"))) == count
        same_bits(found, rc.ablate(model, chosen, **{**base, **options, "resume": None}))
    counted.clear()
    same_bits(rc.ablate(hf, some, **base), expected)
    assert not counted
    headers = [json.loads(file.read_bytes().split(b"\n")[0]) for file in tmp_path.glob("*.journal")]
    assert {header["kind"] for header in headers} == {"ablation"}


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    hf = tiny("qwen2", torch.float32, layers=1)
    with pytest.raises(StoreError, match="is a file: expected a folder for journals"):
        rc.ablate(hf, traces(), resume=tmp_path / "file", progress=False)
    with pytest.raises(StoreError, match="cannot write"):
        rc.ablate(hf, traces(), resume=tmp_path / "file" / "below", progress=False)


def test_a_full_disk_keeps_what_was_written(tmp_path, runs):
    import resource

    counted, _ = runs
    hf, some = tiny("qwen2", torch.float32, layers=2), traces()
    expected = rc.ablate(hf, some, **OPTIONS)
    counted.clear()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1790, hard))
    try:
        with pytest.raises(StoreError, match="cannot write .*(No space left|File too large)"):
            rc.ablate(hf, some, resume=tmp_path, **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    before = sum(counted)
    with pytest.warns(DamagedArtefact, match="damaged end"):
        same_bits(rc.ablate(hf, some, resume=tmp_path, **OPTIONS), expected)
    assert before < 69 and sum(counted) <= 69 + 4  # at most the batch that was cut short runs again


def test_a_second_process_waits_for_the_first(tmp_path):
    from filelock import FileLock, Timeout

    from rlcircuits.storage.journals import journal

    row = np.dtype([("x", "<i4")])
    with journal(tmp_path, "numbers", {"a": 1}, row) as first:
        with pytest.raises(Timeout):
            FileLock(first.path.with_name(f".{first.path.name}.lock")).acquire(timeout=0)
        first.add(np.array([(3,)], row))
        with pytest.warns(OtherInputs), journal(tmp_path, "numbers", {"a": 2}, row) as second:
            assert second.path != first.path
    with journal(tmp_path, "numbers", {"a": 1}, row) as again:
        assert again.rows.tolist() == [(3,)]
