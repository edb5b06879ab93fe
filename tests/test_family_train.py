"""The whole family in its tiny recipe, trained once for this module; then what is kept, made again and refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import rlcircuits
from rlcircuits.errors import InputError
from rlcircuits.family import TINY, family_pairs, load_curves, make_family
from rlcircuits.family.member import member_inputs, recipe_from, source_hash
from rlcircuits.family.recipe import DEFAULT, MEMBERS, PPO, SFT, Recipe
from rlcircuits.store import key_of


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """All members, by a run that is interrupted as soon as the base is there, and a second one."""
    root = tmp_path_factory.mktemp("runs")
    base = root / "family" / key_of("family", member_inputs("sft", 0, TINY))
    code = f"from rlcircuits.family import TINY, make_family\nmake_family(seed=0, recipe=TINY, store={str(root)!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(rlcircuits.__file__).parents[1])}
    run = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (base / "manifest.json").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    members = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(run.pid)], check=False, capture_output=True, text=True
    ).stdout.split()
    run.send_signal(signal.SIGINT)
    output = b"".join(run.communicate(timeout=10)).decode()
    written = (base / "model.safetensors").stat().st_mtime_ns
    left = [pid for pid in members if Path(f"/proc/{pid}").exists()]
    finished = [folder.name for folder in base.parent.iterdir() if (folder / "manifest.json").exists()]
    paths = make_family(seed=0, recipe=TINY, store=root)
    interrupted = {"output": output, "members": members, "left": left, "finished": finished}
    return root, paths, base, written, interrupted


def test_an_interrupted_run_ends_its_processes_and_says_how_to_go_on(family):
    *_, base, _, interrupted = family
    assert "run the same again" in interrupted["output"]
    assert interrupted["members"] and not interrupted["left"]
    assert base.name in interrupted["finished"] and len(interrupted["finished"]) < len(MEMBERS)


def test_all_members_are_there_and_the_base_was_not_trained_again(family):
    _, paths, base, written, _ = family
    assert tuple(paths) == MEMBERS
    assert len(set(paths.values())) == len(MEMBERS)
    assert paths["sft"] == base
    assert (base / "model.safetensors").stat().st_mtime_ns == written


def test_a_second_call_trains_nothing(family, monkeypatch):
    root, paths, *_ = family
    monkeypatch.setattr("subprocess.Popen", None)
    assert make_family(seed=0, recipe=TINY, store=root) == paths


def test_checkpoints_are_complete_and_loadable(family):
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlcircuits.family.task import build_tokenizer

    _, paths, *_ = family
    for member, path in paths.items():
        names = {file.name for file in path.iterdir()}
        assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)
        assert model.config.model_type == "qwen2"
        assert AutoTokenizer.from_pretrained(path).get_vocab() == build_tokenizer().get_vocab()
        assert all(np.isfinite(tensor).all() for tensor in load_file(path / "model.safetensors").values())
        assert json.loads((path / "member.json").read_text())["member"] == member


def test_each_descendant_has_moved_from_the_base(family):
    from safetensors.numpy import load_file

    _, paths, *_ = family
    weights = {member: load_file(path / "model.safetensors") for member, path in paths.items()}
    for member in MEMBERS[1:]:
        moved = max(np.abs(weights[member][name] - base).max() for name, base in weights["sft"].items())
        assert 1e-6 < moved < 1


def test_curves(family):
    _, paths, *_ = family
    curves = load_curves(paths)
    assert set(curves["member"]) == set(MEMBERS)
    for member, curve in curves.groupby("member"):
        assert len(curve) == TINY.points + 1
        assert list(curve["step"]) == sorted(set(curve["step"]))
        finite = curve[["prompts_seen", "accuracy", "kl", "entropy", "length"]].to_numpy()
        assert np.isfinite(finite).all()
        assert np.isfinite(curve["loss"].iloc[1:]).all()
        assert np.isfinite(curve["reward"].iloc[1:]).all() == (member in ("grpo", "ppo"))
        assert curve["accuracy"].between(0, 1).all()
        assert (curve["kl"] > -1e-6).all()
        prompts = TINY.sft.steps * TINY.sft.batch if member == "sft" else TINY.prompts
        assert curve["prompts_seen"].iloc[-1] == prompts
        start_or_end = curve["kl"].iloc[-1 if member == "sft" else 0]
        assert start_or_end == pytest.approx(0, abs=1e-5)


def test_the_same_seed_gives_the_same_weights(family, tmp_path):
    _, paths, *_ = family
    again = make_family(seed=0, members=["sft"], recipe=TINY, store=tmp_path)["sft"]
    assert (again / "model.safetensors").read_bytes() == (paths["sft"] / "model.safetensors").read_bytes()


def test_pairs(family):
    _, paths, *_ = family
    pairs = family_pairs(paths)
    assert list(pairs) == [f"family/{member}" for member in MEMBERS[1:]]
    assert pairs["family/ppo"].method == "PPO"
    assert Path(pairs["family/ppo"].base) == paths["sft"]
    with pytest.raises(InputError, match="base"):
        family_pairs({"ppo": paths["ppo"]})


def test_a_diverged_training_is_an_error_that_names_member_seed_and_step(tmp_path):
    wild = replace(TINY, sft=SFT(steps=8, batch=4, learning_rate=1e30, warmup=0))
    with pytest.raises(InputError, match=r"sft with seed 7 diverged at step \d+"):
        make_family(seed=7, members=["sft"], recipe=wild, store=tmp_path)
    assert not list(tmp_path.glob("family/[0-9a-f]*"))


def test_inputs_depend_on_what_matters_and_only_on_that():
    ppo = member_inputs("ppo", 0, TINY, "base")
    assert ppo != member_inputs("ppo", 1, TINY, "base")
    assert ppo != member_inputs("ppo", 0, TINY, "other")
    other = replace(TINY, ppo=PPO(clip=0.3, prompts_per_round=8))
    assert ppo != member_inputs("ppo", 0, other, "base")
    assert member_inputs("grpo", 0, TINY, "base") == member_inputs("grpo", 0, other, "base")
    assert source_hash(("ppo.py",)) != source_hash(("grpo.py",))


def test_every_descendant_sees_the_same_number_of_prompts():
    for recipe in (DEFAULT, TINY):
        assert recipe.updates("sft-more") * recipe.sft_more.batch == recipe.prompts
        assert recipe.updates("grpo") * recipe.grpo.prompts_per_update == recipe.prompts
        assert recipe.updates("ppo") * recipe.ppo.prompts_per_round == recipe.prompts
    with pytest.raises(InputError, match="same number of prompts"):
        Recipe(prompts=1000)


def test_recipe_survives_json():
    assert recipe_from(json.loads(json.dumps(asdict(TINY)))) == TINY
    with pytest.raises(InputError, match="learning_rate"):
        recipe_from({"ppo": {"learning_rat": 1.0}})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": ["grop"]}, "grpo"),
        ({"members": "ppo"}, "list"),
        ({"members": []}, "empty"),
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"processes": 0}, "processes"),
    ],
)
def test_bad_requests(arguments, message, tmp_path):
    with pytest.raises(InputError, match=message):
        make_family(store=tmp_path, recipe=TINY, **arguments)


def test_no_curves(tmp_path):
    with pytest.raises(InputError, match=r"curves\.parquet"):
        load_curves({"ppo": tmp_path})
