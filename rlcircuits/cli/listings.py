"""Commands of the shell around pairs and problems: ``pairs``, ``problems``, ``answers`` and ``estimate``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError, choose
from rlcircuits.extensions import provided

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet
    from rlcircuits.models import ModelPair


def add(commands: Any, whole: Any, share: Any, batch: Any) -> None:
    """Add the commands to a parser; `whole`, `share` and `batch` are its types of arguments."""
    pairs = commands.add_parser(
        "pairs", help="list the pairs of models: size, method, whether on this machine; or how far weights moved"
    )
    pairs.add_argument("--pairs", metavar="FILE", help="YAML that adds pairs (default: what RLCIRCUITS_PAIRS names)")
    pairs.add_argument("--weights", metavar="NAME", help="how far each module of this pair moved, instead of the list")
    pairs.add_argument("--store", default="runs", metavar="DIR", help="where the family is kept (default: runs)")
    pairs.set_defaults(run=_pairs)

    problems = commands.add_parser(
        "problems", help="list the problem sets; or which reference answers of one cannot be graded"
    )
    problems.add_argument("name", nargs="?", metavar="NAME", help="a set, NAME=FILE for a local copy of it, or a file")
    add_fields(problems, whole)
    problems.set_defaults(run=_problems)

    answers = commands.add_parser(
        "answers", help="let both models of a pair answer, and write the answers with their token ids"
    )
    answers.add_argument("--pair", required=True, metavar="NAME", help="a registered pair, or family/<member>[@<seed>]")
    answers.add_argument("--pairs", metavar="FILE", help="YAML that adds pairs (default: what RLCIRCUITS_PAIRS names)")
    answers.add_argument(
        "--problems", required=True, dest="name", metavar="NAME", help="a problem set, NAME=FILE, or a file"
    )
    add_fields(answers, whole)
    answers.add_argument(
        "--out", required=True, metavar="FILE", help="a .jsonl file, as `rlcircuits attribute --answers` reads it"
    )
    answers.add_argument(
        "--engine", default="transformers", metavar="NAME", help="transformers, or vllm (an extra, untested)"
    )
    answers.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, … or spread (default: auto)"
    )
    answers.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="auto, float32, bfloat16, float16 or float64 (default: as saved)",
    )
    answers.add_argument(
        "--batch-size", type=batch, default="auto", metavar="N", help="answers at once, or auto (default: auto)"
    )
    answers.add_argument("--store", default="runs", metavar="DIR", help="where finished steps are kept (default: runs)")
    answers.set_defaults(run=_answers)

    estimate = commands.add_parser("estimate", help="memory and time of attribution from a model's configuration alone")
    estimate.add_argument("--pair", metavar="NAME", help="a registered pair, or family/<member>")
    estimate.add_argument("--base", metavar="PATH", help="instead: a folder, a config.json, or a hub id")
    estimate.add_argument("--pairs", metavar="FILE", help="YAML that adds pairs (default: what RLCIRCUITS_PAIRS names)")
    estimate.add_argument("--level", default="block", metavar="LEVEL", help="block, qkv or head (default: block)")
    estimate.add_argument(
        "--dtype", default="bfloat16", metavar="NAME", help="float32, bfloat16 or float16 (default: bfloat16)"
    )
    estimate.add_argument(
        "--tokens", type=whole, metavar="N", help="length of a trace (default: 128 and the scored share of an answer)"
    )
    estimate.add_argument(
        "--answer-tokens", type=whole, metavar="N", help="length of an answer (default: 512, or the pair's longest)"
    )
    estimate.add_argument(
        "--alpha", type=share, default=0.3, metavar="A", help="share of an answer that is scored (default: 0.3)"
    )
    estimate.add_argument("--problems", type=whole, metavar="N", help="for a whole pair on N problems")
    estimate.add_argument(
        "--flops", type=_rate, metavar="F", help="operations a second, such as 3e14 (default: measured here)"
    )
    estimate.set_defaults(run=_estimate)


def add_fields(parser: Any, whole: Any) -> None:
    """Add the arguments that say how a problem set is read; `parser` may be a group of one."""
    parser.add_argument(
        "--sets", metavar="FILE", help="YAML that adds problem sets (default: what RLCIRCUITS_PROBLEM_SETS names)"
    )
    parser.add_argument(
        "--question", metavar="FIELD", help="field with the question (default: the set's, else question)"
    )
    parser.add_argument(
        "--answer", metavar="FIELD", help="field with the right answer (default: the set's, else answer)"
    )
    parser.add_argument("--id", metavar="FIELD", help="field with a unique id (default: set and row)")
    parser.add_argument(
        "--grader", metavar="NAME", help="math, or final: what follows the last # (default: the set's, else math)"
    )
    parser.add_argument(
        "--extractor", metavar="NAME", help="what of the right answer is the answer: stated, boxed, hashes or whole"
    )
    parser.add_argument("--limit", type=whole, metavar="N", help="read only the first N problems")


def problems_of(options: argparse.Namespace, name: str) -> ProblemSet:
    """The problem set that the arguments of a command name."""
    from rlcircuits.answers import problem_set

    fields = {key: getattr(options, key, None) for key in ("question", "answer", "id", "grader", "extractor")}
    return problem_set(name, getattr(options, "sets", None), options.limit, **fields)


def pair_of(options: argparse.Namespace) -> ModelPair:
    """The pair that the arguments of a command name."""
    from rlcircuits.models import pair

    return pair(options.pair, options.pairs, options.store)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r}, expected operations a second, such as 3e14")
    return value


def _pairs(options: argparse.Namespace) -> None:
    if options.weights is not None:
        _show_weights(options)
        return
    from rlcircuits.models import pair_table

    table = pair_table(options.pairs, options.store)
    shown = table.drop(columns="note").assign(parameters=[_billions(n) for n in table["parameters"]])
    print(shown.to_string(index=False))
    for row in table[table["note"] != ""].itertuples():
        print(f"\n{row.pair}: {row.note}")
    for provider in provided("rlcircuits.pairs").values():
        print(f"\n{provider.note}")


def _billions(number: object) -> str:
    import pandas as pd

    if number is None or pd.isna(number):
        return "?"
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _show_weights(options: argparse.Namespace) -> None:
    from rlcircuits.models import pair, weight_change

    table = weight_change(pair(options.weights, options.pairs, options.store))
    print(table.drop(columns="model").to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    share = (table["unchanged"] * table["parameters"]).sum() / table["parameters"].sum()
    print(f"\n{share:.2%} of {int(table['parameters'].sum()):,} weights are exactly what they were")


def _problems(options: argparse.Namespace) -> None:
    from rlcircuits.answers import check_problems, problem_sets

    if options.name is None:
        for name, entry in problem_sets(options.sets).items():
            print(f"{name:<14} {entry.get('hub') or entry['path']:<34} {' '.join(entry.get('note', '').split())}")
        for name, provider in provided("rlcircuits.problems").items():
            print(f"{name:<14} {'made by a package':<34} {provider.note}")
        return
    problems = problems_of(options, options.name)
    table = check_problems(problems)
    for row in table.itertuples():
        print(f"{row.problem}: {row.reason}\n    {' '.join(str(row.answer).split())[:140]}")
    print(
        f"{problems.name}: {len(problems)} problems, {len(table)} whose reference answer is not graded as equal to itself by mathematics"
    )


def _answers(options: argparse.Namespace) -> None:
    from pathlib import Path

    from rlcircuits.answers import ENGINES, write_answers
    from rlcircuits.models import DTYPES

    choose("engine", options.engine, ENGINES)
    choose("dtype", options.dtype, DTYPES)
    if Path(options.out).suffix != ".jsonl":
        raise InputError(f"--out is {options.out!r}: expected a file that ends in .jsonl")
    problems, pair = problems_of(options, options.name), pair_of(options)

    from rlcircuits.studies import generate_pair

    found = generate_pair(
        pair, problems, options.store, options.device, options.dtype, options.batch_size, options.engine
    )
    write_answers(found, options.out)
    for side, said in found.items():
        right = sum(answer.correct for answer in said) / len(said)
        print(
            f"{pair.name} ({side}): {len(said)} answers, {right:.1%} right, {sum(a.finished for a in said)} finished",
            file=sys.stderr,
        )
    print(f"written: {options.out}")


def _estimate(options: argparse.Namespace) -> None:
    from rlcircuits.models import estimate, pair

    if (options.pair is None) == (options.base is None):
        raise InputError("expected either --pair NAME or --base PATH, to say whose cost is estimated")
    if options.problems is not None and options.pair is None:
        raise InputError("--problems is the cost of a pair: expected --pair NAME with it")
    model = options.base
    if options.pair is not None:
        model = pair(options.pair, options.pairs)
    found = estimate(
        model,
        problems=options.problems,
        tokens=options.tokens,
        level=options.level,
        dtype=options.dtype,
        device_flops=options.flops,
        alpha=options.alpha,
        answer_tokens=options.answer_tokens,
    )
    gib = 2**30
    print(f"{found.name}: {found.parameters:,} parameters, {found.edges:,} edges at level {found.level}")
    print(f"weights            {found.weight_bytes / gib:10.2f} GiB in {found.dtype}")
    print(
        f"a trace            {found.trace_bytes / gib:10.2f} GiB above them, {found.tokens} tokens; lean {found.lean_trace_bytes / gib:.2f} GiB"
    )
    print(f"work of a trace    {found.flops / 1e12:10.3g} TFLOP, {found.trace_seconds:.3g} s")
    if options.problems is not None:
        print(f"the whole pair     {found.seconds:10.3g} s")
    print(f"based on {found.basis}")
