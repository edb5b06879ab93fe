"""Every architecture at every level, against oracles that share no code with the package."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.losses import Objective
from rlcircuits.attribution.reruns import rerun
from tests.attribution.test_attribution import ANSWER, LEVELS, PROMPT, close, traces
from tests.fixtures.architectures import PAGE, page
from tests.fixtures.checkpoints import save
from tests.fixtures.models import KINDS, REFUSED, in_float64, refused, tiny
from tests.fixtures.reference import directional_scores, exact_scores, loss, nodes, outputs_of

OTHER = (50, 8, 8, 31, 12)
TRACE = [rc.Trace("p", PROMPT, ANSWER)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_derivative_of_an_edge_by_edge_model(kind, level):
    hf = in_float64(tiny(kind))
    expected = exact_scores(hf, PROMPT, ANSWER, level)
    for memory in ("fast", "lean"):
        scores = rc.attribute(hf, TRACE, level, memory=memory)
        assert float(scores.loss[0]) == pytest.approx(float(loss(hf, PROMPT, ANSWER, level)), rel=1e-6)
        close(scores[0], expected, 2e-6)  # rotary angles are float32 in transformers


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_central_difference_of_a_scaled_rerun(kind, level):
    hf = in_float64(tiny(kind, layers=2))
    step = 1e-5
    up, down = (rc.ablate(hf, TRACE, level, scale=s, progress=False) for s in (step, -step))
    close((up - down)[0] / (2 * step), rc.attribute(hf, TRACE, level)[0], 1e-7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_ablation_is_the_edge_by_edge_model_with_one_coefficient_zero(kind, level):
    hf = in_float64(tiny(kind, layers=2))
    sources, destinations = nodes(hf, level)
    clean = loss(hf, PROMPT, ANSWER, level)
    edges = np.argwhere([[w < r for _, r in destinations] for _, w in sources])
    edges = np.random.default_rng(0).permutation(edges)[:8]
    named = [f"{sources[s][0]}->{destinations[d][0]}" for s, d in edges]
    exact = rc.ablate(hf, TRACE, level, named, progress=False)
    for s, d in edges:
        coefficients = torch.ones(len(sources), len(destinations), dtype=torch.float64)
        coefficients[s, d] = 0
        expected = float(loss(hf, PROMPT, ANSWER, level, coefficients) - clean)
        assert float(exact[0, s, d]) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_many_edges_removed_at_once(kind, level):
    """A circuit's run: shares of 0.1, 0.5 and 0.9 of all edges are gone, each row of the batch its own."""
    hf = in_float64(tiny(kind, layers=2))
    architecture, graph = Architecture.of(hf), rc.Graph.of(hf, level)
    removed = np.random.default_rng(1).random((3, *graph.mask.shape)) < np.array([0.1, 0.5, 0.9])[:, None, None]
    removed = torch.from_numpy((removed & graph.mask).astype(float))
    batch = Objective.of("nll", hf, TRACE, None).batch(hf, TRACE * 3)
    found = rerun(architecture, graph, hf, batch, removed)
    for loss_without, row in zip(found.tolist(), removed):
        assert loss_without == pytest.approx(float(loss(hf, PROMPT, ANSWER, level, 1 - row)), rel=1e-5)


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["gemma2", "olmo2", "phi3", "gpt2", "gpt-neox", "qwen2-moe"])
def test_other_interventions(kind, level, memory):
    """What replaces a head's output under a norm is what the head wrote in the other run, or its mean over tokens."""
    hf, partner = in_float64(tiny(kind)), rc.Trace("p", OTHER, ANSWER)
    clean, other = (outputs_of(hf, prompt, ANSWER, level) for prompt in (PROMPT, OTHER))
    scores = rc.attribute(hf, TRACE, level, memory=memory, intervention="corrupted", corrupted=[partner])
    close(scores[0], directional_scores(hf, PROMPT, ANSWER, level, [a - b for a, b in zip(clean, other)]), 2e-6)
    scores = rc.attribute(hf, TRACE, level, memory=memory, intervention="mean")
    close(scores[0], directional_scores(hf, PROMPT, ANSWER, level, [a - a[:-1].mean(0) for a in clean]), 2e-6)
    steps = rc.attribute(hf, TRACE, level, memory=memory, intervention="corrupted", corrupted=[partner], ig_steps=2)
    expected = [
        directional_scores(
            hf,
            PROMPT,
            ANSWER,
            level,
            [a - b for a, b in zip(clean, other)],
            start=other[0] + share * (clean[0] - other[0]),
        )
        for share in (0.25, 0.75)
    ]
    close(steps[0], np.mean(expected, axis=0), 2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_levels_add_up(kind):
    hf, some = in_float64(tiny(kind)), traces()
    block, qkv, head = (rc.attribute(hf, some, level) for level in LEVELS)
    mask = rc.Graph.of(hf).mask
    for layer in range(3):
        expected = block.sel(destination=f"a{layer}")
        close(qkv.sel(destination=[f"a{layer}<{x}>" for x in "qkv"]).sum("destination", skipna=False), expected, 1e-5)
        fine = head.sel(destination=[d for d in head.destination.values if d.startswith(f"a{layer}.")])
        for row, source in enumerate(block.source.values):
            writers = [s for s in head.source.values if s == source or s.startswith(f"{source}.h")]
            if mask[row, 2 * layer]:
                total = fine.sel(source=writers).sum(("source", "destination"), skipna=False)
                close(total, expected.sel(source=source), 1e-5)
    for destination in ("m1", "logits"):
        for source in ("a0", "a1") if destination == "logits" else ("a0",):
            heads = head.sel(destination=destination, source=[f"{source}.h{h}" for h in range(4)])
            close(heads.sum("source", skipna=False), block.sel(destination=destination, source=source), 1e-5)


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_batch_padding_or_order(kind, memory):
    """On the model as it is loaded: its own attention, norms, windows, learned positions and kernel for experts."""
    hf, some = tiny(kind, torch.float32), traces()
    for level in LEVELS:
        together = rc.attribute(hf, some, level, batch_size=5, memory=memory)
        one_by_one = rc.attribute(hf, some, level, batch_size=1, memory=memory)
        reversed_ = rc.attribute(hf, some[::-1], level, batch_size=3, memory=memory)
        close(one_by_one, together, 3e-5)
        close(reversed_[::-1], together, 3e-5)
        np.testing.assert_allclose(one_by_one.loss, together.loss, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_left_as_it_was_found(kind):
    hf = tiny(kind, torch.float32)
    hf.lm_head.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in [*hf.state_dict().items(), *hf.named_buffers()]}
    wants = {k: p.requires_grad for k, p in hf.named_parameters()}
    ids = torch.tensor([PROMPT])
    logits = hf(ids).logits
    for level in LEVELS:
        first = rc.attribute(hf, traces(n=2), level)
        np.testing.assert_array_equal(first, rc.attribute(hf, traces(n=2), level))  # the same bits again
        rc.ablate(hf, TRACE, level, ["input->logits", "m0->m1"], progress=False)
    after = dict([*hf.state_dict().items(), *hf.named_buffers()])
    assert before.keys() == after.keys() and all(torch.equal(v, before[k]) for k, v in after.items())
    assert wants == {k: p.requires_grad for k, p in hf.named_parameters()}
    assert all(p.grad is None for p in hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in hf.modules())
    assert not any(m.training for m in hf.modules())
    assert torch.equal(hf(ids).logits, logits)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind not in ("mixtral", "qwen2-moe")]
)  # there rounding reroutes
def test_bfloat16_scores_are_those_of_the_same_rounded_weights(kind):
    full, low = tiny(kind, torch.float32), tiny(kind, torch.float32).to(torch.bfloat16)
    full.load_state_dict({k: v.float() for k, v in low.state_dict().items()})
    for level in LEVELS:
        a, b = rc.attribute(full, TRACE, level).values, rc.attribute(low, TRACE, level).values
        edges = ~np.isnan(a)
        assert b.dtype == np.float32 and np.corrcoef(a[edges], b[edges])[0, 1] > 0.98


def test_a_gated_token_of_one_sample_does_not_change_another():
    """Experts are shared by all tokens of a batch: a neighbour that crowds one of them must leave no trace."""
    hf = tiny("mixtral", torch.float32)
    crowd = rc.Trace("crowd", [7] * 20, [7] * 20)
    for level in LEVELS:
        alone = rc.attribute(hf, TRACE, level)
        close(rc.attribute(hf, [crowd, *TRACE], level, batch_size=2)[1:], alone, 3e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("gpt2", {}),
        ("gpt-neox", {}),
        ("gpt-neox, sequential", {}),
        ("phi3", {"num_key_value_heads": 4, "sliding_window": None}),
        ("qwen3", {"num_key_value_heads": 4}),
        ("mistral", {"num_key_value_heads": 4}),
        ("mixtral", {"num_key_value_heads": 4}),
    ],
)
def test_scores_are_those_of_transformer_lens(kind, options, tmp_path):
    """Its own edge attribution, which takes the gradient on its corrupted run (ours to score) and scores each
    position.
    """
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    folder = str(save(tmp_path, kind, **options))
    bridge = TransformerBridge.boot_transformers(folder, device="cpu").eval()
    ours, theirs = torch.tensor([[*PROMPT, *ANSWER]]), torch.tensor([[*OTHER, *ANSWER]])

    def mean_nll(logits):
        logp = torch.log_softmax(logits[0, len(PROMPT) - 1 :], -1)
        return -logp[torch.arange(len(ANSWER)), torch.tensor(ANSWER)].mean()

    found = attribution_patch(bridge, theirs[:, :-1], ours[:, :-1], mean_nll, EdgeAttributionConfig("edge")).edge_scores
    corrupted = [rc.Trace("p", OTHER, ANSWER)]
    scores = rc.attribute(rc.load_model(folder), TRACE, "head", intervention="corrupted", corrupted=corrupted)
    writers = {"embed": "input", "attn_head_out": "a{0}.h{1}", "mlp_out": "m{0}"}
    readers = {
        "q_input": "a{0}.h{1}<q>",
        "k_input": "a{0}.kv{1}<k>",
        "v_input": "a{0}.kv{1}<v>",
        "mlp_in": "m{0}",
        "logits": "logits",
    }
    summed = scores[0].copy(data=np.where(np.isnan(scores[0]), np.nan, 0.0))
    for (writer, reader), value in found.items():
        source = writers[writer.kind].format(writer.layer, writer.head)
        destination = readers[reader.kind].format(reader.layer, reader.head)
        summed.loc[source, destination] += value  # NaN where ours has no edge: the comparison would say so
    assert len(found) == int(np.isfinite(scores[0]).sum()) * (len(PROMPT) + len(ANSWER) - 1)
    close(summed, scores[0], 2e-5)


@pytest.mark.slow
def test_the_page_says_what_runs_show():
    assert PAGE.read_text() == page(), "write it anew: python -m tests.fixtures.architectures"


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_is_refused_by_name(kind):
    hf = refused(kind)
    finest = rc.Graph.of(hf, "qkv").level if kind in ("gemma2, attention bias", "olmo") else None
    with pytest.raises(rc.InputError, match=rf"{type(hf).__name__} is not supported.*: .{{20,}}") as caught:
        rc.attribute(hf, TRACE, "head")
    assert len(str(caught.value).splitlines()) == 1
    assert finest is None or "use level='qkv'" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_scaled_branch_is_noticed_and_rounding_is_not(dtype):
    """bfloat16 keeps three digits: the check must tell a branch that counts 0.9-fold from a sum that was rounded 80
    times.
    """
    with pytest.raises(rc.InputError, match="is not the sum of what was written"):
        rc.Graph.of(refused("granite, scaled branches", residual_multiplier=0.9).to(dtype))
    for kind in ("llama", "gemma2", "gpt2", "gpt-neox"):
        assert rc.Graph.of(tiny(kind, dtype, layers=40), "head").parallel == (kind == "gpt-neox")


def test_parallel_branches_are_seen_on_the_model(monkeypatch):
    """Whatever the configuration is taken to say."""
    from transformer_lens.config import TransformerBridgeConfig

    monkeypatch.setattr(
        TransformerBridgeConfig, "parallel_attn_mlp", property(lambda _: True, lambda *_: None), raising=False
    )
    assert not rc.Graph.of(tiny("gpt-neox, sequential")).parallel and not rc.Graph.of(tiny("llama")).parallel
    monkeypatch.setattr(
        TransformerBridgeConfig, "parallel_attn_mlp", property(lambda _: False, lambda *_: None), raising=False
    )
    assert rc.Graph.of(tiny("gpt-neox")).parallel


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda n: n.reshape(3, -1), id="one after the other"),
        pytest.param(lambda n: n.reshape(4, 3, -1)[:, [1, 0, 2]].swapaxes(0, 1), id="q and k confused"),
        pytest.param(lambda n: n.reshape(4, 3, -1)[:, [0, 2, 1]].swapaxes(0, 1), id="k and v confused"),
        pytest.param(lambda n: n.reshape(4, 3, -1)[[1, 0, 2, 3]].swapaxes(0, 1), id="two heads confused"),
    ],
)
def test_a_wrong_idea_of_a_fused_projection_is_noticed(wrong, monkeypatch):
    """GPT-NeoX keeps each head's q, k and v together; whatever else the adapter may say must not pass the check."""
    from transformer_lens.model_bridge.supported_architectures.neox import NeoxArchitectureAdapter

    def split(_adapter, attention):
        weight = attention.query_key_value.weight
        return [SimpleNamespace(weight=weight[list(rows)]) for rows in wrong(np.arange(len(weight))).reshape(3, -1)]

    monkeypatch.setattr(NeoxArchitectureAdapter, "split_qkv_matrix", split)
    hf = tiny("gpt-neox", torch.float32)
    rc.attribute(hf, TRACE, "block")
    with pytest.raises(rc.InputError, match="fused projection could not be told apart; use level='block'"):
        rc.attribute(hf, TRACE, "qkv")
    with pytest.raises(rc.InputError, match="could not be told apart into heads; use level='block'"):
        rc.attribute(hf, TRACE, "head")


def test_projections_whose_weights_cannot_be_read_leave_the_coarser_levels():
    """As with quantised weights: the forward pass is that of the plain model, but no matrix is there to be read."""

    class Sealed(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    plain, sealed = (in_float64(tiny("llama")) for _ in range(2))
    for layer in sealed.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(layer.self_attn, name, Sealed(getattr(layer.self_attn, name)))
    for level in ("block", "qkv"):
        np.testing.assert_array_equal(rc.attribute(plain, TRACE, level), rc.attribute(sealed, TRACE, level))
    with pytest.raises(rc.InputError, match="cannot be read as plain matrices; use level='qkv'"):
        rc.attribute(sealed, TRACE, "head")


def test_a_model_in_training_mode_is_looked_at_without_dropout():
    hf = tiny("gpt2", torch.float32, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5).train()
    hf.transformer.h[0].eval()
    modes = [m.training for m in hf.modules()]
    assert rc.Graph.of(hf, "head").n_edges > 0
    assert modes == [m.training for m in hf.modules()]


@pytest.mark.parametrize("batch_size", ["auto", 4])
def test_long_rows_do_not_change_the_rotation_of_short_ones(batch_size):
    """LongRoPE turns the whole batch by the frequencies of its longest row."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 16,
    }
    hf = tiny("phi3", torch.float32, rope_parameters=rope, original_max_position_embeddings=16)
    rows = [rc.Trace(f"p{n}", [5, 9, 33] * n, [7, 11]) for n in (2, 8, 3, 9)]
    together = rc.attribute(hf, rows, batch_size=batch_size)
    for row, trace in zip(together, rows):
        alone = rc.attribute(hf, [trace])[0]
        assert float(abs(row - alone).max()) <= 2e-5 * float(abs(alone).max())
    long, _ = hf.model.rotary_emb(torch.zeros(1, 20, 32), torch.arange(20)[None])
    short, _ = hf.model.rotary_emb(torch.zeros(1, 10, 32), torch.arange(10)[None])
    assert not torch.allclose(long[:, :10], short)  # else this test could not fail
