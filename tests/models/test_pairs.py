"""Pairs as data, adapters, reports of weights and what is on this machine."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import rlcircuits as rc
from paradigms.providers import family_member
from rlcircuits.cli.main import main
from rlcircuits.models.checkpoints import SPREAD
from rlcircuits.models.inventory import folder_of
from rlcircuits.storage.registry import Overridden
from tests.fixtures.checkpoints import WORDS, save, tokenizer
from tests.fixtures.models import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    return {"root": root} | {
        name: save(root / name, layers=2, seed=seed) for seed, name in enumerate(("base", "tuned"))
    }


def registry(folder, **entries) -> Path:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump(entries))
    return file


# Files of pairs


def test_a_users_file_extends_the_built_in_one(folders, tmp_path, monkeypatch):
    file = registry(folders["root"], own={"base": "./base", "tuned": "./tuned", "method": "PPO"})
    assert list(rc.pairs(file)) == ["deepseek-math", "mistral", "distilled-qwen", "qwen2.5", "own"]
    assert rc.pair("own", file).base == str(folders["base"])
    monkeypatch.setenv("RLCIRCUITS_PAIRS", str(file))
    assert rc.pair("own").method == "PPO"
    other = registry(tmp_path, mistral={"base": "a/b", "tuned": "a/c"})
    with pytest.warns(Overridden, match="own.yaml': 'mistral' takes the place of the built-in"):
        assert rc.pairs(other)["mistral"].base == "a/b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rc.pairs(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "own: {base: a/b, tuned: a/c, methd: PPO}",
            "own.yaml': 'own' has the unknown key 'methd'.*did you mean 'method'",
        ),
        ("own: {base: a/b, tuned: a/c, method: GRP}", "'own': unknown method 'GRP'.*did you mean 'GRPO'"),
        ("own: {base: a/b, tuned: a/c, max_new_tokens: '5'}", "'own': max_new_tokens is '5': expected a whole number"),
        ("own: {base: a/b, tuned: a/c, max_new_tokens: true}", "max_new_tokens is True: expected a whole number"),
        ("own: {base: a/b, tuned: a/c, trust_remote_code: 1}", "expected true or false"),
        ("own: {base: a/b, tunde: a/c}", "unknown key 'tunde'.*did you mean 'tuned'"),
        ("own: {base: a/b}", "'own' has no tuned: expected a path or a hub id"),
        ("own: {base: a/b, tuned: a/c, prompt: x}", "'own': prompt is 'x': expected a template with one '{question}'"),
        ("own: [a/b, a/c]", "'own' is a list: expected a mapping"),
        ("3: {base: a/b, tuned: a/c}", "the name 3 is no plain text"),
        ("own: {base: a/b, tuned: a/c}\nown: {base: a/b, tuned: a/d}", "'own' is there twice"),
        ("family/mine: {base: a/b, tuned: a/c}", "cannot be the name of a pair"),
        ("own: {base: !!python/object/apply:os.system [ls]}", "is not YAML that can be used"),
        ("a: [", "is not YAML that can be used"),
        ("d: 2001-99-99", "is not YAML that can be used"),
        ("", "is empty"),
        ("- a", "holds a list"),
        ("\x00", "is not YAML"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, capsys, text, says):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(rc.InputError, match=says) as caught:
        rc.pairs(file)
    assert "own.yaml" in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert main(["pairs", "--pairs", str(file)]) == 2
    assert capsys.readouterr().err.startswith("rlcircuits: ")


def test_pairs_of_the_family_by_name():
    assert family_member("family/ppo") == ("ppo", 0) and family_member("family/grpo@3") == ("grpo", 3)
    for name, says in (
        ("family/gpro", "did you mean 'family/grpo'"), ("family/sft", "unknown pair"), ("family/ppo@x", "the seed after '@' is 'x'"),
        ("family/ppo@-1", "is '-1'"), ("family/ppo@", "is ''"), ("family/ppo@²", "seed after"),
    ):  # fmt: skip
        with pytest.raises(rc.InputError, match=says):
            rc.pair(name)


def test_a_pair_of_the_family_is_the_stores(monkeypatch, tmp_path):
    asked = []

    def made(seed, members, store=None):
        asked.append((seed, members, store))
        return {member: tmp_path / member for member in members}

    monkeypatch.setattr("paradigms.providers.make_family", made)
    one = rc.pair("family/grpo@3", store="somewhere")
    assert asked == [(3, ("sft", "grpo"), "somewhere")]
    assert (one.name, one.method, one.tuned) == ("family/grpo@3", "GRPO", str(tmp_path / "grpo"))


# Before any work


def test_pairs_that_do_not_fit_are_refused_without_reading_a_weight(folders, tmp_path, monkeypatch):
    rc.ModelPair("own", folders["base"], folders["tuned"]).check()
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *_a, **_k: pytest.fail("weights were read")
    )
    monkeypatch.setattr("safetensors.safe_open", lambda *_a, **_k: pytest.fail("weights were read"))
    for name, options, says in (
        ("llama", {"architecture": "llama"}, "differ in architecture: .*Qwen2ForCausalLM, .*LlamaForCausalLM"),
        ("deeper", {"layers": 3}, "differ in number of layers"),
        ("heads", {"layers": 2, "kv_heads": 4}, "differ in number of key/value heads"),
        ("wider", {"layers": 2, "intermediate_size": 64}, "differ in width of the MLP"),
        ("words", {"layers": 2, "words": tuple(WORDS[::-1])}, "different vocabularies"),
        ("small", {"layers": 2, "vocab_size": 40}, "has 53 tokens, but its model embeds 40"),
    ):
        with pytest.raises(rc.InputError, match=says):
            rc.ModelPair("own", folders["base"], save(tmp_path / name, **options)).check()


# Loading


def test_a_model_spread_over_what_there_is(folders, monkeypatch):
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM

    maps, real = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda *a, **k: maps.append(k.get("device_map")) or real(*a, **k)
    )
    spread, plain = (rc.load_model(folders["base"], device=device) for device in (SPREAD, "cpu"))
    assert maps == ["auto", None]
    trace = rc.Trace("p", [3, 4], [5, 6])
    np.testing.assert_array_equal(rc.attribute(spread, [trace]).values, rc.attribute(plain, [trace]).values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("tied", [False, True])
def test_dtypes_and_tied_embeddings(tmp_path, dtype, tied):
    hf = tiny("llama", torch.float32, layers=2, tie_word_embeddings=tied).to(getattr(torch, dtype))
    hf.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = rc.load_model(tmp_path, device="cpu")
    assert model.hf.dtype == getattr(torch, dtype)
    same = model.hf.get_output_embeddings().weight is model.hf.get_input_embeddings().weight
    assert same == tied and torch.equal(model.hf.lm_head.weight, hf.lm_head.weight)
    scores = rc.attribute(model, [rc.Trace("p", [3, 4], [5, 6])])
    assert scores.dtype == np.float32 and np.isfinite(scores.values[:, rc.Graph.of(model).mask]).all()


# Adapters


@pytest.fixture
def adapter(folders, tmp_path):
    """A LoRA adapter with known numbers, and the weights it should lead to, summed up here."""
    peft = pytest.importorskip("peft")
    hf = rc.load_model(folders["base"], device="cpu").hf
    wrapped = peft.get_peft_model(
        hf, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    torch.manual_seed(0)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    wrapped.peft_config["default"].base_model_name_or_path = "nobody/nothing-of-the-sort"
    wrapped.save_pretrained(tmp_path / "adapter")
    from safetensors.torch import load_file

    expected = rc.load_model(folders["base"], device="cpu").hf.state_dict()
    parts = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for key, a in parts.items():
        if ".lora_A." in key:
            expected[key.removeprefix("base_model.model.").replace("lora_A.", "")] += (
                6 / 2 * parts[key.replace("lora_A", "lora_B")] @ a
            )
    return tmp_path / "adapter", expected


def test_an_adapter_is_merged_into_the_pairs_base(folders, adapter, monkeypatch):
    folder, expected = adapter
    loaded = []
    from transformers import AutoModelForCausalLM

    real = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda path, *a, **k: loaded.append(str(path)) or real(path, *a, **k)
    )
    pair = rc.ModelPair("own", folders["base"], folder)
    pair.check()
    model = pair.load("tuned", "cpu")
    assert loaded == [str(folders["base"])]  # nothing that the adapter's file names
    assert model.hf.state_dict().keys() == expected.keys() and not any(p.requires_grad for p in model.hf.parameters())
    for key, value in expected.items():
        torch.testing.assert_close(model.hf.state_dict()[key], value, rtol=1e-5, atol=1e-6)
    assert model.fingerprint == pair.fingerprint("tuned") != pair.fingerprint("base")
    other = rc.ModelPair("own", folders["tuned"], folder)  # the same adapter on another base is another model
    assert other.fingerprint("tuned") != pair.fingerprint("tuned")
    table = rc.weight_change(pair).set_index(["layer", "module"])
    changed = table[table.unchanged < 1]
    assert set(changed.index.get_level_values("module")) == {"self_attn.q_proj", "mlp.down_proj"}


def test_an_adapter_of_another_base_is_said_so(folders, adapter):
    from rlcircuits.models.loading import OtherBase

    folder, _ = adapter
    recorded = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    with pytest.warns(OtherBase, match=f"was trained on '{recorded}' by its own file, and is merged into"):
        rc.ModelPair("own", folders["base"], folder).load("tuned", "cpu")


@pytest.mark.slow
def test_an_adapter_in_a_study(folders, adapter, tmp_path):
    problems = rc.ProblemSet(
        "words", tuple(rc.Problem(f"p{i}", " ".join(WORDS[i : i + 4]), "x") for i in range(6)), "final"
    )
    pair = rc.ModelPair("own", folders["base"], adapter[0], max_new_tokens=5)
    settings = {"keep": "all", "alpha": 1.0, "device": "cpu", "store": tmp_path / "runs"}
    one = rc.study(pair, problems, **settings).pairs["own"]
    expected = rc.attribute(pair.load("tuned", "cpu"), one.selection.tuned_traces, cut=one.selection.t_cut)
    np.testing.assert_array_equal(one.tuned_scores.values, expected.values)


@pytest.mark.slow
def test_one_adapter_on_two_bases_is_two_models(folders, adapter, tmp_path):
    problems = rc.ProblemSet(
        "words", tuple(rc.Problem(f"p{i}", " ".join(WORDS[i : i + 4]), "x") for i in range(6)), "final"
    )
    two = [rc.ModelPair(name, folders[name], adapter[0], max_new_tokens=5) for name in ("base", "tuned")]
    study = rc.study(two, problems, keep="all", alpha=1.0, device="cpu", store=tmp_path / "runs")
    said = [[a.answer for a in study.pairs[name].tuned_answers.values()] for name in ("base", "tuned")]
    assert said[0] != said[1]


def change(folder, **settings):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: change(f, peft_type="IA3"), "of the kind 'IA3': only LoRA"),
        (lambda f: change(f, init_lora_weights="pissa"), "began as 'pissa', which changes the base"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read as the settings"),
        (
            lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
            "adapter_model.bin, which is pickled and never loaded",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "both a whole model and an adapter"),
        (lambda f: change(f, target_modules=["q_proj"]), "has, without a place for it"),
        (lambda f: change(f, target_modules=["q_proj", "down_proj", "up_proj"]), "lacks .*up_proj"),
        (lambda f: change(f, target_modules=["c_attn"]), "does not fit its base"),
        (lambda f: change(f, r=3), "does not fit its base"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"no"), "does not fit its base"),
    ],
)
def test_adapters_that_cannot_be_used(folders, adapter, damage, says):
    damage(adapter[0])
    with pytest.raises(rc.InputError, match=says) as caught:
        rc.ModelPair("own", folders["base"], adapter[0]).load("tuned", "cpu")
    assert str(adapter[0]) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_an_adapter_needs_a_base_and_peft(folders, adapter, monkeypatch):
    with pytest.raises(rc.InputError, match="is a LoRA adapter: give the model it was trained on"):
        rc.load_model(adapter[0])
    with pytest.raises(rc.InputError, match="is a LoRA adapter"):
        rc.ModelPair("own", adapter[0], folders["base"]).check()
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(rc.InputError, match=r"pip install 'rlcircuits\[lora\]'"):
        rc.ModelPair("own", folders["base"], adapter[0]).load("tuned", "cpu")


# How far weights moved


def test_weights_are_compared_shard_by_shard_as_from_memory(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("rlcircuits.models.weights._CHUNK", 100)  # many pieces, even of small weights
    hf = rc.load_model(folders["tuned"], device="cpu").hf
    hf.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    tokenizer().save_pretrained(tmp_path / "shards")
    loaded = rc.weight_change(*(rc.load_model(folders[name], device="cpu") for name in ("base", "tuned")))
    monkeypatch.setattr(
        "transformers.AutoModelForCausalLM.from_pretrained", lambda *_a, **_k: pytest.fail("a model was loaded")
    )
    stored = rc.weight_change(folders["base"], {"shards": tmp_path / "shards"})
    order = ["layer", "module"]
    columns = ["parameters", "norm", "change", "relative", "unchanged"]
    a, b = (t.set_index(order)[columns].sort_index() for t in (loaded, stored))
    assert a.index.equals(b.index)
    np.testing.assert_allclose(a.values.astype(float), b.values.astype(float), rtol=1e-12)
    # The oracle: whole matrices, in numpy.
    from safetensors.numpy import load_file

    before, after = (load_file(folders[name] / "model.safetensors") for name in ("base", "tuned"))
    for (layer, module), row in b.iterrows():
        names = [k for k in before if k.removesuffix(".weight").endswith(module)]
        key = names[0] if len(names) == 1 else next(k for k in names if f".{layer}." in k)
        w, v = before[key].astype(np.float64), after[key].astype(np.float64)
        assert row["norm"] == pytest.approx(np.linalg.norm(w)) and row["change"] == pytest.approx(np.linalg.norm(v - w))
        assert row["unchanged"] == np.mean(w == v) and row["parameters"] == w.size


def test_a_tied_matrix_is_compared_with_a_stored_one(tmp_path):
    for name, tied in (("base", False), ("tuned", True)):
        hf = tiny("llama", torch.float32, layers=2, tie_word_embeddings=tied)
        if not tied:
            hf.lm_head.weight.data = hf.get_input_embeddings().weight.data.clone()
        hf.save_pretrained(tmp_path / name)
        tokenizer().save_pretrained(tmp_path / name)
    table = rc.weight_change(tmp_path / "base", tmp_path / "tuned").set_index("module")
    assert "lm_head" in table.index and (table.unchanged == 1).all()


def test_the_shell_reports_weights(folders, capsys):
    file = registry(folders["root"], own={"base": "./base", "tuned": "./tuned"})
    assert main(["pairs", "--pairs", str(file), "--weights", "own"]) == 0
    said = capsys.readouterr().out
    lines = [line.split()[:2] for line in said.splitlines()]
    assert ["0", "mlp"] in lines and ["0", "attn"] in lines and ["before", "model.embed_tokens"] in lines
    assert len(lines) == 12 and "weights are exactly what they were" in said


# On this machine


def test_the_hubs_cache_counts_as_here(folders, tmp_path, monkeypatch):
    """The layout of the hub's cache, as its documentation describes it: refs/main names a snapshot's folder."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert folder_of("org/name") is None
    hf = tiny("qwen2", torch.float32, layers=2)
    hf.save_pretrained(snapshot, max_shard_size="10KB")
    assert folder_of("org/name") == snapshot and folder_of("org/other") is None
    next(iter(snapshot.glob("model-00002*"))).unlink()
    assert folder_of("org/name") is None  # a download that was interrupted
    assert folder_of(str(folders["base"])) == folders["base"] and folder_of("./nowhere/at/all") is None
