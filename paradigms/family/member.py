"""Train one member of the family into a folder: a complete Hugging Face checkpoint, its curve and its summary.

1. Draw the problems: the base's, then `Recipe.prompts` further ones that all descendants share.
2. Train by the member's paradigm, the base from random weights, a descendant from the base's checkpoint.
3. Save the model, the tokenizer, ``curves.parquet`` and ``member.json``.

``python -m paradigms.family.member`` is the process `make_family` starts for a member; it reads its order as JSON from
its first argument and writes its progress, one number from 0 to 1 a line, to standard output.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paradigms.family import recipe as recipes
from paradigms.family.recipe import MEMBERS, SFT, Recipe, SFTMore
from paradigms.family.task import build_tokenizer
from paradigms.family.tasks import DEMONSTRATIONS, PROBLEMS
from rlcircuits.errors import InputError, choose
from rlcircuits.storage import Step, versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from paradigms.family.curves import Recorder
    from paradigms.family.policy import Start

FAMILY = Step(
    "family",
    1,
    apart=(
        "paradigms.family.sft",
        "paradigms.family.rft",
        "paradigms.family.grpo",
        "paradigms.family.ppo",
        "paradigms.family.dpo",
        "paradigms.family.online_dpo",
    ),
)
"""What the trainings of all members share; each has a step of its own beside, so that a change of one does not
repeat the others.
"""
ADAPTER = "adapter"
"""Folder of a real base's adapter, beside the whole checkpoint that it was merged into."""
CANNOT_BE_USED, DIVERGED = 2, 3
"""Exit statuses of a member's process: a message for the user; a training that diverged."""
DIVERGENCES = "family-diverged"
"""Kind of the artefact that a diverged training leaves: ``message.txt``, found by the member's inputs."""


def member_inputs(member: str, seed: int, recipe: Recipe, base_key: str | None = None) -> dict[str, Any]:
    """Everything a member's training depends on: what the store's key is made of.

    Args:
        base_key: the key of the base's artefact; needed for every member but the base.
    """
    choose("member", member, MEMBERS)
    if (base_key is None) != (member == "sft"):
        raise InputError(
            f"member {member!r} with base_key={base_key!r}: expected the base's key for all members but sft"
        )
    return {
        "member": member,
        "seed": seed,
        "recipe": recipe.inputs(member),
        "base": base_key,
        "code": versions("family", f"family-{member}"),
    }


def train_member(
    member: str,
    seed: int,
    recipe: Recipe,
    base: Path | None,
    folder: Path,
    progress: Callable[[float], None] = lambda share: None,
    unfinished: Path | None = None,
) -> None:
    """Train one member and save it to `folder`.

    Args:
        member: one of `MEMBERS`.
        seed: of the problems, the weights, the demonstrations and the samples.
        recipe: the hyper-parameters.
        base: folder of the base, a whole checkpoint; ``None`` for the base itself.
        folder: an existing folder that becomes the checkpoint: whole, or an adapter to `base` where the recipe has one.
        progress: called with the share that is done, 0 to 1.
        unfinished: where the state of the training is kept, and found again, if the recipe says so; a temporary folder
            when None.

    Raises:
        TrainingDiverged: a loss or the policy's probabilities were not finite.
        InputError: the recipe's start is not here.
    """
    import torch
    from transformers import set_seed

    from paradigms.family.curves import CHECKPOINTS, Recorder, greedy_accuracy, save_checkpoint
    from paradigms.family.policy import round_to, start_of

    choose("member", member, MEMBERS)
    if not recipe.start:
        torch.set_num_threads(1)
    set_seed(seed)
    started = time.perf_counter()
    draw, n_base = PROBLEMS[recipe.task.kind], recipe.task.demonstrations
    problems = draw("train", n_base + recipe.prompts, seed)
    prompts = recipe.sft.steps * recipe.sft.batch if member == "sft" else recipe.prompts
    with contextlib.ExitStack() as stack:
        scratch = unfinished or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        start = start_of(recipe, base or _beginning(recipe, seed, scratch), scratch)
        recorder = Recorder(
            member=member,
            seed=seed,
            problems=draw("validation", recipe.task.validation, 0),
            tokenizer=start.tokenizer(),
            updates=recipe.updates(member),
            prompts=prompts,
            points=recipe.points,
            max_new_tokens=recipe.max_new_tokens,
            checkpoints=scratch / CHECKPOINTS,
            progress=progress,
        )
        with _sampling_from_a_distribution(recorder):
            own = problems[:n_base] if member == "sft" else problems[n_base:]
            model = _train(member, recipe, start, own, seed, recorder).eval()
        trained = time.perf_counter() - started
        # A small base is measured against what it ends as: what it starts from is noise.
        last = recorder.checkpoints / f"{recorder.updates:05d}"
        curve = recorder.curve(start if base or recipe.start else start_of(recipe, last, scratch))
        if recipe.lora is not None:  # the adapter is kept in the base's dtype: what is measured is what is kept
            round_to(model, recipe.dtype)
        if base is None and recipe.lora is not None:
            save_checkpoint(model, recorder.tokenizer, folder / ADAPTER)
            model = model.merge_and_unload()
        test = draw("test", recipe.task.test, 0)
        accuracy = greedy_accuracy(model, recorder.tokenizer, test, recipe.max_new_tokens)
        save_checkpoint(model, recorder.tokenizer, folder)
        shutil.copytree(recorder.checkpoints, folder / CHECKPOINTS)
    curve.to_parquet(folder / "curves.parquet", index=False)
    summary = {
        "member": member,
        "seed": seed,
        "accuracy": accuracy,
        "accuracy_of": f"greedy answers to {len(test)} test problems",
        "prompts_seen": prompts,
        "seconds": round(time.perf_counter() - started, 1),
        "training_seconds": round(trained, 1),
        "recipe": asdict(recipe),
    }
    (folder / "member.json").write_text(json.dumps(summary, indent=2) + "\n")


@contextlib.contextmanager
def _sampling_from_a_distribution(recorder: Recorder) -> Iterator[None]:
    """Weights too large for their logits to be finite show first where the policy, or TRL with it, samples."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor contains" in str(error):  # torch.multinomial's
            raise recorder.diverged("its probabilities are not finite") from error
        raise


def _beginning(recipe: Recipe, seed: int, scratch: Path) -> Path:
    """The checkpoint that a base is trained from: the recipe's, or random weights."""
    if recipe.start:
        from rlcircuits.models import local_checkpoint

        found = local_checkpoint(recipe.start)
        if found is None:
            raise InputError(
                f"recipe: start is {recipe.start!r}: expected a folder, or a model that `rlcircuits models get` knows"
            )
        return found
    from paradigms.family.sft import new_model

    tokenizer, folder = build_tokenizer(), scratch / "start"
    new_model(recipe.shape, tokenizer, seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train(
    member: str, recipe: Recipe, start: Start, problems: Sequence[Any], seed: int, recorder: Recorder
) -> PreTrainedModel:
    if member in ("sft", "sft-more"):
        from paradigms.family.sft import train_supervised

        first = member == "sft"
        one: SFT | SFTMore = recipe.sft if first else recipe.sft_more
        return train_supervised(
            start,
            DEMONSTRATIONS[recipe.task.kind](problems, recipe.task.wrong_share, seed if first else seed + 1),
            steps=recipe.updates(member),
            batch=one.batch,
            learning_rate=one.learning_rate,
            beta2=one.beta2,
            warmup=recipe.sft.warmup if first else 0,
            shuffle=first,
            seed=seed,
            recorder=recorder,
        )
    from paradigms.family import dpo, grpo, online_dpo, ppo, rft

    train = {
        "rft": rft.train_rft,
        "grpo": grpo.train_grpo,
        "ppo": ppo.train_ppo,
        "dpo": dpo.train_dpo,
        "online-dpo": online_dpo.train_online_dpo,
    }[member]
    own = getattr(recipe, member.replace("-", "_"))
    return train(start, problems, own, recipe.max_new_tokens, seed, recorder)


def recipe_from(values: dict[str, Any]) -> Recipe:
    """The inverse of `dataclasses.asdict` on a recipe.

    Raises:
        InputError: an unknown hyper-parameter.
    """
    return _filled(recipes.DEFAULT, values, "recipe")


_ABSENT = {"lora": recipes.LoRA()}
"""Parts that a recipe may lack, as they are when it has them."""


def _filled(like: Any, values: dict[str, Any], where: str) -> Any:
    known = {f.name: getattr(like, f.name) for f in fields(like)}
    for name in values:
        choose(f"{where} parameter", name, known)
    return type(like)(
        **{
            name: _filled(known[name] or _ABSENT[name], value, f"{where}.{name}") if isinstance(value, dict) else value
            for name, value in values.items()
        }
    )


def main(order: dict[str, Any]) -> None:
    """Carry out one order of `make_family`: member, seed, recipe, store and, but for the base, the base's folder."""
    from rlcircuits.storage import Store

    # What trains is quiet: standard output is for progress, and a broken pipe means that nobody waits any more.
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _quiet()
    from paradigms.family.curves import TrainingDiverged

    recipe = recipe_from(order["recipe"])
    member, seed = order["member"], order["seed"]
    base = Path(order["base"]) if order["base"] else None
    inputs = member_inputs(member, seed, recipe, base.name if base else None)

    store, note = Store(order["store"]), f"family member {member}, seed {seed}"
    unfinished = store.root / "unfinished" / store.path("family", inputs).name if recipe.save_every else None

    def build(folder: Path) -> None:
        train_member(member, seed, recipe, base, folder, lambda share: print(f"{share:.4f}", file=out), unfinished)

    try:
        store.make("family", inputs, build, note=note)
    except TrainingDiverged as error:
        message = str(error)
        store.make(DIVERGENCES, inputs, lambda f: (f / "message.txt").write_text(message, "utf-8") and None, note=note)
        raise
    if unfinished is not None:
        shutil.rmtree(unfinished, ignore_errors=True)


def _quiet() -> None:
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(DIVERGED if type(error).__name__ == "TrainingDiverged" else CANNOT_BE_USED)
