"""Members as adapters of a checkpoint that was there before: the same trainings, resumable, on a tiny model of
random weights.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import rlcircuits as rc
from paradigms.family import load_curves
from paradigms.family.member import ADAPTER, train_member
from paradigms.family.policy import Start, learning, opened, without_adapter
from paradigms.family.recipe import DPO, GRPO, PPO, RFT, SFT, LoRA, OnlineDPO, Recipe, SFTMore, Shape, Task
from paradigms.family.stories import PROMPT
from rlcircuits.errors import InputError

SHAPE = Shape(width=32, layers=2, heads=4, kv_heads=2, mlp=48, positions=512)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """A family of adapters on a tiny Llama that reads English byte by byte."""
    from paradigms.family.sft import new_model
    from paradigms.family.task import build_tokenizer

    start, tokenizer = tmp_path_factory.mktemp("start"), build_tokenizer()
    model = new_model(replace(SHAPE, architecture="llama"), tokenizer, 0)
    with torch.no_grad():  # about every other state ends the answer
        model.lm_head.weight[tokenizer.eos_token_id] *= 60
    model.save_pretrained(start)
    tokenizer.save_pretrained(start)
    return Recipe(
        start=str(start),
        lora=LoRA(rank=2, alpha=4),
        save_every=1,
        task=Task(kind="stories", demonstrations=8, wrong_share=0.0, validation=2, test=2),
        sft=SFT(steps=3, batch=4, learning_rate=1e-3, warmup=0),
        sft_more=SFTMore(batch=4, learning_rate=1e-2),
        rft=RFT(answers_per_prompt=8, steps=2, batch=2, learning_rate=1e-2, warmup=0),
        grpo=GRPO(prompts_per_update=4, group=4, learning_rate=1e-2),
        ppo=PPO(prompts_per_round=4, answers_per_prompt=2, minibatch=4, value_epochs=1, learning_rate=1e-2),
        dpo=DPO(answers_per_prompt=8, steps=2, batch=2, learning_rate=1e-2, warmup=0),
        online_dpo=OnlineDPO(prompts_per_round=4, group=4, minibatch=4, learning_rate=1e-2),
        prompts=8,
        points=2,
        max_new_tokens=12,
    )


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    """An answer of even length is right: random weights never are, and then nothing would be learned."""
    monkeypatch.setattr("paradigms.family.stories.StoryProblem.is_right", lambda self, text: len(text) % 2 == 0)


@pytest.fixture(scope="module")
def base(recipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    train_member("sft", 0, recipe, None, folder)
    return folder


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(next(folder.glob("*.safetensors")))


def test_the_base_is_a_whole_checkpoint_and_its_adapter_beside_it(recipe, base):
    merged = rc.load_model(base)
    on_start = rc.load_model(base / ADAPTER, base=recipe.start)
    for name, weight in on_start.hf.state_dict().items():
        torch.testing.assert_close(merged.hf.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    before = rc.load_model(recipe.start).hf.state_dict()
    moved = {name for name, weight in merged.hf.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved and all("_proj" in name for name in moved)  # linear layers alone learn
    curve = load_curves({"sft": base})
    assert curve["kl"].iloc[0] == pytest.approx(0, abs=1e-6) and curve["kl"].iloc[-1] > 0  # from what it started from


@pytest.mark.parametrize("member", ["grpo", "ppo", "dpo", "online-dpo"])
def test_a_killed_training_goes_on_to_the_same_weights(member, recipe, base, tmp_path, monkeypatch):
    whole, unfinished = tmp_path / "whole", tmp_path / "unfinished"
    whole.mkdir()
    train_member(member, 0, recipe, base, whole, unfinished=tmp_path / "uninterrupted")

    class Killed(BaseException):
        pass

    # The state of a step is saved after its progress is told: let one step be saved, then end in the next.
    told = []

    def progress(share):
        told.append(share)
        if len([s for s in told if s > 0]) == 2:
            raise Killed

    again = tmp_path / "again"
    again.mkdir()
    with pytest.raises(Killed):
        train_member(member, 0, recipe, base, tmp_path / "again", progress, unfinished)
    assert not list(again.iterdir())
    train_member(member, 0, recipe, base, again, unfinished=unfinished)
    one, two = weights(whole), weights(again)
    assert one.keys() == two.keys() and all("lora_" in name for name in one)
    for name, weight in one.items():
        np.testing.assert_array_equal(two[name], weight)
    assert any(np.abs(weight).max() > 0 for name, weight in one.items() if "lora_B" in name)
    ours, theirs = (load_curves({member: folder}).drop(columns="member") for folder in (whole, again))
    np.testing.assert_allclose(ours.to_numpy(float), theirs.to_numpy(float), rtol=1e-6, atol=1e-9)
    shutil.rmtree(unfinished)


def test_a_member_is_an_adapter_to_the_base_and_known_as_such(recipe, base, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    train_member("sft-more", 0, recipe, base, folder)
    from paradigms.family import family_pairs

    pair = family_pairs({"sft": base, "sft-more": folder}, recipe)["family/sft-more"]
    assert pair.prompt == PROMPT
    pair.check()
    tuned = pair.load("tuned")
    policy = opened(folder, Start(base))
    tokens = torch.tensor([[5, 9, 40, 77]])
    with torch.no_grad():
        torch.testing.assert_close(tuned.hf(tokens).logits, policy(tokens).logits, rtol=1e-4, atol=1e-5)
        with without_adapter(policy) as off:
            torch.testing.assert_close(off(tokens).logits, rc.load_model(base).hf(tokens).logits)
    assert json.loads((folder / "member.json").read_text())["recipe"]["lora"] == {"rank": 2, "alpha": 4}


def test_only_the_adapter_learns(recipe):
    policy = Start(Path(recipe.start), recipe.lora).policy()
    names = [name for name, weight in policy.named_parameters() if weight.requires_grad]
    assert len(names) == len(learning(policy)) == 2 * 7 * SHAPE.layers and all("lora_" in name for name in names)


def test_a_start_that_is_not_here(recipe, tmp_path):
    with pytest.raises(InputError, match="no checkpoint at '/nowhere/x'"):
        train_member("sft", 0, replace(recipe, start="/nowhere/x"), None, tmp_path)
    with pytest.raises(InputError, match="a real base is trained on 'stories'"):
        replace(recipe, task=Task())
