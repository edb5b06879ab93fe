"""How far weights moved and in which directions, against whole matrices, singular value decompositions and peft."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import rlcircuits as rc
from rlcircuits.models import weights
from rlcircuits.models.spectra import spectrum
from tests.fixtures.checkpoints import tokenizer
from tests.fixtures.models import tiny


def pieces(weight, change, step=7):
    """Both matrices a few rows at a time, as often as asked for."""
    return lambda: zip(weight.split(step), change.split(step))


def drawn(rows, columns, falling=0.7, seed=0):
    """A matrix whose singular values fall by a factor, and its decomposition."""
    rng = np.random.default_rng(seed)
    n = min(rows, columns)
    u, v = (np.linalg.qr(rng.standard_normal((side, n)))[0] for side in (rows, columns))
    s = falling ** np.arange(n)
    return torch.from_numpy(u * s @ v.T), torch.from_numpy(u), torch.from_numpy(v)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (5, 80), (80, 5), (1, 9), (9, 1)])
def test_rank_and_shares_are_those_of_the_whole_decomposition(shape):
    weight, change = drawn(*shape)[0], drawn(*shape, falling=0.9, seed=1)[0] * 1e-3
    found = spectrum(pieces(weight, change), *shape, 4)
    k = min(4, *shape)
    u, _, vt = np.linalg.svd(weight.numpy())
    sizes = np.linalg.svd(change.numpy(), compute_uv=False)
    total = (sizes**2).sum()
    expected = {
        "stable_rank": total / sizes[0] ** 2,
        "left": ((u[:, :k].T @ change.numpy()) ** 2).sum() / total,
        "right": ((change.numpy() @ vt[:k].T) ** 2).sum() / total,
        "left_random": k / shape[0],
        "right_random": k / shape[1],
    }
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_a_change_along_one_direction_is_found_to_be_that(scale):
    """Known by hand: of rank one, within W's directions on the left and outside them on the right."""
    weight, u, v = drawn(50, 40)
    change = scale * torch.outer(u[:, 2], v[:, 30])
    found = spectrum(pieces(weight, change), 50, 40, 3)
    assert found["stable_rank"] == pytest.approx(1)
    assert found["left"] == pytest.approx(1) and found["right"] == pytest.approx(0, abs=1e-6)


def test_a_rotation_has_full_rank_and_knows_nothing_of_the_weight():
    weight = drawn(64, 64)[0].float()
    rotation = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    found = spectrum(pieces(weight, 0.01 * rotation), 64, 64, 8)
    assert found["stable_rank"] == pytest.approx(64, rel=1e-4)
    assert found["left"] == pytest.approx(8 / 64, rel=1e-4) == found["left_random"]
    assert found["right"] == pytest.approx(found["right_random"], rel=1e-4)


def test_what_did_not_change_has_no_rank():
    weight = drawn(8, 6)[0]
    found = spectrum(pieces(weight, torch.zeros_like(weight)), 8, 6, 2)
    assert np.isnan([found[name] for name in ("stable_rank", "left", "right")]).all()
    assert found["left_random"] == 2 / 8


@pytest.fixture
def saved(tmp_path):
    """A checkpoint, in shards."""
    hf = tiny("llama", torch.float32, layers=2)
    hf.save_pretrained(tmp_path / "base", max_shard_size="20KB")
    tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base", hf


def changed(saved, change, dtype=torch.float32):
    """The checkpoint after `change` did something to the model."""
    folder, hf = saved
    with torch.no_grad():
        change(hf)
    hf.to(dtype).save_pretrained(folder.parent / "tuned", max_shard_size="20KB")
    tokenizer().save_pretrained(folder.parent / "tuned")
    return folder.parent / "tuned"


def test_one_module_that_changed_is_found_with_its_direction(saved, monkeypatch):
    """One MLP's row changed, along what it reads most: held at once and read again and again alike."""

    def one_row(hf):
        weight = hf.model.layers[1].mlp.up_proj.weight
        weight[5] += 0.5 * torch.linalg.svd(weight, full_matrices=False)[2][0]

    tuned = changed(saved, one_row)
    table = rc.weight_change(saved[0], {"tuned": tuned}, directions=1).set_index(["layer", "module"])
    row = table.loc[(1, "mlp.up_proj")]
    assert row["stable_rank"] == pytest.approx(1, rel=1e-4) and row["right"] == pytest.approx(1, rel=1e-4)
    assert row["unchanged"] == pytest.approx(47 / 48) and row["change"] == pytest.approx(0.5, rel=1e-4)
    others = table.drop((1, "mlp.up_proj"))
    assert (others["unchanged"] == 1).all() and others["stable_rank"].isna().all()
    assert table.loc[(0, "input_layernorm"), ["left", "left_random"]].isna().all()
    monkeypatch.setattr(weights, "_HELD", 0)
    monkeypatch.setattr(weights, "_CHUNK", 100)
    again = rc.weight_change(saved[0], {"tuned": tuned}, directions=1).set_index(["layer", "module"])
    np.testing.assert_allclose(again.drop(columns="model"), table.drop(columns="model"), rtol=1e-4)


def test_an_update_lost_to_rounding_is_told_from_one_that_is_not_there(saved):
    """Every number moves by 2^-12 of itself, which float32 holds and bfloat16 (8 bits) mostly does not."""
    tuned = changed(saved, lambda hf: [p.mul_(1 + 2**-12) for p in hf.parameters()])
    before, after = (
        {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
        for folder in (saved[0], tuned)
    )
    table = rc.weight_change(saved[0], {"tuned": tuned})
    assert (table["unchanged"] == 0).all()
    same = sum(int((before[k].bfloat16() == after[k].bfloat16()).sum()) for k in before)
    assert (table["unchanged_bfloat16"] * table["parameters"]).sum() == pytest.approx(same)
    assert same / table["parameters"].sum() > 0.8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_plain_adapter_is_compared_without_loading_a_model(saved, monkeypatch, dtype, rslora):
    peft = pytest.importorskip("peft")
    folder = saved[0].parent / "stored"
    saved[1].to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    settings = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], use_rslora=rslora)
    wrapped = peft.get_peft_model(saved[1], settings)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    wrapped.peft_config["default"].base_model_name_or_path = "stored"
    wrapped.save_pretrained(saved[0].parent / "adapter")
    pair = rc.ModelPair("own", folder, saved[0].parent / "adapter")
    merged = rc.weight_change(rc.load_model(folder, "cpu"), {"own": pair.load("tuned", "cpu")}, directions=3)
    load = "transformers.AutoModelForCausalLM.from_pretrained"
    monkeypatch.setattr(load, lambda *_a, **_k: pytest.fail("a model was loaded"))
    table = rc.weight_change(pair, directions=3)
    order = ["layer", "module"]
    values = [one.drop(columns="model").set_index(order).sort_index() for one in (table, merged)]
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-6)
    moved = table[table["unchanged"] < 1]
    assert set(moved["module"]) == {"self_attn.q_proj", "mlp.down_proj"}
    if dtype == torch.float32:
        assert (moved["stable_rank"] <= 2 + 1e-3).all()


def test_an_adapter_with_more_to_it_is_merged_first(saved, monkeypatch):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], rank_pattern={"v_proj": 1}, alpha_pattern={"v_proj": 3}
    )
    wrapped = peft.get_peft_model(saved[1], settings)
    for parameter in wrapped.parameters():
        torch.nn.init.normal_(parameter.data, 0, 0.1) if parameter.requires_grad else None
    wrapped.peft_config["default"].base_model_name_or_path = "base"
    wrapped.save_pretrained(saved[0].parent / "adapter")
    loaded = []
    real = rc.ModelPair.load
    monkeypatch.setattr(rc.ModelPair, "load", lambda *a, **k: loaded.append(a[1]) or real(*a, **k))
    table = rc.weight_change(rc.ModelPair("own", saved[0], saved[0].parent / "adapter"))
    assert loaded == ["tuned"]
    assert set(table[table["unchanged"] < 1]["module"]) == {"self_attn.q_proj", "self_attn.v_proj"}


def test_files_that_lack_something_are_refused(saved):
    tuned = changed(saved, lambda hf: None)
    shard = sorted(tuned.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-3])
    with pytest.raises(rc.InputError, match="tuned") as caught:
        rc.weight_change(saved[0], {"tuned": tuned})
    assert len(str(caught.value).splitlines()) == 1
    shard.unlink()
    with pytest.raises(rc.InputError, match=f"lacks {shard.name}: is the download complete"):
        rc.weight_change(saved[0], {"tuned": tuned})


def test_other_kinds_of_numbers_are_read_as_they_are_stored(tmp_path):
    """A file's own bytes, of every kind it may hold, one row at a time."""
    kinds = {kind: getattr(torch, name) for kind, name in weights._DTYPES.items()}
    made = {kind: torch.arange(12).reshape(4, 3).to(dtype) for kind, dtype in kinds.items()} | {
        "one": torch.tensor(2.5)
    }
    save_file(made, tmp_path / "model.safetensors")
    stored = weights._Stored("x", tmp_path)
    for kind, values in made.items():
        assert stored.shape(kind) == tuple(values.shape)
        assert torch.equal(stored.rows(kind, 1, 3).float(), values[1:3].float() if values.ndim else values)


@pytest.mark.parametrize("directions", [0, -1, 1.5, True])
def test_directions_are_a_whole_number(saved, directions):
    with pytest.raises(rc.InputError, match="directions is"):
        rc.weight_change(saved[0], {"tuned": saved[0]}, directions=directions)
