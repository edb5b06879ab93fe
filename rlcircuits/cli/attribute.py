"""``rlcircuits attribute``: the whole way from a pair, or two checkpoints, and problems to scores and a table."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlcircuits import answers as answering
from rlcircuits.cli import options
from rlcircuits.cli.options import one_of, output, problem, score, whole
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from rlcircuits.studies import PairStudy

EXAMPLES = """
\b
examples:
  rlcircuits attribute --pair family/grpo
      the family's base against its GRPO descendant, on the family's own problems (both are made
      when missing)
  rlcircuits attribute --pair deepseek-math --problems gsm8k.jsonl --alpha 0.1 --dtype bfloat16
      a registered pair (see `rlcircuits pairs`) on problems of your own, one JSON object per line:
      {"question": "…", "answer": "… #### 18"}
  rlcircuits attribute --base models/sft --tuned models/rl --problems test.jsonl --level head --out scores/rl
      two checkpoints of your own, every head

\b
what is written to --out:
  base.nc, tuned.nc    edge scores (sample, source, destination), netCDF: rlcircuits.load_scores reads them
  metrics.parquet      the table that is printed: each metric of both models, their difference,
                       its interval and p-value
  reasons.json         why problems fell away, for each rule and model how many, with examples
  settings.json        what was asked for, which problems were kept, how many each rule dropped

Every finished step is kept in --store: the same command goes on where it was interrupted, and computes nothing twice.
"""


_intervention = one_of("intervention", ["zero", "mean", "model"])
_memory = one_of("memory", ["auto", "fast", "lean"])


def attribute(
    *,
    models: options.Models,
    asking: options.Asking,
    running: options.Running,
    problems: options.ProblemsName = None,
    fields: options.Fields,
    selecting: options.Selecting,
    answers: Annotated[
        str | None, problem("answers that `rlcircuits answers` wrote, not to be made again", "FILE")
    ] = None,
    level: options.Level = "block",
    alpha: options.Alpha = 0.3,
    intervention: Annotated[
        str, score("what replaces a source: zero, mean or model (the other one)", "NAME", _intervention)
    ] = "zero",
    ig_steps: Annotated[int, score("integrated gradients over M steps; 1 is plain EAP", "M", whole)] = 1,
    memory: Annotated[str, score("auto, fast or lean", "MODE", _memory)] = "auto",
    out: Annotated[str | None, output("where to write (default: attribution/<pair>-<level>-<alpha>)", "DIR")] = None,
    store: options.StoreFolder = "runs",
) -> None:
    """Score every edge of a model before and after fine-tuning, on its own answers, and compare.

    Both models answer the problems greedily; the problems that both answer correctly, with answers of balanced length,
    are kept and cut at a share α of their mean length; each model's loss on its own answers is attributed to the edges
    of its residual graph; the metrics of both are compared, problem by problem. With --base alone, one model is attributed.
    """
    from rlcircuits.storage import Store

    kept = Store(store)
    models.check()
    if models.alone and intervention == "model":
        raise InputError("--intervention model takes another model's activations: give that model as --tuned PATH")
    asked = fields.chosen(problems, models.pair)
    if answers is not None:
        made = running.engine if running.engine != "transformers" else None
        options.refuse("--answers are there already", engine=made, max_new_tokens=asking.max_new_tokens)
    two = asking.of(models.chosen(kept), asked, fields)
    how: dict[str, Any] = dict(
        level=level, alpha=alpha, dtype=running.dtype, intervention=intervention, ig_steps=ig_steps, **vars(selecting)
    )
    settings = {
        "pair": two.name,
        "base": two.base,
        "tuned": None if models.alone else two.tuned,
        "prompt": answering.prompt_of(two, asked).key,
        "max_new_tokens": two.max_new_tokens,
        "problems": asked.name,
        "number": len(asked),
        "problems_sha256": asked.fingerprint,
        **how,
    }
    folder = Path(out or f"attribution/{two.name.replace('/', '-')}-{level}-{alpha:g}").expanduser()
    _check_out(folder, settings)

    from rlcircuits.metrics import summary
    from rlcircuits.studies import study

    print(f"{two.name}: {len(asked)} problems of {asked.name}, level {level}, α {alpha:g}", file=sys.stderr)
    if answers is None:
        options.show_prompts(two, asked)
    where: dict[str, Any] = vars(running) | dict(store=kept, memory=memory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", answering.Caution)  # said below, beside what they are about
            done = study(two, asked, answers=answers, **how | where)
    except answering.NothingLeft as error:
        print(f"why no problem is left:\n{answering.told(error.reasons)}", file=sys.stderr)
        _write_reasons(folder, error.reasons)
        raise
    one, alone = done.pairs[two.name], models.alone
    table = summary(one.base_scores).to_frame() if alone else done.table().loc[[two.name]].droplevel(0)
    files = _write(folder, one, table, settings, alone)
    _show(one, table, alone)
    print("\nwritten: " + "\n         ".join(str(file) for file in files))


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
        name = next((name for name in asked if name in there and there[name] != asked[name]), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{str(out / 'settings.json')!r} cannot be read: remove it or choose another --out") from None
    if name is not None:
        what = {"number": "the number of problems", "problems_sha256": "the content of the problems"}.get(name, name)
        which = "another" if name == "problems_sha256" else f"{there[name]!r} there, {asked[name]!r} here"
        raise InputError(
            f"--out {str(out)!r} holds results of other settings ({what} is {which}): "
            "choose another folder, or remove it"
        )


def _write(out: Path, one: PairStudy, table: pd.DataFrame, asked: dict[str, Any], alone: bool) -> list[Path]:
    """Write scores, table and settings, the settings last; returns the files."""
    from rlcircuits import __version__
    from rlcircuits.storage import save_scores, save_table, written

    sides = {"base.nc": one.base_scores} if alone else {"base.nc": one.base_scores, "tuned.nc": one.tuned_scores}
    for name, scores in sides.items():
        save_scores(scores, out / name)
    save_table(table.reset_index(), out / "metrics.parquet")
    _write_reasons(out, one.selection.reasons)
    (before, after), strictly = one.accuracy, one.strict_accuracy
    found = {
        "asked": asked,
        "problems": len(one.problems),
        "accuracy": {"base": before} if alone else {"base": before, "tuned": after},
        "strict_accuracy": dict(zip(("base",) if alone else ("base", "tuned"), strictly)),
        "t_bar": one.selection.t_bar,
        "t_cut": one.selection.t_cut,
        "kept": list(one.selection.problems),
        "rules": one.selection.dropped.to_dict("records"),
        "rlcircuits": __version__,
    }
    with written(out / "settings.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return [out / name for name in (*sides, "metrics.parquet", "reasons.json", "settings.json")]


def _write_reasons(out: Path, reasons: pd.DataFrame) -> None:
    """Why problems fell away, with examples; there even when none is left."""
    from rlcircuits.storage import written

    with written(out / "reasons.json") as temporary:
        temporary.write_text(json.dumps(reasons.to_dict("records"), indent=1, ensure_ascii=False) + "\n", "utf-8")


def _show(one: PairStudy, table: pd.DataFrame, alone: bool) -> None:
    (before, after), strictly = one.accuracy, one.strict_accuracy
    right = f"{before:.1%} right ({strictly[0]:.1%} strictly)"
    if not alone:
        right += f" before, {after:.1%} ({strictly[1]:.1%}) after"
    kept = one.selection
    print(
        f"{one.pair.name}: {right}; {len(kept.problems)} of {len(one.problems)} problems kept, {kept.t_cut} tokens of each scored\n"
    )
    why = kept.reasons[kept.reasons["model"] != "tuned"] if alone else kept.reasons
    if len(why):
        print(f"why the others are not:\n{answering.told(why)}\n")
    for caution in kept.cautions(one.tokenizer):
        print(f"caution: {caution}", file=sys.stderr)
    shown = [c for c in ("value", "base", "tuned", "difference", "low", "high", "p", "p_holm") if c in table]
    shown = [c for c in shown if table[c].notna().any()]
    defined = table[shown].dropna(how="all")
    print(defined.to_string(float_format=lambda value: f"{value:.4g}", na_rep="–"))
    if missing := sorted(set(table.index) - set(defined.index)):
        print(f"\nnot defined on so few problems: {', '.join(missing)}")
    if alone:
        print("\none model: intervals and tests come with a pair (--tuned)")
    elif "low" not in shown:
        print("\nno intervals or tests: they need at least two problems")
    else:
        print(
            "\nlow, high: 95 % interval of the difference; p: two-sided, paired by problem; p_holm: corrected over the metrics"
        )
