"""``rlcircuits attribute``: the whole way from a pair, or two checkpoints, and problems to scores and a table."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rlcircuits import answers as answering
from rlcircuits import models
from rlcircuits.cli import options
from rlcircuits.cli.options import model, one_of, output, problem, score, whole
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from rlcircuits.answers import ProblemSet
    from rlcircuits.models import ModelPair
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


_OWN = "a set such as gsm8k, gsm8k=FILE for a local copy, or a .jsonl or .parquet file (default: a package's pair brings its own)"
_PROMPT = "with one {question}, or 'chat' (default: the pair's, else {question})"
_intervention = one_of("intervention", ["zero", "mean", "model"])
_memory = one_of("memory", ["auto", "fast", "lean"])


def attribute(
    pair: options.PairName = None,
    pairs: options.PairsFile = None,
    base: Annotated[str | None, model("the model before: a folder with safetensors, or a hub id", "PATH")] = None,
    tuned: Annotated[str | None, model("the model after; leave it out to attribute --base alone", "PATH")] = None,
    prompt: Annotated[str | None, model(_PROMPT, "TEMPLATE")] = None,
    max_new_tokens: Annotated[int | None, model("longest answer (default: the pair's, else 1024)", "N", whole)] = None,
    engine: options.Engine = "transformers",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    batch_size: options.BatchSize = "auto",
    problems: Annotated[str | None, problem(_OWN, "NAME")] = None,
    sets: options.SetsFile = None,
    question: options.Question = None,
    answer: options.Right = None,
    id: options.Id = None,
    grader: options.Grader = None,
    extractor: options.Extractor = None,
    limit: options.Limit = None,
    answers: Annotated[
        str | None, problem("answers that `rlcircuits answers` wrote, not to be made again", "FILE")
    ] = None,
    keep: Annotated[
        str, problem("both-correct or all", "RULE", one_of("keep", lambda: answering.KEEPS))
    ] = "both-correct",
    samples: Annotated[int, problem("how many are drawn of those kept", "N", whole)] = 100,
    seed: Annotated[int, problem("of that draw", "N", options.seed)] = 42,
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
    _check_models(pair, base, tuned)
    if pair is not None:
        models.known_pair(pair, pairs)
    if problems is None:
        asked = _own_problems(pair, limit)
    else:
        asked = answering.problem_set(
            problems, sets, limit, question=question, answer=answer, id=id, grader=grader, extractor=extractor
        )
    alone = pair is None and tuned is None
    if alone and intervention == "model":
        raise InputError("--intervention model takes another model's activations: give that model as --tuned PATH")
    two = _checkpoints(str(base), str(tuned or base)) if pair is None else models.pair(pair, pairs, kept)
    two = replace(two, prompt=prompt or two.prompt, max_new_tokens=max_new_tokens or two.max_new_tokens)
    how: dict[str, Any] = dict(
        level=level, alpha=alpha, seed=seed, keep=keep, dtype=dtype, intervention=intervention, ig_steps=ig_steps
    )
    settings = {
        "pair": two.name,
        "base": two.base,
        "tuned": None if alone else two.tuned,
        "prompt": two.prompt,
        "max_new_tokens": two.max_new_tokens,
        "problems": asked.name,
        "problems_sha256": asked.fingerprint,
        "samples": samples,
        **how,
    }
    folder = Path(out or f"attribution/{two.name.replace('/', '-')}-{level}-{alpha:g}").expanduser()
    _check_out(folder, settings)

    from rlcircuits.metrics import summary
    from rlcircuits.studies import study

    print(f"{two.name}: {len(asked)} problems of {asked.name}, level {level}, α {alpha:g}", file=sys.stderr)
    where: dict[str, Any] = dict(store=kept, device=device, batch_size=batch_size, engine=engine, memory=memory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", answering.Caution)  # said below, beside what they are about
            done = study(two, asked, n=samples, answers=answers, **how, **where)
    except answering.NothingLeft as error:
        print(f"why no problem is left:\n{answering.told(error.reasons)}", file=sys.stderr)
        _write_reasons(folder, error.reasons)
        raise
    one = done.pairs[two.name]
    table = summary(one.base_scores).to_frame() if alone else done.table().loc[[two.name]].droplevel(0)
    files = _write(folder, one, table, settings, alone)
    _show(one, table, alone)
    print("\nwritten: " + "\n         ".join(str(file) for file in files))


def _check_models(pair: str | None, base: str | None, tuned: str | None) -> None:
    if pair is not None and (base is not None or tuned is not None):
        raise InputError("both --pair and --base or --tuned are given: name a pair, or give two checkpoints")
    if pair is None and base is None:
        missing = "only --tuned is given" if tuned is not None else "no model is given"
        raise InputError(
            f"{missing}: expected --pair NAME, or --base PATH --tuned PATH, or --base PATH alone for one model"
        )


def _own_problems(pair: str | None, limit: int | None) -> ProblemSet:
    """The problems that a pair of a package comes with."""
    provider = models.provider_of(pair)
    if provider is not None:
        return answering.problem_set(provider.problems, limit=limit)
    raise InputError("no problems are given: expected --problems FILE, JSON lines or parquet, or a set such as gsm8k")


def _checkpoints(base: str, tuned: str) -> ModelPair:
    """Two checkpoints as a pair, named for the tuned one; a model alone is a pair with itself."""
    return models.ModelPair(Path(tuned).name or tuned, base, tuned)


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
