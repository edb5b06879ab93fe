"""What goes wrong in a first hour, and the one line that each must give; no model answers before it is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from rlcircuits.answers import generation
from rlcircuits.cli.main import main
from tests.fixtures.shell import options
from tests.fixtures.sweeps import write_notebook

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 268435456\n"
ONE = {"base": None, "tuned": None}


def changed(folder: Path, file: str, **changes) -> None:
    """Change entries of a JSON file; None removes one."""
    content = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


@pytest.fixture(scope="module")
def wrong(world):
    """The world of commands, and what may be wrong with files."""
    for name in ("empty", "unnamed", "deeper", "pointer", "cut", "pickled", "unasked", "wordless"):
        shutil.copytree(world / "base", world / name)
    for file in (world / "empty").iterdir():
        file.unlink()
    (world / "unnamed" / "config.json").unlink()
    changed(world / "deeper", "config.json", num_hidden_layers=3, layer_types=None)
    (world / "pointer" / "model.safetensors").write_text(LFS)
    content = (world / "cut" / "model.safetensors").read_bytes()
    (world / "cut" / "model.safetensors").write_bytes(content[:-100])
    (world / "pickled" / "model.safetensors").unlink()
    torch.save({}, world / "pickled" / "pytorch_model.bin")
    changed(world / "unasked", "config.json", model_type="lama")
    for file in (world / "wordless").glob("token*"):
        file.unlink()
    (world / "adapter").mkdir()
    (world / "adapter" / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "base"}')
    files = {
        "none.jsonl": "",
        "half.jsonl": '{"question": "#w1 #w2", "right": "w3"}\n{"question": "#w1',
        "list.jsonl": '["#w1"]\n',
        "void.jsonl": '{"question": "", "right": "w3"}\n',
        "twice.jsonl": '{"question": "#w1", "right": "w3", "id": "a"}\n' * 2,
        "long.jsonl": json.dumps({"question": "#w1 " * 70, "right": "w3"}) + "\n",
        "text.parquet": "no parquet",
        "notes.txt": "#w1",
        "broken.yaml": "own: {base: [",
        "halfpair.yaml": yaml.safe_dump({"own": {"base": "base"}}),
        "keys.yaml": yaml.safe_dump({"own": {"base": "base", "tuned": "tuned", "promt": "chat"}}),
        "sets.yaml": yaml.safe_dump({"own": {"path": "problems.jsonl", "grader": "exactly"}}),
        "grid.yaml": yaml.safe_dump({"notebook": "one.ipynb", "grid": {"y": [1]}}),
        "nowhere.yaml": yaml.safe_dump({"notebook": "two.ipynb", "grid": {"x": [1]}}),
        "nothing.yaml": yaml.safe_dump({"notebook": "one.ipynb"}),
        "strange.yaml": yaml.safe_dump({"notebook": "one.ipynb", "gird": {"x": [1]}}),
        "other.jsonl": json.dumps({"side": "base", "problem": "elsewhere", "prompt": [3], "answer": [4]}) + "\n",
        "lines.jsonl": "no answers\n",
    }
    for name, text in files.items():
        (world / name).write_text(text)
    write_notebook(world / "one.ipynb", ["x = 1", "print(x)"])
    return world


MODELS = [
    ({**ONE, "pair": "famly/grpo", "problems": None}, "unknown pair 'famly/grpo'.*did you mean 'family/grpo'"),
    ({**ONE, "pair": "mistrl"}, "unknown pair 'mistrl'.*did you mean 'mistral'"),
    ({"pair": "mistral"}, "both --pair and --base"),
    ({"base": None}, "only --tuned is given"),
    (ONE, "no model is given"),
    ({"base": "/nowhere/x"}, "no checkpoint at '/nowhere/x'"),
    ({"base": "{root}/problems.jsonl"}, "problems.jsonl' is a file: expected the folder that holds config.json"),
    ({"base": "{root}/empty"}, "empty' holds no config.json.*expected config.json and "),
    ({"base": "{root}/unnamed"}, "unnamed' holds no config.json"),
    ({"base": "{root}/deeper"}, "differ in number of layers: '.*deeper' has 3, '.*tuned' has 2"),
    ({"base": "{root}/pointer"}, "is a Git LFS pointer of 134 bytes, not the weights: fetch them with `git lfs pull`"),
    ({"base": "{root}/cut"}, "cannot load the checkpoint in '.*cut': .*(damaged|cut off)"),
    (
        {"base": "{root}/pickled"},
        "holds no .*safetensors but pytorch_model.bin, which is pickled and never loaded; save the model",
    ),
    ({"base": "{root}/unasked"}, "cannot load the checkpoint in '.*unasked': .*model type `lama`"),
    ({"base": "{root}/wordless"}, "it holds no tokenizer files .*; save the tokenizer beside the model"),
    ({"base": "{root}/deeper", "tuned": None}, "deeper' lacks weights .*: model.layers.2.*is the download complete"),
    ({"tuned": "{root}/adapter"}, "the adapter in '.*adapter' has no adapter_model.safetensors; save it with"),
    ({"tuned": "{root}/other"}, "different vocabularies"),
    ({"pairs": "{root}/keys.yaml"}, "--pairs adds pairs by name, and none is named: expected --pair NAME"),
    ({**ONE, "pair": "own", "pairs": "{root}/absent.yaml"}, "no file '.*absent.yaml': expected YAML"),
    ({**ONE, "pair": "own", "pairs": "{root}/broken.yaml"}, "broken.yaml' is not YAML that can be used .*line 1"),
    ({**ONE, "pair": "own", "pairs": "{root}/halfpair.yaml"}, "halfpair.yaml': 'own' has no tuned: expected a path"),
    ({**ONE, "pair": "own", "pairs": "{root}/keys.yaml"}, "'own' has the unknown key 'promt'.*did you mean 'prompt'"),
    ({"device": "gpu"}, "unknown device 'gpu': expected 'auto', 'cpu'"),
    ({"device": "cuda:9"}, "device 'cuda:9' was asked for, but"),
    ({"dtype": "bf16"}, "unknown dtype 'bf16'"),
    ({"engine": "vlm"}, "unknown engine 'vlm'.*did you mean 'vllm'"),
    ({"prompt": "Answer this:"}, "prompt is 'Answer this:': expected a template with one '{question}', or 'chat'"),
    ({"prompt": "chat"}, "the tokenizer has no chat template: give a template with"),
    ({"system": "You are terse."}, "--system is the first turn of a chat: expected --prompt chat"),
    ({"few-shot": "{root}/problems.jsonl:3"}, "--few-shot is '.*:3': all of its problems are among those asked"),
    ({"few-shot": "{root}/absent.jsonl"}, "absent.jsonl': no such file"),
]
PROBLEMS = [
    ({**ONE, "pair": "mistral", "problems": None}, "no problems are given: expected --problems FILE"),
    ({"problems": "{root}/problem.jsonl"}, "no such file; did you mean 'problems.jsonl'"),
    ({"problems": "gsm8", "answer": None, "grader": None}, "unknown problem set 'gsm8'.*did you mean 'gsm8k'"),
    ({"problems": "{root}/none.jsonl"}, "none.jsonl' holds no problems: expected one per line or row"),
    ({"problems": "{root}/half.jsonl"}, "half.jsonl', line 2 is not JSON .*expected one JSON object per line"),
    ({"problems": "{root}/list.jsonl"}, "line 1 holds a list: expected a JSON object with question and right"),
    ({"problems": "{root}/void.jsonl"}, "line 1: field 'question' is empty"),
    ({"problems": "{root}/twice.jsonl", "id": "id"}, "line 2: id 'a' is that of line 1 too; choose a field"),
    (
        {"problems": "{root}/long.jsonl"},
        "prompt of problem 'long/0' has 70 tokens, which leaves nothing of the 64 .*shorten",
    ),
    ({"problems": "{root}/text.parquet"}, "text.parquet' cannot be read as parquet"),
    ({"problems": "{root}/notes.txt"}, "notes.txt': expected a file that ends in .jsonl or .parquet"),
    ({"problems": "{root}"}, "it is a folder, expected a file of JSON lines or parquet"),
    (
        {"problems": "own", "sets": "{root}/sets.yaml"},
        "sets.yaml': 'own' has no question: expected the name of the field",
    ),
    ({"answer": "rihgt"}, r"problems.jsonl', line 1 has no field 'rihgt'.*did you mean 'right'"),
    ({"id": "nmae"}, "line 1 has no field 'nmae'.*did you mean 'name'"),
    ({"grader": "finl"}, "unknown grader 'finl'.*did you mean 'final'"),
    ({"extractor": "box"}, "unknown extractor 'box'.*did you mean 'boxed'"),
    ({**ONE, "pair": "family/grpo", "problems": None}, "--answer is given, but 'family/grpo' brings its own problems"),
    ({"beta": 2}, "--beta is 2.0 and --gamma is 1.5"),
    ({"answers": "{root}/problems.jsonl"}, "--max-new-tokens is given, but --answers are there already"),
    ({"keep": "both"}, "unknown keep 'both'"),
    ({"answers": "{root}/absent.jsonl", "max-new-tokens": None}, "absent.jsonl"),
    ({"answers": "{root}/lines.jsonl", "max-new-tokens": None}, "lines.jsonl', line 1"),
    ({"answers": "{root}/other.jsonl", "max-new-tokens": None}, "line 1: 'elsewhere' is no problem of 'problems'"),
]
SCORES = [
    ({"level": "heads"}, "unknown level 'heads'.*did you mean 'head'"),
    ({"intervention": "corrupted"}, "unknown intervention 'corrupted'"),
    ({"intervention": "model", "tuned": None}, "give that model as --tuned"),
    ({"loss": "kl", "tuned": None}, "--loss kl is of another model: give that model as --tuned"),
    ({"memory": "leen"}, "unknown memory 'leen'.*did you mean 'lean'"),
    ({"out": "{root}/problems.jsonl"}, "is a file: expected a folder"),
    ({"store": "{root}/problems.jsonl"}, "the store .* is a file"),
    ({"html": "study.htm"}, "--html 'study.htm': expected the name of a file that ends in .html"),
]
NUMBERS = [
    ({"alpha": "1.5"}, "'--alpha': '1.5', expected a number above 0 and at most 1"),
    ({"alpha": "much"}, "'--alpha': 'much'"),
    ({"n": 0}, "'--n': '0', expected a whole number of at least 1"),
    ({"limit": 0}, "'--limit': '0', expected a whole number of at least 1"),
    ({"max-new-tokens": 0}, "'--max-new-tokens': '0', expected a whole number of at least 1"),
    ({"batch-size": "big"}, "'--batch-size': 'big', expected auto or"),
    ({"seed": -1}, "'--seed': '-1', expected a whole number of at least 0"),
    ({"ig-steps": 0}, "'--ig-steps': '0'"),
    ({"trust": "some"}, "'--trust': 'some', expected auto, none or a whole number above 0"),
    ({"levl": "head"}, "no such option: --levl; did you mean '--level'"),
]
COMMANDS = [
    ([], "missing command"),
    (["problms"], "no such command 'problms'. Did you mean 'problems'"),
    (["--verbose"], "no such option: --verbose"),
    (["answers", "--pair", "mistral"], "missing option '--out'"),
    (["attribute", "--n"], "option '--n' requires an argument"),
    (["pairs", "mistral"], r"got unexpected extra argument\(s\) \(mistral\)"),
    (["pairs", "a\nb\x1b[0m"], "unexpected extra argument"),
    (["family", "--seeds", "0,b"], "'--seeds': 'b', expected a whole number"),
    (["family", "--base", "llma"], "did you mean 'llama'"),
]
OTHERS = [
    (
        [
            "answers",
            "--base",
            "{root}/base",
            "--problems",
            "{root}/problems.jsonl",
            "--answer",
            "right",
            "--out",
            "a.txt",
        ],
        "--out is 'a.txt': expected a file that ends in .jsonl",
    ),
    (
        ["answers", "--base", "{root}/base", "--problems", "{root}/problem.jsonl", "--out", "a.jsonl"],
        "problem.jsonl': no such file; did you mean 'problems.jsonl'",
    ),
    (["problems", "--limit", "3"], "--limit is given, but no set is named"),
    (["estimate", "--pair", "mistral", "--tokens", "9", "--answer-tokens", "9"], "--answer-tokens is given, but"),
    (["problems", "gsm8"], "unknown problem set 'gsm8'.*did you mean 'gsm8k'"),
    (["pairs", "--weights", "mistrl"], "unknown pair 'mistrl'.*did you mean 'mistral'"),
    (["estimate"], "no model is given: expected --pair NAME, or --base PATH"),
    (["estimate", "--base", "/nowhere/x"], "no configuration at '/nowhere/x'"),
    (["sweep", "{root}/absent.yaml"], "no sweep file at '.*absent.yaml'"),
    (["sweep", "{root}/broken.yaml"], "broken.yaml, line 1 is not YAML that can be used"),
    (
        ["sweep", "{root}/grid.yaml", "--out", "{root}/s"],
        "grid: y: one.ipynb: unknown parameter 'y': the notebook has x",
    ),
    (["sweep", "{root}/nowhere.yaml", "--out", "{root}/s"], "no file 'two.ipynb' seen from .*did you mean 'one.ipynb'"),
    (["sweep", "{root}/nothing.yaml", "--out", "{root}/s"], "nothing.yaml has no cells: expected grid with lists"),
    (["sweep", "{root}/strange.yaml", "--out", "{root}/s"], "unknown key 'gird'.*did you mean 'grid'"),
    (["sweep", "{root}/grid.yaml", "--engine", "locl"], "unknown engine 'locl'.*did you mean 'local'"),
]


def message(capsys, arguments: list[str]) -> str:
    """The one line, which is all that the command says at its end."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    line = said.err.strip().splitlines()[-1]
    assert line.startswith("rlcircuits: ") and "\x1b" not in line
    return line


@pytest.mark.parametrize(("changes", "says"), [*MODELS, *PROBLEMS, *SCORES])
def test_a_wrong_input_is_one_line_and_nothing_is_done(wrong, capsys, monkeypatch, changes, says):
    monkeypatch.setattr(generation, "_answer_batch", lambda *_a, **_k: pytest.fail("a model answered"))
    changes = {k: v.format(root=wrong) if isinstance(v, str) else v for k, v in changes.items()}
    line = message(capsys, options(wrong, **{"out": wrong / "bad", **changes}))
    assert re.search(says, line), line
    assert not (wrong / "bad").exists()


@pytest.mark.parametrize(("arguments", "says"), OTHERS)
def test_so_it_is_for_the_other_commands(wrong, capsys, monkeypatch, arguments, says):
    monkeypatch.chdir(wrong)
    line = message(capsys, [one.format(root=wrong) for one in arguments])
    assert re.search(says, line), line


@pytest.mark.parametrize(("given", "says"), [*NUMBERS, *COMMANDS])
def test_a_command_line_that_cannot_be_understood(wrong, capsys, given, says):
    assert main(options(wrong, **given) if isinstance(given, dict) else given) == 2
    said = capsys.readouterr()
    assert (
        said.out == "" and said.err.startswith("rlcircuits: ") and re.search(says, said.err) and "--help`)" in said.err
    )
    assert len(said.err.splitlines()) == 1 and "\x1b" not in said.err
