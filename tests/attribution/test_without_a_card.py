"""CUDA without a card: every computation with weights and inputs on the ``meta`` device, which holds shapes and no numbers.

1. Operands on two devices raise there as on CUDA, and whatever needs a number on the host (``.item()``, ``.tolist()``, ``nonzero``,
   ``if tensor``) raises where on CUDA it would wait for the device.
2. Results must come to the host in the end: ``Tensor.cpu`` is replaced by one that gives ones, for the callers in `NECESSARY` alone.
3. A model is read and checked on the CPU before it moves: that happens once a model.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.attribution.suffixes import restarts
from tests.fixtures.models import KINDS, tiny

LEVELS = ("block", "qkv", "head")
#: what waits for the device by necessity: module and function, and what for
NECESSARY = {
    ("eap", "attribute"): "scores and losses, once a batch",
    ("eap", "_with_gap"): "losses at the other end of integrated gradients' path, once a batch",
    ("eap", "losses"): "token losses, once a batch",
    ("ablation", "take"): "losses, once a batch",
    ("circuits", "_measure"): "losses, once a batch",
}
#: transformers' own, outside our reach: replaced here by what they give for our inputs, which are neither packed nor masked
THEIRS = {
    "transformers.masking_utils.find_packed_sequence_indices": lambda position_ids: torch.zeros_like(position_ids),
    "transformers.modeling_utils.PreTrainedModel.warn_if_padding_and_no_attention_mask": lambda *_: None,
}
TRACES = [rc.Trace("a", [5, 9, 33, 7], [11, 3, 3]), rc.Trace("b", [5, 9], [11, 3, 3, 8])]
LABELS = [["p"] * 4 + ["w", "w", "r"], ["p", "p", "w", "w", "w", "r"]]


@pytest.fixture(autouse=True)
def no_numbers(monkeypatch):
    """The stand-ins; returns the callers that brought something to the host."""
    callers, real = set(), torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        if not tensor.is_meta:
            return real(tensor, *args, **kwargs)
        frame = sys._getframe(1)
        caller = frame.f_globals["__name__"].rpartition(".")[2], frame.f_code.co_name
        assert caller in NECESSARY, f"{caller} waits for the device"
        callers.add(caller)
        return torch.ones(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    for name, stand_in in THEIRS.items():
        monkeypatch.setattr(name, stand_in)
    return callers


def placed(kind, level):
    """A model without numbers whose architecture is known; skips a level that it refuses."""
    mixture = "num_experts_per_tok" in KINDS[kind][2] or kind == "mixtral"
    hf = tiny(kind, torch.bfloat16 if mixture else torch.float32, layers=2)  # experts' kernel takes only that on CUDA
    try:
        rc.Graph.of(hf, level)
        restarts(hf)
    except rc.InputError as error:
        pytest.skip(str(error))
    return hf.to("meta")


def test_meta_raises_where_the_host_would_wait_and_where_devices_differ():
    """Otherwise nothing here could fail."""
    x = torch.zeros(3, device="meta")
    for wait in (lambda: x.sum().item(), lambda: x.tolist(), lambda: bool(x[0] > 0), lambda: x.numpy()):
        with pytest.raises((RuntimeError, NotImplementedError, TypeError)):
            wait()
    with pytest.raises((RuntimeError, NotImplementedError)):
        x.nonzero().tolist()
    with pytest.raises(RuntimeError, match="device"):
        x + torch.zeros(3)
    with pytest.raises(AssertionError, match="waits for the device"):
        x.cpu()


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores(kind, level, memory, no_numbers):
    hf = placed(kind, level)
    scores = rc.attribute(hf, TRACES, level, memory=memory, batch_size=2, progress=False)
    assert no_numbers == {("eap", "attribute")}
    assert float(np.nanmax(scores)) == 1


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "options",
    [
        {"groups": LABELS},
        {"intervention": "mean"},
        {"intervention": "corrupted", "corrupted": TRACES},
        {"intervention": "corrupted", "corrupted": TRACES, "ig_steps": 2, "groups": LABELS},
        {"loss": [[1.0, 0.0, 2.0], [0.5, 0.5, 1.0, 1.0]]},
    ],
    ids=lambda options: " ".join(options),
)
def test_scores_by_other_questions(options, level, memory, no_numbers):
    rc.attribute(placed("qwen2", level), TRACES, level, memory=memory, batch_size=2, progress=False, **options)
    assert no_numbers == {("eap", "attribute")} | ({("eap", "_with_gap")} if "ig_steps" in options else set())


@pytest.mark.parametrize("level", LEVELS)
def test_scores_against_another_model(level):
    hf, other = placed("qwen2", level), placed("qwen2", level)
    rc.attribute(hf, TRACES, level, batch_size=2, progress=False, intervention="model", other=other)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KINDS)
def test_edges_removed(kind, level):
    rc.ablate(placed(kind, level), TRACES, level, batch_size=16, progress=False)


@pytest.mark.parametrize("level", LEVELS)
def test_circuits(level):
    hf = placed("qwen2", level)
    scores = rc.attribute(hf, TRACES, level, batch_size=2, progress=False)
    with pytest.warns(UserWarning, match="without any edge"):  # all losses are 1
        rc.faithfulness(hf, TRACES, scores, shares=[0.1, 0.5], seeds=1, batch_size=4, progress=False)


def test_losses_of_tokens():
    rc.token_losses(placed("qwen2", "block"), TRACES, progress=False)
