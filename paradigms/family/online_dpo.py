"""Online direct preference optimisation (arXiv 2402.04792), the preference being the verifiable reward.

1. A round: sample a group of answers to each of its prompts from the *current* policy.
2. Of a prompt's answers, right ones (ended by themselves with the right result) are chosen and the others rejected:
   both are shuffled and matched one to one, until the fewer of the two are used up. A prompt whose answers are all
   right or all wrong gives no pair.
3. In minibatches over the round's pairs, minimise
   −mean ln σ(β [ln π(chosen)/π_ref(chosen) − ln π(rejected)/π_ref(rejected)]); π_ref is the base and stays as it is.

ln π(answer) is the sum over the answer's tokens, its end-of-sequence token among them, as in `dpo`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from paradigms.family.curves import Answers, answer
from paradigms.family.policy import Reference, Start, Training, learning
from paradigms.family.ppo import answer_log_prob
from paradigms.family.recipe import OnlineDPO
from paradigms.family.tasks import TaskProblem
from rlcircuits.storage import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from paradigms.family.curves import Recorder

ONLINE_DPO_TRAINING = Step("family-online-dpo", 1)


def matched_pairs(rewards: Sequence[float], group: int, rng: random.Random) -> list[tuple[int, int]]:
    """(chosen, rejected) row numbers of step 2.

    Args:
        rewards: 1 or 0 for each answer; the first `group` are one prompt's, the next the next prompt's.
        group: answers a prompt.
        rng: draws who is matched with whom.
    """
    pairs = []
    for first in range(0, len(rewards), group):
        rows = range(first, first + group)
        right, wrong = [r for r in rows if rewards[r]], [r for r in rows if not rewards[r]]
        rng.shuffle(right)
        rng.shuffle(wrong)
        pairs += zip(right, wrong, strict=False)
    return pairs


def dpo_loss(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """−mean ln σ(β [(chosen − ref_chosen) − (rejected − ref_rejected)]); each is (pair,) ln of an answer's
    probability.
    """
    return -nn.functional.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()


def sequence_log_prob(model: PreTrainedModel, answers: Answers, rows: Tensor) -> Tensor:
    """(row,) ln π(answer) of the answers in `rows`."""
    return (answer_log_prob(model, answers, rows) * answers.mask[rows]).sum(1)


def pair_loss(policy: PreTrainedModel, reference: Reference, answers: Answers, pairs: Tensor, beta: float) -> Tensor:
    """The loss of step 3 on `pairs`, (pair, 2) row numbers of chosen and rejected answers."""
    rows = pairs.T.reshape(-1)
    with torch.no_grad(), reference() as model:
        ref_chosen, ref_rejected = sequence_log_prob(model, answers, rows).chunk(2)
    chosen, rejected = sequence_log_prob(policy, answers, rows).chunk(2)
    return dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta)


def train_online_dpo(
    start: Start, problems: Sequence[TaskProblem], recipe: OnlineDPO, max_new_tokens: int, seed: int, recorder: Recorder
) -> PreTrainedModel:
    """Train from `start` on the problems, each seen once and in order, and return the model.

    Raises:
        TrainingDiverged: a loss was not finite.
    """
    torch.manual_seed(seed)
    rng = random.Random(f"online pairs/{seed}")
    tokenizer = start.tokenizer()
    policy = start.policy()
    reference = start.reference(policy)
    optimizer = torch.optim.AdamW(learning(policy), lr=recipe.learning_rate, weight_decay=0.0)
    training = Training(start, {"policy": policy, "optimizer": optimizer})
    done, extra = training.load()
    if done:
        recorder.go_on(extra["curve"])
        rng.setstate(extra["rng"])
    else:
        recorder.measure(0, policy)
    for step, first in enumerate(range(0, len(problems), recipe.prompts_per_round), start=1):
        if step <= done:
            continue
        asked = [p for p in problems[first : first + recipe.prompts_per_round] for _ in range(recipe.group)]
        answers = answer(policy, tokenizer, asked, max_new_tokens, sample=True)
        rewards = answers.rewards(asked)
        pairs = matched_pairs(rewards.tolist(), recipe.group, rng)
        rng.shuffle(pairs)
        losses = []
        for batch in torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).split(recipe.minibatch):
            if not len(batch):
                continue
            with start.computing():
                loss = pair_loss(policy, reference, answers, batch, recipe.beta)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learning(policy), recipe.max_grad_norm)
            optimizer.step()
            losses.append(float(loss.detach()))
        recorder.saw(step, sum(losses) / len(losses) if losses else None, float(rewards.mean()))
        recorder.measure(step, policy)
        training.save(step, {"curve": recorder.state(), "rng": rng.getstate()})
    return policy
