"""Loading checkpoints and pairs, and what is said when that cannot be done."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import rlcircuits as rc
from tests.fixtures.checkpoints import WORDS, save
from tests.fixtures.models import tiny


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2"])
def test_a_saved_checkpoint_comes_back(tmp_path, architecture):
    model = rc.load_model(save(tmp_path / "m", architecture), device="cpu")
    assert not model.hf.training and not any(p.requires_grad for p in model.hf.parameters())
    expected = tiny(architecture, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.hf.state_dict().values(), expected.state_dict().values()))
    assert model.tokenizer.decode(model.tokenizer("w3 w9").input_ids) == "w3 w9"
    trace = rc.Trace("p", [3, 4], [5, 6])
    np.testing.assert_array_equal(rc.attribute(model, [trace]), rc.attribute(expected, [trace]))
    assert rc.Graph.of(model).n_edges == rc.Graph.build("block", 3).n_edges


def test_dtype_and_sharded_checkpoints(tmp_path):
    tiny("qwen2", torch.float32).save_pretrained(tmp_path, max_shard_size="20KB")
    save_tokenizer(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert rc.load_model(tmp_path, device="cpu", dtype="bfloat16").hf.dtype == torch.bfloat16
    assert rc.load_model(tmp_path, device="cpu").hf.dtype == torch.float32


def test_of_a_slice_of_the_positions_the_vocabulary_is_one_product(tmp_path):
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        inputs = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in str(function):  # mm, addmm, bmm
                self.inputs = max(self.inputs, *(one.numel() for one in args if isinstance(one, torch.Tensor)))
            return function(*args, **(kwargs or {}))

    hf = rc.load_model(save(tmp_path), device="cpu", dtype="bfloat16").hf
    whole = hf.get_output_embeddings().weight.numel()
    with Largest() as seen, torch.no_grad():
        hf(torch.ones(4, 5, dtype=torch.long), logits_to_keep=1)
    assert seen.inputs == whole  # a batched product has a copy for each of the 4


def save_tokenizer(folder):
    from tests.fixtures.checkpoints import tokenizer

    tokenizer().save_pretrained(folder)


def test_the_fingerprint_is_of_the_content(tmp_path):
    a, b = save(tmp_path / "a"), save(tmp_path / "b")
    other = save(tmp_path / "c", seed=1)
    prints = [rc.load_model(f, device="cpu").fingerprint for f in (a, b, other)]
    assert prints[0] == prints[1] != prints[2]
    (a / "manifest.json").write_text("{}")  # bookkeeping beside the model does not change the model
    assert rc.load_model(a, device="cpu").fingerprint == prints[0]


def damage(folder, what):
    if what == "truncated":
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
    elif what == "no config":
        (folder / "config.json").unlink()
    elif what == "config is no json":
        (folder / "config.json").write_text("{")
    elif what == "pickled":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif what == "no tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif what == "weights missing":
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights.pop("model.layers.1.mlp.up_proj.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    elif what == "fewer layers in config":
        config = json.loads((folder / "config.json").read_text())
        layers = {k: v[:1] for k, v in config.items() if k == "layer_types"}
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1, **layers}))
    elif what == "git lfs pointer":
        (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif what == "other sizes":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("truncated", "cannot load the checkpoint"),
        ("no config", "holds no config.json"),
        ("config is no json", "config.json cannot be read"),
        ("pickled", "pytorch_model.bin, which is pickled"),
        ("no tokenizer", "cannot load the checkpoint"),
        ("weights missing", "lacks weights.*up_proj"),
        ("other sizes", "checkpoint|another shape"),
        ("fewer layers in config", r"knows no place for: model\.layers\.1\."),
        ("git lfs pointer", "is a Git LFS pointer of 63 bytes, not the weights"),
    ],
)
def test_a_damaged_checkpoint_is_one_clear_message(tmp_path, what, says):
    folder = save(tmp_path / "m")
    damage(folder, what)
    with pytest.raises(rc.InputError, match=says) as caught:
        rc.load_model(folder, device="cpu")
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: rc.load_model("/nowhere/at/all"), "no checkpoint at"),
        (lambda: rc.load_model("./nowhere"), "no checkpoint at"),
        (lambda: rc.load_model(__file__), "is a file"),
        (lambda: rc.load_model(".", dtype="float31"), "did you mean 'float32'"),
        (lambda: rc.load_model(".", device="gpu"), "unknown device 'gpu'"),
        (lambda: rc.load_model(".", device="mps"), "PyTorch sees no MPS device here"),
        (lambda: rc.pair("deepseek-maths"), "did you mean 'deepseek-math'"),
        (lambda: rc.ModelPair("x", "a/b", "a/c", method="RLHF"), "unknown method"),
        (lambda: rc.ModelPair("x", "a/b", "a/c", prompt="no field"), "one '{question}'"),
        (lambda: rc.ModelPair("x", "a/b", "", method="PPO"), "expected a path or a hub id"),
        (lambda: rc.ModelPair("x", "a/b", "a/c", max_new_tokens=0), "max_new_tokens is 0"),
        (lambda: rc.ModelPair("x", "a/b", "a/c", trust_remote_code="yes"), "expected true or false"),
    ],
)
def test_bad_input(make, says):
    with pytest.raises(rc.InputError, match=says):
        make()


def test_an_unreachable_hub_is_one_clear_message(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no retries that wait for a network
    with pytest.raises(rc.InputError, match="as a hub id it could not be had") as caught:
        rc.load_model("someone/no-such-model-here", device="cpu")
    assert len(str(caught.value).splitlines()) == 1


def test_pairs_that_cannot_be_compared(tmp_path):
    load = lambda name, **kw: rc.load_model(save(tmp_path / name, **kw), device="cpu")  # noqa: E731
    base = load("base")
    rc.check_pair(base, load("same", seed=1))
    for name, options, says in (
        ("llama", {"architecture": "llama"}, "differ in architecture"),
        ("deeper", {"layers": 2}, "differ in number of layers"),
        ("words", {"words": tuple(WORDS[::-1])}, "different vocabularies.*first difference"),
    ):
        with pytest.raises(rc.InputError, match=says):
            rc.check_pair(base, load(name, **options))


def test_registered_pairs_are_the_papers():
    pairs = rc.pairs()
    assert {name: p.method for name, p in pairs.items()} == {
        "deepseek-math": "GRPO", "mistral": "PPO", "distilled-qwen": "GRPO", "qwen2.5": "DPO",
    }  # fmt: skip
    assert pairs["deepseek-math"].prompt.replace("{question}", "1 + 1?").endswith("within \\boxed{}.\n\nAssistant:")


def test_the_shell(capsys):
    from rlcircuits.cli.main import main

    assert main(["pairs"]) == 0
    assert "math-shepherd-mistral-7b-rl" in capsys.readouterr().out
    assert main(["family", "--members", "gpro"]) == 2
    assert "did you mean 'grpo'" in capsys.readouterr().err
    assert main(["familly"]) == 2
    assert "did you mean 'family'" in capsys.readouterr().err.lower()


def test_weight_change_of_a_known_update(tmp_path):
    base, tuned = (rc.load_model(save(tmp_path / n), device="cpu") for n in "ab")
    with torch.no_grad():
        weight = tuned.hf.model.layers[1].mlp.up_proj.weight
        weight[0] *= 1.5
    table = rc.weight_change(base, {"half up": tuned}).set_index(["layer", "module"])
    before = base.hf.model.layers[1].mlp.up_proj.weight
    row = table.loc[(1, "mlp.up_proj")]
    assert row.relative == pytest.approx(float(0.5 * before[0].norm() / before.norm()), rel=1e-5)
    assert row.unchanged == pytest.approx(1 - 1 / before.shape[0])
    others = table.drop((1, "mlp.up_proj"))
    assert (others.relative.fillna(0) == 0).all() and (others.unchanged == 1).all()
    layers = list(dict.fromkeys(table.index.get_level_values("layer")))
    assert layers == [-1, *range(base.hf.config.num_hidden_layers + 1)]
    assert (-1, "model.embed_tokens") in table.index and {(layers[-1], "lm_head"), (layers[-1], "model.norm")} <= set(
        table.index
    )
