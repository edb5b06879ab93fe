"""Scores with exact norms: derivatives of the loss along the change of what a norm gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.attribution.architecture import Architecture
from rlcircuits.attribution.layers import hooked
from rlcircuits.attribution.norms import exact_norm_scores
from tests.attribution.test_attribution import traces
from tests.fixtures.models import tiny


def written(hf, trace):
    """Every source's output ``(position, d_model)`` by name and the stream after the last layer, by hooks of our own."""
    found, handles = {}, []
    layers = hf.model.layers
    handles.append(
        layers[0].register_forward_pre_hook(lambda _m, args, _k: found.update(input=args[0][0]), with_kwargs=True)
    )
    for i, block in enumerate(layers):
        for name, module in ((f"a{i}", block.self_attn), (f"m{i}", block.mlp)):
            keep = lambda _m, _a, out, name=name: found.update({name: (out[0] if isinstance(out, tuple) else out)[0]})  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with hooked(handles), torch.no_grad():
        hf(torch.tensor([[*trace.prompt, *trace.answer[:-1]]]))
    return found


def loss_with(hf, trace, module, change):
    """The loss when a norm gives `change` more than it would."""
    with hooked([module.register_forward_hook(lambda _m, _a, out: out + change)]):
        return float(rc.token_losses(hf, [trace], progress=False)[0].mean())


@pytest.mark.parametrize("edge", ["input->a0", "a0->m1", "m0->a2", "m1->logits"])
def test_it_is_the_derivative_along_the_norms_exact_change(edge):
    hf, trace = tiny("llama", layers=3), traces(0, 1)[0]  # float64
    source, _, destination = edge.partition("->")
    outputs = written(hf, trace)
    names = list(outputs)
    layer = int(destination[1:]) if destination != "logits" else 3
    read = names[: 1 + 2 * layer + (destination[0] == "m")]
    block = hf.model.layers[layer] if layer < 3 else None
    norm = {"a": lambda: block.input_layernorm, "m": lambda: block.post_attention_layernorm, "l": lambda: hf.model.norm}
    module = norm[destination[0]]()
    stream = sum(outputs[name] for name in read)
    with torch.no_grad():
        change = module.forward(stream - outputs[source]) - module.forward(stream)
    h = 3e-3  # the model's own norms round to float32
    slope = (loss_with(hf, trace, module, h * change) - loss_with(hf, trace, module, -h * change)) / (2 * h)
    signed, sizes = exact_norm_scores(hf, [trace], progress=False)
    found = float(signed.sel(source=source, destination=destination)[0])
    assert found == pytest.approx(slope, rel=2e-3)
    assert float(sizes.sel(source=source, destination=destination)[0]) >= abs(found)
    eap = float(rc.attribute(hf, [trace], progress=False).sel(source=source, destination=destination)[0])
    assert abs(eap - slope) > 1e-2 * abs(slope)  # another score


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "phi3", "gemma3"])
def test_levels_add_up(kind):
    """A block edge is the sum of its queries, keys and values, and those of their heads."""
    hf, some = tiny(kind, layers=2), traces(0, 2)
    block, qkv, head = (exact_norm_scores(hf, some, level, progress=False)[0] for level in ("block", "qkv", "head"))
    names = {name: [n for n in qkv.destination.values if n.split("<")[0] == name] for name in block.destination.values}
    for name, parts in names.items():
        np.testing.assert_allclose(
            qkv.sel(destination=parts).sum("destination"), block.sel(destination=name).fillna(0), 1e-4, 1e-7
        )
        parts = [n for n in head.destination.values if n.split("<")[0].split(".")[0] == name]
        whole = ["input", "m0", "m1"]  # without one head after the other a norm adds up to something else
        np.testing.assert_allclose(
            head.sel(source=whole, destination=parts).sum("destination"),
            block.sel(source=whole, destination=name).fillna(0), 1e-4, 1e-7,
        )  # fmt: skip


def test_without_norms_it_is_eap():
    """OLMo 2 norms what is written, not what is read."""
    hf, some = tiny("olmo2", layers=2), traces(0, 2)
    signed, eap = (rc.attribute(hf, some, progress=False, method=method) for method in ("exact-norms", "eap"))
    assert signed.attrs["method"] == "EAP, exact norms" and signed.loss.equals(eap.loss)
    inner = [name for name in eap.destination.values if name != "logits"]
    np.testing.assert_allclose(signed.sel(destination=inner), eap.sel(destination=inner), rtol=1e-6, atol=1e-12)


def test_what_is_replaced_by_itself_scores_nothing():
    hf, some = tiny("qwen2", layers=2), traces(0, 2)
    for one in exact_norm_scores(hf, some, "head", intervention="model", other=hf, progress=False):
        assert np.nanmax(np.abs(one)) < 1e-9
    mean = exact_norm_scores(hf, some, intervention="mean", progress=False)[0]
    assert Architecture.of(hf) and np.isfinite(mean.values[:, rc.Graph.of(hf).mask]).all()


def test_as_a_method_it_goes_on_and_refuses_what_it_has_not(tmp_path):
    hf, some = tiny("llama", layers=2), traces(0, 3)
    whole = exact_norm_scores(hf, some, progress=False)[0]
    how = {"method": "exact-norms", "progress": False, "resume": tmp_path}
    for number in (1, 3):  # the first finds nothing, the second one trace
        found = rc.attribute(hf, some[:number], **how)
        np.testing.assert_allclose(found, whole[:number], rtol=1e-6, atol=1e-9)
    for wrong in ({"ig_steps": 5}, {"groups": [["a"] * len([*t.prompt, *t.answer]) for t in some]}, {"memory": "lean"}):
        with pytest.raises(rc.InputError, match="exact-norms"):
            rc.attribute(hf, some, method="exact-norms", **wrong)
    with pytest.raises(rc.InputError, match="exact norms"):
        rc.attribute(hf, some, method="exact norms")
