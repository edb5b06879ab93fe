"""Memory modes, interventions and integrated gradients, against oracles that share no code with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcircuits as rc
from rlcircuits.attribution import NotConverged
from tests.attribution.test_attribution import ANSWER, LEVELS, PROMPT, close, traces
from tests.fixtures.checkpoints import save
from tests.fixtures.models import in_float64, tiny
from tests.fixtures.reference import directional_scores, exact_scores, loss, outputs_of

OTHER = (50, 8, 8, 31, 12)
MODES = ("fast", "lean")


def one(prompt=PROMPT, answer=ANSWER):
    return [rc.Trace("p", prompt, answer)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_a_lean_pass_gives_the_derivative_of_an_edge_by_edge_model(architecture, level):
    hf = in_float64(tiny(architecture))
    scores = rc.attribute(hf, one(), level, memory="lean")
    assert float(scores.loss[0]) == pytest.approx(float(loss(hf, PROMPT, ANSWER, level)), rel=1e-6)
    close(scores[0], exact_scores(hf, PROMPT, ANSWER, level), 2e-6)


@pytest.mark.slow
@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 6), positions=st.integers(1, 9), level=st.sampled_from(LEVELS))
def test_lean_and_fast_agree_in_any_batch(seed, batch, positions, level):
    from rlcircuits.attribution import passes

    hf, some = _shared(), traces(seed, 6)
    kept, passes.LOGIT_POSITIONS = passes.LOGIT_POSITIONS, positions
    try:
        close(
            rc.attribute(hf, some, level, batch_size=batch, memory="lean"),
            rc.attribute(hf, some, level, memory="fast"),
            1e-11,
        )
    finally:
        passes.LOGIT_POSITIONS = kept


_MODELS: dict = {}


def _shared():
    if not _MODELS:
        _MODELS["five layers"] = in_float64(tiny("qwen2", layers=5))
    return _MODELS["five layers"]


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_corrupted_sources_take_the_place_of_clean_ones(level, memory):
    hf = in_float64(tiny("qwen2"))
    scores = rc.attribute(
        hf, one(), level, memory=memory, intervention="corrupted", corrupted=[rc.Trace("c", OTHER, ANSWER)]
    )
    clean, other = outputs_of(hf, PROMPT, ANSWER, level), outputs_of(hf, OTHER, ANSWER, level)
    directions = [a - b for a, b in zip(clean, other)]
    close(scores[0], directional_scores(hf, PROMPT, ANSWER, level, directions), 2e-6)
    assert scores.attrs["intervention"] == "corrupted"


def test_corrupted_partners_keep_their_trace_whatever_the_batches():
    hf, some = in_float64(tiny("llama")), traces()
    partners = [rc.Trace(f"c{i}", t.prompt[::-1], t.answer[::-1]) for i, t in enumerate(some)]
    together = rc.attribute(hf, some, intervention="corrupted", corrupted=partners, batch_size=5)
    for row, trace, partner in zip(together, some, partners):
        close(row, rc.attribute(hf, [trace], intervention="corrupted", corrupted=[partner])[0], 1e-11)
    itself = rc.attribute(hf, some, intervention="corrupted", corrupted=some)
    assert float(abs(itself).max()) == 0


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_the_mean_is_over_all_tokens_of_all_traces(level, memory):
    hf, some = in_float64(tiny("qwen2")), traces(n=3)
    scores = rc.attribute(hf, some, level, memory=memory, intervention="mean", batch_size=2)
    outputs = [outputs_of(hf, t.prompt, t.answer, level) for t in some]
    # the last answer token is predicted and never read
    means = [torch.cat([o[s][:-1] for o in outputs]).mean(0) for s in range(len(outputs[0]))]
    for row, trace, clean in zip(scores, some, outputs):
        directions = [o - m for o, m in zip(clean, means)]
        close(row, directional_scores(hf, trace.prompt, trace.answer, level, directions), 2e-6)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_integrated_gradients_average_the_gradient_at_midpoints(level, memory):
    hf = in_float64(tiny("llama", rms_norm_eps=0.1))
    partner = [rc.Trace("c", OTHER, ANSWER)]
    scores = rc.attribute(
        hf, one(), level, memory=memory, intervention="corrupted", corrupted=partner, ig_steps=3, batch_size=1
    )
    clean, other = outputs_of(hf, PROMPT, ANSWER, level), outputs_of(hf, OTHER, ANSWER, level)
    directions = [a - b for a, b in zip(clean, other)]
    expected = np.mean(
        [
            directional_scores(hf, PROMPT, ANSWER, level, directions, start=other[0] + share * (clean[0] - other[0]))
            for share in (1 / 6, 3 / 6, 5 / 6)
        ],
        axis=0,
    )
    close(scores[0], expected, 2e-6)
    assert float(scores.loss[0]) == pytest.approx(float(loss(hf, PROMPT, ANSWER, level)), rel=1e-6)


def test_integrated_gradients_of_the_input_add_up_to_the_change_of_the_loss():
    """Completeness (Sundararajan et al. 2017): Σ_d W[input, d] → L(I′) − L(I), fast where the loss is smooth along the
    path.
    """
    hf = in_float64(tiny("llama", rms_norm_eps=0.5))
    partner = [rc.Trace("c", OTHER, ANSWER)]
    other, clean = outputs_of(hf, OTHER, ANSWER, "block")[0], loss(hf, PROMPT, ANSWER, "block")
    change = float(loss(hf, PROMPT, ANSWER, "block", start=other) - clean)
    errors = []
    for steps in (8, 32):
        scores = rc.attribute(hf, one(), intervention="corrupted", corrupted=partner, ig_steps=steps)
        errors.append(abs(float(scores.sel(source="input").sum()) - change))
        assert abs(float(scores.gap[0])) == pytest.approx(errors[-1], rel=1e-4)
        assert scores.attrs["completeness_gap"] == pytest.approx(errors[-1] / abs(change), rel=1e-4)
    assert errors[1] < 1e-3 * abs(change)
    assert errors[1] < errors[0] / 8


@pytest.mark.parametrize("options", [{}, {"intervention": "mean"}, {"level": "head"}, {"memory": "lean"}])
def test_integrated_gradients_say_when_they_do_not_add_up(options):
    hf = tiny("llama")
    some = [rc.Trace(name, PROMPT, ANSWER) for name in "pq"]
    with pytest.warns(NotConverged, match="have not converged"):
        scores = rc.attribute(hf, some, ig_steps=2, **options)
    assert scores.attrs["completeness_gap"] > 0.1 and scores.gap.shape == (2,)
    assert "gap" not in rc.attribute(hf, some, **options).coords


def test_on_a_linear_loss_integrated_gradients_are_plain_scores():
    """With branches switched off, a constant norm and a small readout, the loss is linear in the input along the
    path.
    """
    hf = in_float64(tiny("llama", rms_norm_eps=1e8))
    with torch.no_grad():
        for layer in hf.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    plain, path = rc.attribute(hf, one()), rc.attribute(hf, one(), ig_steps=5)
    assert float(abs(plain.sel(source="input", destination="logits"))[0]) > 1e-7
    close(path, plain, 1e-3)


def test_running_out_of_memory_halves_the_batch_then_recomputes(monkeypatch):
    from rlcircuits.attribution import eap as attribution

    hf, some = in_float64(tiny("qwen2")), traces(n=6)
    expected = rc.attribute(hf, some)
    real, sizes = attribution.score_batch, []

    def short_of_memory(architecture, graph, hf, rows, lean=False, *rest):
        sizes.append((len(rows), lean))
        if not lean:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(architecture, graph, hf, rows, lean, *rest)

    monkeypatch.setattr(attribution, "score_batch", short_of_memory)
    with pytest.warns(UserWarning, match="recomputing layer by layer") as caught:
        close(rc.attribute(hf, some), expected, 1e-11)
    assert sizes == [(6, False), (3, False), (1, False), (6, True)]
    assert len(caught) == 1
    with pytest.raises(rc.InputError, match="does not fit into the device's memory even alone"):
        rc.attribute(hf, some, memory="fast")


def test_auto_is_lean_only_where_fast_would_not_fit(monkeypatch):
    from rlcircuits.attribution import batching
    from rlcircuits.attribution import eap as attribution

    hf, used = tiny("llama", torch.float32), []
    real = attribution.score_batch
    monkeypatch.setattr(attribution, "score_batch", lambda *args: used.append((len(args[3]), args[4])) or real(*args))
    rows = [rc.Trace("long", [5] * 30, [7] * 21), rc.Trace("short", [5] * 3, [7] * 3)]
    fast, lean = (batching.bytes_per_token(hf, "block", x) for x in (False, True))
    assert lean < fast / 2
    monkeypatch.setattr(batching, "token_budget", lambda _hf, per_token=0: 40 if per_token == fast else 400)
    rc.attribute(hf, rows)
    assert used == [(1, True), (1, False)]


def test_the_estimate_of_memory_is_of_the_right_size():
    """Against what PyTorch's own hooks see: the bytes that automatic differentiation saves in one pass."""
    from rlcircuits.attribution.batching import bytes_per_token

    hf = tiny("llama", torch.float32, hidden_size=256, intermediate_size=704, layers=6, max_position_embeddings=512)
    saved = {}

    def keep(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in hf.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        rc.attribute(hf, [rc.Trace("p", [3] * 100, [4] * 101)], memory="fast")
    measured = sum(size for at, size in saved.items() if at not in weights) / 200
    assert 0.5 * measured < bytes_per_token(hf) < 4 * measured


@pytest.mark.parametrize("level", LEVELS)
def test_a_lean_pass_leaves_the_model_as_it_was_found(level):
    hf = tiny("qwen2", torch.float32)
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    first = rc.attribute(hf, traces(), level, memory="lean")
    assert all(torch.equal(v, before[k]) for k, v in hf.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in hf.modules())
    np.testing.assert_array_equal(first, rc.attribute(hf, traces(), level, memory="lean"))


def test_a_model_spread_by_device_map():
    from accelerate import dispatch_model

    hf = tiny("qwen2", torch.float32)
    expected = rc.attribute(hf, traces(), "head")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    spread = dispatch_model(
        tiny("qwen2", torch.float32), {**places, **{f"model.layers.{i}": "cpu" for i in range(3)}}, force_hooks=True
    )
    assert any(hasattr(m, "_hf_hook") for m in spread.modules())
    for memory in MODES:
        close(rc.attribute(spread, traces(), "head", memory=memory), expected, 1e-5)
        close(rc.attribute(spread, traces(), "head", memory=memory), expected, 1e-5)


@pytest.mark.parametrize("memory", MODES)
@pytest.mark.parametrize("level", LEVELS)
def test_a_transformer_bridge_is_taken_as_it_is(level, memory, tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    folder = str(save(tmp_path, "qwen2"))
    expected = rc.attribute(rc.load_model(folder), traces(), level)
    bridge = TransformerBridge.boot_transformers(folder, device="cpu")
    close(rc.attribute(bridge, traces(), level, memory=memory), expected, 1e-4)
    with torch.no_grad():  # the same weights, not a copy
        bridge.original_model.lm_head.weight.mul_(2.0)
    assert float(rc.attribute(bridge, traces(), level, memory=memory).loss[0]) != float(expected.loss[0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory": "leen"}, "did you mean 'lean'"),
        ({"intervention": "Zero"}, "did you mean 'zero'"),
        ({"intervention": "corrupted"}, "were not given"),
        ({"corrupted": traces()}, "belong together"),
        ({"intervention": "corrupted", "corrupted": traces()[:2]}, "2 corrupted traces for 5 traces"),
        ({"intervention": "corrupted", "corrupted": traces()[::-1]}, "both must be equally long"),
        ({"intervention": "corrupted", "corrupted": [t.prompt for t in traces()]}, "expected rlcircuits.Trace"),
        ({"ig_steps": 0}, "ig_steps is 0"),
        ({"ig_steps": 2.5}, "ig_steps is 2.5"),
    ],
)
def test_bad_modes_are_one_clear_message(options, says):
    with pytest.raises(rc.InputError, match=says):
        rc.attribute(tiny("llama", torch.float32), traces(), **options)


def test_rows_are_batched_with_rows_of_their_length():
    from rlcircuits.attribution.batching import _alike

    lengths = sorted(np.random.default_rng(0).integers(40, 401, 32).tolist(), reverse=True)
    at, padded, batches = 0, 0, 0
    while at < len(lengths):
        size = _alike(lengths, at, 8192)
        padded += size * lengths[at]
        at, batches = at + size, batches + 1
    assert sum(lengths) / padded > 0.85
    assert 1 < batches < 12
    assert _alike([10] * 50, 0, 8192) == 50 and _alike([10] * 50, 10, 35) == 3 and _alike([100], 0, 10) == 1
    assert _alike([9, 9, 5, 5], 0, 100, at_least=6) == 2


@pytest.mark.slow
def test_scores_are_those_of_transformer_lens(tmp_path):
    """Its own edge attribution takes the gradient on its corrupted run, and scores each position apart."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    folder = str(save(tmp_path, "llama", num_key_value_heads=4))
    bridge = TransformerBridge.boot_transformers(folder, device="cpu").eval()
    ours, other = torch.tensor([[*PROMPT, *ANSWER]]), torch.tensor([[*OTHER, *ANSWER]])

    def mean_nll(logits):
        logp = torch.log_softmax(logits[0, len(PROMPT) - 1 :], -1)
        return -logp[torch.arange(len(ANSWER)), torch.tensor(ANSWER)].mean()

    found = attribution_patch(bridge, other[:, :-1], ours[:, :-1], mean_nll, EdgeAttributionConfig("edge"))
    scores = rc.attribute(
        rc.load_model(folder), one(), "head", intervention="corrupted", corrupted=[rc.Trace("c", OTHER, ANSWER)]
    )
    writers = {"embed": "input", "attn_head_out": "a{0}.h{1}", "mlp_out": "m{0}"}
    readers = {
        "q_input": "a{0}.h{1}<q>",
        "k_input": "a{0}.kv{1}<k>",
        "v_input": "a{0}.kv{1}<v>",
        "mlp_in": "m{0}",
        "logits": "logits",
    }
    theirs = scores[0].copy(data=np.where(np.isnan(scores[0]), np.nan, 0.0))
    for (writer, reader), value in found.edge_scores.items():
        source = writers[writer.kind].format(writer.layer, writer.head)
        destination = readers[reader.kind].format(reader.layer, reader.head)
        theirs.loc[source, destination] += value  # NaN where ours has no edge: the comparison would say so
    assert len(found.edge_scores) == int(np.isfinite(scores[0]).sum()) * (len(PROMPT) + len(ANSWER) - 1)
    close(theirs, scores[0], 1e-5)


def test_edges_to_remove_may_differ_by_trace():
    hf, some = _shared(), traces(3, 3)
    every = rc.ablate(hf, some, progress=False)
    asked = every.notnull() & (np.random.default_rng(0).random(every.shape) < 0.3)
    asked[1] = False
    found = rc.ablate(hf, some, edges=asked, progress=False)
    assert (found.notnull() == asked).all() and np.isnan(found.loss[1])
    close(found.where(asked, 0), every.where(asked, 0), 1e-9)
    circuit = rc.circuit(every, 5)
    assert (rc.ablate(hf, some, edges=circuit, progress=False).notnull() == circuit).all()
    with pytest.raises(rc.InputError, match="is no edge of the model's graph"):
        rc.ablate(hf, some, edges=xr.ones_like(every, dtype=bool), progress=False)
    with pytest.raises(rc.InputError, match="edges: expected True or False"):
        rc.ablate(hf, some[:2], edges=asked, progress=False)
