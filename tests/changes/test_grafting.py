"""Chimaeras: against models put together by hand, and changes whose place is known."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.changes import graft
from rlcircuits.changes.chimaeras import chimaera, named, parts_of, weights_of
from rlcircuits.models import adapted_weights
from tests.fixtures.checkpoints import WORDS, save
from tests.fixtures.models import in_float64, tiny

ARCHITECTURES = ("qwen2", "gemma2", "olmo2", "gpt2", "gpt-neox", "phi3")
IDS = torch.tensor([[5, 9, 17, 30, 8, 41, 12]])


def traces(n=4, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(2, 8, (n, 2))
    return [
        rc.Trace(f"p{i}", rng.integers(3, 50, a).tolist(), rng.integers(3, 50, b).tolist())
        for i, (a, b) in enumerate(sizes)
    ]


def two(architecture="qwen2", **options):
    return tuple(in_float64(tiny(architecture, seed=seed, **options)) for seed in (0, 1))


def by_hand(base, tuned, prefixes):
    """The base with the tuned model's weights where their names begin so."""
    made = copy.deepcopy(base)
    weights = tuned.state_dict()
    made.load_state_dict({k: weights[k] if k.startswith(prefixes) else v for k, v in base.state_dict().items()})
    return made


def losses(hf, some):
    return np.array([one.mean() for one in rc.token_losses(hf, some, progress=False)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_weight_is_in_one_part_and_all_parts_are_the_tuned_model_to_the_bit(architecture):
    base, tuned = two(architecture)
    parts = parts_of(base)
    assert list(parts) == ["embeddings", "a0", "m0", "a1", "m1", "a2", "m2", "head"]
    assert sorted(name for names in parts.values() for name in names) == sorted(dict(base.named_parameters()))
    before, after, here = base(IDS).logits, tuned(IDS).logits, [p.data_ptr() for p in base.parameters()]
    with chimaera(base, weights_of(tuned, base)) as mixed:
        mixed.take(frozenset(parts))
        assert torch.equal(base(IDS).logits, after)
        mixed.take(frozenset({"a1"}))
        assert not torch.equal(base(IDS).logits, before) and not torch.equal(base(IDS).logits, after)
        mixed.take(frozenset())
        assert torch.equal(base(IDS).logits, before)
    assert torch.equal(base(IDS).logits, before) and torch.equal(tuned(IDS).logits, after)
    assert [p.data_ptr() for p in base.parameters()] == here


@pytest.mark.parametrize("architecture", ["qwen2", "gpt-neox"])
def test_a_chimaera_has_the_losses_of_a_model_put_together_by_hand(architecture):
    base, tuned = two(architecture)
    at, attention = ("model.layers.", "self_attn") if architecture == "qwen2" else ("gpt_neox.layers.", "attention")
    norm = "input_layernorm"
    mine, theirs = traces(seed=0), traces(seed=1)
    found = graft((base, tuned), {"base": mine, "tuned": theirs}, progress=False, batch_size=3).data
    embeddings, final, head = {
        "qwen2": ("model.embed_tokens", "model.norm", "lm_head"),
        "gpt-neox": ("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "lm_head"),
    }[architecture]
    expected = {
        "embeddings": (embeddings,),
        "a1": (f"{at}1.{attention}", f"{at}1.{norm}"),
        "m2": (f"{at}2.mlp", f"{at}2.post_attention_layernorm"),
        "head": (final, head),
        "embeddings+l0-l1": (embeddings, f"{at}0", f"{at}1"),
    }
    for modules, names in expected.items():
        for into, made in (("base", by_hand(base, tuned, names)), ("tuned", by_hand(tuned, base, names))):
            (row,) = np.flatnonzero((found["modules"] == modules) & (found["into"] == into))
            for answers, some in (("base", mine), ("tuned", theirs)):
                one = found["loss"].sel(answers=answers)[row]
                np.testing.assert_allclose(one, losses(made, some), rtol=1e-9, err_msg=f"{modules} {into} {answers}")
    np.testing.assert_allclose(found["base_loss"].sel(answers="tuned"), losses(base, theirs), rtol=1e-9)
    np.testing.assert_allclose(found["tuned_loss"].sel(answers="base"), losses(tuned, mine), rtol=1e-9)


def test_a_row_of_one_mlp_is_found_there_and_nowhere_else():
    base, _ = two()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.model.layers[1].mlp.down_proj.weight[3] += 1.0
    table = graft((base, tuned), traces(), progress=False).table()
    stands = table[table["kind"] == "module"].set_index(["into", "modules"])["stands"]
    assert {name for name, value in stands["base"].items() if value != 0} == {"m1"}
    assert stands["base", "m1"] == pytest.approx(1, abs=1e-12)
    assert {name for name, value in stands["tuned"].items() if value != 1} == {"m1"}
    assert stands["tuned", "m1"] == pytest.approx(0, abs=1e-12)
    prefix = table[table["kind"] == "prefix"].set_index(["into", "depth"])["stands"]
    assert prefix["base"].tolist() == pytest.approx([0, 1, 1]) and prefix["tuned"].tolist() == pytest.approx([1, 0, 0])


def test_a_model_against_itself_has_not_changed():
    base, _ = two()
    table = graft((base, copy.deepcopy(base)), traces(), ["a0", "l1+head", "all"], progress=False).table()
    assert (table["change"] == 0).all() and table["stands"].isna().all()


def test_tied_embeddings_go_with_the_input():
    base, tuned = two("llama", tie_word_embeddings=True)
    assert parts_of(base)["head"] == ("model.norm.weight",)
    found = graft((base, tuned), traces(), ["all", "embeddings"], into="base", progress=False).data
    np.testing.assert_array_equal(found["loss"][0], found["tuned_loss"])
    made = by_hand(base, tuned, ("model.embed_tokens", "lm_head"))
    np.testing.assert_allclose(found["loss"][1, 0], losses(made, traces()), rtol=1e-9)


def test_whatever_happens_the_base_has_its_own_weights_again(monkeypatch):
    base, tuned = two()
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    taken = []

    def interrupted(*_args):
        taken.append(base.model.layers[2].mlp.up_proj.weight.equal(tuned.model.layers[2].mlp.up_proj.weight))
        raise KeyboardInterrupt

    monkeypatch.setattr("rlcircuits.changes.grafting.Passed.losses_from", interrupted)
    with pytest.raises(KeyboardInterrupt):
        graft((base, tuned), traces(), ["l1-l2"], into="base", progress=False)
    assert taken == [True]
    assert all(torch.equal(weight, before[name]) for name, weight in base.state_dict().items())


def test_an_answer_that_both_models_give_is_run_once(monkeypatch):
    from rlcircuits.attribution import Passed

    base, tuned = two()
    mine, runs, real = traces(), [], Passed.losses_from
    theirs = [mine[0], *traces(seed=1)[1:3], mine[3]]

    def counted(self, layer, hf, batch):
        runs.append(len(batch.ids))
        return real(self, layer, hf, batch)

    monkeypatch.setattr(Passed, "losses_from", counted)
    both = graft((base, tuned), {"base": mine, "tuned": theirs}, ["a1"], into="base", progress=False)
    assert sum(runs) == 6
    alone = graft((base, tuned), theirs, ["a1"], into="base", progress=False).data
    np.testing.assert_allclose(both.data["loss"].sel(answers="tuned"), alone["loss"][:, 0], rtol=1e-9)
    np.testing.assert_allclose(both.data["tuned_loss"].sel(answers="tuned"), alone["tuned_loss"][0], rtol=1e-9)


def test_what_is_finished_is_not_run_again(tmp_path, monkeypatch):
    base, tuned = two()
    given = {"batch_size": 2, "resume": tmp_path, "progress": False}
    whole = graft((base, tuned), traces(), **{**given, "resume": None})
    from rlcircuits.changes.grafting import Passed

    runs, real = [], Passed.losses_from

    def third_fails(self, *args):
        runs.append(args)
        if len(runs) == 20:
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(Passed, "losses_from", third_fails)
    with pytest.raises(KeyboardInterrupt):
        graft((base, tuned), traces(), **given)
    found = graft((base, tuned), traces(), **given)
    np.testing.assert_array_equal(found.data["loss"], whole.data["loss"])
    once = len({frozenset(map(str, (row.modules.item(), row.into.item()))) for row in whole.data["loss"]}) * 2
    assert len(runs) <= once + 1
    monkeypatch.setattr(Passed, "of", lambda *_a: pytest.fail("a model was run"))
    again = graft((base, tuned), traces(), **given)
    np.testing.assert_array_equal(again.data["loss"], whole.data["loss"])


def test_intervals_are_over_problems():
    base, tuned = two()
    some = traces(30)
    table = graft((base, tuned), some, ["a0", "all"], into="base", progress=False).table().set_index("modules")
    row = table.loc["a0"]
    assert row["stands_low"] < row["stands"] < row["stands_high"]
    made = by_hand(base, tuned, ("model.layers.0.self_attn", "model.layers.0.input_layernorm"))
    b, c, t = losses(base, some), losses(made, some), losses(tuned, some)
    assert row["stands"] == pytest.approx((b.mean() - c.mean()) / (b.mean() - t.mean()), rel=1e-8)
    drawn = np.random.default_rng(9).integers(30, size=(4000, 30))
    changes = (c - b)[drawn].mean(1)
    assert row["change_low"] == pytest.approx(np.quantile(changes, 0.025), abs=0.1 * changes.std() * 4)
    assert row["change_high"] == pytest.approx(np.quantile(changes, 0.975), abs=0.1 * changes.std() * 4)


# Pairs on disk


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: save(root / name, layers=2, seed=seed) for seed, name in enumerate(("base", "tuned"))}


def test_accuracy_is_that_of_the_chimaeras_answers(folders, tmp_path, monkeypatch):
    def answered(
        *args, **kwargs
    ):  # random models are never right: here an answer is, whose tokens add up to an even number
        return [dataclasses.replace(one, correct=not sum(one.answer) % 2) for one in rc.generate(*args, **kwargs)]

    monkeypatch.setattr("rlcircuits.changes.grafting.generate", answered)
    asked = tuple(rc.Problem(f"p{i}", " ".join(WORDS[i : i + 4]), WORDS[i]) for i in range(8))
    problems = rc.ProblemSet("words", asked, grader="final")
    base, tuned = (rc.load_model(folders[side], device="cpu") for side in ("base", "tuned"))
    pair = rc.ModelPair("own", folders["base"], folders["tuned"], max_new_tokens=5)
    given = dict(problems=problems, resume=tmp_path, device="cpu", progress=False)
    found = graft(pair, traces(), ["all", "m0"], **given)
    data = found.data
    said = [[a.correct for a in answered(one, problems, max_new_tokens=5)] for one in (base, tuned)]
    assert data["base_correct"].values.tolist() == said[0] and data["tuned_correct"].values.tolist() == said[1]
    rows = {
        (str(m), str(i)): c.values.tolist()
        for m, i, c in zip(data["modules"].values, data["into"].values, data["correct"])
    }
    assert rows["all", "base"] == said[1] and rows["all", "tuned"] == said[0] and said[0] != said[1]
    made = by_hand(base.hf, tuned.hf, ("model.layers.0.mlp", "model.layers.0.post_attention_layernorm"))
    made = answered(rc.Model(made, base.tokenizer, "made", base.source), problems, max_new_tokens=5)
    assert rows["m0", "base"] == [a.correct for a in made]
    table = found.table().set_index(["modules", "into"])
    assert table.loc[("all", "base"), "accuracy"] == pytest.approx(np.mean(said[1]))


def test_of_an_adapter_the_base_is_loaded_once_and_all_parts_are_the_merged_model(folders, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    hf = rc.load_model(folders["base"], device="cpu").hf
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], layers_to_transform=[1])
    wrapped = peft.get_peft_model(hf, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in wrapped.named_parameters():
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    wrapped.save_pretrained(tmp_path / "adapter")
    pair = rc.ModelPair("own", folders["base"], tmp_path / "adapter")
    merged, base = pair.load("tuned", "cpu"), pair.load("base", "cpu")
    weights = adapted_weights(base, tmp_path / "adapter")
    before = base.hf(IDS).logits
    with chimaera(base, weights) as mixed:
        mixed.take(frozenset(mixed.parts))
        assert torch.equal(base.hf(IDS).logits, merged.hf(IDS).logits)
    assert torch.equal(base.hf(IDS).logits, before) and not any("lora" in name for name in base.hf.state_dict())

    loaded, real = [], rc.ModelPair.load
    monkeypatch.setattr(rc.ModelPair, "load", lambda *a, **k: loaded.append(a[1]) or real(*a, **k))
    found = graft(pair, traces(), device="cpu", progress=False)
    assert loaded == ["base"]
    np.testing.assert_allclose(found.data["tuned_loss"][0], losses(merged, traces()), rtol=1e-5)
    table = found.table().set_index(["into", "modules"])["stands"]
    assert {name for name, value in table["base"].items() if value != 0} == {"a1", "m1", "embeddings+l0-l1"}
    assert table["base", "embeddings+l0-l1"] == 1


# Bad input


def test_names_of_modules():
    parts = parts_of(two()[0])
    assert named("all", parts) == frozenset(parts) and named("l1", parts) == {"a1", "m1"}
    assert named("embeddings + l0-2", parts) == frozenset(parts) - {"head"}
    for text, says in (
        ("a3", "unknown module 'a3'"),
        ("l2-l1", "expected layers in order, l0 to l2"),
        ("l1-l3", "expected layers in order, l0 to l2"),
        ("embedding", "did you mean 'embeddings'"),
        (3, "module 3: expected a name"),
    ):
        with pytest.raises(rc.InputError, match=says):
            named(text, parts)


def test_bad_input_is_one_clear_message(folders):
    base, tuned = two()
    some = traces()
    for pair, given, options, says in (
        ((base, tiny("qwen2", layers=4)), some, {}, "differ in number of layers"),
        ((base, tiny("qwen2", torch.float32)), some, {}, "load both with the same dtype"),
        ((base, tiny("qwen2", tie_word_embeddings=True)), some, {}, "only the base has a weight 'lm_head.weight'"),
        ((base, tuned), some, {"modules": []}, "no modules given"),
        ((base, tuned), some, {"into": ["both"]}, "unknown side in into 'both'"),
        ((base, tuned), {"base": some, "tuned": some[::-1]}, {}, "same ones in the same order"),
        ((base, tuned), {"old": some}, {}, "unknown side in traces 'old'"),
        ((base, tuned), [], {}, "no traces given"),
        ((base, tuned), [rc.Trace("p", [3], [99])], {}, "vocabulary has 61"),
        ((base, tuned), some, {"problems": rc.ProblemSet("w", (rc.Problem("p", "w1", "w2"),), "final")}, "give a pair"),
        ((base, tuned), some, {"confidence": 1}, "confidence is 1"),
    ):
        with pytest.raises(rc.InputError, match=says):
            graft(pair, given, progress=False, **options)


def test_two_models_that_differ_in_more_than_weights_are_refused():
    base, tuned = two()
    tuned.config.rms_norm_eps = 1.0
    other = type(tuned)(tuned.config).eval().to(torch.float64)
    other.load_state_dict(tuned.state_dict())
    with pytest.raises(rc.InputError, match="differ in more than weights"):
        graft((base, in_float64(other)), traces(), progress=False)
