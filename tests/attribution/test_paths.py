"""Integrated gradients over all edges: against an edge-by-edge model, and against the change of the loss they account for."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import rlcircuits as rc
from tests.attribution.test_attribution import ANSWER, LEVELS, PROMPT, close, traces
from tests.fixtures.models import in_float64, tiny
from tests.fixtures.reference import loss, mean_nll, nodes, outputs_of

ARCHITECTURES = ("llama", "qwen2", "gemma2", "olmo2", "gpt2", "gpt-neox")


def moved(hf, size, parts=""):
    """The model with weights a little off, where their name holds one of `parts`."""
    other = copy.deepcopy(hf)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if any(part in name for part in parts.split()) or not parts:
                p.add_(size * p.std() * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return other


def along(hf, other, level, share):
    """dL/da of every edge at one point of the path, by an edge-by-edge model that shares no code with the package."""
    sources, destinations = nodes(hf, level)
    there = outputs_of(other, PROMPT, ANSWER, level)
    shape = len(sources), len(destinations)
    c = torch.full(shape, 1 - share, dtype=torch.float64, requires_grad=True)
    e = torch.full(shape, share, dtype=torch.float64, requires_grad=True)
    gone, come = torch.autograd.grad(loss(hf, PROMPT, ANSWER, level, c, added=(e, there)), (c, e))
    edge = torch.tensor([[w < r for _, r in destinations] for _, w in sources])
    return torch.where(edge, come - gone, torch.nan).numpy()


@pytest.mark.filterwarnings(
    "ignore::rlcircuits.attribution.NotConverged"
)  # three nodes, as it is they that are checked
@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_edge_is_integrated_along_its_own_way_to_the_other_model(architecture, level, memory):
    hf = in_float64(tiny(architecture, layers=2))
    other = moved(hf, 0.3)
    given = dict(level=level, intervention="model", other=other, progress=False)
    found = rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER)], memory=memory, ig_steps=3, path="edges", **given)
    half = np.sqrt(3 / 5) / 2  # Gauss–Legendre with three nodes
    expected = sum(
        w * along(hf, other, level, a) for a, w in ((0.5 - half, 5 / 18), (0.5, 8 / 18), (0.5 + half, 5 / 18))
    )
    close(found[0], expected, 3e-6)
    plain = rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER)], memory=memory, **given)
    close(plain[0], along(hf, other, level, 0.0), 3e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_all_edges_together_account_for_what_the_other_models_stream_does_to_the_loss(level):
    hf, some = in_float64(tiny("llama", layers=3)), traces()
    for other in (moved(hf, 0.1, "model.layers embed"), moved(hf, 0.1)):
        found = rc.attribute(hf, some, level, ig_steps=16, path="edges", intervention="model", other=other)
        for row, trace in zip(found, some):
            ids, kept = torch.tensor([[*trace.prompt, *trace.answer]]), []
            handle = other.model.norm.register_forward_pre_hook(lambda _m, args, kept=kept: kept.append(args[0]))
            with torch.no_grad():  # the other's final stream, and that through this one's norm and output embedding
                theirs, ours = other(ids).logits, hf(ids).logits
                mixed = hf.lm_head(hf.model.norm(kept[0]))
            handle.remove()
            ours, mixed, theirs = (x[0, len(trace.prompt) - 1 : -1] for x in (ours, mixed, theirs))
            before, end, after = (float(mean_nll(x, trace.answer)) for x in (ours, mixed, theirs))
            assert float(row.end) == pytest.approx(end, rel=1e-9)
            assert float(row.sum()) == pytest.approx(end - before, abs=1e-7)
            assert float(row.gap) == pytest.approx(0, abs=1e-7)
            if other.lm_head.weight.equal(hf.lm_head.weight):  # nothing is beyond the edges
                assert float(row.sum()) == pytest.approx(after - before, abs=1e-7)
            else:
                assert abs(end - after) > 1e-3


def test_scores_out_of_the_input_alone_do_not_account_for_it():
    """What makes the path of the edges another one than that of the input."""
    hf, some = in_float64(tiny("llama")), traces()
    other = moved(hf, 0.2, "model.layers")  # the embeddings are the same
    given = dict(ig_steps=8, intervention="model", other=other)
    on_input = rc.attribute(hf, some, **given)
    assert float(abs(on_input.sel(source="input")).max()) == 0 and float(abs(on_input.end - on_input.loss).max()) == 0
    on_edges = rc.attribute(hf, some, path="edges", **given)
    assert float(abs(on_edges.end - on_edges.loss).min()) > 1e-3


def test_groups_and_batches_add_up_along_the_path():
    hf, some = in_float64(tiny("qwen2")), traces()
    given = dict(ig_steps=3, path="edges", intervention="model", other=moved(hf, 0.3))
    whole = rc.attribute(hf, some, **given)
    close(rc.attribute(hf, some, batch_size=1, **given), whole, 1e-10)
    labels = [["p"] * len(t.prompt) + ["a"] * len(t.answer) for t in some]
    close(rc.attribute(hf, some, groups=labels, **given).sum("group", skipna=False), whole, 1e-10)


@pytest.mark.filterwarnings("ignore:without any edge the loss")
@pytest.mark.parametrize("intervention", ["zero", "mean", "corrupted"])
def test_other_replacements_have_the_same_path(intervention):
    hf, some = in_float64(tiny("gpt2", layers=2)), traces()
    partners = [rc.Trace(t.problem, t.prompt[::-1], t.answer[::-1]) for t in some]
    given = {"corrupted": partners} if intervention == "corrupted" else {}
    found = rc.attribute(hf, some, ig_steps=60, path="edges", intervention=intervention, **given)
    exact = rc.faithfulness(hf, some, found, shares=[0.0, 1.0], seeds=0, intervention=intervention, **given)
    np.testing.assert_allclose(found.end, exact.empty_loss, rtol=1e-9)
    together = found.sum(["source", "destination"])
    np.testing.assert_allclose(found.gap, together - (found.end - found.loss), atol=1e-12)
    if intervention != "zero":  # towards nothing a norm turns ever faster, and nodes that lie evenly do not follow
        np.testing.assert_allclose(together, found.end - found.loss, atol=1e-6)


def test_a_model_against_itself_has_no_effect_and_a_path_needs_steps():
    hf, some = in_float64(tiny("llama")), traces()
    same = rc.attribute(hf, some, ig_steps=2, path="edges", intervention="model", other=copy.deepcopy(hf))
    assert float(abs(same).max()) < 1e-12
    with pytest.raises(rc.InputError, match="ig_steps is 1"):
        rc.attribute(hf, some, path="edges")
    with pytest.raises(rc.InputError, match="unknown path 'edge'.*did you mean 'edges'"):
        rc.attribute(hf, some, path="edge", ig_steps=2)
