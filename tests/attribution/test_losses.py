"""Any loss and any replacement, first-order and exact, against a model written out edge by edge."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch

import rlcircuits as rc
from tests.attribution.test_attribution import ANSWER, LEVELS, PROMPT, close, traces
from tests.fixtures.models import in_float64, tiny
from tests.fixtures.reference import directional_scores, loss, nodes, outputs_of

OTHER = (50, 8, 8, 31, 12)
COUNTER = (9, 17, 60, 5)
WEIGHTS = (0.0, 2.0, 0.5, 1.0)
TRACE = [rc.Trace("p", PROMPT, ANSWER)]
NAMES = ("nll", "weighted", "kl", "kl given", "logit-difference", "logit-difference weighted")


def other_model(kind="llama", **options):
    return in_float64(tiny(kind, seed=1, **options))


def mean(values, weights=(1.0,) * len(ANSWER)):
    return (values * torch.tensor(weights, dtype=torch.float64)).sum() / sum(weights)


def made(name, reference):
    """The loss of that name, and the same written by hand: a function of logits ``(answer token, vocabulary)`` and
    answer.
    """
    rows = torch.arange(len(ANSWER))
    q = torch.softmax(loss(reference, PROMPT, ANSWER, "block", of=lambda logits, _: logits), -1).detach()

    def nll(logits, answer):
        return -torch.log_softmax(logits, -1)[rows, torch.tensor(answer)]

    def difference(logits, answer):
        return logits[rows, torch.tensor(COUNTER)] - logits[rows, torch.tensor(answer)]

    def kl(logits, _answer):
        return (q * (q.log() - torch.log_softmax(logits, -1))).sum(-1)

    return {
        "nll": ("nll", lambda z, y: mean(nll(z, y))),
        "weighted": ([WEIGHTS], lambda z, y: mean(nll(z, y), WEIGHTS)),
        "kl": (rc.Loss("kl", reference=reference), lambda z, y: mean(kl(z, y))),
        "kl given": (rc.Loss("kl", reference=[q], weights=[WEIGHTS]), lambda z, y: mean(kl(z, y), WEIGHTS)),
        "logit-difference": (rc.Loss("logit-difference", tokens=[COUNTER]), lambda z, y: mean(difference(z, y))),
        "logit-difference weighted": (
            rc.Loss("logit-difference", tokens=[COUNTER], weights=[WEIGHTS]),
            lambda z, y: mean(difference(z, y), WEIGHTS),
        ),
    }[name]


def replaced(hf, other, level, intervention):
    """Options for `intervention`, and what it replaces each source's output by, on the one trace."""
    clean = outputs_of(hf, PROMPT, ANSWER, level)
    if intervention == "zero":
        return {}, [torch.zeros_like(o) for o in clean]
    if intervention == "mean":
        return {}, [o[:-1].mean(0).expand_as(o) for o in clean]
    if intervention == "corrupted":
        return {"corrupted": [rc.Trace("c", OTHER, ANSWER)]}, outputs_of(hf, OTHER, ANSWER, level)
    return {"other": other}, outputs_of(other, PROMPT, ANSWER, level)


INTERVENTIONS = ("zero", "mean", "corrupted", "model")


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_derivative_of_the_loss_written_by_hand(name, memory):
    hf, other = in_float64(tiny("llama")), other_model()
    given, by_hand = made(name, other)
    scores = rc.attribute(hf, TRACE, memory=memory, loss=given)
    assert float(scores.loss[0]) == pytest.approx(float(loss(hf, PROMPT, ANSWER, "block", of=by_hand)), rel=1e-6)
    clean = outputs_of(hf, PROMPT, ANSWER, "block")
    close(scores[0], directional_scores(hf, PROMPT, ANSWER, "block", clean, of=by_hand), 2e-6)


@pytest.mark.parametrize("memory", ["fast", "lean"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_another_models_outputs_take_the_place_of_clean_ones(kind, level, memory):
    """With heads, what is replaced went through the other model's own output projection and norm."""
    hf, other = in_float64(tiny(kind)), other_model(kind)
    clean, theirs = (outputs_of(one, PROMPT, ANSWER, level) for one in (hf, other))
    scores = rc.attribute(hf, TRACE, level, memory=memory, intervention="model", other=other)
    expected = directional_scores(hf, PROMPT, ANSWER, level, [a - b for a, b in zip(clean, theirs)])
    close(scores[0], expected, 2e-6)
    assert scores.attrs["intervention"] == "model"
    assert float(abs(rc.attribute(hf, TRACE, level, intervention="model", other=hf)).max()) == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_exact_effects_are_the_edge_by_edge_model_with_one_edge_replaced(level, intervention, name):
    hf, other = in_float64(tiny("llama", layers=2)), other_model(layers=2)
    given, by_hand = made(name, other)
    options, instead = replaced(hf, other, level, intervention)
    sources, destinations = nodes(hf, level)
    edges = np.argwhere([[w < r for _, r in destinations] for _, w in sources])
    edges = np.random.default_rng(0).permutation(edges)[:8]
    named = [f"{sources[s][0]}->{destinations[d][0]}" for s, d in edges]
    exact = rc.ablate(
        hf, TRACE, level, named, progress=False, scale=0.75, intervention=intervention, loss=given, **options
    )
    clean = loss(hf, PROMPT, ANSWER, level, of=by_hand)
    assert float(exact.loss[0]) == pytest.approx(float(clean), rel=1e-6)
    for s, d in edges:
        gone = torch.zeros(len(sources), len(destinations), dtype=torch.float64)
        gone[s, d] = 0.75
        expected = loss(hf, PROMPT, ANSWER, level, 1 - gone, added=(gone, instead), of=by_hand) - clean
        assert float(exact[0, s, d]) == pytest.approx(float(expected), rel=1e-5, abs=2e-7)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("intervention", INTERVENTIONS)
@pytest.mark.parametrize("level", LEVELS)
def test_scores_are_the_central_difference_of_exact_effects(level, intervention, name):
    hf, other = in_float64(tiny("qwen2", layers=2)), other_model("qwen2", layers=2)
    options, _ = replaced(hf, other, level, intervention)
    options |= {"intervention": intervention, "loss": made(name, other)[0], "progress": False}
    step = 1e-5
    up, down = (rc.ablate(hf, TRACE, level, scale=s, **options) for s in (step, -step))
    close((up - down)[0] / (2 * step), rc.attribute(hf, TRACE, level, **options)[0], 1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_first_order_integrated_and_exact_agree_for_a_model_that_hardly_differs(name):
    hf, other, reference = (
        in_float64(tiny("llama", layers=2)),
        in_float64(tiny("llama", layers=2)),
        other_model(layers=2),
    )
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1e-6 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0), dtype=p.dtype))
    options = {"intervention": "model", "other": other, "loss": made(name, reference)[0], "progress": False}
    first = rc.attribute(hf, TRACE, **options)[0]
    assert 0 < float(abs(first).max()) < 1e-3
    close(rc.attribute(hf, TRACE, ig_steps=3, **options)[0], first, 1e-4)
    close(rc.ablate(hf, TRACE, **options)[0], first, 1e-4)


@pytest.mark.parametrize("batch_size", [1, "auto"])
def test_each_trace_keeps_what_was_given_for_it(batch_size):
    """Whatever runs beside it; and what is weighted sums to the loss."""
    hf, some = in_float64(tiny("llama", layers=2)), traces(n=4)
    rng = np.random.default_rng(0)
    given = {
        "weights": [rng.random(len(t.answer)).tolist() for t in some],
        "tokens": [rng.integers(3, 61, len(t.answer)).tolist() for t in some],
    }
    reference = other_model(layers=2)
    for name, needs in (
        ("nll", {}),
        ("kl", {"reference": reference}),
        ("logit-difference", {"tokens": given["tokens"]}),
    ):
        whole = rc.Loss(name, weights=given["weights"], **needs)
        scores = rc.attribute(hf, some, loss=whole, batch_size=batch_size)
        exact = rc.ablate(hf, some, edges=["m0->a1"], loss=whole, batch_size=batch_size, progress=False)
        each = rc.token_losses(hf, some, loss=whole, batch_size=batch_size, progress=False)
        for i, trace in enumerate(some):
            needs_one = {"tokens": [needs["tokens"][i]]} if "tokens" in needs else needs
            alone = {"loss": rc.Loss(name, weights=[given["weights"][i]], **needs_one)}
            close(scores[i], rc.attribute(hf, [trace], **alone)[0], 1e-11)
            one = rc.ablate(hf, [trace], edges=["m0->a1"], progress=False, **alone)[0]
            np.testing.assert_allclose(exact[i], one, rtol=1e-9)
            weights = np.array(given["weights"][i])
            assert float(scores.loss[i]) == pytest.approx((weights * each[i]).sum() / weights.sum(), rel=1e-9)


def test_a_cut_cuts_what_was_given_too():
    hf = in_float64(tiny("llama", layers=2))
    for name in ("kl given", "logit-difference weighted"):
        whole = made(name, other_model(layers=2))[0]
        needs = {"reference": [whole.reference[0][:2]]} if whole.reference else {"tokens": [COUNTER[:2]]}
        short = rc.Loss(whole.name, weights=[WEIGHTS[:2]], **needs)
        expected = rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER[:2])], loss=short)
        np.testing.assert_allclose(rc.attribute(hf, TRACE, cut=2, loss=whole), expected, rtol=1e-12)


def test_circuits_are_scored_as_mib_does():
    """CPR and CMD of MIB (Mueller et al. 2025), written from its definitions: head level, patches, difference of logits.

    m is the difference of the logits of right and counterfactual answer at the last position; all edges outside a circuit bring
    what their source writes on the counterfactual prompt; f is a ratio of dataset means, not clipped.
    """
    hf = in_float64(tiny("llama", layers=2, kv_heads=4))
    rng = np.random.default_rng(3)
    prompts, counterfactual = rng.integers(3, 61, (2, 3, 4)).tolist()
    right, wrong = rng.integers(3, 61, (2, 3)).tolist()
    some = [rc.Trace(f"p{i}", prompt, [y]) for i, (prompt, y) in enumerate(zip(prompts, right))]
    corrupted = [rc.Trace(f"c{i}", prompt, [y]) for i, (prompt, y) in enumerate(zip(counterfactual, right))]
    options = {
        "intervention": "corrupted",
        "corrupted": corrupted,
        "loss": rc.Loss("logit-difference", tokens=[[y] for y in wrong]),
        "progress": False,
    }
    scores = rc.attribute(hf, some, "head", ig_steps=2, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of random weights nothing says that the circuit does better
        found = rc.faithfulness(hf, some, scores, seeds=0, **options)

    def m(kept):
        """``(prompt,)`` with the edges of ``(source, destination)`` kept and all others patched."""
        values = []
        for i in range(3):
            patches = outputs_of(hf, counterfactual[i], [right[i]], "head")

            def measure(logits, _answer, i=i):
                return logits[-1, right[i]] - logits[-1, wrong[i]]

            values.append(loss(hf, prompts[i], [right[i]], "head", kept, added=(1 - kept, patches), of=measure))
        return np.array([float(value) for value in values])

    mean, edges = scores.mean("sample").values, ~np.isnan(scores[0].values)
    whole, nothing = torch.ones(mean.shape, dtype=torch.float64), torch.zeros(mean.shape, dtype=torch.float64)
    shares = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    curves = {}
    for rank, strength in (("signed", mean), ("absolute", np.abs(mean))):
        strongest = sorted(np.argwhere(edges).tolist(), key=lambda edge, strength=strength: -strength[tuple(edge)])
        curves[rank] = []
        for k in shares:
            kept = nothing.clone()
            for s, d in strongest[: int(k * len(strongest) + 1e-9)]:
                kept[s, d] = 1
            curves[rank].append((m(kept).mean() - m(nothing).mean()) / (m(whole).mean() - m(nothing).mean()))
        np.testing.assert_allclose(found.faithfulness.sel(ranking=rank), curves[rank], atol=1e-5)

    def area(y):
        return sum((b - a) * (y[i] + y[i + 1]) / 2 for i, (a, b) in enumerate(itertools.pairwise(shares)))

    assert float(found.CPR) == pytest.approx(area(curves["signed"]), abs=1e-5)
    assert float(found.CMD) == pytest.approx(area([abs(1 - y) for y in curves["absolute"]]), abs=1e-5)
    np.testing.assert_allclose(found.empty_loss, -m(nothing), atol=1e-5)
    corrupted_run = rc.token_losses(hf, corrupted, loss=options["loss"], progress=False)
    np.testing.assert_allclose(
        found.empty_loss, np.concatenate(corrupted_run), rtol=1e-9
    )  # no edge is kept: its very run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"loss": "nil"}, "unknown loss 'nil'.*did you mean 'nll'"),
        ({"loss": "kl"}, "loss 'kl' without reference: .* a model"),
        ({"loss": "logit-difference"}, "loss 'logit-difference' without tokens"),
        ({"loss": [WEIGHTS, WEIGHTS]}, "2 weights for 1 traces"),
        ({"loss": [WEIGHTS[:3]]}, "weights of trace 'p' are 3 for 4 answer tokens"),
        ({"loss": [(0, 0, 0, 0)]}, "not all of them 0"),
        ({"loss": [WEIGHTS], "cut": 1}, "not all of them 0"),
        ({"loss": [(1, -1, 0, 0)]}, "at least 0"),
        ({"loss": lambda hf: rc.Loss("logit-difference", tokens=[(9, 61, 3, 3)])}, "expected ids from 0 to 60"),
        ({"loss": lambda hf: rc.Loss("logit-difference", tokens=[(9, 3)])}, "tokens of trace 'p' are 2 for 4"),
        ({"loss": lambda hf: rc.Loss("kl", reference=tiny("llama", vocab_size=60))}, "vocabulary of 60 tokens.*of 61"),
        ({"loss": lambda hf: rc.Loss("kl", reference=tiny("llama").train())}, "reference is in training mode"),
        ({"loss": lambda hf: rc.Loss("kl", reference=[np.full((4, 60), 1 / 60)])}, r"shape \(4, 60\)"),
        ({"loss": lambda hf: rc.Loss("kl", reference=[np.full((4, 61), 1.0)])}, "holds no probabilities"),
        ({"loss": lambda hf: rc.Loss("nll", reference=hf)}, "with reference: .*no other loss"),
        ({"intervention": "model"}, "another model was not given"),
        ({"other": lambda hf: hf}, "belong together"),
        ({"intervention": "model", "other": lambda hf: "gpt2"}, "not str"),
        ({"intervention": "model", "other": lambda hf: tiny("llama", vocab_size=60)}, "vocabulary of 60, the model one of 61"),
        ({"intervention": "model", "other": lambda hf: tiny("llama", layers=2)}, "depth of 2, the model one of 3"),
        ({"intervention": "model", "other": lambda hf: tiny("llama", hidden_size=64)}, "width of 64, the model one of 32"),
        ({"intervention": "model", "other": lambda hf: tiny("llama").train()}, "other model is in training mode"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_message_before_anything_runs(options, says):
    hf = tiny("llama", torch.float32)
    rc.Graph.of(hf)
    scores = rc.attribute(hf, TRACE)

    def runs(*_):
        raise AssertionError("the model ran")

    for measure in (rc.attribute, rc.ablate, lambda *args, **given: rc.faithfulness(*args, scores, **given)):
        handle = hf.register_forward_pre_hook(runs)
        with pytest.raises(rc.InputError, match=says) as caught:
            measure(hf, TRACE, progress=False, **{k: v(hf) if callable(v) else v for k, v in options.items()})
        handle.remove()
        assert len(str(caught.value).splitlines()) == 1
