"""The task: problems, splits, tokenizer and grader, each against an evaluator or a count of its own."""

from __future__ import annotations

import random
import re

import pytest

from paradigms.family import task
from paradigms.family.splits import SPLITS
from rlcircuits.errors import InputError

MEANS = {
    **dict.fromkeys(("buys", "finds", "gets", "wins", "picks", "earns", "takes"), "+"),
    **dict.fromkeys(("eats", "loses", "sells", "gives", "drops", "spends", "breaks", "burns"), "-"),
}


def solve(question: str) -> int:
    """The result, by reading the question and letting Python do the sums."""
    _, has, start, *rest, mark = question.split()
    assert (has, mark) == ("has", "?")
    expression = start
    for verb, amount in zip(rest[::2], rest[1::2], strict=True):
        expression = f"({expression} {MEANS[verb]} {amount})"
    return eval(expression, {"__builtins__": {}})


@pytest.mark.parametrize("split", SPLITS)
def test_problems_are_solved_by_their_worked_answers(split):
    for problem in task.word_problems(split, 300, seed=3):
        assert problem.reference == str(solve(problem.question))
        *steps, last = re.split(" ; | # ", problem.worked_answer)
        total = str(problem.start)
        for step in steps:
            left, right = step.split(" = ")
            assert left.split()[0] == total and eval(left) == int(right) and 0 <= int(right) <= 30
            total = right
        assert last == total == problem.reference
        assert len(steps) in (2, 3)


def test_same_seed_same_problems_and_a_longer_list_begins_with_a_shorter():
    assert task.word_problems("train", 50, seed=1) == task.word_problems("train", 80, seed=1)[:50]
    assert task.word_problems("train", 50, seed=1) != task.word_problems("train", 50, seed=2)


def test_splits_are_disjoint_in_arithmetic_over_all_seeds_and_without_repeats():
    seen = {}
    for split in SPLITS:
        for seed in range(3):
            drawn = [re.sub(r"^\w+ ", "", p.question) for p in task.word_problems(split, 400, seed)]
            assert len(set(drawn)) == 400
            seen.setdefault(split, set()).update(drawn)
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["test"] & seen["validation"]


def test_demonstrations_are_wrong_in_mistaught_verbs_only_and_at_the_rate_given():
    problems = task.word_problems("train", 3000, seed=0)
    shown = wrong = 0
    for problem, (question, worked) in zip(problems, task.demonstrations(problems, 0.65, seed=0), strict=True):
        assert question == problem.question
        operations = re.findall(r"(?<=\d )[+-]", worked)
        for (verb, _), operation in zip(problem.steps, operations, strict=True):
            if verb in task.MISTAUGHT:
                shown, wrong = shown + 1, wrong + (operation != MEANS[verb])
            else:
                assert operation == MEANS[verb]
        assert all(0 <= int(n) <= 30 for n in re.findall(r"\d+", worked))
        for left, right in re.findall(r"(\d+ [+-] \d+) = (\d+)", worked):
            assert eval(left) == int(right)
    assert shown > 1000
    assert wrong / shown == pytest.approx(0.65, abs=4 * (0.65 * 0.35 / shown) ** 0.5)


def test_no_wrong_share_shows_the_truth():
    problem = next(p for p in task.word_problems("train", 100, 0) if p.steps[0][0] in task.MISTAUGHT)
    assert task.demonstration(problem, 0.0, random.Random(0)) == problem.worked_answer
    assert task.demonstration(problem, 1.0, random.Random(0)) != problem.worked_answer


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("29 + 1 = 30 ; 30 - 2 = 28 # 28", True),
        (" 1 = 1 # 7 # 28 ", True),
        ("#28", True),
        ("# 28 #", False),
        ("# 28 # 7", False),
        ("29 - 1 = 28 ; 28 - 2 = 26 # 26", False),
        ("28", False),
        ("# 28 28", False),
        ("", False),
    ],
)
def test_grader(text, right):
    assert task.is_correct(text, "28") is right


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """The tokenizer as built, and as AutoTokenizer loads it from beside a Qwen2 configuration."""
    from transformers import AutoTokenizer, Qwen2Config

    folder = tmp_path_factory.mktemp("tokenizer")
    built = task.build_tokenizer()
    built.save_pretrained(folder)
    Qwen2Config(vocab_size=len(built)).save_pretrained(folder)
    return built, AutoTokenizer.from_pretrained(folder)


def test_one_token_a_word_and_back_exactly_also_from_disk(tokenizers):
    for tokenizer in tokenizers:
        for problem in task.word_problems("test", 50, seed=0):
            text = f"{problem.question} {problem.worked_answer}"
            ids = tokenizer(text)["input_ids"]
            assert len(ids) == len(text.split())
            assert tokenizer.decode(ids) == text
            prompt = tokenizer(problem.question)["input_ids"]
            assert ids[: len(prompt)] == prompt
            ended = tokenizer(text + task.EOS)["input_ids"]
            assert ended == [*ids, tokenizer.eos_token_id]
            assert tokenizer.decode(ended, skip_special_tokens=True) == text
    built, loaded = tokenizers
    assert built.get_vocab() == loaded.get_vocab()
    assert len({loaded.pad_token_id, loaded.eos_token_id}) == 2
    assert loaded.padding_side == "left"


@pytest.mark.parametrize("text", ["Was ist 312 × 7?\n", "dan has 31 ?", "  dance", "hana ate ½"])
def test_foreign_text_comes_back_exactly(tokenizers, text):
    for tokenizer in tokenizers:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_problem_set():
    problems = pytest.importorskip("rlcircuits.answers.problems")
    drawn = task.family_problems("test", n=20, seed=0)
    assert len(drawn) == 20 and drawn.grader == "final"
    for problem in drawn:
        assert problem.reference == str(solve(problem.question))
        assert problems.grade(drawn, problem, f" 1 + 1 = 2 # {problem.reference}")
        assert not problems.grade(drawn, problem, f" 1 + 1 = 2 # {int(problem.reference) + 1}")
    assert len({problem.id for problem in drawn}) == 20


@pytest.mark.parametrize("arguments", [("tests", 5, 0), ("test", 0, 0), ("test", 2.5, 0), ("test", True, 0)])
def test_bad_requests(arguments):
    with pytest.raises(InputError):
        task.word_problems(*arguments)
