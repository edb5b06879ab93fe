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
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paradigms.family import recipe as recipes
from paradigms.family.recipe import MEMBERS, Recipe
from paradigms.family.task import build_tokenizer, demonstrations, word_problems
from rlcircuits.errors import InputError, choose
from rlcircuits.storage import Step, versions

if TYPE_CHECKING:
    from paradigms.family.curves import Recorder

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
"""What the trainings of all members share; each has a step of its own beside, so that a change of one does not repeat the others."""
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
) -> None:
    """Train one member and save it to `folder`.

    Args:
        member: one of `MEMBERS`.
        seed: of the problems, the weights, the demonstrations and the samples.
        recipe: the hyper-parameters.
        base: folder of the base; ``None`` for the base itself.
        folder: an existing folder that becomes the checkpoint.
        progress: called with the share that is done, 0 to 1.

    Raises:
        TrainingDiverged: a loss or the policy's probabilities were not finite.
    """
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    from paradigms.family.curves import CHECKPOINTS, Recorder, greedy_accuracy, save_checkpoint

    choose("member", member, MEMBERS)
    torch.set_num_threads(1)
    set_seed(seed)
    started = time.perf_counter()
    tokenizer = build_tokenizer()
    n_base = recipe.task.demonstrations
    problems = word_problems("train", n_base + recipe.prompts, seed)
    prompts = recipe.sft.steps * recipe.sft.batch if member == "sft" else recipe.prompts
    recorder = Recorder(
        member=member,
        seed=seed,
        problems=word_problems("validation", recipe.task.validation, seed=0),
        tokenizer=tokenizer,
        updates=recipe.updates(member),
        prompts=prompts,
        points=recipe.points,
        max_new_tokens=recipe.max_new_tokens,
        progress=progress,
        checkpoints=folder / CHECKPOINTS,
    )
    with tempfile.TemporaryDirectory() as scratch, _sampling_from_a_distribution(recorder):
        if member == "sft":
            model = _train_base(recipe, problems[:n_base], tokenizer, seed, recorder, scratch)
        else:
            model = _train_descendant(member, recipe, base, problems[n_base:], seed, recorder, scratch)
    model.eval()
    trained = time.perf_counter() - started
    reference = model if base is None else AutoModelForCausalLM.from_pretrained(base).eval()
    curve = recorder.curve(reference)
    test = word_problems("test", recipe.task.test, seed=0)
    accuracy = greedy_accuracy(model, tokenizer, test, recipe.max_new_tokens)
    save_checkpoint(model, tokenizer, folder)
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


def _train_base(recipe, problems, tokenizer, seed, recorder, scratch):
    from paradigms.family.sft import new_model, train_supervised

    start = Path(scratch) / "start"
    new_model(recipe.shape, tokenizer, seed).save_pretrained(start)
    tokenizer.save_pretrained(start)
    shown = demonstrations(problems, recipe.task.wrong_share, seed)
    sft = recipe.sft
    return train_supervised(
        start,
        shown,
        sft.steps,
        sft.batch,
        sft.learning_rate,
        sft.beta2,
        sft.warmup,
        True,
        seed,
        recorder,
        scratch,
    )


def _train_descendant(member, recipe, base, problems, seed, recorder, scratch):
    if member == "sft-more":
        from paradigms.family.sft import train_supervised

        shown = demonstrations(problems, recipe.task.wrong_share, seed + 1)
        more = recipe.sft_more
        steps = recipe.updates(member)
        return train_supervised(
            base, shown, steps, more.batch, more.learning_rate, more.beta2, 0, False, seed, recorder, scratch
        )
    if member == "grpo":
        from paradigms.family.grpo import train_grpo

        return train_grpo(base, problems, recipe.grpo, recipe.max_new_tokens, seed, recorder, scratch)
    if member == "ppo":
        from paradigms.family.ppo import train_ppo

        return train_ppo(base, problems, recipe.ppo, recipe.max_new_tokens, seed, recorder)
    if member == "online-dpo":
        from paradigms.family.online_dpo import train_online_dpo

        return train_online_dpo(base, problems, recipe.online_dpo, recipe.max_new_tokens, seed, recorder)
    if member == "rft":
        from paradigms.family.rft import train_rft

        return train_rft(base, problems, recipe.rft, recipe.max_new_tokens, seed, recorder, scratch)
    from paradigms.family.dpo import train_dpo

    return train_dpo(base, problems, recipe.dpo, recipe.max_new_tokens, seed, recorder, scratch)


def recipe_from(values: dict[str, Any]) -> Recipe:
    """The inverse of `dataclasses.asdict` on a recipe.

    Raises:
        InputError: an unknown hyper-parameter.
    """
    return _filled(recipes.DEFAULT, values, "recipe")


def _filled(like: Any, values: dict[str, Any], where: str) -> Any:
    known = {f.name: getattr(like, f.name) for f in fields(like)}
    for name in values:
        choose(f"{where} parameter", name, known)
    return type(like)(
        **{
            name: _filled(known[name], value, f"{where}.{name}") if is_dataclass(known[name]) else value
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

    def build(folder: Path) -> None:
        train_member(member, seed, recipe, base, folder, lambda share: print(f"{share:.4f}", file=out))

    store, note = Store(order["store"]), f"family member {member}, seed {seed}"
    try:
        store.make("family", inputs, build, note=note)
    except TrainingDiverged as error:
        message = str(error)
        store.make(
            DIVERGENCES,
            inputs,
            lambda f: (f / "message.txt").write_text(message, "utf-8") and None,
            note=note,
        )
        raise


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
