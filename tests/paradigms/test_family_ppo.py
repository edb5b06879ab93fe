"""PPO's pieces against brute force, hand computation and finite differences; the whole on a problem with a known
optimum.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from paradigms.family import ppo
from paradigms.family.recipe import PPO


def random_rows(seed: int, lengths: tuple[int, ...] = (5, 2, 1, 4)):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = torch.arange(shape[1]) < torch.tensor(lengths).unsqueeze(1)
    rewards, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return rewards, values, mask, lengths


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_of_its_definition(gamma, lam):
    rewards, values, mask, lengths = random_rows(0)
    advantages, returns = ppo.gae(rewards, values, mask, gamma, lam)
    for i, length in enumerate(lengths):
        v = [float(values[i, t]) for t in range(length)] + [0.0]
        delta = [float(rewards[i, t]) + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** k * delta[t + k] for k in range(length - t))
            assert float(advantages[i, t]) == pytest.approx(expected, abs=1e-12)
            assert float(returns[i, t]) == pytest.approx(expected + v[t], abs=1e-12)
        assert not advantages[i, length:].any() and not returns[i, length:].any()


def test_gae_with_lambda_one_is_the_reward_to_come_less_the_value():
    rewards, values, mask, lengths = random_rows(1)
    advantages, _ = ppo.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    for i, length in enumerate(lengths):
        for t in range(length):
            assert float(advantages[i, t]) == pytest.approx(float(rewards[i, t:length].sum() - values[i, t]))


def test_token_rewards_by_hand():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    log_probs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 9.0, 9.0]])
    ref = torch.tensor([[-1.5, -1.0, -0.5], [-1.0, 0.0, 0.0]])
    rewards = ppo.token_rewards(torch.tensor([1.0, 0.0]), log_probs, ref, mask, beta=0.1)
    assert rewards == pytest.approx(torch.tensor([[-0.05, 0.1, 1.0], [0.2, 0.0, 0.0]]))


def test_whitened_has_mean_0_and_deviation_1_over_the_mask():
    x, _, mask, _ = random_rows(2)
    white = ppo.whiten(3 + 7 * x, mask)
    assert float(white[mask].mean()) == pytest.approx(0, abs=1e-6)
    assert float(white[mask].std(correction=0)) == pytest.approx(1, abs=1e-6)
    assert not white[~mask].any()


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.1, 2.0, 2.2, 2.0),  # inside: ρ A
        (1.5, 2.0, 2.4, 0.0),  # too far up with A > 0: clipped, no gradient
        (0.5, 2.0, 1.0, 2.0),  # moved away from a good action: not clipped
        (0.5, -2.0, -1.6, 0.0),  # too far down with A < 0: clipped
        (1.5, -2.0, -3.0, -2.0),  # moved to a bad action: not clipped
    ],
)
def test_clipped_loss_and_its_gradient_by_hand(ratio, advantage, objective, slope):
    old = torch.tensor([[-0.7]], dtype=torch.float64)
    log_prob = (old + math.log(ratio)).requires_grad_()
    loss = ppo.clipped_loss(log_prob, old, torch.tensor([[advantage]]), torch.tensor([[True]]), clip=0.2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-objective)
    assert float(log_prob.grad) == pytest.approx(-slope * ratio)  # dρ/dlnπ = ρ


def test_clipped_loss_is_a_mean_over_answer_tokens_only():
    mask = torch.tensor([[True, True], [True, False]])
    zeros = torch.zeros(2, 2)
    advantages = torch.tensor([[1.0, 2.0], [6.0, 100.0]])
    assert float(ppo.clipped_loss(zeros, zeros, advantages, mask, 0.2)) == pytest.approx(-3.0)


def policy_gradient(logits, actions, weights):
    """Σ weight · (onehot − π) / n: the gradient of −mean weight · ln π(a) in closed form, with its sign."""
    onehot = torch.nn.functional.one_hot(actions, logits.shape[-1])
    return -(weights.unsqueeze(-1) * (onehot - logits.softmax(-1))) / len(actions)


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient():
    torch.manual_seed(0)
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    actions, advantages = torch.randint(4, (6,)), torch.randn(6, dtype=torch.float64)
    chosen = logits.log_softmax(-1).gather(1, actions.unsqueeze(1))
    ppo.clipped_loss(chosen, chosen.detach(), advantages.unsqueeze(1), torch.ones(6, 1, dtype=bool), 0.2).backward()
    assert torch.allclose(logits.grad, policy_gradient(logits.detach(), actions, advantages))


def test_one_step_answers_of_one_prompt_have_grpos_advantages():
    """With no values, no KL and one token an answer, whitening a round of one prompt is GRPO's group normalisation."""
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    mask = torch.ones(5, 1, dtype=bool)
    zeros = torch.zeros(5, 1)
    rewards = ppo.token_rewards(scores, zeros, zeros, mask, beta=0.02)
    advantages = ppo.whiten(ppo.gae(rewards, zeros, mask, 1.0, 0.95)[0], mask)
    group = (scores - 0.6) / math.sqrt(0.24)
    assert torch.allclose(advantages.squeeze(1), group, atol=1e-5)


@pytest.mark.parametrize("moved", [False, True])
def test_on_answers_of_one_length_the_gradient_is_grpos(moved, tmp_path):
    """One prompt's answers, all of one length, no values, no KL, λ = 1: TRL's GRPO has the same gradient but for a
    scale.

    The scale is the standard deviation's: PPO whitens by the population's over tokens, GRPO by the sample's over
    answers.
    """
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from paradigms.family import TINY
    from paradigms.family.curves import Answers
    from paradigms.family.policy import Start
    from paradigms.family.sft import new_model
    from paradigms.family.task import build_tokenizer
    from paradigms.family.trainer import settings

    tokenizer = build_tokenizer()
    policy = new_model(TINY.shape, tokenizer, 0).eval()
    question, texts = "dan has 29 buys 1 ?", [f" {n} + 1 = 30 # 3" for n in (29, 2, 3, 4)]
    scores = torch.tensor([1.0, 0.0, 0.0, 1.0])
    prompt = torch.tensor([tokenizer(question)["input_ids"]] * 4)
    completion = torch.tensor([tokenizer(text)["input_ids"] for text in texts])
    mask = torch.ones_like(completion, dtype=torch.bool)
    tokens = torch.cat([prompt, completion], 1)
    answers = Answers(tokens, torch.ones_like(tokens), mask, tuple(texts), (True,) * 4)
    rows = torch.arange(4)
    old = ppo.answer_log_prob(policy, answers, rows).detach()
    if moved:  # so that ratios differ from 1 and some are clipped
        old = old + 0.3 * torch.randn(old.shape, generator=torch.Generator().manual_seed(0))

    zeros = torch.zeros_like(old)
    rewards = ppo.token_rewards(scores, zeros, zeros, mask, beta=0.0)
    advantages = ppo.whiten(ppo.gae(rewards, zeros, mask, gamma=1.0, lam=1.0)[0], mask)
    ppo.clipped_loss(ppo.answer_log_prob(policy, answers, rows), old, advantages, mask, 0.2).backward()
    ours = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()

    trainer = GRPOTrainer(
        model=policy,
        args=GRPOConfig(
            **settings(Start(tmp_path, scratch=tmp_path), 0),
            per_device_train_batch_size=4,
            num_generations=4,
            beta=0.0,
            epsilon=0.2,
            loss_type="grpo",
        ),
        train_dataset=Dataset.from_list([{"prompt": question}]),
        processing_class=tokenizer,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
    )
    trainer.current_gradient_accumulation_steps = 1
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": mask.long(),
        "advantages": (scores - scores.mean()) / scores.std(),
        "old_per_token_logps": old,
    }
    trainer.compute_loss(policy, inputs).backward()
    assert max(float(g.abs().max()) for g in ours) > 1e-4
    for weight, gradient in zip(policy.parameters(), ours, strict=True):
        assert torch.allclose(weight.grad * math.sqrt(4 / 3), gradient, rtol=1e-3, atol=1e-6)


def test_value_loss_by_hand():
    loss = ppo.value_loss(torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 0.0]]), torch.tensor([[True, False]]))
    assert float(loss) == pytest.approx(2.0)


def bandit(beta: float, rounds: int) -> torch.Tensor:
    """PPO on three arms with rewards 0, 0.5, 1 and a uniform reference; the policy it ends with."""
    torch.manual_seed(0)
    arms, recipe = torch.tensor([0.0, 0.5, 1.0]), replace(PPO(), minibatch=64, epochs=2, beta=beta)
    logits, value = torch.zeros(3, requires_grad=True), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.Adam([{"params": [logits], "lr": 0.02}, {"params": [value], "lr": 0.05}])
    generator, mask = torch.Generator().manual_seed(0), torch.ones(256, 1, dtype=bool)
    for _ in range(rounds):
        actions = torch.multinomial(logits.detach().softmax(0), 256, replacement=True)
        old = logits.detach().log_softmax(0)[actions].unsqueeze(1)
        reference = torch.full_like(old, -math.log(3))
        rewards = ppo.token_rewards(arms[actions], old, reference, mask, beta)
        advantages, returns = ppo.gae(rewards, value.detach().expand(256, 1), mask, 1.0, 0.95)
        rollout = ppo.Rollout(old, ppo.whiten(advantages, mask), returns, mask)

        def forward(rows, actions=actions):
            return logits.log_softmax(0)[actions[rows]].unsqueeze(1), value.expand(len(rows), 1)

        ppo.ppo_updates(forward, optimizer, rollout, recipe, generator)
    return logits.detach().softmax(0)


@pytest.mark.training
def test_bandit_without_kl_finds_the_best_arm():
    assert float(bandit(beta=0.0, rounds=120)[2]) > 0.97


@pytest.mark.training
def test_bandit_with_kl_finds_the_closed_form_optimum():
    """max E r − β KL(π ‖ uniform) is solved by π ∝ exp(r / β)."""
    optimum = (torch.tensor([0.0, 0.5, 1.0]) / 0.5).softmax(0)
    assert bandit(beta=0.5, rounds=200) == pytest.approx(optimum, abs=0.05)
