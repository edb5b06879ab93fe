"""Divergence at every position, against distributions written out in float64 by scipy."""

from __future__ import annotations

import math
import types

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax
from scipy.stats import entropy

import rlcircuits as rc
from rlcircuits.changes import divergences
from tests.fixtures.models import in_float64, tiny

TRACES = [
    rc.Trace("long", (3, 9, 22), (7, 41, 5, 12, 60, 2, 33, 18, 4, 50, 8)),
    rc.Trace("short", (11,), (50, 6)),
    rc.Trace("one", (8, 8, 31, 12), (19,)),
]


def two(kind="llama", **options):
    return tuple(in_float64(tiny(kind, seed=seed, **options)) for seed in (0, 1))


def distributions(hf, trace):
    """ln p ``(answer token, vocabulary)``, the trace alone, unpadded, by scipy."""
    ids = torch.tensor([[*trace.prompt, *trace.answer]])
    with torch.no_grad():
        logits = hf(input_ids=ids).logits[0, len(trace.prompt) - 1 : -1]
    return log_softmax(logits.double().numpy(), axis=-1)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gpt-neox", "mixtral"])
def test_every_quantity_is_as_scipy_computes_it(kind, monkeypatch):
    """Gemma 2 caps its logits after the output embedding; a few positions at a time, in batches with padding."""
    monkeypatch.setattr(divergences, "_NUMBERS", 61 * 4)
    models = two(kind)
    found = rc.divergence(models, TRACES)
    for trace in TRACES:
        b, u = (distributions(hf, trace) for hf in models)
        p, q = np.exp(b), np.exp(u)
        rows = found.table.loc[trace.problem]
        answer = list(trace.answer)
        expected = {
            "kl_base_tuned": entropy(p, q, axis=1),
            "kl_tuned_base": entropy(q, p, axis=1),
            "js": jensenshannon(p, q, axis=1) ** 2,
            "entropy_base": entropy(p, axis=1),
            "entropy_tuned": entropy(q, axis=1),
            "nll_base": -b[range(len(answer)), answer],
            "nll_tuned": -u[range(len(answer)), answer],
            "base_token": p.argmax(1),
            "tuned_token": q.argmax(1),
            "base_probability": p.max(1),
            "tuned_probability": q.max(1),
            "gained": (q - p).argmax(1),
            "gain": (q - p).max(1),
            "lost": (q - p).argmin(1),
            "loss": (q - p).min(1),
            "token": answer,
        }
        for name, values in expected.items():
            np.testing.assert_allclose(rows[name], values, rtol=1e-9, atol=1e-12, err_msg=name)
        np.testing.assert_allclose(found.problems.loc[trace.problem, "js"], expected["js"].mean(), rtol=1e-9)
    assert found.summary.loc["js", "value"] == pytest.approx(found.problems["js"].mean())


def test_batches_and_chunks_change_nothing_but_rounding(monkeypatch):
    models = tuple(tiny("qwen2", torch.float32, seed=seed) for seed in (0, 1))
    whole = rc.divergence(models, TRACES).table
    monkeypatch.setattr(divergences, "_NUMBERS", 1)
    alone = rc.divergence(models, TRACES[::-1], batch_size=1).table.loc[[trace.problem for trace in TRACES]]
    assert (whole["critical"] == alone["critical"]).all()
    np.testing.assert_allclose(whole.astype(float), alone.astype(float), rtol=1e-5, atol=1e-6)


def test_a_model_does_not_diverge_from_itself():
    model = tiny("llama", torch.bfloat16)
    found = rc.divergence((model, model), TRACES)
    assert not found.table[["kl_base_tuned", "kl_tuned_base", "js", "gain", "loss"]].to_numpy().any()
    assert not found.problems["differs"].any()
    assert found.summary.loc["js", ["value", "low", "high"]].tolist() == [0, 0, 0]
    assert math.isnan(found.summary.loc["critical_js", "value"])
    assert "0 nats per token" in found.title


def test_one_row_of_the_output_embedding_moves_one_token_alone():
    """Known by hand: u(v) ∝ b(v) but for the token whose logit rose, so KL(b ‖ u) = ln Z, less b(v) times the rise."""
    base, tuned = two()[0], two()[0]
    with torch.no_grad():
        tuned.lm_head.weight[17] *= 3
    found = rc.divergence((base, tuned), TRACES).table
    for trace in TRACES:
        b = distributions(base, trace)
        logit = distributions(tuned, trace)[:, 17] - distributions(tuned, trace)[:, 0] + b[:, 0]
        rise = logit - b[:, 17]
        z = 1 + np.exp(b[:, 17]) * np.expm1(rise)
        np.testing.assert_allclose(found.loc[trace.problem, "kl_base_tuned"], np.log(z) - np.exp(b[:, 17]) * rise)
        moved = np.where(rise > 0, found.loc[trace.problem, "gained"], found.loc[trace.problem, "lost"])
        assert (moved == 17).all()


def test_critical_positions_are_those_of_largest_js():
    found = rc.divergence(two(), TRACES, share=0.25)
    for trace in TRACES:
        rows = found.table.loc[trace.problem]
        expected = rows["js"].nlargest(math.ceil(0.25 * len(trace.answer))).index
        assert sorted(rows.index[rows["critical"]]) == sorted(expected)
    critical = found.table["critical"]
    long = found.table.loc["long"]
    assert found.problems.loc["long", "critical_js"] == pytest.approx(
        long["js"][long["critical"]].sum() / long["js"].sum()
    )
    assert found.critical(1).index[0] == found.table["js"].idxmax()
    assert critical.loc["one"].all()


def test_scores_at_critical_positions_and_elsewhere_add_up_to_all():
    models = two()
    found = rc.divergence(models, TRACES, share=0.25)
    scores = found.attribute(models[1])
    traces = TRACES[:2]  # the third answer has one token, and nothing elsewhere
    whole = rc.attribute(models[1], traces)
    shares = np.array([3 / 11, 1 / 2])[:, None, None]
    np.testing.assert_allclose(
        shares * scores["critical"] + (1 - shares) * scores["elsewhere"], whole, rtol=1e-9, atol=1e-14
    )
    assert scores["critical"].sample.values.tolist() == ["long", "short"]


def test_tokens_are_spelt_where_a_tokenizer_is_known():
    tokenizer = types.SimpleNamespace(decode=lambda ids, **_: "".join(chr(60 + i) for i in ids))
    found = rc.divergence(two(), TRACES)
    assert found.critical(2)["before"].str.contains(" ").all()
    object.__setattr__(found, "tokenizer", tokenizer)
    problem, position = found.table["js"].idxmax()
    trace = next(trace for trace in TRACES if trace.problem == problem)
    assert found.critical(1)["token"].iloc[0] == repr(chr(60 + trace.answer[position]))
    assert "<script" not in found._repr_html_()
    assert found.title in repr(found)


def test_the_cut_is_kept():
    found = rc.divergence(two(), TRACES, cut=2)
    assert found.table.groupby("problem", sort=False).size().tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0}, "share is 0: expected a share of positions"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"resamples": 0}, "resamples is 0"),
        ({"pair": 3}, "pair is a int: expected rc.pair"),
        ({"pair": [1, 2, 3]}, "pair is 3 models"),
        ({"traces": []}, "no traces given"),
        ({"traces": [rc.Trace("p", (1,), (61,))]}, "vocabulary has 61"),
        ({"pair": "no-such-pair"}, "no-such-pair"),
    ],
)
def test_what_cannot_be_used_is_refused(change, message):
    with pytest.raises(rc.InputError, match=message):
        rc.divergence(**{"pair": two(), "traces": TRACES, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 2}, "number of layers: 3 and 2"),
        ({"vocab_size": 62}, "vocabulary: 61 and 62"),
        ({"hidden_size": 64}, "width: 32 and 64"),
    ],
)
def test_models_that_are_no_pair_are_refused(options, message):
    with pytest.raises(rc.InputError, match=message):
        rc.divergence((tiny("llama"), tiny("llama", **options)), TRACES)


def test_a_damaged_model_is_named_by_trace_and_position():
    base, tuned = two()
    with torch.no_grad():
        tuned.model.norm.weight[0] = float("nan")
    with pytest.raises(rc.InputError, match="trace 'long', answer position 0, is not finite"):
        rc.divergence((base, tuned), TRACES[:1])


def test_attribution_needs_positions_of_both_kinds_and_takes_no_other_loss():
    models = two()
    found = rc.divergence(models, TRACES[2:])
    with pytest.raises(rc.InputError, match="an answer needs two tokens"):
        found.attribute(models[0])
    with pytest.raises(rc.InputError, match="loss is given"):
        found.attribute(models[0], loss="nll")
