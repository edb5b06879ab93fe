"""Group-relative policy optimisation (arXiv 2402.03300), by TRL's `GRPOTrainer`.

1. For each of an update's prompts, sample a group of G answers from the policy, π = softmax(logits / T).
2. Reward r = 1 for an answer that ends by itself with the right result, else 0.
3. Advantage = (r − mean of the group) / standard deviation of the group, the same for each token of an answer.
4. Loss: clipped policy gradient, averaged over an answer's tokens and then over answers (``loss_type="grpo"``), plus
   β KL(π ‖ π_base), by the k3 estimator. TRL's own defaults are another loss ("dapo") and β = 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from paradigms.family.policy import Start
from paradigms.family.recipe import GRPO
from paradigms.family.tasks import TaskProblem
from paradigms.family.trainer import record, settings
from rlcircuits.storage import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from paradigms.family.curves import Recorder

GRPO_TRAINING = Step("family-grpo", 1)
_AT_ONCE = 64
"""Answers whose gradient is taken at a time; an update's gradient is their mean, whatever it is."""


def train_grpo(
    start: Start, problems: Sequence[TaskProblem], recipe: GRPO, max_new_tokens: int, seed: int, recorder: Recorder
) -> PreTrainedModel:
    """Train from `start` on the problems, each seen once and in order, and return the model.

    Raises:
        TrainingDiverged: a loss was not finite.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = start.tokenizer()
    by_prompt = {problem.prompt: problem for problem in problems}

    def right_result(
        prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any
    ) -> list[float]:
        triples = zip(prompts, completions, completion_ids, strict=True)
        return [float(ids[-1] == tokenizer.eos_token_id and by_prompt[p].is_right(text)) for p, text, ids in triples]

    answers = recipe.prompts_per_update * recipe.group
    parts = next(parts for parts in range(math.ceil(answers / _AT_ONCE), answers + 1) if answers % parts == 0)
    trainer = GRPOTrainer(
        model=str(start.folder),
        args=GRPOConfig(
            **settings(start, seed),
            max_steps=len(problems) // recipe.prompts_per_update,
            per_device_train_batch_size=answers // parts,
            gradient_accumulation_steps=parts,
            num_generations=recipe.group,
            steps_per_generation=parts,
            max_completion_length=max_new_tokens,
            temperature=recipe.temperature,
            top_p=1.0,
            top_k=0,
            learning_rate=recipe.learning_rate,
            lr_scheduler_type="constant",
            beta=recipe.beta,
            epsilon=recipe.clip,
            loss_type="grpo",
            scale_rewards="group",
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list([{"prompt": problem.prompt} for problem in problems]),
        processing_class=tokenizer,
        reward_funcs=right_result,
        peft_config=start.peft(),
    )
    record(trainer, recorder, reward="reward")
    return trainer.model
