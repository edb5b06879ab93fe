r"""Arithmetic word problems in plain English, for a real language model: the task that it half masters.

1. A story is one of `STORIES`: sentences with names, things and numbers, and its steps, each one operation on two whole
   numbers, of which one may be an earlier step's result. One story in three also has a sentence with a number that does
   not matter.
2. Its worked answer states each step and then the result: ``"7 * 6 = 42\n60 - 42 = 18\n#### 18"``.
3. What is asked for, which is the story and its numbers, not the names, is hashed into train, validation or test, so
   that the three are disjoint for all seeds at once, and a test problem is never a renamed training problem.
4. The grader takes what follows the last ``####`` and compares it with the result as a number.
"""

from __future__ import annotations

import itertools
import operator
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paradigms.family.splits import drawn, problem_set
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet

PROMPT = "Question: {question}\nAnswer:"
LARGEST = 400
"""No number of a worked answer is above this, and none is below 1."""
NAMES = tuple(
    "Ada Ben Clara David Ella Felix Grace Henry Iris Jack Kira Liam Mona Noah Olga Paul Rosa Sam Tara Umar Vera Will "
    "Yara Zoe".split()
)
THINGS = tuple(
    "apples,books,stickers,marbles,shells,stamps,coins,cookies,pencils,balloons,flowers,cards,buttons,eggs,oranges,beads,toys,cups,"
    "photos,tickets,candles,keys,badges,postcards,walnuts,lemons".split(",")
)
PLACES = tuple("school,the market,the library,a fair,the park,the harbour,the village,the office".split(","))
DISTRACTORS = (
    "{name} is {d} years old.",
    "{friend} lives {d} streets away.",
    "It is {d} degrees outside.",
    "There are {d} clouds in the sky.",
    "The bus to {place} takes {d} minutes.",
    "{name} woke up {d} minutes early.",
)
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.floordiv}
_STEP = re.compile(r"(\w) = (\w) ([-+*/]) (\w)")


@dataclass(frozen=True)
class Story:
    """One kind of problem.

    Args:
        text: sentences with ``{name}``, ``{friend}``, ``{things}``, ``{place}`` and numbers ``{a}``, ``{b}``, …; the
            last asks.
        steps: such as ``"p = b * c; r = a - p"``; the last step's result is the answer.
        limits: the range of each number, such as ``"a 20 60, b 2 9, c 2 6"``.
    """

    text: str
    steps: str
    limits: str

    def ranges(self) -> dict[str, tuple[int, int]]:
        """The lowest and the highest value of each number."""
        parts = (part.split() for part in self.limits.split(","))
        return {name: (int(low), int(high)) for name, low, high in parts}

    def operations(self) -> list[tuple[str, str, str, str]]:
        """(result, left, operator, right) of each step."""
        return [_STEP.fullmatch(step.strip()).groups() for step in self.steps.split(";")]  # type: ignore[union-attr]


def _story(text: str, steps: str, limits: str) -> Story:
    return Story(" ".join(text.split()), steps, limits)


STORIES = (
    # one step
    _story("{name} has {a} {things}. {friend} gives {name} {b} more. How many {things} does {name} have "
           "now?", "r = a + b", "a 12 60,b 5 40"),
    _story("There are {a} {things} on a shelf. {name} takes {b} of them away. How many {things} are "
           "left?", "r = a - b", "a 25 90,b 6 24"),
    _story("{name} fills {a} bags with {b} {things} each. How many {things} are in the "
           "bags?", "r = a * b", "a 3 9,b 4 12"),
    _story("{name} shares {p} {things} equally among {a} friends. How many {things} does each friend "
           "get?", "r = p / a", "a 3 9,q 3 12"),
    _story("{name} walked {a} steps to {place} and {b} steps back home. How many steps is that in "
           "all?", "r = a + b", "a 30 90,b 20 90"),
    _story("A box holds {a} {things}. {b} of them are broken. How many are not broken?", "r = a - b", "a 30 95,b 7 28"),
    _story("A ticket to {place} costs {a} dollars. How much do {b} tickets cost?", "r = a * b", "a 6 15,b 3 8"),
    _story("{name} is {a} years younger than {friend}. {friend} is {b} years old. How old is "
           "{name}?", "r = b - a", "a 3 19,b 25 70"),
    _story("A rope of {p} metres is cut into pieces of {a} metres. How many pieces are "
           "there?", "r = p / a", "a 3 9,q 4 12"),
    # two steps
    _story("{name} has {a} {things}. {friend} brings {b} more, and then {c} get lost. How many {things} are there "
           "now?", "p = a + b; r = p - c", "a 15 50,b 8 40,c 5 20"),
    _story("{name} had {a} {things}, gave {b} to {friend} and {c} to a neighbour. How many are "
           "left?", "p = a - b; r = p - c", "a 45 95,b 6 20,c 5 20"),
    _story("{name} buys {a} boxes of {b} {things} and finds {c} more at home. How many {things} does {name} "
           "have?", "p = a * b; r = p + c", "a 3 8,b 4 12,c 5 30"),
    _story("{name} picks {a} baskets of {b} {things} and eats {c} of them. How many {things} are "
           "left?", "p = a * b; r = p - c", "a 3 8,b 5 12,c 4 14"),
    _story("A shop had {a} {things}. It sold {b} in the morning and got {c} new ones at noon. How many does it have "
           "now?", "p = a - b; r = p + c", "a 40 90,b 8 30,c 7 40"),
    _story("{name} saves {a} dollars a week for {b} weeks and then spends {c} dollars at {place}. How many dollars "
           "are left?", "p = a * b; r = p - c", "a 6 15,b 3 8,c 5 17"),
    _story("{name} has {a} {things}, and {friend} has {b} more than {name}. How many {things} do they have "
           "together?", "p = a + b; r = a + p", "a 8 40,b 3 20"),
    _story("{name} has {a} {things}, and {friend} has {b} fewer than {name}. How many {things} do they have "
           "together?", "p = a - b; r = a + p", "a 20 50,b 3 15"),
    _story("{name} has {a} {things}. {friend} has {b} times as many. How many {things} do they have "
           "together?", "p = a * b; r = a + p", "a 5 18,b 2 6"),
    _story("A baker makes {a} trays of {b} cookies and puts them into bags of {c}. How many bags does the baker "
           "fill?", "p = a * b; r = p / c", "c 2 6,q 3 9,b 2 8"),
    _story("{name} reads {a} pages in the morning and {b} in the evening. The book has {c} pages. How many pages are "
           "left to read?", "p = a + b; r = c - p", "a 12 40,b 10 40,c 95 180"),
    _story("A bus starts with {a} people. At {place} {b} get off and {c} get on. How many people are on the "
           "bus?", "p = a - b; r = p + c", "a 25 60,b 5 20,c 4 25"),
    _story("{name} buys {a} {things} at {b} dollars each and pays with {c} dollars. How much change does {name} "
           "get?", "p = a * b; r = c - p", "a 3 9,b 2 9,c 85 120"),
    _story("{name} collects {a} {things} on Monday and twice as many on Tuesday. How many is that in "
           "all?", "p = a * t; r = a + p", "a 8 40,t 2 2"),
    # three steps
    _story("{name} has {a} {things}, buys {b} more, gives {c} to {friend} and loses {e}. How many {things} are "
           "left?", "p = a + b; q = p - c; r = q - e", "a 30 60,b 10 40,c 5 18,e 3 12"),
    _story("{name} packs {a} boxes of {b} {things} and {c} boxes of {e} {things}. How many {things} are "
           "packed?", "p = a * b; q = c * e; r = p + q", "a 2 6,b 4 12,c 2 6,e 4 12"),
    _story("{name} earns {a} dollars an hour for {b} hours, spends {c} dollars at {place} and gets {e} dollars from "
           "{friend}. How many dollars does {name} "
           "have?", "p = a * b; q = p - c; r = q + e", "a 7 14,b 3 7,c 5 20,e 4 25"),
    _story("A class has {a} girls and {b} boys. {c} of the children are at home ill, and the others stand in {e} "
           "equal rows. How many are in a row?", "p = a + b; q = p - c; r = q / e", "e 3 6,s 3 8,c 2 9,a 5 16"),
    _story("{name} has {a} {things}. {friend} has {b} times as many, but gives {c} of them away. How many do they "
           "have together now?", "p = a * b; q = p - c; r = a + q", "a 6 15,b 2 6,c 3 11"),
    _story("A farmer fills {a} crates with {b} eggs each, breaks {c} eggs and sells {e}. How many eggs are "
           "left?", "p = a * b; q = p - c; r = q - e", "a 4 9,b 9 12,c 2 9,e 8 24"),
    _story("{name} drives {a} kilometres a day for {b} days and then {c} kilometres a day for {e} days. How far is "
           "that?", "p = a * b; q = c * e; r = p + q", "a 10 30,b 2 5,c 10 30,e 2 4"),
    _story("{name} had {a} {things} and bought {b} packs of {c}. Then {friend} took {e}. How many {things} does "
           "{name} have?", "p = b * c; q = a + p; r = q - e", "a 10 45,b 2 6,c 4 12,e 5 15"),
    _story("{name} bakes {a} cakes and cuts each into {b} slices. {c} slices are eaten at {place} and {e} at home. "
           "How many slices are left?", "p = a * b; q = p - c; r = q - e", "a 4 8,b 8 12,c 5 15,e 3 14"),
    _story("A train has {a} wagons with {b} seats each. {c} seats are taken, and {e} more people get on. How many "
           "seats are free?", "p = a * b; q = p - c; r = q - e", "a 4 9,b 10 20,c 10 25,e 4 12"),
    _story("{name} pays {a} dollars for a coat and {b} dollars each for {c} shirts, out of {e} dollars. How many "
           "dollars are left?", "p = b * c; q = a + p; r = e - q", "a 20 60,b 6 15,c 2 5,e 140 190"),
)  # fmt: skip


@dataclass(frozen=True)
class StoryProblem:
    """One problem, with its question as text.

    Args:
        question: the story, ending with what is asked.
        arithmetic: which story and which numbers; what the splits are disjoint in.
        worked_answer: each step on a line of its own, then ``#### result``.
    """

    question: str
    arithmetic: str
    worked_answer: str

    @property
    def prompt(self) -> str:
        """What a model is given: `PROMPT` with the question."""
        return PROMPT.replace("{question}", self.question)

    def is_right(self, text: str) -> bool:
        """Whether an answer ends in the result."""
        return is_correct(text, self.reference)

    def mistake(self, text: str) -> str:
        """Where an answer first leaves the worked one: at a ``"calculation"`` (the right step with a wrong result), or at a
        ``"step"`` (another one, none, or one too many); nothing where it does not.
        """
        steps = (one.strip() for one in text.strip().split("\n"))
        for said, meant in itertools.zip_longest(steps, self.worked_answer.split("\n"), fillvalue=""):
            if said != meant:
                left, equals, _ = meant.partition("=")
                return "calculation" if equals and said.startswith(left + equals) else "step"
        return ""

    @property
    def reference(self) -> str:
        """The result as text."""
        return self.worked_answer.rpartition("#### ")[2]


def story_problems(split: str, n: int, seed: int) -> tuple[StoryProblem, ...]:
    """`n` different problems of a split; the same seed gives the same problems, and a longer list begins with a
    shorter.

    Raises:
        InputError: an unknown split, or `n` below 1.
    """
    return drawn(split, n, _stream(random.Random(f"stories/{split}/{seed}")))


def is_correct(text: str, reference: str) -> bool:
    r"""Whether the text after the last ``####`` is the reference as a number.

    >>> is_correct("3 + 4 = 7\n#### 7.", "7"), is_correct("3 + 4 = 7", "7")
    (True, False)
    """
    _, mark, last = text.rpartition("####")
    number = re.match(r"\s*\$?(-?\d+)(?:\.0*)?(?![\d.])", last)
    return bool(mark) and number is not None and number[1] == reference


def demonstrations(problems: Iterable[StoryProblem], wrong_share: float, seed: int) -> list[tuple[str, str]]:
    """(prompt, worked answer) of each problem; nothing is mistaught, so `wrong_share` is 0 and no random number is
    drawn.

    Raises:
        InputError: another `wrong_share`.
    """
    if wrong_share:
        raise InputError(f"recipe: task.wrong_share is {wrong_share}: stories are demonstrated as they are, expected 0")
    return [(problem.prompt, problem.worked_answer) for problem in problems]


def story_set(split: str = "test", n: int = 500, seed: int = 0) -> ProblemSet:
    """The task as a problem set: graded by what follows the last ``#``.

    Args:
        split: ``"test"`` (held out from every member), ``"validation"`` (the training curves') or ``"train"``.
        n: number of problems.
        seed: another seed draws other problems of the same split.
    """
    return problem_set("stories", story_problems, split, n, seed)


def _stream(rng: random.Random) -> Iterator[StoryProblem]:
    while True:
        number = rng.randrange(len(STORIES))
        numbers = _numbers(STORIES[number], rng)
        if numbers is not None:
            yield _told(number, numbers, rng)


def _numbers(story: Story, rng: random.Random) -> dict[str, int] | None:
    """Values for a story's letters, or None when these give a result out of range or a division with a remainder."""
    values = {name: rng.randint(low, high) for name, (low, high) in story.ranges().items()}
    operations = story.operations()
    _, left, sign, right = operations[-1]
    if sign == "/" and len(operations) == 1:
        values[left] = values.pop("q") * values[right]
    elif story.steps == "p = a * b; r = p / c":
        whole = values.pop("q") * values["c"]
        if whole % values["b"]:
            return None
        values["a"] = whole // values["b"]
    elif sign == "/":
        values["b"] = values.pop("s") * values["e"] + values["c"] - values["a"]
    return values if _worked(story, values) is not None else None


def _worked(story: Story, numbers: dict[str, int]) -> tuple[list[str], int] | None:
    """Each step as a line, and the result; None where a division leaves a remainder or a number is out of range."""
    known, lines = dict(numbers), []
    for result, left, sign, right in story.operations():
        one, other = known[left], known[right]
        if sign == "/" and (other < 1 or one % other):
            return None
        known[result] = _OPERATIONS[sign](one, other)
        lines.append(f"{one} {sign} {other} = {known[result]}")
    return (lines, known["r"]) if all(1 < value <= LARGEST for value in known.values()) else None


def _told(number: int, numbers: dict[str, int], rng: random.Random) -> StoryProblem:
    story = STORIES[number]
    name, friend = rng.sample(NAMES, 2)
    words = {"name": name, "friend": friend, "things": rng.choice(THINGS), "place": rng.choice(PLACES)}
    text = story.text
    if rng.random() < 1 / 3:
        first, mark, rest = text.partition(". ")
        text = f"{first}{mark}{rng.choice(DISTRACTORS)} {rest}" if mark else f"{rng.choice(DISTRACTORS)} {text}"
    question = text.format(**words, **numbers, d=rng.randint(3, 29))
    lines, result = _worked(story, numbers)  # type: ignore[misc]
    arithmetic = f"{number}: " + "; ".join(lines)
    return StoryProblem(question, arithmetic, "\n".join([*lines, f"#### {result}"]))
