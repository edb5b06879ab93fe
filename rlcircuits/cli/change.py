"""``rlcircuits change``: what fine-tuning changed, from six angles, as one page and its tables."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rlcircuits import answers as answering
from rlcircuits.cli import options, results
from rlcircuits.cli.options import one_of, output, problem, score, some, value, whole
from rlcircuits.errors import InputError, counted

EXAMPLES = """
\b
examples:
  rlcircuits change --pair family/grpo --out changes/grpo
      what GRPO changed in the family's base, on the family's own problems
  rlcircuits change --base models/sft --tuned models/lora --problems test.jsonl --parts graft,divergence
      which modules of your adapter carry the change, and at which tokens the two models part

\b
what is written to --out:
  report.html          the page to read first: a question, its answer and its null for each angle; one
                       file, no network needed
  summary.parquet      those answers as a table, with intervals and nulls
  strata.parquet       the same by who answers right: both models, only the tuned one, only the base, neither
  overlap, transfer, transfer-curves, patching, edges, accounts, graft, divergence-base,
  divergence-tuned, weights (.parquet)
                       the tables of each part that was measured
  explorer.html        every edge on every problem: its score, and what it does with the other model's message
  settings.json        what was asked for

Every finished step is kept in --store: the same command goes on where it was interrupted, and computes nothing twice.
"""

_keep_names = one_of("keep", lambda: answering.KEEPS)
_parts = some(one_of("part", lambda: _known_parts()))
_all_or_number = value(
    lambda text: None if text == "all" else int(text),
    lambda n: n is None or n >= 0,
    "all or a whole number of at least 0",
)
_modules = (
    "sets of modules to graft, with commas between: a3, m3, l2-l5, embeddings+l0, … (default: each, and first layers)"
)
_ACCURACY = "let every chimaera of --modules answer all problems, too, which takes long"


def _known_parts() -> tuple[str, ...]:
    from rlcircuits.studies import PARTS

    return PARTS


@dataclass(frozen=True)
class Drawing:
    """Which of the answered problems the change is looked at on."""

    keep: Annotated[
        str, problem("all, or right by both-correct, only-tuned, only-base or neither", "RULE", _keep_names)
    ] = "all"
    n: Annotated[int, problem("how many are drawn of those kept", "N", whole)] = 100
    seed: Annotated[int, problem("of that draw", "N", options.seed)] = 42


def change(
    *,
    models: options.Models,
    asking: options.Asking,
    running: options.Running,
    problems: options.ProblemsName = None,
    fields: options.Fields,
    drawing: Drawing,
    answers: Annotated[
        str | None, problem("answers that `rlcircuits answers` wrote, not to be made again", "FILE")
    ] = None,
    parts: Annotated[Any, score("what to measure, with commas between (default: all)", "NAMES", _parts)] = (),
    level: options.Level = "block",
    alpha: options.Alpha = 1.0,
    steps: Annotated[int, score("nodes of the integrated effects of edges, at least 2", "M", whole)] = 5,
    exact: Annotated[Any, score("edges whose effect is measured exactly too, or all", "N", _all_or_number)] = 20,
    modules: Annotated[Any, score(_modules, "NAMES", some(str))] = (),
    accuracy: Annotated[bool, options.flag("--accuracy", _ACCURACY, heading="scores")] = False,
    out: Annotated[str | None, output("where to write (default: changes/<pair>-<level>)", "DIR")] = None,
    store: options.StoreFolder = "runs",
) -> None:
    """Say what fine-tuning changed: circuits, edges, modules, tokens and weights, each beside what chance would give.

    Both models answer the problems greedily. Then: how much the two circuits overlap, and how far each model runs on the
    other's; what each edge carries of the change, and how few bring or undo it; which modules' weights carry it; at which
    tokens the two part; how far the weights moved.
    """
    from rlcircuits.lab import export
    from rlcircuits.storage import Store, save_table, written
    from rlcircuits.studies import PARTS
    from rlcircuits.studies import change as measured

    kept = Store(store)
    models.check()
    if models.alone:
        raise InputError("one model has no change: give --tuned PATH, or --pair NAME")
    asked = fields.chosen(problems, models.pair)
    if answers is not None:
        options.refuse("--answers are there already", max_new_tokens=asking.max_new_tokens)
    two = asking.of(models.chosen(kept), asked, fields)
    wanted = [part for part in PARTS if part in (parts or PARTS)]
    common: dict[str, Any] = dict(level=level, alpha=alpha, dtype=running.dtype, **vars(drawing))
    how = {"patching": {"steps": steps, "exact": exact}, "graft": {"modules": list(modules) or None}}
    settings = {
        "pair": two.name,
        "base": two.base,
        "tuned": two.tuned,
        "prompt": answering.prompt_of(two, asked).key,
        "max_new_tokens": two.max_new_tokens,
        "problems": asked.name,
        "number": len(asked),
        "problems_sha256": asked.fingerprint,
        "parts": wanted,
        "steps": steps,
        "exact": exact,
        "modules": list(modules),
        "accuracy": accuracy,
        **common,
    }
    folder = Path(out or f"changes/{two.name.replace('/', '-')}-{level}").expanduser()
    results.check_folder(folder, settings)
    print(
        f"{two.name}: {', '.join(wanted)} on {counted(len(asked), 'problem')} of {asked.name}, level {level}",
        file=sys.stderr,
    )
    where = vars(running) | dict(store=kept, answers=answers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", answering.Caution)
        found = measured(two, asked, wanted, how=how, accuracy=asked if accuracy else None, **common | where)
    files = [folder / "report.html"]
    report = found.report(files[0])
    for name, table in found.tables().items():
        files.append(folder / f"{name}.parquet")
        save_table(table, files[-1])
    if found.patching is not None:
        files.append(export(found.study, folder / "explorer.html", more={two.name: found.patching.measures()}))
    files.append(folder / "settings.json")
    with written(files[-1]) as temporary:
        told = {"asked": settings, "kept": list(found.study.selection.problems), "accuracy": found.study.accuracy}
        temporary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{report!r}\n\n{found!r}\n\nwritten: " + "\n         ".join(str(file) for file in files))
