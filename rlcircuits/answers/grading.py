r"""Whether what a text states as its answer is the reference.

1. An extractor says what of a reference is the answer: what it states, or only a ``\boxed{…}``, or only what follows
   ``####``, or all of it.
2. A grader compares what a text states with that, and says whether it is right and, strictly, whether it is right
   **and** stated in a form made for it. The two side by side tell a gain in form from a gain in reasoning:

   - ``"final"``: what follows the last ``#``, exactly; numbers as exact rationals (``1,200`` = ``1200``, ``0.5`` =
     ``1/2``). Strict by itself.
   - ``"math"``: what `rlcircuits.answers.extraction` finds. Numbers are equal as rationals, whatever their units,
     currency or separators, and a percentage equals its number and its hundredth; all else is equal as text, or as
     mathematics by math-verify.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from rlcircuits.answers.extraction import after_hashes, boxed, spelt, stated, value
from rlcircuits.errors import InputError


class Verdict(NamedTuple):
    """What a grader says of a text.

    Attributes:
        correct: what it states is the reference, wherever it states it.
        strict: and it states it in a form made for it.
    """

    correct: bool
    strict: bool


def grade_final(reference: str, text: str) -> bool:
    """Whether what follows the last ``#`` of `text` is the reference, as a number or as text with its spaces
    normalised.

    A reference with a ``#`` is what follows its last one. A text without ``#`` is not correct.

    >>> grade_final("1,200", "12 * 100 = 1200 # 1200.0"), grade_final("28", "so it is 28")
    (True, False)
    """
    _, mark, stated = text.rpartition("#")
    stated, expected = " ".join(stated.split()), " ".join(reference.rpartition("#")[2].split())
    if not mark:
        return False
    numbers = _rational(stated), _rational(expected)
    return numbers[0] == numbers[1] if None not in numbers else stated == expected


def grade_math(reference: str, text: str) -> Verdict:
    r"""Whether `text` states the reference or something equal to it, see above.

    A reference that states nothing in a marked form is all answer. math-verify
    (https://github.com/huggingface/Math-Verify) gives up after 5 seconds; then it counts as unequal.

    Raises:
        InputError: math-verify is needed and not installed.
    """
    expected, found = stated_answer(reference) or reference, stated(text)
    if spelt(text) == spelt(expected):  # nothing else is said
        return Verdict(True, True)
    if found is None or not _equal(expected, found.text):
        return Verdict(False, False)
    return Verdict(True, found.marked)


def _equal(expected: str, found: str) -> bool:
    expected, found = spelt(expected), spelt(found)
    if "=" not in expected:
        found = found.rpartition("=")[2].strip()
    if expected == found or (len(found) == 3 and expected == found[1:-1] and found[0] + found[2] == "()"):
        return bool(found)
    one, other = value(expected), value(found)
    if one is None or other is None:
        return _math_verify()(expected, found)
    (wanted, percent), (given, also) = one, other
    return (
        wanted == given
        or (also and not percent and wanted == given / 100)
        or (percent and not also and wanted / 100 == given)
    )


def stated_answer(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{…}``, else the line after the last ``####``, else None.

    >>> stated_answer(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    span = boxed(text) or after_hashes(text)
    return None if span is None else text[slice(*span)].strip()


def _boxed_reference(text: str) -> str | None:
    r"""The content of the last box; references also write ``\boxed 5$``, which TeX takes as a box around the 5."""
    bare = re.findall(r"\\boxed\s+([^\s{$\\]+)\s*\$", text)
    span = boxed(text)
    if span is None:
        return bare[-1].rstrip(".,") or None if bare else None
    return text[slice(*span)].strip()


def _after_hashes(text: str) -> str | None:
    span = after_hashes(text)
    return None if span is None else text[slice(*span)] or None


#: extractors by name: what of a reference is the answer, or None when it is not there. "stated": the content of the
#: last boxed, else what follows ####, else all of it
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "stated": lambda text: stated_answer(text) or text,
    "boxed": _boxed_reference,
    "hashes": _after_hashes,
    "whole": lambda text: text.strip() or None,
}
GRADERS: dict[str, Callable[[str, str], Verdict | bool]] = {"final": grade_final, "math": grade_math}
"""Graders by name: functions of the reference and of the text that is graded."""
_NUMBER = re.compile(r"([+-]?)\s*(\d+|\d{1,3}(?:,\d{3})+)?(\.\d+)?(?:\s*/\s*([1-9]\d*))?")


def _rational(text: str) -> Fraction | None:
    match = _NUMBER.fullmatch(text)
    if not match or not (match[2] or match[3]) or len(text) > 1000:
        return None
    whole = Fraction((match[2] or "0").replace(",", "") + (match[3] or ""))
    return (-whole if match[1] == "-" else whole) / int(match[4] or 1)


def _unwrapped(text: str) -> str:
    r"""A text with its spaces normalised, and without the $…$, \(…\) or \[…\] around all of it."""
    text = " ".join(text.split())
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = text[len(opening) : -len(closing)]
        if (
            text.startswith(opening)
            and text.endswith(closing)
            and len(text) > 2 * len(opening)
            and opening not in inner
        ):
            return inner.strip()
    return text


def math_verify_reads(answer: str) -> str | None:
    """Why math-verify cannot tell that an answer is equal to itself; None when it can.

    Raises:
        InputError: math-verify is not installed.
    """
    _math_verify()
    from math_verify import parse, verify
    from math_verify.errors import TimeoutException

    limit = _time_limit()
    try:
        # Read twice, as reference and answer are: one object is equal to itself whatever it says.
        parsed = [parse(_as_math(answer), parsing_timeout=limit) for _ in range(2)]
        within = f" within {limit} s" if limit else ""
        if not all(parsed):
            return f"math-verify reads nothing from it{within}: only the same text is equal"
        if not verify(*parsed, timeout_seconds=limit):
            return f"math-verify does not find it equal to itself{within}: only the same text is equal"
        return None
    except TimeoutException:
        return f"math-verify does not compare it within {limit} s: only the same text is equal"


def _time_limit() -> int | None:
    """Seconds for math-verify; its time limit is a signal, which only a main thread can have."""
    return 5 if threading.current_thread() is threading.main_thread() else None


def _as_math(answer: str) -> str:
    answer = _unwrapped(answer)
    return answer if re.search(r"(?<!\\)\$", answer) else f"\\boxed{{{answer}}}"


@lru_cache(maxsize=1)
def _math_verify() -> Callable[[str, str], bool]:
    try:
        from math_verify import parse, verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        raise InputError(
            "the 'math' grader needs math-verify, which is not installed: pip install 'rlcircuits[math]', or use "
            "grader='final'"
        ) from error

    def equal(expected: str, found: str) -> bool:
        limit = _time_limit()
        try:
            gold, given = (parse(_as_math(answer), parsing_timeout=limit) for answer in (expected, found))
            return bool(gold and given) and bool(verify(gold, given, timeout_seconds=limit))
        except TimeoutException:
            return False

    return equal
