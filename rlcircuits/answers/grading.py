r"""What a text states as its answer, and whether that is the reference.

1. An extractor says what of a reference is the answer: what it states, or only a ``\boxed{…}``, or only what follows ``####``, or
   all of it.
2. A grader compares what a text *states* as its answer with what the reference states:

   - ``"final"``: what follows the last ``#``, exactly; numbers as exact rationals (``1,200`` = ``1200``, ``0.5`` = ``1/2``).
   - ``"math"``: the content of the last ``\boxed{…}``, else the line after the last ``####``, else what follows words such as "the
     answer is"; equal as text, or as mathematics by math-verify. A number that merely passes by is no answer.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from typing import Any

from rlcircuits.errors import InputError


def grade_final(reference: str, text: str) -> bool:
    """Whether what follows the last ``#`` of `text` is the reference, as a number or as text with its spaces normalised.

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


def grade_math(reference: str, text: str) -> bool:
    r"""Whether `text` states the reference or something mathematically equal to it.

    What a text states is the content of its last ``\boxed{…}``, else the line after its last ``####``, else what math-verify finds
    after words such as "the answer is". A reference that states nothing in these ways is all answer. Equality is that of
    math-verify (https://github.com/huggingface/Math-Verify), which gives up after 5 seconds and then counts as unequal.

    Raises:
        InputError: math-verify is not installed.
    """
    parse_answer = _math_verify()
    expected = _unwrapped(stated_answer(reference) or reference)
    stated = stated_answer(text)
    if stated is not None and _unwrapped(stated) == expected:
        return True
    return parse_answer(expected, stated, text)


def stated_answer(text: str) -> str | None:
    r"""The content of the last complete ``\boxed{…}``, else the line after the last ``####``, else None.

    >>> stated_answer(r"so \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    """
    boxed = _boxed(text)
    return _after_hashes(text) if boxed is None else boxed


def _boxed(text: str) -> str | None:
    for start in reversed([match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]):
        depth = 1
        for i, character in enumerate(text[start:], start):
            escaped = text[i - 1] == "\\" and text[i - 2] != "\\"
            depth += 0 if escaped else {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return text[start:i].strip()
    return None


def _boxed_reference(text: str) -> str | None:
    r"""As `_boxed`; references also write ``\boxed 5$``, which TeX takes as a box around the 5."""
    bare = re.findall(r"\\boxed\s+([^\s{$\\]+)\s*\$", text)
    boxed = _boxed(text)
    return bare[-1].rstrip(".,") or None if boxed is None and bare else boxed


def _after_hashes(text: str) -> str | None:
    _, mark, last = text.rpartition("####")
    return (last.strip().splitlines() or [""])[0].strip() if mark else None


#: extractors by name: what of a reference is the answer, or None when it is not there. "stated": the content of the last
#: boxed, else what follows ####, else all of it
EXTRACTORS: dict[str, Callable[[str], str | None]] = {
    "stated": lambda text: stated_answer(text) or text,
    "boxed": _boxed_reference,
    "hashes": lambda text: _after_hashes(text) or None,
    "whole": lambda text: text.strip() or None,
}
GRADERS: dict[str, Callable[[str, str], bool]] = {"final": grade_final, "math": grade_math}
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
def _math_verify() -> Callable[[str, str | None, str], bool]:
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
        from math_verify.errors import TimeoutException
    except ImportError as error:
        raise InputError(
            "the 'math' grader needs math-verify, which is not installed: pip install 'rlcircuits[math]', or use grader='final'"
        ) from error
    anchored = [
        LatexExtractionConfig(try_extract_without_anchor=False),
        ExprExtractionConfig(try_extract_without_anchor=False),
    ]

    def equal(expected: str, stated: str | None, text: str) -> bool:
        limit = _time_limit()

        def parsed(answer: str) -> list[Any]:
            return parse(answer if re.search(r"(?<!\\)\$", answer) else f"\\boxed{{{answer}}}", parsing_timeout=limit)

        try:
            gold = parsed(expected)
            found = parse(text, anchored, parsing_timeout=limit) if stated is None else parsed(_unwrapped(stated))
            return bool(gold and found) and bool(verify(gold, found, timeout_seconds=limit))
        except TimeoutException:
            return False

    return equal
