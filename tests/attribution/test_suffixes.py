"""Re-runs that start where the edge ends give, to the last digits, what re-runs of the whole model give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.attribution import ablation
from rlcircuits.attribution.suffixes import restarts
from tests.attribution.test_attribution import LEVELS, traces
from tests.fixtures.models import KINDS, in_float64, tiny


def some_edges(hf, level, n=12):
    return np.random.default_rng(0).permutation(rc.Graph.of(hf, level).edge_names())[:n].tolist()


@pytest.fixture
def whole(monkeypatch):
    """`ablate` as it re-runs the whole model for every edge."""

    def ablate(*args, **options):
        with monkeypatch.context() as patch:
            patch.setattr(ablation, "restarts", lambda _: False)
            found = rc.ablate(*args, **options, progress=False)
        assert found.attrs["reruns"] == "whole"
        return found

    return ablate


def same(found, expected, tolerance=1e-12):
    scale = float(abs(expected).max())
    assert found.attrs["reruns"] == "from the edge's end" and scale > 0
    assert (np.isnan(found) == np.isnan(expected)).all()
    assert float(abs(found - expected).max()) <= tolerance * scale
    np.testing.assert_allclose(found.loss, expected.loss, rtol=tolerance)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_suffixes_are_whole_reruns_in_every_architecture(kind, level, whole):
    hf, some = in_float64(tiny(kind)), traces(n=2)
    edges = some_edges(hf, level)
    same(rc.ablate(hf, some, level, edges, progress=False), whole(hf, some, level, edges))


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt-neox", "mixtral"])
def test_a_model_in_bfloat16_gives_the_same_bits(kind, whole):
    hf, some = tiny(kind, torch.bfloat16), traces(n=1)
    edges = some_edges(hf, "qkv")
    found = rc.ablate(hf, some, "qkv", edges, batch_size=1, progress=False)
    np.testing.assert_array_equal(found, whole(hf, some, "qkv", edges, batch_size=1))


@pytest.mark.parametrize("intervention", ["mean", "corrupted", "model"])
@pytest.mark.parametrize("level", LEVELS)
def test_whatever_takes_the_place_of_what_is_removed(level, intervention, whole):
    hf, some = in_float64(tiny("gemma2", layers=2)), traces(n=3)
    options = {"intervention": intervention, "loss": rc.Loss("kl", reference=in_float64(tiny("gemma2", seed=2)))}
    if intervention == "corrupted":
        options["corrupted"] = [rc.Trace(f"c{i}", t.prompt[::-1], t.answer[::-1]) for i, t in enumerate(some)]
    if intervention == "model":
        options["other"] = in_float64(tiny("gemma2", layers=2, seed=1))
    edges = some_edges(hf, level)
    same(rc.ablate(hf, some, level, edges, progress=False, **options), whole(hf, some, level, edges, **options))


@pytest.mark.parametrize("level", LEVELS)
def test_effects_do_not_depend_on_batch_order_or_padding(level):
    hf, some = in_float64(tiny("qwen2", layers=2)), traces(n=4)
    options = {"corrupted": [rc.Trace("c", t.prompt[::-1], t.answer) for t in some], "intervention": "corrupted"}
    edges = some_edges(hf, level, 20)
    expected = rc.ablate(hf, some, level, edges, progress=False, **options)
    for batch_size in (1, 3, 7):
        same(rc.ablate(hf, some, level, edges, batch_size=batch_size, progress=False, **options), expected)
    options["corrupted"] = options["corrupted"][::-1]
    same(rc.ablate(hf, some[::-1], level, edges[::-1], progress=False, **options)[::-1], expected)


def test_no_row_runs_a_layer_before_its_destination():
    """Rows of each layer's forward pass, counted at its MLP, beside those of the untouched run."""
    hf, some = tiny("llama", torch.float32, layers=4), [rc.Trace("p", [5, 9, 33], [7, 60])]
    rc.ablate(hf, some, edges=["input->a0"], progress=False)  # the trial of the architecture runs first
    ran: list[list[int]] = [[] for _ in range(4)]
    handles = [
        layer.mlp.register_forward_pre_hook(lambda _module, args, index=index: ran[index].append(len(args[0])))
        for index, layer in enumerate(hf.model.layers)
    ]
    rc.ablate(hf, some, batch_size=5, progress=False)
    for handle in handles:
        handle.remove()
    graph = rc.Graph.of(hf)
    layer = [min(column // 2, 4) for _, column in zip(*graph.mask.nonzero())]
    assert [sum(rows) - 1 for rows in ran] == [sum(at <= index for at in layer) for index in range(4)]


def test_a_model_that_looks_at_each_rows_tokens_in_its_layers_is_rerun_as_a_whole(whole):
    class Gated(torch.nn.Module):
        """An MLP that is scaled by the token at each position, which the model hands around the stream."""

        def __init__(self, inner, model):
            super().__init__()
            self.inner = inner
            self.scale = torch.rand(61, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            model.register_forward_pre_hook(self.look, with_kwargs=True)

        def look(self, _module, _args, kwargs):
            self.ids = kwargs["input_ids"]

        def forward(self, x):
            return self.inner(x) * self.scale[self.ids][..., None]

    hf, some = in_float64(tiny("llama", layers=2)), traces(n=2)
    assert restarts(hf)
    other = in_float64(tiny("llama", layers=2))
    other.model.layers[1].mlp = Gated(other.model.layers[1].mlp, other)
    assert not restarts(other)
    found = rc.ablate(other, some, progress=False)
    assert found.attrs["reruns"] == "whole"
    np.testing.assert_array_equal(found, whole(other, some))
