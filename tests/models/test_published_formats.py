"""The published pairs' formats end to end: random weights through the same code as seven billion parameters."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import rlcircuits as rc
from rlcircuits.answers.problems import reference_answer
from rlcircuits.cli.main import main
from rlcircuits.models import encode_prompt
from rlcircuits.models.known import pairs
from rlcircuits.models.tokenizer import load_tokenizer
from tests.fixtures.published_formats import BEGIN, FORMATS, PROBLEMS, problems_file, save, write_model

DATA = os.environ.get("RLCIRCUITS_DATA")
HARD = ("don't stop ABC's\n\n 12 ?!", "  two  spaces ", "Ünï \\boxed{12,345} é漢 {question}", "<think>\nno")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A pair in each format, a file that registers them under their names with -tiny, and problems in GSM8K's form."""
    root = tmp_path_factory.mktemp("published")
    entries = {}
    for name in FORMATS:
        save(name, root / name / "base")
        save(name, root / name / "tuned", seed=1, base=root / name / "base")
        known = pairs()[name]
        entries[f"{name}-tiny"] = {
            "base": f"./{name}/base", "tuned": f"./{name}/tuned", "method": known.method, "prompt": known.prompt, "max_new_tokens": 12,
        }  # fmt: skip
    (root / "pairs.yaml").write_text(yaml.safe_dump(entries))
    problems_file(root)
    return root


@pytest.mark.parametrize("name", FORMATS)
def test_checkpoints_are_read_as_their_files_say(world, name):
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    folder = world / name / "base"
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1 and (folder / "model.safetensors.index.json").is_file()
    model = rc.load_model(folder, device="cpu")
    stored = {key: value for shard in shards for key, value in load_file(shard).items()}
    assert stored.keys() == model.hf.state_dict().keys()
    assert all(torch.equal(value, model.hf.state_dict()[key]) for key, value in stored.items())
    assert model.hf.dtype == torch.bfloat16
    described = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (*HARD, *(question for question, _ in PROBLEMS)):
        assert model.tokenizer(text)["input_ids"] == described.encode(text).ids


def test_prompts_are_the_published_ones(world):
    question = PROBLEMS[1][0]
    said = {}
    for name in FORMATS:
        tokenizer = load_tokenizer(world / name / "base")
        said[name] = tokenizer.decode(encode_prompt(tokenizer, pairs()[name].prompt, question))
    boxed = "Please reason step by step, and put your final answer within \\boxed{}."
    assert said["deepseek-math"] == f"{BEGIN}User: {question}\n{boxed}\n\nAssistant:"
    assert said["mistral"].replace("<s> ", "<s>") == f"<s>[INST] {question}[/INST]"
    assert said["distilled-qwen"] == f"{BEGIN}<｜User｜>{question}<｜Assistant｜><think>\n"
    assert (
        said["qwen2.5"]
        == f"<|im_start|>system\n{boxed}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_from_the_shell_to_a_table(world, tmp_path, capsys, name):
    """Random models answer nothing right, so all answers are compared; the accuracy that is reported says so."""
    file = f"{DATA}/gsm8k_test.jsonl" if DATA else world / "gsm8k.jsonl"
    arguments = [
        "attribute",
        "--pair",
        f"{name}-tiny",
        "--pairs",
        world / "pairs.yaml",
        "--problems",
        f"gsm8k={file}",
        "--limit",
        8,
    ]
    arguments += [
        "--keep",
        "all",
        "--device",
        "cpu",
        "--store",
        tmp_path / "runs",
        "--out",
        tmp_path / "out",
        "--batch-size",
        4,
    ]
    done = main([str(one) for one in arguments])
    said = capsys.readouterr()
    assert done == 0, said.err
    found = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert found["problems"] == 8 and found["kept"] and found["asked"]["problems"] == "gsm8k"
    table = pd.read_parquet(tmp_path / "out" / "metrics.parquet").set_index("metric")
    scores = rc.load_scores(tmp_path / "out" / "tuned.nc")
    assert scores.sizes["sample"] == len(found["kept"]) and np.isfinite(table.loc["activation_intensity", "tuned"])
    assert table.loc["activation_intensity", "tuned"] == pytest.approx(float(np.abs(scores).mean()), rel=1e-5)
    assert not list((tmp_path / "runs" / "unfinished").glob("*"))


def taught(folder: Path, problems: rc.ProblemSet, prompt: str, steps: int) -> None:
    """Let a checkpoint learn the set's own answers by heart, `\\boxed{…}` and the end, and save it in place."""
    model = rc.load_model(folder, device="cpu", dtype="float32")
    ends = [model.tokenizer.eos_token_id]
    rows = []
    for problem in problems:
        final = reference_answer(problems, problem)
        said = model.tokenizer(f" \\boxed{{{final}}}", add_special_tokens=False)["input_ids"] + ends
        rows.append((list(encode_prompt(model.tokenizer, prompt, problem.question)), said))
    width = max(len(a) + len(b) for a, b in rows)
    ids = torch.tensor([a + b + ends * (width - len(a) - len(b)) for a, b in rows])
    labels = torch.tensor([[-100] * len(a) + b + [-100] * (width - len(a) - len(b)) for a, b in rows])
    model.hf.requires_grad_(True)
    optimiser = torch.optim.Adam(model.hf.parameters(), 3e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        model.hf(ids, labels=labels).loss.backward()
        optimiser.step()
    for shard in folder.glob("model*"):
        shard.unlink()
    write_model(model.hf.to(torch.bfloat16), folder)


@pytest.mark.slow
def test_problems_that_both_answer_correctly_are_kept(world, tmp_path):
    """Two models that know some problems by heart: the rules keep those that both solve, by mathematics."""
    pytest.importorskip("math_verify")
    problems = rc.problem_set(f"gsm8k={world / 'gsm8k.jsonl'}")
    prompt = pairs()["deepseek-math"].prompt
    save("deepseek-math", tmp_path / "base")
    taught(tmp_path / "base", problems, prompt, 120)
    save("deepseek-math", tmp_path / "tuned", base=tmp_path / "base", change=0.001)
    pair = rc.ModelPair("taught", tmp_path / "base", tmp_path / "tuned", "GRPO", prompt, 24)
    one = rc.study(pair, problems, alpha=1.0, store=tmp_path / "runs", device="cpu").pairs["taught"]
    right = {i for i, a in one.base_answers.items() if a.correct} & {
        i for i, a in one.tuned_answers.items() if a.correct
    }
    assert len(right) >= 4 and set(one.selection.problems) <= right
    first = one.base_answers[one.selection.problems[0]]
    assert "\\boxed{" in first.text and first.finished


def test_every_pair_is_listed_with_its_size(world, capsys):
    from safetensors.torch import load_file

    table = rc.pair_table(world / "pairs.yaml", world / "runs").set_index("pair")
    for name in FORMATS:
        count = sum(v.numel() for f in (world / name / "base").glob("model-*") for v in load_file(f).values())
        assert table.loc[f"{name}-tiny", "parameters"] == count and table.loc[f"{name}-tiny", "here"] == "both"
    assert table.loc["family/ppo", "here"] == "no" and pd.isna(table.loc["family/ppo", "parameters"])
    assert main(["pairs", "--pairs", str(world / "pairs.yaml"), "--store", str(world / "runs")]) == 0
    said = capsys.readouterr().out
    assert "mistral-tiny" in said and "iterative on-policy DPO" in said
