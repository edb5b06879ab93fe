"""Proximal policy optimisation (arXiv 1707.06347) of a language model, with a value head, GAE and KL to the reference.

0. Before the first round, fit V to the scores of the base's own answers to the prompts (arXiv 2503.01491): with a V
   that knows nothing, every token of an answer shares its advantage and noise undoes what the base can do.
1. Roll out: sample answers to a round's prompts from the policy; keep ln π_old(a_t|s_t) and the value head's V(s_t).
   Every π here is softmax(logits / T), the one that is sampled from at temperature T.
2. Reward each token: r_t = −β (ln π_old(a_t|s_t) − ln π_ref(a_t|s_t)), plus the answer's score at its last token.
3. Advantages by generalised advantage estimation (arXiv 1506.02438): δ_t = r_t + γ V_{t+1} − V_t,
   A_t = Σ_k (γλ)^k δ_{t+k}; returns R_t = A_t + V_t; A is then whitened over the round.
4. For some epochs of minibatches: ρ_t = π(a_t|s_t) / π_old(a_t|s_t); minimise
   −mean min(ρ_t A_t, clip(ρ_t, 1−ε, 1+ε) A_t) + c · mean ½ (V_t − R_t)², the means over all answer tokens.

Tensors are (answer, position); `mask` is true on answer tokens, which come first in their row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from paradigms.family.curves import Answers, answer, positions
from paradigms.family.policy import Reference, Start, Training, learning, plain
from paradigms.family.recipe import PPO
from paradigms.family.tasks import TaskProblem
from rlcircuits.storage import Step

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from paradigms.family.curves import Recorder

PPO_TRAINING = Step("family-ppo", 1)

Forward = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Row numbers of the rollout -> (ln π(a_t|s_t), V(s_t)), both (row, position), with gradients."""


@dataclass(frozen=True)
class Rollout:
    """What a round of updates needs: `log_probs` under the policy that acted, `advantages`, `returns`, `mask`."""

    log_probs: Tensor
    advantages: Tensor
    returns: Tensor
    mask: Tensor


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x over the mask."""
    return (x * mask).sum() / mask.sum()


def whiten(x: Tensor, mask: Tensor) -> Tensor:
    """x with mean 0 and (population) standard deviation 1 over the mask; 0 elsewhere."""
    centred = (x - masked_mean(x, mask)) * mask
    return centred / (masked_mean(centred**2, mask).sqrt() + 1e-8)


def token_rewards(scores: Tensor, log_probs: Tensor, ref_log_probs: Tensor, mask: Tensor, beta: float) -> Tensor:
    """r_t of step 2; `scores` is (answer,), the rest (answer, position)."""
    rewards = -beta * (log_probs - ref_log_probs) * mask
    last = (mask.long().sum(1) - 1).unsqueeze(1)
    return rewards.scatter_add(1, last, scores.unsqueeze(1))


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Advantages A_t and returns R_t of step 3, 0 off the mask; an answer's end has value 0."""
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        next_value = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(following)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = delta + gamma * lam * following
        advantages[:, t] = following
    return advantages * mask, (advantages + values) * mask


def clipped_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: float) -> Tensor:
    """−mean over the mask of min(ρ A, clip(ρ, 1−ε, 1+ε) A), ρ = exp(log_probs − old_log_probs)."""
    ratio = (log_probs - old_log_probs).exp()
    return -masked_mean(torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages), mask)


def value_loss(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """mean over the mask of ½ (V − R)²."""
    return 0.5 * masked_mean((values - returns) ** 2, mask)


def ppo_updates(
    forward: Forward, optimizer: torch.optim.Optimizer, rollout: Rollout, recipe: PPO, generator: torch.Generator
) -> float:
    """Step 4 on one rollout; returns the mean loss of its minibatches."""
    losses = []
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(rollout.mask), generator=generator).split(recipe.minibatch):
            log_probs, values = forward(rows)
            mask = rollout.mask[rows]
            policy = clipped_loss(log_probs, rollout.log_probs[rows], rollout.advantages[rows], mask, recipe.clip)
            loss = policy + recipe.value_weight * value_loss(values, rollout.returns[rows], mask)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                nn.utils.clip_grad_norm_(group["params"], recipe.max_grad_norm)
            optimizer.step()
            losses.append(loss.detach())
    return float(torch.stack(losses).mean())


class Value(nn.Module):
    """V(s_t): a copy of the base's layers (of a real base with an adapter of its own) with a linear head, apart from
    the policy so that neither disturbs the other.
    """

    def __init__(self, base: PreTrainedModel) -> None:
        super().__init__()
        self.body = plain(base).model
        self.head = nn.Linear(base.config.hidden_size, 1, device=base.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, answers: Answers, rows: Tensor) -> Tensor:
        """(row, position) the values of the states in which the answers' tokens were produced."""
        return self.head(_states(self.body, answers, rows).float()).squeeze(-1).cpu()


def answer_log_prob(model: PreTrainedModel, answers: Answers, rows: Tensor, temperature: float = 1.0) -> Tensor:
    """(row, position) ln π(a_t|s_t) of the answers' tokens, π = softmax(logits / temperature)."""
    width = answers.mask.shape[1]
    whole = plain(model)
    logits = whole.lm_head(_states(whole.model, answers, rows)).float()
    log_probs = (logits / temperature).log_softmax(-1)
    chosen = answers.tokens[rows, -width:].to(log_probs.device)
    return log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).cpu()


def _states(body: nn.Module, answers: Answers, rows: Tensor) -> Tensor:
    """(row, position, width) the last hidden state before each answer token."""
    device = next(body.parameters()).device
    attention = answers.attention[rows].to(device)
    hidden = body(
        input_ids=answers.tokens[rows].to(device),
        attention_mask=attention,
        position_ids=positions(attention),
        use_cache=False,
    ).last_hidden_state
    return hidden[:, -answers.mask.shape[1] - 1 : -1]


def train_ppo(
    start: Start, problems: Sequence[TaskProblem], recipe: PPO, max_new_tokens: int, seed: int, recorder: Recorder
) -> PreTrainedModel:
    """Train from `start` on the problems, each seen once and in order, and return the model.

    The score of an answer is 1 if it ends by itself with the right result, else 0; the reference is the start.

    Raises:
        TrainingDiverged: a loss was not finite.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    tokenizer = start.tokenizer()
    policy = start.policy()
    reference = start.reference(policy)
    value = Value(start.policy())
    optimizer = torch.optim.AdamW(
        [
            {"params": learning(policy), "lr": recipe.learning_rate},
            {"params": learning(value), "lr": recipe.value_learning_rate},
        ],
        weight_decay=0.0,
    )
    training = Training(start, {"policy": policy, "value": value, "optimizer": optimizer}, {"minibatches": generator})
    done, extra = training.load()
    if extra:
        recorder.go_on(extra)
    else:
        recorder.measure(0, policy)
        with start.computing():
            fit_value(value, policy, tokenizer, problems, recipe, max_new_tokens, optimizer, generator)
        training.save(0, recorder.state())
    for step, first in enumerate(range(0, len(problems), recipe.prompts_per_round), start=1):
        if step <= done:
            continue
        asked = [
            p for p in problems[first : first + recipe.prompts_per_round] for _ in range(recipe.answers_per_prompt)
        ]
        answers = answer(policy, tokenizer, asked, max_new_tokens, True, recipe.temperature)
        scores = answers.rewards(asked)
        with start.computing():
            rollout = roll_out(policy, reference, value, answers, scores, recipe)

        def forward(rows: Tensor, answers: Answers = answers) -> tuple[Tensor, Tensor]:
            return answer_log_prob(policy, answers, rows, recipe.temperature), value(answers, rows)

        with start.computing():
            loss = ppo_updates(forward, optimizer, rollout, recipe, generator)
        recorder.saw(step, loss, float(scores.mean()))
        recorder.measure(step, policy)
        training.save(step, recorder.state())
    return policy


def fit_value(
    value: Value,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[TaskProblem],
    recipe: PPO,
    max_new_tokens: int,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Step 0: V learns the score of one sampled answer to each problem, at each of its tokens; the policy stays."""
    answers = answer(policy, tokenizer, problems, max_new_tokens, True, recipe.temperature)
    scores = answers.rewards(problems)
    returns = scores.unsqueeze(1).expand(answers.mask.shape)
    for _ in range(recipe.value_epochs):
        for rows in torch.randperm(len(scores), generator=generator).split(recipe.minibatch):
            loss = value_loss(value(answers, rows), returns[rows], answers.mask[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(value.parameters(), recipe.max_grad_norm)
            optimizer.step()


@torch.no_grad()
def roll_out(
    policy: PreTrainedModel, reference: Reference, value: Value, answers: Answers, scores: Tensor, recipe: PPO
) -> Rollout:
    """Steps 1 to 3 for answers that the policy has just given; `scores` is (answer,)."""
    rows, mask = torch.arange(len(scores)), answers.mask
    log_probs = answer_log_prob(policy, answers, rows, recipe.temperature)
    values = value(answers, rows)
    with reference() as model:
        ref_log_probs = answer_log_prob(model, answers, rows, recipe.temperature)
    rewards = token_rewards(scores, log_probs, ref_log_probs, mask, recipe.beta)
    advantages, returns = gae(rewards, values, mask, recipe.gamma, recipe.lam)
    return Rollout(log_probs, whiten(advantages, mask), returns, mask)
