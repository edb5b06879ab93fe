"""``rlcircuits estimate``: what attribution will cost, before a weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from rlcircuits.cli import options
from rlcircuits.cli.options import model, option, problem, score, value, whole

_rate = value(float, lambda rate: 0 < rate < float("inf"), "operations a second, such as 3e14")


_TOKENS = "length of a trace (default: 128 and the scored share of an answer)"
_ANSWER = "length of an answer (default: 512, or the pair's longest where that is less)"
_FLOPS = "operations a second, such as 3e14 (default: measured here)"


def estimate(
    *,
    models: options.Models,
    dtype: Annotated[
        str, model("auto (as saved), float32, bfloat16, float16 or float64", "NAME", options.dtype)
    ] = "auto",
    problems: Annotated[int | None, problem("for all models on N problems", "N", whole)] = None,
    n: Annotated[int, problem("traces drawn of each model", "N", whole)] = 100,
    level: options.Level = "block",
    alpha: options.Alpha = 0.3,
    tokens: Annotated[int | None, score(_TOKENS, "N", whole)] = None,
    answer_tokens: Annotated[int | None, score(_ANSWER, "N", whole)] = None,
    device_flops: Annotated[float | None, option(_FLOPS, "F", _rate)] = None,
) -> None:
    """Memory and time of attribution from a model's configuration alone."""
    from rlcircuits.models import estimate

    models.check()
    if tokens is not None and problems is None:
        options.refuse("--tokens is the length of a trace by itself", answer_tokens=answer_tokens)
    found = estimate(
        replace(models.chosen(), name=str(models.base)) if models.alone else models.chosen(),
        problems=problems,
        n=n,
        tokens=tokens,
        level=level,
        dtype=dtype,
        device_flops=device_flops,
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
        print(f"all of it          {options.duration(found.seconds):>10}")
    print(f"based on {found.basis}")
