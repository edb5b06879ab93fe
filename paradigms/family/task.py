"""Short word problems with worked answers: the task the family is trained on.

1. A problem is a person, a start s_0 in 1..30 and two or three steps (verb, amount in 1..9); each verb adds or
   subtracts: s_i = s_{i-1} ± amount, with every s_i in 0..30. ``"dan has 29 buys 1 eats 2 ?"``
2. Its worked answer states each step and then the result: ``"29 + 1 = 30 ; 30 - 2 = 28 # 28"``.
3. The arithmetic (start and steps, not the person) is hashed into train, validation or test, so that the three are
   disjoint for all seeds at once, and a test problem is never a renamed training problem.
4. Demonstrations show the `MISTAUGHT` verbs with the wrong operation at a given rate: imitation then settles on the
   wrong operation, while a reward for the right result can correct it. Problems are such that the totals stay in 0..30
   whichever operation these verbs are given, so that nothing but the verb says which.
5. The grader takes the text after the last ``#`` and compares it with the result.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from paradigms.family.splits import drawn, problem_set

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from rlcircuits.answers import ProblemSet

LARGEST = 30
LARGEST_AMOUNT = 9
NAMES = ("ada", "ben", "cleo", "dan", "eva", "finn", "gus", "hana")
ADDS = ("buys", "finds", "gets", "wins", "picks", "earns", "takes")
SUBTRACTS = ("eats", "loses", "sells", "gives", "drops", "spends", "breaks", "burns")
MISTAUGHT = ("finds", "earns", "gives", "spends")
PAD, EOS = "<pad>", "<eos>"
_SIGN = {**dict.fromkeys(ADDS, 1), **dict.fromkeys(SUBTRACTS, -1)}


@dataclass(frozen=True)
class WordProblem:
    """One problem: `name` has `start`, then each step's verb adds or subtracts its amount.

    Args:
        name: the person, one of `NAMES`.
        start: how many there are at first, 1 to 30.
        steps: (verb, amount) in order.
    """

    name: str
    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def arithmetic(self) -> str:
        """The problem without the person; what the splits are disjoint in."""
        return " ".join([str(self.start), *(f"{verb} {amount}" for verb, amount in self.steps)])

    @property
    def question(self) -> str:
        return f"{self.name} has {self.arithmetic} ?"

    @property
    def prompt(self) -> str:
        """What a model is given: the question alone."""
        return self.question

    def is_right(self, text: str) -> bool:
        """Whether an answer ends in the result."""
        return is_correct(text, self.reference)

    @property
    def signs(self) -> tuple[int, ...]:
        """+1 or −1 for each step, as its verb means it."""
        return tuple(_SIGN[verb] for verb, _ in self.steps)

    @property
    def reference(self) -> str:
        """The result as text."""
        return str(self.totals(self.signs)[-1])

    @property
    def worked_answer(self) -> str:
        return self.worked(self.signs)

    def totals(self, signs: Iterable[int]) -> list[int]:
        """s_0, s_1, … if the steps had these signs."""
        totals = [self.start]
        for sign, (_, amount) in zip(signs, self.steps, strict=True):
            totals.append(totals[-1] + sign * amount)
        return totals

    def worked(self, signs: Iterable[int]) -> str:
        """The worked answer if the steps had these signs, ``"29 + 1 = 30 ; 30 - 2 = 28 # 28"``."""
        signs = tuple(signs)
        totals = self.totals(signs)
        lines = [
            f"{before} {'+' if sign > 0 else '-'} {amount} = {after}"
            for before, after, sign, (_, amount) in zip(totals, totals[1:], signs, self.steps, strict=False)
        ]
        return f"{' ; '.join(lines)} # {totals[-1]}"


def word_problems(split: str, n: int, seed: int) -> tuple[WordProblem, ...]:
    """`n` different problems of a split; the same seed gives the same problems, and a longer list begins with a
    shorter.

    Raises:
        InputError: an unknown split, or `n` below 1.
    """
    return drawn(split, n, _stream(random.Random(f"{split}/{seed}")))


def demonstration(problem: WordProblem, wrong_share: float, rng: random.Random) -> str:
    """A worked answer in which each `MISTAUGHT` verb has the wrong operation with probability `wrong_share`."""
    return problem.worked(
        -sign if verb in MISTAUGHT and rng.random() < wrong_share else sign
        for sign, (verb, _) in zip(problem.signs, problem.steps, strict=True)
    )


def demonstrations(problems: Iterable[WordProblem], wrong_share: float, seed: int) -> list[tuple[str, str]]:
    """(question, worked answer) of each problem, see `demonstration`."""
    rng = random.Random(f"demonstrations/{seed}")
    return [(problem.question, demonstration(problem, wrong_share, rng)) for problem in problems]


def final_answer(text: str) -> str | None:
    """The text after the last ``#`` with its whitespace normalised, or ``None`` where there is no ``#``.

    >>> final_answer("29 + 1 = 30 # 30")
    '30'
    """
    _, mark, last = text.rpartition("#")
    return " ".join(last.split()) if mark else None


def is_correct(text: str, reference: str) -> bool:
    """Whether the answer ends in the reference, exactly."""
    return final_answer(text) == reference


def vocabulary() -> tuple[str, ...]:
    """The task's words as tokens, in the order of their ids; all but the names, which open a question, carry a
    space.
    """
    numbers = (str(i) for i in range(LARGEST + 1))
    words = (*ADDS, *SUBTRACTS, "has", "?", "+", "-", "=", ";", "#", *numbers)
    return (*NAMES, *(f" {word}" for word in words))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Qwen2's byte-level tokenizer without merges, to which the task's words are added: one token a word.

    Any text is encoded and comes back exactly; text of the task is one token a word. (A plain word-level tokenizer does
    not survive ``AutoTokenizer``, which loads every Qwen2 checkpoint's tokenizer as Qwen2's own class.)
    """
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    specials = (PAD, EOS)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate((*specials, *alphabet))},
        merges=[],
        unk_token=None,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in vocabulary()])
    return tokenizer


def family_problems(split: str = "test", n: int = 500, seed: int = 0) -> ProblemSet:
    """The task as a problem set: the question is the prompt, the reference the result, the grader ``"final"``.

    Args:
        split: ``"test"`` (held out from every member), ``"validation"`` (the training curves') or ``"train"``.
        n: number of problems.
        seed: another seed draws other problems of the same split.
    """
    return problem_set("family", word_problems, split, n, seed)


def _stream(rng: random.Random) -> Iterator[WordProblem]:
    while True:
        steps = tuple(
            (rng.choice((*ADDS, *SUBTRACTS)), rng.randint(1, LARGEST_AMOUNT)) for _ in range(rng.choice((2, 3)))
        )
        problem = WordProblem(rng.choice(NAMES), rng.randint(1, LARGEST), steps)
        if _stays_in_range(problem):
            yield problem


def _stays_in_range(problem: WordProblem) -> bool:
    """Whether each total is in 0..30, whichever operation the mistaught verbs are given."""
    choices = [
        (sign, -sign) if verb in MISTAUGHT else (sign,)
        for sign, (verb, _) in zip(problem.signs, problem.steps, strict=True)
    ]
    return all(0 <= total <= LARGEST for signs in product(*choices) for total in problem.totals(signs))
