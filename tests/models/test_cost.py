"""Costs from a configuration alone, against real models, PyTorch's own count of operations, and measured memory."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

import rlcircuits as rc
from benchmarks import attribution as bench
from rlcircuits.cli.main import main
from rlcircuits.models.cost import estimate, parameters, throughput
from tests.fixtures.checkpoints import save
from tests.fixtures.models import KINDS, tiny

ROOT = Path(__file__).resolve().parents[2]
#: published sizes of models, by shapes written down here
PUBLISHED = {
    "Qwen2.5-7B": (7_615_616_512, {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}),
    "Qwen2.5-0.5B": (494_032_768, {"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                    "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True}),
    "Mistral-7B": (7_241_732_096, {"model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000}),
    "Llama-2-7B": (6_738_415_616, {"model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
                    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_that_were_published(name):
    count, config = PUBLISHED[name]
    assert parameters(config) == count
    found = estimate(config, tokens=10, dtype="bfloat16", device_flops=1e12)
    assert found.parameters == count and found.weight_bytes == 2 * count


def test_the_registered_pairs_have_these_sizes_without_any_file():
    sizes = {name: estimate(name, tokens=10, device_flops=1e12).parameters for name in rc.pairs()}
    assert {name: pair.parameters for name, pair in rc.pairs().items()} == sizes
    assert sizes["mistral"] == PUBLISHED["Mistral-7B"][0]
    assert sizes["qwen2.5"] == sizes["distilled-qwen"] == PUBLISHED["Qwen2.5-7B"][0]
    # deepseek-math by hand: two embeddings, 30 layers of four square matrices, three of the MLP and two norms, one norm
    # more
    assert sizes["deepseek-math"] == 2 * 102400 * 4096 + 30 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "mixtral" not in kind and "moe" not in kind])
def test_counts_are_those_of_real_models(kind, tmp_path):
    hf = tiny(kind, torch.float32, layers=2)
    (tmp_path / "config.json").write_text(json.dumps(hf.config.to_dict()))
    found = estimate(tmp_path, tokens=10, dtype="float32", device_flops=1e12)
    assert found.parameters == sum(p.numel() for p in hf.parameters())
    assert found.weight_bytes == sum(p.numel() * p.element_size() for p in hf.parameters())
    assert found.edges == rc.Graph.of(hf).n_edges


@pytest.mark.parametrize("layers", [2, 6])
def test_operations_are_those_that_pytorch_counts(layers):
    """A forward and a backward pass to the activations of a real model, counted operation by operation."""
    from torch.utils.flop_counter import FlopCounterMode

    config = {"model_type": "llama", "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": layers, "num_attention_heads": 4,
              "num_key_value_heads": 4, "vocab_size": 500, "attn_implementation": "eager"}  # fmt: skip
    from transformers import AutoConfig, AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config)).requires_grad_(False)
    ids = torch.arange(200)[None]
    with FlopCounterMode(display=False) as counted:
        stream = hf.get_input_embeddings()(ids).requires_grad_()
        hf(inputs_embeds=stream, use_cache=False).logits.sum().backward()
    graph = rc.Graph.build("block", layers, 4)
    contraction = 2 * 200 * 128 * len(graph.sources) * len(graph.destinations)
    found = estimate(config, tokens=200, device_flops=1e12)
    assert found.flops == pytest.approx(counted.get_total_flops() + contraction, rel=0.02)
    assert found.trace_seconds == pytest.approx(found.flops / 1e12)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is measured on Linux only")
def test_memory_is_about_what_a_pass_takes():
    """Measured now, in a process of its own; an estimate that is meant to be enough may be above, and not by much."""
    shape = bench.Shape("small", "Llama", 6, 256, 4, 4, 704, 512)
    config = {"model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4,
              "num_key_value_heads": 4, "vocab_size": 512}  # fmt: skip
    found = estimate(config, tokens=1024, dtype="float32", device_flops=1e12)
    short, long = (bench.peak("block", None, shape, tokens, bench.Where()) for tokens in (64, 1024))
    if not long:
        pytest.skip("peak memory is read from Linux' /proc")
    assert 0.7 < found.trace_bytes / long < 2 and short < long / 2


@pytest.mark.parametrize("case", ["block", "qkv", "head", "block lean", "qkv lean", "head lean"])
def test_memory_is_about_what_the_benchmark_measured(case):
    """The recorded peaks, of 256 tokens: so few that what a lean pass needs at any length is half of its peak."""
    table = pd.read_parquet(ROOT / "results" / "benchmarks" / "cpu.parquet")
    row = table[(table["suite"] == "levels") & (table["case"] == case) & (table["shape"] == bench.SMALL.name)].iloc[0]
    level, _, lean = case.partition(" ")
    shape = bench.SMALL
    config = {"model_type": "qwen2", "hidden_size": shape.width, "intermediate_size": shape.mlp, "num_hidden_layers": shape.layers,
              "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "vocab_size": shape.vocabulary}  # fmt: skip
    found = estimate(config, tokens=int(row["tokens"]), level=level, dtype="float32", device_flops=1e12)
    assert 0.4 < (found.lean_trace_bytes if lean else found.trace_bytes) / (row["peak_mib"] * 2**20) < 2


def test_more_costs_more(tmp_path):
    config = PUBLISHED["Qwen2.5-0.5B"][1]
    by_level = [estimate(config, tokens=100, level=level, device_flops=1e12) for level in ("block", "qkv", "head")]
    assert by_level[0].flops < by_level[1].flops < by_level[2].flops
    assert by_level[0].edges < by_level[1].edges < by_level[2].edges
    longer = estimate(config, tokens=200, device_flops=1e12)
    assert longer.trace_bytes == 2 * by_level[0].trace_bytes and longer.flops > 2 * by_level[0].flops
    assert estimate(config, tokens=100, lean=True, device_flops=1e12).flops > by_level[0].flops
    assert estimate(config, tokens=100, device_flops=2e12).seconds == pytest.approx(by_level[0].seconds / 2)


def test_a_pair_on_a_problem_set():
    one = estimate("mistral", tokens=100, device_flops=1e14)
    whole = estimate("mistral", 200, tokens=100, device_flops=1e14, n=50, answer_tokens=64)
    assert whole.trace_seconds == one.seconds and whole.seconds > 2 * 50 * one.seconds
    assert "200 problems" in whole.basis and "as given" in whole.basis and "lower bound" in whole.basis
    assert estimate("mistral", 400, tokens=100, device_flops=1e14, n=50, answer_tokens=64).seconds > whole.seconds


def test_the_rate_is_measured_here():
    rate, words = throughput("float32", "cpu")
    assert 1e8 < rate < 1e14 and "float32 just ran on cpu" in words


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: estimate("mistal"), "did you mean 'mistral'"),
        (lambda _: estimate({"model_type": "lama"}), "model_type is 'lama'.*did you mean 'llama'"),
        (lambda _: estimate({}), "model_type is None"),
        (lambda _: estimate({"model_type": "bert", "vocab_size": "many"}), "no causal language model can be made"),
        (lambda _: estimate("mistral", level="blok"), "did you mean 'block'"),
        (lambda _: estimate("mistral", tokens=0), "tokens is 0"),
        (lambda _: estimate("mistral", tokens=1, dtype="int8"), "unknown dtype"),
        (lambda _: estimate("mistral", tokens=1, device_flops=0), "device_flops is 0"),
        (lambda f: estimate(f), "config.json' cannot be read as a configuration"),
    ],
)
def test_bad_input(make, says, tmp_path):
    with pytest.raises(rc.InputError, match=says):
        make(tmp_path)


def test_the_shell(tmp_path, capsys):
    save(tmp_path / "m", layers=2)
    assert main(["estimate", "--pair", "mistral", "--device-flops", "3e14", "--problems", "500"]) == 0
    said = capsys.readouterr().out
    assert "7,241,732,096 parameters" in said and "13.49 GiB in bfloat16" in said and "500 problems" in said
    assert (
        main(["estimate", "--base", str(tmp_path / "m" / "config.json"), "--level", "head", "--device-flops", "1e12"])
        == 0
    )
    assert main(["estimate"]) == 2 and main(["estimate", "--pair", "mistral", "--base", "x"]) == 2
    assert main(["estimate", "--base", str(tmp_path)]) == 2
    assert "expected a model's config.json" in capsys.readouterr().err
