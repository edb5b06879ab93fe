"""Rejection-sampling fine-tuning (arXiv 2308.01825): supervised training on the base's own right answers.

1. Sample several answers to each prompt from the base, once.
2. Keep an answer if it ended by itself with the right result; of equal answers to a prompt keep one.
3. Train the base on what was kept, several times over: the mean NLL of the answer's tokens given the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from paradigms.family.curves import sampled_answers
from paradigms.family.policy import Start
from paradigms.family.recipe import RFT
from paradigms.family.sft import train_supervised
from paradigms.family.tasks import TaskProblem
from rlcircuits.errors import InputError
from rlcircuits.storage import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from paradigms.family.curves import Recorder

RFT_TRAINING = Step("family-rft", 1)


def right_answers(
    start: Start, problems: Sequence[TaskProblem], answers_per_prompt: int, max_new_tokens: int, seed: int
) -> list[tuple[str, str]]:
    """(prompt, right answer) of every different right answer among those sampled from `start`, in order."""
    kept: dict[tuple[str, str], None] = {}
    for problem, texts, rewards, _ in sampled_answers(start, problems, answers_per_prompt, max_new_tokens, seed):
        for text, reward in zip(texts, rewards, strict=True):
            if reward:
                kept.setdefault((problem.prompt, text.strip()))
    return list(kept)


def train_rft(
    start: Start, problems: Sequence[TaskProblem], recipe: RFT, max_new_tokens: int, seed: int, recorder: Recorder
) -> PreTrainedModel:
    """Sample answers from `start`, train from it on the right ones and return the model.

    Raises:
        InputError: the base never gave a right answer.
        TrainingDiverged: a loss was not finite.
    """
    kept = right_answers(start, problems, recipe.answers_per_prompt, max_new_tokens, seed)
    if not kept:
        raise InputError(
            f"rft with seed {seed}: the base gave no right answer to {len(problems)} prompts; "
            "train the base to an accuracy above 0, or raise rft.answers_per_prompt"
        )
    return train_supervised(
        start, kept, recipe.steps, recipe.batch, recipe.learning_rate, recipe.beta2, recipe.warmup, True, seed, recorder
    )
