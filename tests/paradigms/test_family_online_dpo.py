"""Online DPO and RFT: the loss against closed forms and TRL's own; pairs and kept answers against a count of their
own.
"""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from paradigms.family import TINY, curves, online_dpo, ppo, rft
from paradigms.family.curves import Answers
from paradigms.family.sft import new_model
from paradigms.family.task import EOS, build_tokenizer, word_problems


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def model(tokenizer, seed):
    """A model with random weights, larger than at a start, so that its distributions are far from uniform."""
    found = new_model(TINY.shape, tokenizer, seed)
    with torch.no_grad():
        for weight in found.parameters():
            weight.mul_(2.0)
    return found.eval()


def as_answers(tokenizer, rows) -> Answers:
    """(question, answer text) rows as `Answers`: prompts padded on the left, answers with an end on the right."""
    prompts = [tokenizer(question)["input_ids"] for question, _ in rows]
    ends = [tokenizer(text + EOS)["input_ids"] for _, text in rows]
    p, w = max(map(len, prompts)), max(map(len, ends))
    pad = tokenizer.pad_token_id
    tokens = torch.tensor(
        [[pad] * (p - len(a)) + a + b + [pad] * (w - len(b)) for a, b in zip(prompts, ends, strict=True)]
    )
    mask = torch.tensor([[True] * len(b) + [False] * (w - len(b)) for b in ends])
    before = torch.tensor([[0] * (p - len(a)) + [1] * len(a) for a in prompts])
    attention = torch.cat([before, mask.long()], 1)
    return Answers(tokens, attention, mask, tuple(text for _, text in rows), (True,) * len(rows))


def test_loss_and_gradient_are_the_closed_form():
    values = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen, rejected = (v.clone().requires_grad_() for v in values[:2])
    loss = online_dpo.dpo_loss(chosen, rejected, values[2], values[3], beta=0.7)
    loss.backward()
    margins = [0.7 * float((c - rc) - (r - rr)) for c, r, rc, rr in values.T]
    assert float(loss.detach()) == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3)
    slopes = [-0.7 / (1 + math.exp(m)) / 3 for m in margins]  # d(−ln σ(m)) = −σ(−m) dm
    assert chosen.grad.tolist() == pytest.approx(slopes)
    assert rejected.grad.tolist() == pytest.approx([-s for s in slopes])


def test_a_policy_that_is_the_reference_loses_ln_2(tokenizer):
    base = model(tokenizer, 0)
    problems = word_problems("train", 4, 0)
    answers = as_answers(tokenizer, [(p.question, f" {p.worked_answer}") for p in problems])
    loss = online_dpo.pair_loss(base, lambda: nullcontext(base), answers, torch.tensor([[0, 1], [2, 3]]), beta=0.5)
    assert float(loss.detach()) == pytest.approx(math.log(2), abs=1e-6)


def test_loss_and_gradient_are_trls_on_the_same_pairs(tokenizer, tmp_path):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    from paradigms.family.policy import Start
    from paradigms.family.trainer import settings

    policy, reference = model(tokenizer, 1), model(tokenizer, 2)
    problems = word_problems("train", 3, 0)
    rows = [(p.question, f" {text}") for p in problems for text in (p.worked_answer, "1 + 1 = 2 # 7")]
    pairs = [
        {"prompt": question, "chosen": right, "rejected": wrong}
        for (question, right), (_, wrong) in zip(rows[::2], rows[1::2], strict=True)
    ]
    trainer = DPOTrainer(
        model=policy,
        ref_model=reference,
        args=DPOConfig(
            **settings(Start(tmp_path, scratch=tmp_path), 0),
            per_device_train_batch_size=3,
            beta=0.3,
            loss_type=["sigmoid"],
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
    )
    theirs = trainer.compute_loss(policy, next(iter(trainer.get_train_dataloader())))
    theirs.backward()
    gradients = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    numbers = torch.tensor([[0, 1], [2, 3], [4, 5]])
    ours = online_dpo.pair_loss(policy, lambda: nullcontext(reference), as_answers(tokenizer, rows), numbers, beta=0.3)
    ours.backward()
    assert abs(float(ours.detach()) - math.log(2)) > 0.01
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-4)
    for weight, gradient in zip(policy.parameters(), gradients, strict=True):
        assert torch.allclose(weight.grad, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_right_with_wrong_of_one_prompt_each_answer_once(seed):
    rng = random.Random(seed)
    rewards = [float(rng.random() < 0.4) for _ in range(6 * 5)]
    pairs = online_dpo.matched_pairs(rewards, 5, random.Random(seed))
    for chosen, rejected in pairs:
        assert rewards[chosen] == 1 and rewards[rejected] == 0
        assert chosen // 5 == rejected // 5
    used = [row for pair in pairs for row in pair]
    assert len(used) == len(set(used))
    groups = [rewards[i : i + 5] for i in range(0, 30, 5)]
    assert len(pairs) == sum(min(g.count(1.0), g.count(0.0)) for g in groups) > 0


def test_no_pair_where_all_is_right_or_all_wrong():
    assert online_dpo.matched_pairs([1.0, 1.0, 0.0, 0.0], 2, random.Random(0)) == []


class Scripted:
    """Stands for a model that gives each question its scripted texts, in turn."""

    def __init__(self, script, finished):
        self.script, self.finished = {question: iter(texts) for question, texts in script.items()}, finished

    def __call__(self, _model, _tokenizer, problems, *_, **__):
        texts = tuple(next(self.script[problem.prompt]) for problem in problems)
        empty = torch.zeros(len(texts), 0)
        return Answers(empty, empty, empty, texts, tuple(text in self.finished for text in texts))


def test_rft_keeps_right_finished_answers_once_each(monkeypatch):
    one, two = word_problems("train", 2, 0)
    right, other = f" {one.worked_answer}", f" 1 + 1 = 2 # {one.reference}"
    unfinished = f" 2 + 2 = 4 # {one.reference}"
    wrong = f" # {int(two.reference) + 1}"
    script = {one.question: [right, other, right, unfinished], two.question: [wrong] * 4}
    monkeypatch.setattr(curves, "answer", Scripted(script, {right, other, wrong}))
    start = SimpleNamespace(model=lambda: None, tokenizer=lambda: None, scratch=Path(), save_every=0)
    kept = rft.right_answers(start, [one, two], answers_per_prompt=4, max_new_tokens=24, seed=0)
    assert kept == [(one.question, right.strip()), (one.question, other.strip())]


def test_answers_sampled_before_a_training_are_kept_batch_by_batch(monkeypatch, tmp_path):
    problems = word_problems("train", 3, 0)
    monkeypatch.setattr(curves, "_SAMPLED_AT_ONCE", 2)
    monkeypatch.setattr(
        curves, "answer", Scripted({p.question: [f"a{i}", f"b{i}"] for i, p in enumerate(problems)}, {})
    )
    start = SimpleNamespace(model=lambda: None, tokenizer=lambda: None, scratch=tmp_path, save_every=5)
    stopped = curves.sampled_answers(start, problems, 2, 24, 0)
    first = next(stopped)
    stopped.close()
    torch.manual_seed(1)
    told = list(curves.sampled_answers(start, problems, 2, 24, 0))  # the script has each answer once
    assert told[0] == first and [texts for _, texts, _, _ in told] == [(f"a{i}", f"b{i}") for i in range(3)]
    after = torch.rand(2)
    list(curves.sampled_answers(start, problems, 2, 24, 0))
    assert torch.equal(torch.rand(2), after)  # training goes on from the same random numbers


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_log_probs_at_a_temperature(tokenizer, temperature):
    policy = model(tokenizer, 3)
    problem = word_problems("train", 1, 0)[0]
    answers = as_answers(tokenizer, [(problem.question, f" {problem.worked_answer}")])
    ours = ppo.answer_log_prob(policy, answers, torch.tensor([0]), temperature)
    with torch.no_grad():
        logits = policy(answers.tokens).logits[0].double() / temperature
    width = answers.mask.shape[1]
    picked = answers.tokens[0, -width:]
    expected = torch.stack([row[t] - row.logsumexp(0) for row, t in zip(logits[-width - 1 :], picked, strict=False)])
    assert torch.allclose(ours.double(), expected, atol=1e-4)


def test_answers_are_sampled_at_the_temperature(tokenizer):
    """First tokens' frequencies against softmax(logits / T)."""
    policy = model(tokenizer, 4)
    problem = word_problems("train", 1, 0)[0]
    with torch.no_grad():
        logits = policy(tokenizer(problem.prompt, return_tensors="pt")["input_ids"]).logits[0, -1]
    for temperature in (0.5, 2.0):
        torch.manual_seed(0)
        sampled = curves.answer(policy, tokenizer, [problem] * 4000, 1, True, temperature).tokens[:, -1]
        counts = torch.bincount(sampled, minlength=len(logits)) / 4000
        assert float((counts - (logits / temperature).softmax(0)).abs().max()) < 0.03
