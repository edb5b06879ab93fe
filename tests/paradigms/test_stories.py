"""The task in plain English: every worked answer is right, by Python's own arithmetic, and the splits never meet."""

from __future__ import annotations

import re

import pytest

from paradigms.family.splits import split_of
from paradigms.family.stories import (
    DISTRACTORS,
    LARGEST,
    STORIES,
    StoryProblem,
    is_correct,
    story_problems,
    story_set,
)
from rlcircuits.answers import grade
from rlcircuits.errors import InputError


def test_every_line_of_every_worked_answer_is_right():
    for problem in story_problems("train", 2000, seed=3):
        *lines, last = problem.worked_answer.split("\n")
        assert 1 <= len(lines) <= 3
        numbers = {int(n) for n in re.findall(r"\d+", problem.question)} | {2}  # "twice" is a 2 in words
        for line in lines:
            left, right = line.split(" = ")
            assert eval(left) == int(right) and 1 < int(right) <= LARGEST
            assert {int(n) for n in re.findall(r"\d+", left)} <= numbers, (problem.question, line)
            numbers.add(int(right))
        assert last == f"#### {right}" and problem.reference == right


def test_there_are_stories_enough_of_each_length_and_all_are_told():
    steps = [story.steps.count(";") + 1 for story in STORIES]
    assert len(STORIES) >= 30 and min(steps.count(n) for n in (1, 2, 3)) >= 8
    told = {problem.arithmetic.partition(":")[0] for problem in story_problems("train", 1500, seed=0)}
    assert told == {str(i) for i in range(len(STORIES))}


def test_some_problems_hold_a_number_that_does_not_matter():
    stems = [re.escape(text.split("{d}")[1]) for text in DISTRACTORS]
    with_one = [bool(re.search(rf"\d({'|'.join(stems)})", p.question)) for p in story_problems("test", 600, seed=0)]
    assert 0.25 < sum(with_one) / len(with_one) < 0.42


def test_the_splits_are_disjoint_for_all_seeds_and_a_longer_list_begins_with_a_shorter():
    seen = {
        split: {p.arithmetic for seed in (0, 1) for p in story_problems(split, 400, seed)}
        for split in ("train", "test", "validation")
    }
    assert (
        not seen["train"] & seen["test"]
        and not seen["train"] & seen["validation"]
        and not seen["test"] & seen["validation"]
    )
    assert all(split_of(one) == split for split in seen for one in story_problems(split, 50, 5))
    assert story_problems("test", 50, 7) == story_problems("test", 80, 7)[:50]


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("3 + 4 = 7\n#### 7", True),
        ("#### 7.", True),
        ("#### 7.0", True),
        ("#### $7", True),
        ("#### 70", False),
        ("#### 7.5", False),
        ("#### -7", False),
        ("7", False),
        ("#### 8\n#### 7", True),
        ("####", False),
    ],
)
def test_what_counts_as_right(text, right):
    assert is_correct(text, "7") is right


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        (" 7 * 6 = 42\n60 - 42 = 18\n#### 18", ""),
        ("7 * 6 = 48\n60 - 48 = 12\n#### 12", "calculation"),
        ("7 * 6 = 42\n60 - 42 = 28\n#### 28", "calculation"),
        ("7 + 6 = 13\n60 - 13 = 47\n#### 47", "step"),
        ("7 * 6 = 42\n#### 42", "step"),
        ("7 * 6 = 42\n60 - 42 = 18\n18 - 1 = 17\n#### 17", "step"),
        ("7 * 6 = 42\n60 - 42 = 18\n#### 19", "step"),
        ("", "step"),
    ],
)
def test_where_an_answer_first_goes_wrong(text, mistake):
    problem = StoryProblem("?", "", "7 * 6 = 42\n60 - 42 = 18\n#### 18")
    assert problem.mistake(text) == mistake


def test_as_a_problem_set_it_is_graded_as_in_training():
    problems = story_set(n=20)
    assert len({p.id for p in problems}) == 20
    for problem, told in zip(problems, story_problems("test", 20, 0), strict=True):
        assert grade(problems, problem, told.worked_answer) and not grade(problems, problem, "#### 401")


def test_wrong_arguments():
    with pytest.raises(InputError, match="unknown split 'tets'"):
        story_problems("tets", 3, 0)
    with pytest.raises(InputError, match="at least 1"):
        story_problems("test", 0, 0)
