"""The whole family in its tiny recipe, trained once for this module; then what is kept, made again and refused."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from filelock import FileLock

import rlcircuits
from paradigms.family import TINY, checkpoints, family_pairs, load_curves, make_families, make_family
from paradigms.family.member import member_inputs, recipe_from
from paradigms.family.recipe import BASES, CORE, DEFAULT, GRPO, MEMBERS, PPO, SECOND, SFT, Recipe, SFTMore, Shape
from paradigms.family.sft import new_model
from paradigms.family.task import build_tokenizer
from rlcircuits.errors import InputError
from rlcircuits.storage import key_of
from tests.fixtures.waiting import PATIENCE, ended, until


@pytest.fixture(scope="module")
def tiny_family(tmp_path_factory):
    """All members, by a run that is interrupted as soon as the base is there, and a second one."""
    root = tmp_path_factory.mktemp("runs")
    base = place(root, "sft")
    interrupted = interrupt(
        f"make_family(seed=0, members=MEMBERS, recipe=TINY, store={str(root)!r})", place(root, "ppo")
    )
    written = (base / "model.safetensors").stat().st_mtime_ns
    interrupted["finished"] = [folder.name for folder in base.parent.iterdir() if (folder / "manifest.json").exists()]
    paths = make_family(seed=0, members=MEMBERS, recipe=TINY, store=root)
    return root, paths, base, written, interrupted


def place(root: Path, member: str, seed: int = 0) -> Path:
    """Where a member of the tiny family is or will be."""
    base = key_of("family", member_inputs("sft", seed, TINY))
    return root / "family" / (base if member == "sft" else key_of("family", member_inputs(member, seed, TINY, base)))


def interrupt(call: str, held: Path) -> dict[str, object]:
    """Run the call in a process of its own and interrupt it while it trains a descendant, which a lock keeps from
    ending.
    """
    code = f"from paradigms.family import MEMBERS, TINY, make_families, make_family\n{call}"
    environment = {**os.environ, "PYTHONPATH": str(Path(rlcircuits.__file__).parents[1])}
    held.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(held.with_name(f".{held.name}.lock")):
        run = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True
        )
        with ended(run):
            descendants = until(lambda: at_work(run.pid, excluding="sft"), "a descendant at work", run)
            run.send_signal(signal.SIGINT)
            output, _ = run.communicate(timeout=PATIENCE)
    return {"output": output, "left": [child for child in descendants if child.is_running()]}


def at_work(pid: int, excluding: str) -> list[psutil.Process]:
    """The processes that train members, but for one."""
    found = []
    for child in psutil.Process(pid).children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if f'"member": "{excluding}"' not in " ".join(child.cmdline()):
                found.append(child)
    return found


def test_an_interrupted_run_ends_its_processes_and_says_how_to_go_on(tiny_family):
    *_, base, _, interrupted = tiny_family
    assert "run the same again" in interrupted["output"]
    assert not interrupted["left"]
    assert base.name in interrupted["finished"] and len(interrupted["finished"]) < len(MEMBERS)


def test_an_interrupt_while_a_process_starts_leaves_none_behind(tmp_path, monkeypatch):
    started, start = [], subprocess.Popen

    def interrupted_at_once(*given, **options):
        started.append(start(*given, **options))
        os.kill(os.getpid(), signal.SIGINT)
        return started[-1]

    monkeypatch.setattr("subprocess.Popen", interrupted_at_once)
    with pytest.raises(KeyboardInterrupt):
        make_family(0, ["sft"], TINY, tmp_path)
    (process,) = started
    assert process.poll() is not None


def test_all_members_are_there_and_the_base_was_not_trained_again(tiny_family):
    _, paths, base, written, _ = tiny_family
    assert tuple(paths) == MEMBERS
    assert len(set(paths.values())) == len(MEMBERS)
    assert paths["sft"] == base
    assert (base / "model.safetensors").stat().st_mtime_ns == written


def test_a_second_call_trains_nothing(tiny_family, monkeypatch):
    root, paths, *_ = tiny_family
    monkeypatch.setattr("subprocess.Popen", None)
    assert make_family(seed=0, members=MEMBERS, recipe=TINY, store=root) == paths
    assert make_family(seed=0, recipe=TINY, store=root) == {member: paths[member] for member in CORE}


def test_checkpoints_are_complete_and_loadable(tiny_family):
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from paradigms.family.task import build_tokenizer

    _, paths, *_ = tiny_family
    for member, path in paths.items():
        names = {file.name for file in path.iterdir()}
        assert {"config.json", "generation_config.json", "tokenizer.json", "model.safetensors"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
        model = AutoModelForCausalLM.from_pretrained(path, use_safetensors=True)
        assert model.config.model_type == "qwen2"
        assert AutoTokenizer.from_pretrained(path).get_vocab() == build_tokenizer().get_vocab()
        assert all(np.isfinite(tensor).all() for tensor in load_file(path / "model.safetensors").values())
        assert json.loads((path / "member.json").read_text())["member"] == member


def test_checkpoints_along_the_run_are_the_curves_points_and_the_last_is_the_end(tiny_family):
    from safetensors.numpy import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, paths, base, *_ = tiny_family
    start = (base / "model.safetensors").read_bytes()
    for member, path in paths.items():
        found = checkpoints(path)
        assert list(found) == list(load_curves({member: path})["update"])
        for update, folder in found.items():
            assert folder == path / "checkpoints" / f"{update:05d}"
            model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True)
            assert model.config.use_cache
            assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
        first, *between, last = found.values()
        assert (last / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()
        assert (last / "config.json").read_text() == (path / "config.json").read_text()
        assert ((first / "model.safetensors").read_bytes() == start) == (member != "sft")
        weights = [load_file(folder / "model.safetensors") for folder in (first, *between, last)]
        for before, after in itertools.pairwise(weights):
            moved = any((before[name] != after[name]).any() for name in before)
            assert moved or member == "online-dpo"  # which stands still where there is no pair
        assert sum(file.stat().st_size for file in path.rglob("*")) < 35e6


def test_no_checkpoints(tmp_path):
    with pytest.raises(InputError, match="checkpoints"):
        checkpoints(tmp_path)


def test_checkpoints_are_measured_as_the_curve_says(tiny_family):
    """A saved checkpoint answers the validation problems as well as its point of the curve."""
    from transformers import AutoModelForCausalLM

    from paradigms.family.curves import greedy_accuracy
    from paradigms.family.task import build_tokenizer, word_problems

    _, paths, *_ = tiny_family
    problems = word_problems("validation", TINY.task.validation, seed=0)
    for member in ("sft", "grpo", "ppo"):
        curve = load_curves({member: paths[member]}).set_index("update")["accuracy"]
        for update, folder in checkpoints(paths[member]).items():
            model = AutoModelForCausalLM.from_pretrained(folder).eval()
            accuracy = greedy_accuracy(model, build_tokenizer(), problems, TINY.max_new_tokens)
            assert accuracy == pytest.approx(curve[update])


def test_each_descendant_has_moved_from_the_base(tiny_family):
    from safetensors.numpy import load_file

    _, paths, *_ = tiny_family
    weights = {member: load_file(path / "model.safetensors") for member, path in paths.items()}
    for member in MEMBERS[1:]:
        moved = max(np.abs(weights[member][name] - base).max() for name, base in weights["sft"].items())
        assert 1e-6 < moved < 1


def test_curves(tiny_family):
    _, paths, *_ = tiny_family
    curves = load_curves(paths)
    assert set(curves["member"]) == set(MEMBERS)
    for member, curve in curves.groupby("member"):
        assert len(curve) == TINY.points + 1
        assert (curve["update"] == curve["step"]).all() and curve["update"].iloc[-1] == TINY.updates(member)
        assert list(curve["step"]) == sorted(set(curve["step"]))
        finite = curve[["prompts_seen", "accuracy", "kl", "entropy", "length"]].to_numpy()
        assert np.isfinite(finite).all()
        assert np.isfinite(curve["loss"].iloc[1:]).all() or member == "online-dpo"  # no pair, no loss
        assert np.isfinite(curve["reward"].iloc[1:]).all() == (member in ("grpo", "ppo", "online-dpo"))
        assert curve["accuracy"].between(0, 1).all()
        assert (curve["kl"] > -1e-6).all()
        prompts = TINY.sft.steps * TINY.sft.batch if member == "sft" else TINY.prompts
        assert curve["prompts_seen"].iloc[-1] == prompts
        start_or_end = curve["kl"].iloc[-1 if member == "sft" else 0]
        assert start_or_end == pytest.approx(0, abs=1e-5)


def test_the_same_seed_gives_the_same_weights(tiny_family, tmp_path):
    _, paths, *_ = tiny_family
    again = make_family(seed=0, members=["sft"], recipe=TINY, store=tmp_path)["sft"]
    assert (again / "model.safetensors").read_bytes() == (paths["sft"] / "model.safetensors").read_bytes()


def test_pairs(tiny_family):
    _, paths, *_ = tiny_family
    pairs = family_pairs(paths)
    assert list(pairs) == [f"family/{member}" for member in MEMBERS[1:]]
    assert {name.removeprefix("family/"): pair.method for name, pair in pairs.items()} == {
        "sft-more": "SFT",
        "rft": "RFT",
        "grpo": "GRPO",
        "ppo": "PPO",
        "dpo": "DPO",
        "online-dpo": "online DPO",
    }
    assert Path(pairs["family/ppo"].base) == paths["sft"]
    with pytest.raises(InputError, match="base"):
        family_pairs({"ppo": paths["ppo"]})


@pytest.mark.training
def test_a_diverged_training_is_an_error_that_names_member_seed_and_step(tmp_path):
    wild = replace(TINY, sft=SFT(steps=8, batch=4, learning_rate=1e30, warmup=0))
    with pytest.raises(InputError, match=r"sft with seed 7 diverged at step \d+"):
        make_family(seed=7, members=["sft"], recipe=wild, store=tmp_path)
    assert not list(tmp_path.glob("family/[0-9a-f]*"))


def test_several_families_interrupted_and_resumed(tiny_family):
    root, paths, *_ = tiny_family
    call = ([0, 1], ["sft", "rft"], TINY, root)
    base = place(root, "sft", seed=1)
    code = f"make_families([0, 1], ['sft', 'rft'], TINY, {str(root)!r}, progress=False)"
    interrupted = interrupt(code, place(root, "rft", seed=1))
    assert "run the same again" in interrupted["output"] and not interrupted["left"]
    written = (base / "model.safetensors").stat().st_mtime_ns
    table = make_families(*call)
    assert list(table.columns) == ["seed", "member", "folder", "status", "accuracy"]
    assert list(zip(table["seed"], table["member"], strict=True)) == [(s, m) for s in (0, 1) for m in ("sft", "rft")]
    assert (table["status"] == "done").all()
    assert list(table["folder"])[:3] == [str(paths["sft"]), str(paths["rft"]), str(base)]
    assert (base / "model.safetensors").stat().st_mtime_ns == written
    for row in table.itertuples():
        summary = json.loads((Path(row.folder) / "member.json").read_text())
        assert (summary["seed"], summary["member"], summary["accuracy"]) == (row.seed, row.member, row.accuracy)


def test_a_diverged_member_is_reported_the_others_finish_and_it_is_not_tried_again(tiny_family, monkeypatch):
    root, paths, *_ = tiny_family
    wild = replace(TINY, sft_more=SFTMore(batch=8, learning_rate=1e30), rft=replace(TINY.rft, steps=2))
    call = ([0], ["rft", "sft-more", "sft"], wild, root)
    table = make_families(*call, progress=False).set_index("member")
    assert list(table.index) == ["sft", "sft-more", "rft"]
    assert table["folder"]["sft"] == str(paths["sft"]) and table["status"]["rft"] == "done"
    assert table["folder"]["sft-more"] is None and np.isnan(table["accuracy"]["sft-more"])
    assert table["status"]["sft-more"].startswith("diverged: training sft-more with seed 0 diverged at step ")
    with pytest.raises(InputError, match="sft-more with seed 0 diverged"):
        make_family(0, ["sft-more"], wild, root)
    monkeypatch.setattr("subprocess.Popen", None)
    again = make_families(*call, progress=False).set_index("member")
    assert again.equals(table)


def test_a_base_that_diverged_is_its_descendants_reason_and_other_seeds_go_on(tiny_family, monkeypatch):
    """A stand-in for the members' process: for seed 5 it says what a diverged base's would, for seed 6 it crashes."""
    from paradigms.family import train

    root, paths, *_ = tiny_family
    environment = train._environment
    fake = root / "fake"
    (fake / "paradigms" / "family").mkdir(parents=True)
    (fake / "paradigms" / "__init__.py").touch()
    (fake / "paradigms" / "family" / "__init__.py").touch()
    (fake / "paradigms" / "family" / "member.py").write_text(
        "import json, sys\n"
        "order = json.loads(sys.argv[1])\n"
        "sys.exit(f'a crash of {order[\"member\"]}') if order['seed'] == 6 else None\n"
        "print(f'training {order[\"member\"]} diverged at step 3', file=sys.stderr)\n"
        "sys.exit(3)\n"
    )
    monkeypatch.setattr(train, "_environment", lambda real: {**environment(real), "PYTHONPATH": str(fake)})
    monkeypatch.chdir(fake)
    table = make_families([5, 0, 6], ["sft", "ppo"], TINY, root, progress=False).set_index(["seed", "member"])
    assert table["folder"][0, "ppo"] == str(paths["ppo"])
    assert table["status"][5, "sft"] == table["status"][5, "ppo"] == "diverged: training sft diverged at step 3"
    for member in ("sft", "ppo"):
        assert table["status"][6, member].startswith("failed: training sft with seed 6 ended with exit status 1")
        assert "a crash of sft" in table["status"][6, member]
    with pytest.raises(RuntimeError, match="a crash of sft"):
        make_family(6, ["sft"], TINY, root)


def test_tasks_start_longest_first_one_base_ahead(tmp_path):
    from paradigms.family.train import _Plan
    from rlcircuits.storage.store import Store

    tasks = _Plan([3, 1], ["sft", "rft", "ppo"], DEFAULT, Store(tmp_path)).tasks
    expected = [(3, "sft"), (1, "sft"), (3, "ppo"), (3, "rft"), (1, "ppo"), (1, "rft")]
    assert [(task.seed, task.member) for task in tasks] == expected


def test_bases():
    assert BASES["qwen2"] == DEFAULT and BASES["llama"] == SECOND
    assert replace(DEFAULT, shape=SECOND.shape) == SECOND
    assert SECOND.shape.architecture == "llama" and SECOND.shape.kv_heads == SECOND.shape.heads
    model = new_model(SECOND.shape, build_tokenizer(), seed=0)
    layer = model.model.layers[0]
    assert type(model).__name__ == "LlamaForCausalLM" and len(model.model.layers) == 6
    assert layer.self_attn.k_proj.weight.shape == (80, 80)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert 11 * 4 * sum(p.numel() for p in model.parameters()) < 30e6
    with pytest.raises(InputError, match="llama"):
        Recipe(shape=Shape(architecture="lama"))


@pytest.mark.training
def test_a_llama_family(tmp_path):
    """Base and descendants of the other architecture, with its tokenizer found again beside it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    shape = Shape(architecture="llama", width=40, layers=2, heads=5, kv_heads=5, mlp=96)
    paths = make_family(0, ["sft", "ppo"], replace(TINY, shape=shape), tmp_path)
    for path in paths.values():
        for folder in (path, *checkpoints(path).values()):
            assert AutoModelForCausalLM.from_pretrained(folder).config.model_type == "llama"
            assert AutoTokenizer.from_pretrained(folder).get_vocab() == build_tokenizer().get_vocab()


def test_temperatures_are_part_of_the_key_and_above_0():
    for member, section in (("grpo", GRPO(temperature=1.5)), ("ppo", PPO(temperature=1.5))):
        other = replace(DEFAULT, **{member: section})
        assert member_inputs(member, 0, other, "base") != member_inputs(member, 0, DEFAULT, "base")
    with pytest.raises(InputError, match="temperature"):
        Recipe(grpo=GRPO(temperature=0.0))


def test_inputs_depend_on_what_matters_and_only_on_that():
    ppo = member_inputs("ppo", 0, TINY, "base")
    assert ppo != member_inputs("ppo", 1, TINY, "base")
    assert ppo != member_inputs("ppo", 0, TINY, "other")
    other = replace(TINY, ppo=PPO(clip=0.3, prompts_per_round=8))
    assert ppo != member_inputs("ppo", 0, other, "base")
    assert member_inputs("grpo", 0, TINY, "base") == member_inputs("grpo", 0, other, "base")
    assert member_inputs("ppo", 0, TINY, "base") != member_inputs("grpo", 0, TINY, "base")


def test_every_descendant_sees_the_same_number_of_prompts():
    for recipe in (DEFAULT, TINY):
        assert recipe.updates("sft-more") * recipe.sft_more.batch == recipe.prompts
        assert recipe.updates("grpo") * recipe.grpo.prompts_per_update == recipe.prompts
        assert recipe.updates("ppo") * recipe.ppo.prompts_per_round == recipe.prompts
        assert recipe.updates("online-dpo") * recipe.online_dpo.prompts_per_round == recipe.prompts
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
    seeds = [arguments.pop("seed", 0)]
    with pytest.raises(InputError, match=message):
        make_families(seeds, store=tmp_path, recipe=TINY, **arguments)


@pytest.mark.parametrize("seeds", [[], 3, "01"])
def test_bad_seeds(seeds, tmp_path):
    with pytest.raises(InputError, match="seeds"):
        make_families(seeds, recipe=TINY, store=tmp_path)


def test_no_curves(tmp_path):
    with pytest.raises(InputError, match=r"curves\.parquet"):
        load_curves({"ppo": tmp_path})
