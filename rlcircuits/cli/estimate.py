"""``rlcircuits estimate``: what attribution will cost, before a weight is read."""

from __future__ import annotations

from typing import Annotated

from rlcircuits.cli import options
from rlcircuits.cli.options import model, option, problem, score, value, whole
from rlcircuits.errors import InputError

_rate = value(float, lambda rate: 0 < rate < float("inf"), "operations a second, such as 3e14")


_TOKENS = "length of a trace (default: 128 and the scored share of an answer)"
_ANSWER = "length of an answer (default: 512, or the pair's longest)"
_FLOPS = "operations a second, such as 3e14 (default: measured here)"


def estimate(
    pair: options.PairName = None,
    base: Annotated[str | None, model("instead: a folder, a config.json, or a hub id", "PATH")] = None,
    pairs: options.PairsFile = None,
    dtype: Annotated[str, model("float32, bfloat16 or float16", "NAME")] = "bfloat16",
    problems: Annotated[int | None, problem("for a whole pair on N problems", "N", whole)] = None,
    level: options.Level = "block",
    alpha: options.Alpha = 0.3,
    tokens: Annotated[int | None, score(_TOKENS, "N", whole)] = None,
    answer_tokens: Annotated[int | None, score(_ANSWER, "N", whole)] = None,
    flops: Annotated[float | None, option(_FLOPS, "F", _rate)] = None,
) -> None:
    """Memory and time of attribution from a model's configuration alone."""
    from rlcircuits import models

    if (pair is None) == (base is None):
        raise InputError("expected either --pair NAME or --base PATH, to say whose cost is estimated")
    if problems is not None and pair is None:
        raise InputError("--problems is the cost of a pair: expected --pair NAME with it")
    found = models.estimate(
        str(base) if pair is None else models.pair(pair, pairs),
        problems=problems,
        tokens=tokens,
        level=level,
        dtype=dtype,
        device_flops=flops,
        alpha=alpha,
        answer_tokens=answer_tokens,
    )
    gib = 2**30
    print(f"{found.name}: {found.parameters:,} parameters, {found.edges:,} edges at level {found.level}")
    print(f"weights            {found.weight_bytes / gib:10.2f} GiB in {found.dtype}")
    lean = f"lean {found.lean_trace_bytes / gib:.2f} GiB"
    print(f"a trace            {found.trace_bytes / gib:10.2f} GiB above them, {found.tokens} tokens; {lean}")
    print(f"work of a trace    {found.flops / 1e12:10.3g} TFLOP, {found.trace_seconds:.3g} s")
    if problems is not None:
        print(f"the whole pair     {found.seconds:10.3g} s")
    print(f"based on {found.basis}")
