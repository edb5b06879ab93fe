"""What part an answer's tokens play: labels by which scores are resolved,
``rlcircuits.attribute(…, groups=token_groups(…))``.

1. Every token of the prompt is ``"prompt"``.
2. The answer's tokens are decoded. Those that spell what the answer states are the ``"result"``: what graders read, see
   `rlcircuits.answers.extraction`.
3. Other tokens that hold a digit are ``"numbers"``, all the rest is ``"working"``.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rlcircuits.answers.extraction import stated
from rlcircuits.attribution import Trace
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_GROUPS = ("prompt", "working", "numbers", "result")


def token_groups(tokenizer: PreTrainedTokenizerBase | Any, traces: Sequence[Trace]) -> list[list[str]]:
    """A label for every token of every trace: ``"prompt"``, ``"working"``, ``"numbers"`` or ``"result"``.

    Args:
        tokenizer: that of the model that gave the answers; or the model, as from `rlcircuits.load_model`.
        traces: prompts and answers.

    Returns:
        For each trace as many labels as it has prompt and answer tokens, as `rlcircuits.attribute` takes them as
        `groups`. A token that spells only a part of the result and something else is part of the result; an answer that
        states no number has none.

    Raises:
        InputError: `tokenizer` is none.
    """
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    if not callable(getattr(tokenizer, "decode", None)):
        raise InputError(f"expected a tokenizer, or a model from rlcircuits.load_model, not {type(tokenizer).__name__}")
    return [["prompt"] * len(trace.prompt) + _of_answer(tokenizer, trace.answer) for trace in traces]


def _of_answer(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    def text(end: int) -> str:
        return str(tokenizer.decode(list(ids[:end]), clean_up_tokenization_spaces=False))

    spelt = [tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids]
    labels = ["numbers" if any(c.isdigit() for c in piece) else "working" for piece in spelt]
    if (found := stated(text(len(ids)))) is not None:
        begin, stop = found.span
        # The texts of the first 0, 1, 2, … tokens grow: the result's first token is the last one before which it has
        # not begun.
        ends = range(len(ids) + 1)
        first = bisect_right(ends, begin, key=lambda end: len(text(end))) - 1
        last = bisect_left(ends, stop, key=lambda end: len(text(end)))
        labels[first:last] = ["result"] * (last - first)
    return labels
