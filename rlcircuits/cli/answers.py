"""``rlcircuits answers``: both models of a pair answer, and the answers are written to a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from rlcircuits.cli import options
from rlcircuits.cli.options import model, output, problem
from rlcircuits.errors import InputError


def answers(
    pair: Annotated[str, model("a registered pair, or family/<member>[@<seed>]", "NAME")],
    problems: Annotated[str, problem("a problem set, NAME=FILE, or a file", "NAME")],
    out: Annotated[str, output("a .jsonl file, as `rlcircuits attribute --answers` reads it", "FILE")],
    pairs: options.PairsFile = None,
    sets: options.SetsFile = None,
    question: options.Question = None,
    answer: options.Right = None,
    id: options.Id = None,
    grader: options.Grader = None,
    extractor: options.Extractor = None,
    limit: options.Limit = None,
    engine: options.Engine = "transformers",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = "auto",
    store: options.StoreFolder = "runs",
) -> None:
    """Let both models of a pair answer, and write the answers with their token ids."""
    from rlcircuits.answers import problem_set, write_answers
    from rlcircuits.models import known_pair
    from rlcircuits.models import pair as registered

    if Path(out).suffix != ".jsonl":
        raise InputError(f"--out is {out!r}: expected a file that ends in .jsonl")
    fields = {"question": question, "answer": answer, "id": id, "grader": grader, "extractor": extractor}
    known_pair(pair, pairs)
    asked, two = problem_set(problems, sets, limit, **fields), registered(pair, pairs, store)

    from rlcircuits.studies import generate_pair

    found = generate_pair(two, asked, store, device, dtype, batch_size, engine)
    write_answers(found, out)
    for side, said in found.items():
        right, strictly = (
            sum(getattr(answer, which) for answer in said) / len(said) for which in ("correct", "strict")
        )
        finished = sum(answer.finished for answer in said)
        print(
            f"{two.name} ({side}): {len(said)} answers, {right:.1%} right ({strictly:.1%} strictly), {finished} "
            "finished",
            file=sys.stderr,
        )
    print(f"written: {out}")
