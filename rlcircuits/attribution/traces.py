"""A trace: one prompt and the answer a model gave to it, as token ids.

Attribution scores a trace; where its answer came from does not matter to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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


def checked(hf: PreTrainedModel, traces: Sequence[Trace], cut: int | None) -> list[Trace]:
    """The traces, cut, after every check that needs no computation.

    Raises:
        InputError: see `attribute`.
    """
    from rlcircuits.attribution.layers import embedding  # needs torch, which a trace does not

    if hf.training:
        raise InputError(
            "the model is in training mode, where dropout would change every score: call model.eval() first"
        )
    if isinstance(traces, Trace):
        raise InputError("expected a sequence of traces, not a single one: pass [trace]")
    traces = list(traces)
    if not traces:
        raise InputError("no traces given: expected at least one rlcircuits.Trace")
    context = getattr(hf.config, "max_position_embeddings", None)
    vocabulary = embedding(hf).shape[0]
    for number, trace in enumerate(traces):
        if not isinstance(trace, Trace):
            raise InputError(
                f"trace {number} is a {type(trace).__name__}: expected rlcircuits.Trace(problem, prompt, answer)"
            )
        highest = max(*trace.prompt, *trace.answer)
        if highest >= vocabulary:
            raise InputError(
                f"trace {trace.problem!r} holds token id {highest}, but the model's vocabulary has {vocabulary}: "
                "was it made with another tokenizer?"
            )
    repeated = [problem for problem, count in Counter(trace.problem for trace in traces).items() if count > 1]
    if repeated:
        raise InputError(f"trace {min(repeated)!r} occurs more than once: samples are named by their problem")
    traces = [trace.cut(cut) for trace in traces]
    for trace in traces:
        length = len(trace.prompt) + len(trace.answer) - 1
        if context is not None and length > context:
            raise InputError(
                f"trace {trace.problem!r} is {length} tokens long, but the model's context holds {context}: shorten "
                "it or give a cut"
            )
    return traces
