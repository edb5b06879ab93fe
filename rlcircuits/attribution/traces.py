"""A trace: one prompt and the answer a model gave to it, as token ids.

Attribution scores a trace; where its answer came from does not matter to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from rlcircuits.errors import InputError


@dataclass(frozen=True)
class Trace:
    """One problem's prompt and answer, in token ids exactly as the model saw and produced them.

    Args:
        problem: the problem's identifier, e.g. ``"gsm8k/17"``; names the sample in the scores.
        prompt: token ids of the prompt, at least one.
        answer: token ids of the answer without the end-of-sequence token, at least one.

    Raises:
        InputError: an empty prompt or answer, or ids that are not non-negative integers.
    """

    problem: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        for field in ("prompt", "answer"):
            ids = tuple(getattr(self, field))
            if not ids:
                raise InputError(
                    f"trace {self.problem!r} has an empty {field}: expected at least one token id; "
                    "leave problems without an answer out"
                )
            if not all(_is_id(i) for i in ids):
                raise InputError(f"trace {self.problem!r}: {field} must hold non-negative integers, not {ids[:5]}")
            object.__setattr__(self, field, tuple(int(i) for i in ids))

    def cut(self, length: int | None) -> Trace:
        """The trace with only the first `length` answer tokens (all of them when shorter or ``None``).

        Raises:
            InputError: `length` is below 1.
        """
        if length is None:
            return self
        if isinstance(length, bool) or int(length) != length or length < 1:
            raise InputError(f"cut is {length!r}: expected a whole number of answer tokens, at least 1, or None")
        return Trace(self.problem, self.prompt, self.answer[: int(length)])


def _is_id(value: object) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__") and value.__index__() >= 0
