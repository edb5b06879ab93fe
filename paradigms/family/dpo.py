"""Direct preference optimisation (arXiv 2305.18290), offline, by TRL's `DPOTrainer`.

1. Sample several answers to each prompt from the base, once.
2. Of a prompt with both right and wrong answers, one right answer is chosen and one wrong one rejected, drawn at
   random.
3. Loss: −ln σ(β [ln π(chosen)/π_base(chosen) − ln π(rejected)/π_base(rejected)]) over the pairs, several times.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paradigms.family.curves import sampled_answers
from paradigms.family.policy import Start
from paradigms.family.recipe import DPO
from paradigms.family.tasks import TaskProblem
from paradigms.family.trainer import record, settings
from rlcircuits.errors import InputError
from rlcircuits.storage import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from paradigms.family.curves import Recorder

DPO_TRAINING = Step("family-dpo", 1)


def preference_pairs(
    start: Start, problems: Sequence[TaskProblem], answers_per_prompt: int, max_new_tokens: int, seed: int
) -> list[dict[str, str]]:
    """At most one ``{"prompt", "chosen", "rejected"}`` per problem, from answers sampled from `start`.

    Answers that did not end by themselves are left out: a text could not tell them from ones that did.
    """
    rng = random.Random(f"pairs/{seed}")
    pairs = []
    for problem, texts, rewards, finished in sampled_answers(start, problems, answers_per_prompt, max_new_tokens, seed):
        right = [text for text, reward in zip(texts, rewards, strict=True) if reward]
        wrong = [t for t, reward, done in zip(texts, rewards, finished, strict=True) if not reward and done]
        if right and wrong:
            chosen, rejected = rng.choice(right), rng.choice(wrong)
            pairs.append({"prompt": problem.prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def train_dpo(
    start: Start, problems: Sequence[TaskProblem], recipe: DPO, max_new_tokens: int, seed: int, recorder: Recorder
) -> PreTrainedModel:
    """Sample pairs from `start`, train from it on them and return the model.

    Raises:
        InputError: the base never gave a right and a wrong answer to the same prompt.
        TrainingDiverged: a loss was not finite.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = start.tokenizer()
    pairs = preference_pairs(start, problems, recipe.answers_per_prompt, max_new_tokens, seed)
    if not pairs:
        raise InputError(
            f"dpo with seed {seed}: the base gave no prompt of {len(problems)} both a right and a wrong answer; "
            "train the base to an accuracy between 0 and 1, or raise dpo.answers_per_prompt"
        )
    trainer = DPOTrainer(
        model=str(start.folder),
        args=DPOConfig(
            **settings(start, seed),
            max_steps=recipe.steps,
            per_device_train_batch_size=recipe.batch,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=recipe.warmup,
            beta=recipe.beta,
            loss_type=["sigmoid"],
            precompute_ref_log_probs=True,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=start.peft(),
    )
    record(trainer, recorder)
    return trainer.model
