"""Which architectures are supported at which level: tried on tiny models, and written to book/architectures.md.

1. Each model of `tests.models.KINDS` is attributed at each level; the scores must be those of the edge-by-edge decoder of
   `tests.reference`. A level that the package refuses is a "no" with its reason.
2. Models of `REFUSED` must be refused; their message is the reason.

    python -m tests.architectures
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import rlcircuits as rc
from tests.models import KINDS, REFUSED, in_float64, refused, tiny
from tests.reference import exact_scores

PAGE = Path(__file__).parents[1] / "book" / "architectures.md"
LEVELS = ("block", "qkv", "head")
PROMPT, ANSWER = (5, 9, 33, 7, 60), (11, 3, 3, 42)
NOTES = {
    "llama": "",
    "mistral": "",
    "mistral, sliding": "windows in all layers",
    "qwen2": "biases in q, k and v",
    "qwen3": "norms of each head's queries and keys",
    "gemma2": "norms also after the branches, capped scores and logits, windows in some layers",
    "gemma3": "norms also after the branches, norms of queries and keys, windows in some layers; text only",
    "olmo2": "norms after the branches only, norms of all queries and of all keys together",
    "phi3": "q, k and v in one projection, gate and up in another",
    "gpt2": "LayerNorm, learned positions, q, k and v in one transposed projection",
    "gpt-neox": "attention and MLP in parallel, q, k and v of each head side by side in one projection; Pythia is one",
    "gpt-neox, sequential": "`use_parallel_residual=False`",
    "mixtral": "mixture of experts",
    "qwen2-moe": "mixture of experts with a shared one",
}
HEADER = """# Architectures

Which models can be attributed and ablated, and how finely. The tests write this page: every cell is a run on a tiny random
model, whose scores were those of a decoder written out edge by edge, to 2 in a million. A model is recognised by its modules
and checked when it is first used, so others than these work, too; one that does not fit is refused, with the reason.

| model | class | block | qkv | head | notes |
|---|---|---|---|---|---|
"""
AFTER = """
Where there is a norm after the attention (Gemma 2 and 3, OLMo 2), a head's share of what is written is its own output with
the norm's scale as it was: w ∘ r · z[h] W_O[h]. These shares sum to what is written, and each can be taken away exactly. (The
norm's Jacobian would not do: a norm does not see its input's length, so by it the shares sum to zero.)

## Refused

| model | class | level | reason |
|---|---|---|---|
"""


def page() -> str:
    """The page, from runs.

    Raises:
        AssertionError: scores that are neither right nor refused.
    """
    rows, reasons = [], []
    for kind, (model, _, _) in KINDS.items():
        hf = in_float64(tiny(kind, layers=2))
        found = {level: why_not(hf, level) for level in LEVELS}
        cells = ["yes" if reason is None else "no" for reason in found.values()]
        reasons += reasons_of(kind, model, found)
        rows.append(f"| {kind} | {model} | {' | '.join(cells)} | {NOTES[kind]} |")
    for kind in REFUSED:
        hf = refused(kind)
        reasons += reasons_of(kind, type(hf).__name__, {level: refusal(hf, level) for level in LEVELS})
    return HEADER + "\n".join(rows) + "\n" + AFTER + "\n".join(reasons) + "\n"


def reasons_of(kind: str, model: str, found: dict[str, str | None]) -> list[str]:
    """Rows of the table of reasons, one for all levels that share it."""
    levels: dict[str, list[str]] = {}
    for level, reason in found.items():
        if reason is not None:
            levels.setdefault(reason, []).append(level)
    return [f"| {kind} | {model} | {'all' if len(of) == 3 else ', '.join(of)} | {reason} |" for reason, of in levels.items()]


def why_not(hf, level: str) -> str | None:
    """Why a level is refused; None where it is supported and its scores are right."""
    reason = refusal(hf, level)
    if reason is None:
        scores = rc.attribute(hf, [rc.Trace("p", PROMPT, ANSWER)], level, progress=False)[0].values
        expected = exact_scores(hf, PROMPT, ANSWER, level)
        assert (np.isnan(scores) == np.isnan(expected)).all()
        assert np.nanmax(np.abs(scores - expected)) <= 2e-6 * np.nanmax(np.abs(expected)), (hf.config.model_type, level)
    return reason


def refusal(hf, level: str) -> str | None:
    """The reason given for refusing a level, None where it is not refused."""
    try:
        rc.Graph.of(hf, level)
    except rc.InputError as error:
        reason = str(error).partition(": ")[2].partition("; use level=")[0]
        assert type(hf).__name__ in str(error) and reason
        return reason.partition(" (off by")[0]
    return None


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.name}")
