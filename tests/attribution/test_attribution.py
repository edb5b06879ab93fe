"""Scores against oracles that share no code with them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import rlcircuits as rc
from tests.fixtures.models import in_float64, tiny
from tests.fixtures.reference import exact_scores, loss, names

ARCHITECTURES = ("llama", "mistral", "qwen2")
LEVELS = ("block", "qkv", "head")
PROMPT, ANSWER = (5, 9, 33, 7, 60), (11, 3, 3, 42)


def traces(seed=0, n=5):
    rng = np.random.default_rng(seed)
    return [
        rc.Trace(
            f"p{i}", rng.integers(3, 61, rng.integers(1, 9)).tolist(), rng.integers(3, 61, rng.integers(1, 12)).tolist()
        )
        for i in range(n)
    ]


def close(a, b, tolerance):
    """Equal where both are edges, relative to the largest score, and NaN in the same places."""
    a, b = np.asarray(a), np.asarray(b)
    assert (np.isnan(a) == np.isnan(b)).all()
    assert np.nanmax(np.abs(a - b)) <= tolerance * np.nanmax(np.abs(b))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_are_the_derivative_of_an_edge_by_edge_model(architecture, level):
    hf = in_float64(tiny(architecture))
    scores = rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER)], level)
    reference = loss(hf, PROMPT, ANSWER, level)
    assert float(scores.loss[0]) == pytest.approx(
        float(reference), rel=1e-6
    )  # rotary angles are float32 in transformers
    close(scores[0], exact_scores(hf, PROMPT, ANSWER, level), 2e-6)


@pytest.mark.parametrize(
    "options", [{"attention_bias": True}, {"head_dim": 16}, {"tie_word_embeddings": True}, {"num_key_value_heads": 4}]
)
def test_variants_of_llama(options):
    hf = in_float64(tiny("llama", **options))
    for level in LEVELS:
        close(
            rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER)], level)[0], exact_scores(hf, PROMPT, ANSWER, level), 2e-6
        )


@pytest.mark.parametrize("level", LEVELS)
def test_scores_are_the_central_difference_of_a_scaled_rerun(level):
    hf = in_float64(tiny("qwen2", layers=2))
    trace = rc.Trace("p", PROMPT, ANSWER)
    step = 1e-5
    up, down = (rc.ablate(hf, [trace], level, scale=s, progress=False) for s in (step, -step))
    close((up - down)[0] / (2 * step), rc.attribute(hf, [trace], level)[0], 1e-8)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ablation_is_the_edge_by_edge_model_with_one_coefficient_zero(architecture, level):
    hf = in_float64(tiny(architecture, layers=2))
    exact = rc.ablate(hf, [rc.Trace("p", PROMPT, ANSWER)], level, progress=False)
    sources, destinations = names(level, 2, 4, 2)
    clean = loss(hf, PROMPT, ANSWER, level)
    rng = np.random.default_rng(0)
    for s, d in rng.permutation(np.argwhere(~np.isnan(exact[0].values)))[:12]:
        coefficients = torch.ones(len(sources), len(destinations), dtype=torch.float64)
        coefficients[s, d] = 0
        expected = float(loss(hf, PROMPT, ANSWER, level, coefficients) - clean)
        assert float(exact[0, s, d]) == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_do_not_depend_on_batch_padding_or_order(architecture):
    hf, some = tiny(architecture, torch.float32), traces()
    for level in LEVELS:
        together = rc.attribute(hf, some, level, batch_size=5)
        one_by_one = rc.attribute(hf, some, level, batch_size=1)
        reversed_ = rc.attribute(hf, some[::-1], level, batch_size=3)
        assert list(reversed_.sample.values) == [t.problem for t in some[::-1]]
        close(one_by_one, together, 2e-5)
        close(reversed_[::-1], together, 2e-5)
        np.testing.assert_allclose(one_by_one.loss, together.loss, rtol=1e-5)


@pytest.mark.slow
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    batch=st.integers(1, 6),
    cut=st.none() | st.integers(1, 12),
    chunk=st.integers(1, 1 << 16),
)
def test_invariance_under_batch_cut_and_chunk(seed, batch, cut, chunk):
    from rlcircuits.attribution import contraction

    hf, some = _shared(), traces(seed, 6)
    expected = [rc.attribute(hf, [trace.cut(cut)], "head")[0] for trace in some]
    kept, contraction.CHUNK_BYTES = contraction.CHUNK_BYTES, chunk
    try:
        scores = rc.attribute(hf, some, "head", cut=cut, batch_size=batch)
    finally:
        contraction.CHUNK_BYTES = kept
    for row, one in zip(scores, expected):
        close(row, one, 1e-12)


_MODELS: dict = {}


def _shared():
    if "qwen2" not in _MODELS:
        _MODELS["qwen2"] = in_float64(tiny("qwen2", layers=2))
    return _MODELS["qwen2"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_levels_add_up(architecture):
    hf, some = in_float64(tiny(architecture)), traces()
    block, qkv, head = (rc.attribute(hf, some, level) for level in LEVELS)
    for layer in range(3):
        expected = block.sel(destination=f"a{layer}")
        readers = [f"a{layer}<{x}>" for x in "qkv"]
        close(qkv.sel(destination=readers).sum("destination", skipna=False), expected, 1e-5)
        readers = [d for d in head.destination.values if d.startswith(f"a{layer}.")]
        fine = head.sel(destination=readers).sum("destination", skipna=False)
        for source in block.source.values:
            writers = [s for s in head.source.values if s == source or s.startswith(f"{source}.h")]
            if rc.Graph.of(hf).mask[list(block.source.values).index(source), 2 * layer]:
                close(fine.sel(source=writers).sum("source", skipna=False), expected.sel(source=source), 1e-5)


def test_sum_over_sources_is_the_derivative_along_the_whole_input():
    hf = in_float64(
        tiny("llama", rms_norm_eps=1.0)
    )  # with a small ε an RMSNorm ignores its input's scale: all sums would be 0
    trace, norm = rc.Trace("p", PROMPT, ANSWER), hf.model.layers[2].post_attention_layernorm
    column = rc.attribute(hf, [trace]).sel(destination="m2").sum("source")

    def at(scale):
        handle = norm.register_forward_pre_hook(lambda _m, a: (a[0] * scale,))
        value = float(rc.attribute(hf, [trace]).loss[0])
        handle.remove()
        return value

    assert float(column[0]) == pytest.approx(-(at(1 + 1e-5) - at(1 - 1e-5)) / 2e-5, rel=1e-6)


def test_bfloat16_weights_give_scores_accumulated_in_float32():
    full = tiny("qwen2", torch.float32)
    low = tiny("qwen2", torch.float32).to(torch.bfloat16)
    full.load_state_dict({k: v.float() for k, v in low.state_dict().items()})  # the same, rounded weights
    trace = rc.Trace("p", PROMPT, ANSWER)
    for level in LEVELS:
        a, b = rc.attribute(full, [trace], level), rc.attribute(low, [trace], level)
        assert b.dtype == np.float32
        edges = ~np.isnan(a.values)
        assert np.corrcoef(a.values[edges], b.values[edges])[0, 1] > 0.99
        # bfloat16 has 8 bits; scores that were themselves rounded to it would repeat.
        assert len(np.unique(b.values[edges])) == edges.sum()
        assert (b.values[edges].view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("level", LEVELS)
def test_the_model_is_left_as_it_was_found(level):
    hf = tiny("qwen2", torch.float32)
    hf.lm_head.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in hf.state_dict().items()}
    wants = {k: p.requires_grad for k, p in hf.named_parameters()}
    first = rc.attribute(hf, traces(), level)
    with pytest.raises(rc.InputError):
        rc.attribute(hf, [rc.Trace("bad", [1], [10_000])], level)
    assert all(torch.equal(v, before[k]) for k, v in hf.state_dict().items())
    assert wants == {k: p.requires_grad for k, p in hf.named_parameters()}
    assert all(p.grad is None for p in hf.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in hf.modules())
    assert torch.is_grad_enabled()
    np.testing.assert_array_equal(first, rc.attribute(hf, traces(), level))  # the same bits again


def test_works_inside_no_grad_and_on_frozen_models():
    hf = tiny("qwen2", torch.float32)
    expected = rc.attribute(hf, traces())
    with torch.no_grad():
        np.testing.assert_array_equal(rc.attribute(hf.requires_grad_(False), traces()), expected)


def test_a_cut_scores_the_shortened_answer():
    hf = tiny("llama")
    trace = rc.Trace("p", PROMPT, ANSWER)
    np.testing.assert_array_equal(
        rc.attribute(hf, [trace], cut=2), rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER[:2])])
    )
    assert int(rc.attribute(hf, [trace], cut=2).tokens[0]) == 2
    assert int(rc.attribute(hf, [trace], cut=99).tokens[0]) == len(ANSWER)


def test_labels():
    scores = rc.attribute(tiny("qwen2", torch.float32), traces(), "head", cut=3)
    assert scores.dims == ("sample", "source", "destination")
    assert scores.dtype == np.float32
    assert {"level": "head", "cut": 3, "intervention": "zero"}.items() <= scores.attrs.items()
    assert np.isnan(scores.sel(source="m2", destination="a2.h0<q>")).all()
    assert np.isfinite(scores.sel(source="a0.h3", destination="a1.kv1<v>")).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda hf: rc.attribute(hf, []), "no traces"),
        (lambda hf: rc.attribute(hf, rc.Trace("p", [1], [2])), r"pass \[trace\]"),
        (lambda hf: rc.attribute(hf, [([1], [2])]), "expected rlcircuits.Trace"),
        (lambda hf: rc.attribute(hf, traces(), "blok"), "did you mean 'block'"),
        (lambda hf: rc.attribute(hf, traces(), cut=0), "cut is 0"),
        (lambda hf: rc.attribute(hf, traces(), batch_size=0), "batch_size is 0"),
        (lambda hf: rc.attribute(hf, [rc.Trace("p", [1], [61])]), "token id 61.*vocabulary has 61"),
        (lambda hf: rc.attribute(hf, [rc.Trace("p", [1] * 60, [2] * 6)]), "65 tokens long.*holds 64"),
        (lambda hf: rc.attribute(hf, [rc.Trace("p", [1], [2])] * 2), "more than once"),
        (lambda hf: rc.attribute(hf.train(), traces()), "training mode"),
        (lambda hf: rc.attribute("a path", traces()), "expected a model"),
        (lambda hf: rc.Trace("p", [1], []), "empty answer"),
        (lambda hf: rc.Trace("p", [-1], [2]), "non-negative"),
        (lambda hf: rc.ablate(hf, traces(), edges=["a1->a0"]), "not an edge"),
        (lambda hf: rc.ablate(hf, traces(), edges=["a9->m0"]), "unknown source 'a9'"),
        (lambda hf: rc.ablate(hf, traces(), edges=[]), "no edges given"),
    ],
)
def test_bad_input_is_one_clear_message(make, says):
    with pytest.raises(rc.InputError, match=says) as caught:
        make(tiny("llama", torch.float32))
    assert len(str(caught.value).splitlines()) <= 2


def test_a_score_that_is_not_finite_names_sample_and_edge():
    hf = tiny("llama", torch.float32)
    rc.Graph.of(hf)  # healthy when it was first seen
    with torch.no_grad():
        hf.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(rc.InputError, match=r"edge .*->.* on trace 'p\d' is nan"):
        rc.attribute(hf, traces())
    with pytest.raises(rc.InputError, match="not finite; are the weights damaged"):
        broken = tiny("llama", torch.float32)
        with torch.no_grad():
            broken.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
        rc.attribute(broken, traces())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("level", LEVELS)
def test_cuda_agrees_with_the_cpu(level):
    hf = tiny("qwen2", torch.float32)
    expected = rc.attribute(hf, traces(), level)
    hf.cuda()
    scores = rc.attribute(hf, traces(), level)
    close(scores, expected, 1e-4)
    np.testing.assert_array_equal(scores, rc.attribute(hf, traces(), level))


def test_chosen_edges_only():
    hf = tiny("llama", torch.float32)
    some = rc.ablate(hf, traces(), edges=["a0->m1", "input->logits"], progress=False)
    everything = rc.ablate(hf, traces(), progress=False)
    assert int(np.isfinite(some).sum()) == 2 * len(traces())
    close(some.where(np.isfinite(some)), everything.where(np.isfinite(some)), 1e-4)


def test_token_losses_are_those_of_a_single_run():
    hf, some = in_float64(tiny("mistral")), traces()
    scores = rc.attribute(hf, some)
    for trace, row, mean in zip(some, rc.token_losses(hf, some, batch_size=3), scores.loss):
        ids = torch.tensor([[*trace.prompt, *trace.answer]])
        logp = torch.log_softmax(hf(ids).logits[0], -1)
        begin = len(trace.prompt)
        expected = [-logp[begin - 1 + i, token].item() for i, token in enumerate(trace.answer)]
        np.testing.assert_allclose(row, expected, rtol=1e-9)
        assert float(mean) == pytest.approx(np.mean(expected), rel=1e-9)
