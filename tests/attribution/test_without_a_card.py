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
from rlcircuits.attribution import NotConverged
from rlcircuits.attribution.suffixes import restarts
from rlcircuits.exactness.collecting import PILOT
from tests.fixtures.checkpoints import WORDS, save
from tests.fixtures.models import KINDS, tiny

LEVELS = ("block", "qkv", "head")
#: what waits for the device by necessity: module and function, and what for
NECESSARY = {
    ("eap", "attribute"): "scores and losses, once a batch",
    ("eap", "_with_gap"): "losses at the other end of integrated gradients' path, once a batch",
    ("eap", "losses"): "token losses, once a batch",
    ("ablation", "take"): "losses, once a batch",
    ("rankings", "_measure"): "losses, once a batch",
    ("norms", "exact_norm_scores"): "scores with exact norms, once a trace",
    ("generation", "_answer_batch"): "the answers, once a batch",
}
#: transformers' own, outside our reach: replaced here by what they give for our inputs, which are neither packed nor masked
THEIRS = {
    "transformers.masking_utils.find_packed_sequence_indices": lambda position_ids: torch.zeros_like(position_ids),
    "transformers.modeling_utils.PreTrainedModel.warn_if_padding_and_no_attention_mask": lambda *_: None,
}
TRACES = [rc.Trace("a", [5, 9, 33, 7], [11, 3, 3]), rc.Trace("b", [5, 9], [11, 3, 3, 8])]
#: enough cells for a sample of them to have a pilot at every level
SEVERAL = [rc.Trace(f"t{i}", [5, 9, 33, 7 + i], [11, 3, 3]) for i in range(8)]
LABELS = [["p"] * 4 + ["w", "w", "r"], ["p", "p", "w", "w", "w", "r"]]


@pytest.fixture(autouse=True)
def no_numbers(monkeypatch):
    """The stand-ins; returns the callers that brought something to the host."""
    callers, real = set(), torch.Tensor.cpu

    def cpu(tensor, *args, **kwargs):
        if not tensor.is_meta:
            return real(tensor, *args, **kwargs)
        frame = sys._getframe(1)
        while frame.f_code.co_name.startswith("<"):  # a comprehension's
            frame = frame.f_back
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


def asked(name, level):
    """A loss by name, of the traces."""
    if name == "kl":
        return rc.Loss("kl", reference=placed("qwen2", level))
    return rc.Loss("logit-difference", tokens=[[4, 4, 4], [4, 4, 4, 4]])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["kl", "logit-difference"])
def test_other_losses(name, level, no_numbers):
    hf, loss = placed("qwen2", level), asked(name, level)
    scores = rc.attribute(hf, TRACES, level, batch_size=2, progress=False, loss=loss)
    rc.ablate(hf, TRACES, level, batch_size=16, progress=False, loss=loss)
    with pytest.warns(UserWarning, match="without any edge"):
        rc.faithfulness(hf, TRACES, scores, shares=[0.1, 0.5], seeds=1, batch_size=4, progress=False, loss=loss)
    assert no_numbers == {("eap", "attribute"), ("ablation", "take"), ("rankings", "_measure")}


@pytest.mark.filterwarnings("ignore:.*without any edge")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("intervention", ["corrupted", "model", "mean"])
def test_other_replacements_in_reruns(intervention, level):
    hf = placed("qwen2", level)
    instead = {"corrupted": {"corrupted": TRACES}, "model": {"other": placed("qwen2", level)}, "mean": {}}[intervention]
    scores = rc.attribute(hf, TRACES, level, batch_size=2, progress=False)
    rc.ablate(hf, TRACES, level, batch_size=16, progress=False, intervention=intervention, **instead)
    how = {"shares": [0.1, 0.5], "seeds": 1, "batch_size": 4, "progress": False}
    rc.faithfulness(hf, TRACES, scores, intervention=intervention, **how, **instead)


@pytest.mark.parametrize(
    "kind", ["qwen2", "gpt2", "gemma2", "olmo2"]
)  # projections apart and in one, norms after and none before
@pytest.mark.parametrize("level", LEVELS)
def test_exact_metrics(kind, level, no_numbers):
    hf = placed(kind, level)
    scores = rc.attribute(hf, SEVERAL, level, batch_size=8, progress=False)
    found = rc.exact_metrics(hf, SEVERAL, scores, budget=2 * PILOT, batch_size=32, progress=False)
    assert found.runs == 2 * PILOT
    assert no_numbers == {("eap", "attribute"), ("norms", "exact_norm_scores"), ("ablation", "take")}


def test_trust(no_numbers):
    with pytest.warns(NotConverged):  # all numbers are 1: nothing adds up
        found = rc.trust(placed("qwen2", "block"), SEVERAL, budget=2 * PILOT, batch_size=32, progress=False)
    assert found.exact.runs == 2 * PILOT and ("rankings", "_measure") in no_numbers


def test_answers(tmp_path, monkeypatch, no_numbers):
    """Around transformers' own decoding, which asks after each token whether all rows have ended."""
    model = rc.load_model(save(tmp_path / "model", layers=2), device="cpu")
    problems = rc.ProblemSet(
        "words", tuple(rc.Problem(f"p{i}", " ".join(WORDS[: 1 + i]), "1") for i in range(3)), "final"
    )

    def decoded(self, input_ids, attention_mask, max_new_tokens, **_):
        assert input_ids.is_meta and attention_mask.is_meta and input_ids.shape == attention_mask.shape
        return torch.cat([input_ids, self(input_ids=input_ids).logits[:, -max_new_tokens:].argmax(-1)], 1)

    monkeypatch.setattr(type(model.hf), "generate", decoded)
    model.hf.to("meta")
    answers = rc.generate(model, problems, max_new_tokens=1, batch_size=3)
    assert len(answers) == 3 and no_numbers == {("generation", "_answer_batch")}


def test_losses_of_tokens():
    rc.token_losses(placed("qwen2", "block"), TRACES, progress=False)
