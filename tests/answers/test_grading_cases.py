"""The table of answers as models write them, whose verdicts were fixed before there was a rule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlcircuits.answers.extraction import stated, value
from rlcircuits.answers.grading import GRADERS

CASES = [json.loads(line) for line in Path(__file__).with_name("grading_cases.jsonl").read_text("utf-8").splitlines()]
#: what the rule gets wrong: numbers in words, hedges, asides after the answer, and forms that count as marked or do not
WRONG = {
    "It is 80 or 81.", "8100%", "\\boxed{9^2}", "There are 9 shelves, so there are 81 books, 1 more than 80.", "81!",
    "There are a dozen "
    "flowers.", "There are twelve flowers.", "There are 12 flowers (6 x 2).", "Answer: twelve", "12e2",
    "12 hundred", "1.2 thousand", "one half", "minus 3", "There are none left.",
}  # fmt: skip


def test_verdicts_are_those_of_the_table_but_for_what_is_known():
    pytest.importorskip("math_verify")
    assert len(CASES) >= 200
    wrong = {
        case["text"]
        for case in CASES
        if GRADERS["math"](case["reference"], case["text"]) != (case["flexible"], case["strict"])
    }
    assert wrong == WRONG


def test_what_is_strictly_right_is_right():
    assert all(case["flexible"] for case in CASES if case["strict"])
    assert 60 < sum(case["strict"] for case in CASES) < sum(case["flexible"] for case in CASES) < len(CASES) - 60


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["text"][:20])
def test_what_is_stated_stands_where_it_is_said_to(case):
    if (found := stated(case["text"])) is not None:
        assert case["text"][slice(*found.span)] == found.text
        assert found.text or case["text"].rstrip().endswith("#")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,200", 1200), ("1,20", None), ("$-3", -3), ("2x", None), ("3 pi", None), ("1/0", None), ("5 or 6", None), ("1e9999", None)],
)  # fmt: skip
def test_what_is_a_number(text, number):
    assert value(text) == (None if number is None else (number, False))
