"""``rlcircuits attribute``: the whole way from a pair, or two checkpoints, and problems to scores and a table."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

from rlcircuits import answers as answering
from rlcircuits.cli import options, results
from rlcircuits.cli.options import one_of, output, problem, score, whole
from rlcircuits.errors import InputError, counted

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
  report.html          the page to read first: what changed, with intervals, and what each number needs to
                       be believed; one file, no network needed
  base.nc, tuned.nc    edge scores (sample, source, destination), netCDF: rlcircuits.load_scores reads them
  metrics.parquet      the table that is printed: each metric of both models, their difference,
                       its interval and p-value
  reasons.json         why problems fell away, for each rule and model how many, with examples
  settings.json        what was asked for, which problems were kept, how many each rule dropped
and to --html: graphs, heatmaps and answers to click through, one file that needs neither Python nor a network

Every finished step is kept in --store: the same command goes on where it was interrupted, and computes nothing twice.
"""


_TRUST = "edges removed for real, of each model, to check the scores: auto (as long as attributing takes), none, or N"
_SHARED = "leave out scoring each model on the other's answers, which takes as long as attributing"
_intervention = one_of("intervention", ["zero", "mean", "model"])
_loss = one_of("loss", ["nll", "kl"])
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
    loss: Annotated[str, score("nll, or kl: divergence from the other model", "NAME", _loss)] = "nll",
    memory: Annotated[str, score("auto, fast or lean", "MODE", _memory)] = "auto",
    trust: Annotated[Any, score(_TRUST, "N", options.auto_none_or_whole)] = "auto",
    no_shared: Annotated[bool, options.flag("--no-shared", _SHARED, heading="scores")] = False,
    out: Annotated[str | None, output("where to write (default: attribution/<pair>-<level>-<alpha>)", "DIR")] = None,
    html: Annotated[str | None, output("the study as one page to click through, which opens anywhere", "FILE")] = None,
    store: options.StoreFolder = "runs",
) -> None:
    """Score every edge of a model before and after fine-tuning, on its own answers, and compare.

    Both models answer the problems greedily; the problems that both answer correctly, with answers of balanced length,
    are kept and cut at a share α of their mean length; each model's loss on its own answers is attributed to the edges
    of its residual graph; the metrics of both are compared, problem by problem. With --base alone, one model is attributed.
    """
    from rlcircuits.storage import Store

    kept = Store(store)
    page = None if html is None else results.page(html)
    models.check()
    if models.alone and (intervention == "model" or loss == "kl"):
        which = "--loss kl is of" if loss == "kl" else "--intervention model takes the activations of"
        raise InputError(f"{which} another model: give that model as --tuned PATH")
    asked = fields.chosen(problems, models.pair)
    if answers is not None:
        made = running.engine if running.engine != "transformers" else None
        options.refuse("--answers are there already", engine=made, max_new_tokens=asking.max_new_tokens)
    two = asking.of(models.chosen(kept), asked, fields)
    how: dict[str, Any] = dict(
        level=level,
        alpha=alpha,
        dtype=running.dtype,
        intervention=intervention,
        ig_steps=ig_steps,
        loss=loss,
        **vars(selecting),
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
    results.check_folder(folder, settings)

    from rlcircuits.metrics import summary
    from rlcircuits.studies import report_of_nothing, study

    print(f"{two.name}: {counted(len(asked), 'problem')} of {asked.name}, level {level}, α {alpha:g}", file=sys.stderr)
    if answers is None:
        options.show_prompts(two, asked)
    where: dict[str, Any] = vars(running) | dict(store=kept, memory=memory)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", answering.Caution)  # said below, beside what they are about
            done = study(two, asked, answers=answers, **how | where)
    except answering.NothingLeft as error:
        print(f"why no problem is left:\n{answering.told(error.reasons)}", file=sys.stderr)
        results.write_reasons(folder, error.reasons)
        report_of_nothing(two, asked, error, {**how, "problems": asked}).save(folder / "report.html")
        raise
    one, alone = done.pairs[two.name], models.alone
    table = summary(one.base_scores).to_frame() if alone else done.table().loc[[two.name]].droplevel(0)
    files = results.write(folder, one, table, settings, alone)
    report = done.report(folder / "report.html", trust=trust, shared=not no_shared)
    if page is not None:
        files.append(results.write_page(page, done, alone))
    results.show(report, one, table, alone)
    print("\nwritten: " + "\n         ".join(str(file) for file in (folder / "report.html", *files)))
