"""The shell's way in: ``rlcircuits attribute``, ``family``, ``study``, and the commands of `rlcircuits.cli.listings`.

Wrong input ends with exit code 2 and one message; an interrupted run with 130 and a word on how to go on.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rlcircuits.cli.listings import add as add_commands
from rlcircuits.cli.listings import add_fields, problems_of
from rlcircuits.errors import InputError, choose
from rlcircuits.extensions import provided

if TYPE_CHECKING:
    import pandas as pd

    from rlcircuits.answers import ProblemSet
    from rlcircuits.models import ModelPair
    from rlcircuits.studies import PairStudy, Study

_EXAMPLES = """\
examples:
  rlcircuits attribute --pair family/grpo
      the family's base against its GRPO descendant, on the family's own problems (both are made when missing)
  rlcircuits attribute --pair deepseek-math --problems gsm8k.jsonl --alpha 0.1 --dtype bfloat16
      a registered pair (see `rlcircuits pairs`) on problems of your own, one JSON object per line:
      {"question": "…", "answer": "… #### 18"}
  rlcircuits attribute --base models/sft --tuned models/rl --problems test.jsonl --level head --out scores/rl
      two checkpoints of your own, every head

what is written to --out:
  base.nc, tuned.nc    edge scores (sample, source, destination), netCDF: rlcircuits.load_scores reads them
  metrics.parquet      the table that is printed: each metric of both models, their difference, its interval and p-value
  settings.json        what was asked for, which problems were kept and why others were not

Every finished step is kept in --store: the same command goes on where it was interrupted, and computes nothing twice.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except InputError as error:
        print(f"rlcircuits: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "rlcircuits: interrupted; all that was finished is kept, and the same command goes on from there",
            file=sys.stderr,
        )
        return 130
    except BrokenPipeError:
        return 0


class _Parser(argparse.ArgumentParser):
    """Arguments that cannot be understood end like any other wrong input: one message, exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rlcircuits: {message}; see `{self.prog} --help`\n")


def _parser() -> argparse.ArgumentParser:
    from rlcircuits import __version__

    parser = _Parser(prog="rlcircuits", description="See what RL fine-tuning does inside a language model.")
    parser.add_argument("--version", action="version", version=f"rlcircuits {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    add_commands(commands, _whole, _share, _batch)
    _add_attribute(commands)

    for add in provided("rlcircuits.commands").values():
        add(commands, _whole, _seed)

    from rlcircuits.cli.sweep import add_sweep

    add_sweep(commands)
    return parser


def _add_attribute(commands: Any) -> None:
    attribute = commands.add_parser(
        "attribute",
        help="score every edge of a model before and after fine-tuning, on its own answers, and compare",
        description=textwrap.fill(
            "Both models answer the problems greedily; the problems that both answer correctly, with answers of balanced "
            "length, are kept and cut at a share α of their mean length; each model's loss on its own answers is attributed to the edges "
            "of its residual graph; the metrics of both are compared, problem by problem. With --base alone, one model is attributed.",
            100,
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    models = attribute.add_argument_group("models: a pair by name, or two checkpoints")
    models.add_argument(
        "--pair", metavar="NAME", help="a registered pair, or family/<member>[@<seed>]; `rlcircuits pairs` lists them"
    )
    models.add_argument("--pairs", metavar="FILE", help="YAML that adds pairs (default: what RLCIRCUITS_PAIRS names)")
    models.add_argument("--base", metavar="PATH", help="the model before: a folder with safetensors, or a hub id")
    models.add_argument("--tuned", metavar="PATH", help="the model after; leave it out to attribute --base alone")
    models.add_argument(
        "--prompt", metavar="TEMPLATE", help="with one {question}, or 'chat' (default: the pair's, else {question})"
    )
    models.add_argument(
        "--max-new-tokens", type=_whole, metavar="N", help="longest answer (default: the pair's, else 1024)"
    )
    models.add_argument(
        "--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, … or spread (default: auto)"
    )
    models.add_argument(
        "--dtype",
        default="auto",
        metavar="NAME",
        help="auto, float32, bfloat16, float16 or float64 (default: as saved)",
    )

    problems = attribute.add_argument_group("problems")
    problems.add_argument(
        "--problems",
        metavar="NAME",
        help="a set such as gsm8k, gsm8k=FILE for a local copy, or a .jsonl or .parquet file (default for family/…: its test problems)",
    )
    add_fields(problems, _whole)
    problems.add_argument(
        "--answers", metavar="FILE", help="answers that are there already, as `rlcircuits answers` writes them"
    )
    problems.add_argument(
        "--engine", default="transformers", metavar="NAME", help="what generates: transformers, or vllm (untested)"
    )
    problems.add_argument(
        "--keep", default="both-correct", metavar="RULE", help="both-correct or all (default: both-correct)"
    )
    problems.add_argument(
        "--samples", type=_whole, default=100, metavar="N", help="problems drawn of those kept (default: 100)"
    )
    problems.add_argument("--seed", type=_seed, default=42, metavar="N", help="of that draw (default: 42)")

    scores = attribute.add_argument_group("scores")
    scores.add_argument(
        "--level", default="block", metavar="LEVEL", help="of the graph: block, qkv or head (default: block)"
    )
    scores.add_argument(
        "--alpha", type=_share, default=0.3, metavar="A", help="share of the mean answer that is scored (default: 0.3)"
    )
    scores.add_argument(
        "--intervention", default="zero", metavar="NAME", help="what replaces a source: zero or mean (default: zero)"
    )
    scores.add_argument(
        "--ig-steps",
        type=_whole,
        default=1,
        metavar="M",
        help="integrated gradients over M steps (default: 1, plain EAP)",
    )
    scores.add_argument("--memory", default="auto", metavar="MODE", help="auto, fast or lean (default: auto)")
    scores.add_argument(
        "--batch-size", type=_batch, default="auto", metavar="N", help="rows per pass, or auto (default: auto)"
    )

    output = attribute.add_argument_group("output")
    output.add_argument("--out", metavar="DIR", help="where to write (default: attribution/<pair>-<level>-<alpha>)")
    output.add_argument("--store", default="runs", metavar="DIR", help="where finished steps are kept (default: runs)")
    attribute.set_defaults(run=_attribute)


def _attribute(options: argparse.Namespace) -> None:
    from rlcircuits.answers import ENGINES, EXTRACTORS, GRADERS, KEEPS
    from rlcircuits.attribution import LEVELS
    from rlcircuits.models import DTYPES
    from rlcircuits.storage import Store

    kinds = (
        ("level", LEVELS),
        ("keep", KEEPS),
        ("dtype", DTYPES),
        ("grader", GRADERS),
        ("extractor", EXTRACTORS),
        ("engine", ENGINES),
    )
    for kind, known in kinds:
        if getattr(options, kind) is not None:
            choose(kind, getattr(options, kind), known)
    choose("memory", options.memory, ("auto", "fast", "lean"))
    choose("intervention", options.intervention, ("zero", "mean"))
    store = Store(options.store)
    _check_models(options)
    problems = _problems(options)
    pair = _pair(options, store)
    alone = options.pair is None and options.tuned is None
    asked = _settings(options, pair, problems, alone)
    out = Path(
        options.out or f"attribution/{pair.name.replace('/', '-')}-{options.level}-{options.alpha:g}"
    ).expanduser()
    _check_out(out, asked)

    from rlcircuits.studies import study

    print(
        f"{pair.name}: {len(problems)} problems of {problems.name}, level {options.level}, α {options.alpha:g}",
        file=sys.stderr,
    )
    done = study(
        pair,
        problems,
        level=options.level,
        alpha=options.alpha,
        n=options.samples,
        seed=options.seed,
        keep=options.keep,
        store=store,
        device=options.device,
        dtype=options.dtype,
        batch_size=options.batch_size,
        engine=options.engine,
        answers=options.answers,
        memory=options.memory,
        intervention=options.intervention,
        ig_steps=options.ig_steps,
    )
    one = done.pairs[pair.name]
    table = _alone(one) if alone else _table(done, pair)
    files = _write(out, one, table, asked, alone)
    _show(one, table, alone)
    print("\nwritten: " + "\n         ".join(str(file) for file in files))


def _check_models(options: argparse.Namespace) -> None:
    if options.pair is not None and (options.base is not None or options.tuned is not None):
        raise InputError("both --pair and --base or --tuned are given: name a pair, or give two checkpoints")
    if options.pair is None and options.base is None:
        missing = "only --tuned is given" if options.tuned is not None else "no model is given"
        raise InputError(
            f"{missing}: expected --pair NAME, or --base PATH --tuned PATH, or --base PATH alone for one model"
        )


def _problems(options: argparse.Namespace) -> ProblemSet:
    if options.problems is not None:
        return problems_of(options, options.problems)
    if options.pair is not None:
        from rlcircuits.answers import problem_set
        from rlcircuits.models import known_pair, provider_of

        provider = provider_of(options.pair)
        known_pair(options.pair, options.pairs)
        if provider is not None:
            return problem_set(provider.problems, limit=options.limit)
    raise InputError("no problems are given: expected --problems FILE, JSON lines or parquet, or a set such as gsm8k")


def _pair(options: argparse.Namespace, store: Any) -> ModelPair:
    """The pair asked for, with the prompt and the longest answer asked for; a model alone is a pair with itself."""
    from dataclasses import replace

    from rlcircuits.models import ModelPair
    from rlcircuits.models import pair as registered

    changed = {
        k: v for k, v in (("prompt", options.prompt), ("max_new_tokens", options.max_new_tokens)) if v is not None
    }
    if options.pair is None:
        tuned = options.tuned or options.base
        return ModelPair(Path(tuned).name or tuned, options.base, tuned, **changed)
    return replace(registered(options.pair, options.pairs, store), **changed)


def _settings(options: argparse.Namespace, pair: ModelPair, problems: ProblemSet, alone: bool) -> dict[str, Any]:
    """What the results depend on, as they are asked for."""
    same = ("level", "alpha", "samples", "seed", "keep", "dtype", "intervention", "ig_steps")
    return {
        "pair": pair.name,
        "base": pair.base,
        "tuned": None if alone else pair.tuned,
        "prompt": pair.prompt,
        "max_new_tokens": pair.max_new_tokens,
        "problems": problems.name,
        "problems_sha256": problems.fingerprint,
        **{name: getattr(options, name) for name in same},
    }


def _check_out(out: Path, asked: dict[str, Any]) -> None:
    """Never write over what other settings gave.

    Raises:
        InputError: `out` is a file, or holds results of other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file: expected a folder, or a path where one can be made")
    if not (out / "settings.json").exists():
        return
    try:
        there = json.loads((out / "settings.json").read_text("utf-8"))["asked"]
        name = next((name for name in asked if there.get(name) != asked[name]), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{str(out / 'settings.json')!r} cannot be read: remove it or choose another --out") from None
    if name is not None:
        raise InputError(
            f"--out {str(out)!r} holds results of other settings ({name} is {there.get(name)!r} there, {asked[name]!r} here): "
            "choose another folder, or remove it"
        )


def _table(done: Study, pair: ModelPair) -> pd.DataFrame:
    return done.table().loc[pair.name]


def _alone(one: PairStudy) -> pd.DataFrame:
    from rlcircuits.metrics import summary

    return summary(one.base_scores).to_frame()


def _write(out: Path, one: PairStudy, table: pd.DataFrame, asked: dict[str, Any], alone: bool) -> list[Path]:
    """Write scores, table and settings, the settings last; returns the files."""
    from rlcircuits import __version__
    from rlcircuits.storage import save_scores, save_table, written

    sides = {"base.nc": one.base_scores} if alone else {"base.nc": one.base_scores, "tuned.nc": one.tuned_scores}
    for name, scores in sides.items():
        save_scores(scores, out / name)
    save_table(table.reset_index(), out / "metrics.parquet")
    before, after = one.accuracy
    found = {
        "asked": asked,
        "problems": len(one.problems),
        "accuracy": {"base": before} if alone else {"base": before, "tuned": after},
        "t_bar": one.selection.t_bar,
        "t_cut": one.selection.t_cut,
        "kept": list(one.selection.problems),
        "rules": one.selection.dropped.to_dict("records"),
        "rlcircuits": __version__,
    }
    with written(out / "settings.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return [out / name for name in (*sides, "metrics.parquet", "settings.json")]


def _show(one: PairStudy, table: pd.DataFrame, alone: bool) -> None:
    before, after = one.accuracy
    right = f"{before:.1%} right" if alone else f"{before:.1%} right before, {after:.1%} after"
    kept = one.selection
    print(
        f"{one.pair.name}: {right}; {len(kept.problems)} of {len(one.problems)} problems kept, {kept.t_cut} tokens of each scored\n"
    )
    shown = [c for c in ("value", "base", "tuned", "difference", "low", "high", "p", "p_holm") if c in table]
    print(table[shown].to_string(float_format=lambda value: f"{value:.4g}"))
    if alone:
        print("\none model: intervals and tests come with a pair (--tuned)")
    else:
        print(
            "\nlow, high: 95 % interval of the difference; p: two-sided, paired by problem; p_holm: corrected over the metrics"
        )


def _whole(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 1")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least 0")
    return int(text)


def _batch(text: str) -> int | str:
    return text if text == "auto" else _whole(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number above 0 and at most 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
