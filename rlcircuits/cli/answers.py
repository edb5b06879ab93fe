"""``rlcircuits answers``: both models of a pair answer, and the answers are written to a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from rlcircuits.cli import options
from rlcircuits.cli.options import output
from rlcircuits.errors import InputError, counted


def answers(
    *,
    models: options.Models,
    asking: options.Asking,
    running: options.Running,
    problems: options.ProblemsName = None,
    fields: options.Fields,
    out: Annotated[str, output("a .jsonl file, as `rlcircuits attribute --answers` reads it", "FILE")],
    store: options.StoreFolder = "runs",
) -> None:
    """Let both models of a pair answer, and write the answers with their token ids."""
    from rlcircuits.answers import write_answers

    if Path(out).suffix != ".jsonl":
        raise InputError(f"--out is {out!r}: expected a file that ends in .jsonl")
    models.check()
    asked = fields.chosen(problems, models.pair)
    two = asking.of(models.chosen(store), asked, fields)
    options.show_prompts(two, asked)

    from rlcircuits.studies import generate_pair

    found = generate_pair(two, asked, store, **vars(running))
    write_answers({"base": found["base"]} if models.alone else found, out)
    for side, said in found.items():
        if models.alone and side == "tuned":
            continue
        right, strictly = (
            sum(getattr(answer, which) for answer in said) / len(said) for which in ("correct", "strict")
        )
        finished = sum(answer.finished for answer in said)
        print(
            f"{two.name}{'' if models.alone else f' ({side})'}: {counted(len(said), 'answer')}, {right:.1%} right "
            f"({strictly:.1%} strictly), {finished} finished",
            file=sys.stderr,
        )
    print(f"written: {out}")
