"""From a study to its report: what it did not measure yet is measured now, each step kept in the store.

1. **Divergence**: KL(tuned ‖ base) and KL(base ‖ tuned) at every answer position of both models' answers.
2. **Crossed losses and scores**: each model on the other's answers, with the same cut; answers that are the same cost nothing.
3. **Edges and single problems**: differences with intervals for all edges at once, leave-one-out.
4. **Trust**: some cells of a few problems are removed for real, for each model. By default as many as take about as long
   as its attribution did.

A study that was put together by hand knows no models: of it nothing is measured, and the report says so.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlcircuits.answers import SIDES, NothingLeft, ProblemSet
from rlcircuits.errors import InputError
from rlcircuits.metrics import (
    EDGE_CHANGES,
    INFLUENCE,
    METRIC_INTERVALS,
    compare_values,
    edge_changes,
    influence,
    metric_intervals,
)
from rlcircuits.models import ModelPair
from rlcircuits.reports import Findings, Report, Trusted, pair_report
from rlcircuits.storage import Step, load_table, save_table
from rlcircuits.studies.steps import Run, Side, digest_of_scores, digest_of_traces

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


#: re-runs of a trace without one edge that take as long as its attribution: on a model of 135 million parameters with
#: traces of 120 tokens, .17 and .6 to .8 seconds of one core
RUNS_A_TRACE = 4
#: the check's problems: one of so many of those kept, within these bounds; and re-runs of each at least
ONE_OF, FEWEST, MOST, RUNS_A_PROBLEM = 8, 2, 10, 30
#: positions where the two models part most that are shown
CRITICAL = 5
BY_HAND = "this study was put together by hand and does not know its models"


def models_of(pair: ModelPair) -> dict[str, str]:
    """The models by side, as they were given; a model that is paired with itself stands alone."""
    return {side: getattr(pair, side) for side in (SIDES[:1] if pair.alone else SIDES)}


def study_report(
    one: Any, settings: Mapping[str, Any], run: Run | None, trust: int | str | None, shared: bool
) -> Report:
    """The report on one pair of a study.

    Args:
        one: a `rlcircuits.PairStudy`.
        settings: of the study.
        run: its steps; None where it knows no models.
        trust, shared: as for `Study.report`.

    Raises:
        InputError: `trust` is neither a number, "auto" nor None.
    """
    if trust not in ("auto", None) and (isinstance(trust, bool) or not isinstance(trust, int) or trust < 1):
        raise InputError(f"trust is {trust!r}: expected 'auto', None, or how many edges to remove, at least 1")
    models = models_of(one.pair)
    scores = {side: getattr(one, f"{side}_scores") for side in models}
    answers = {side: list(getattr(one, f"{side}_answers").values()) for side in models}
    losses = {side: found for side in models if (found := getattr(one, f"{side}_losses"))}
    measured: dict[str, Any] = {"absent": dict.fromkeys(("divergence", "shared", "trust"), BY_HAND)}
    if run is not None:
        measured = _Beyond(one, run, settings, models).measured(trust, shared)
    digests = [digest_of_scores(one) for one in scores.values()]

    def keep(step: Step, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        return make() if run is None else _kept(run, step, digests, make)

    both = list(scores.values())
    if len(models) == 1:
        measured["single"] = keep(METRIC_INTERVALS, lambda: metric_intervals(both[0]))
    return pair_report(
        Findings(
            name=one.pair.name,
            models=models,
            method=one.pair.method,
            problems=one.problems,
            answers=answers,
            selection=one.selection,
            reasons=one.selection.reasons,
            scores=scores,
            losses=losses,
            comparison=one.comparison,
            edges=keep(EDGE_CHANGES, lambda: edge_changes(*both)),
            influence=keep(INFLUENCE, lambda: influence(*both)),
            tokenizer=one.tokenizer if one.selection.base_traces else None,
            settings=_shown(one.pair, settings, one.problems),
            **measured,
        )
    )


def report_of_nothing(pair: ModelPair, problems: ProblemSet, error: NothingLeft, settings: Mapping[str, Any]) -> Report:
    """The report where no problem is kept: what the models answered, and why that leaves nothing to compare."""
    models = models_of(pair)
    by_id = {problem.id: problem for problem in problems}
    answers = {side: list(given) for side, given in zip(SIDES, error.answers) if side in models}
    found = Findings(
        pair.name, models, pair.method, by_id, answers, None, error.reasons, settings=_shown(pair, settings, by_id)
    )
    return pair_report(found)


def _shown(pair: ModelPair, settings: Mapping[str, Any], problems: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a reader sees them."""
    hidden = ("store", "problems", "answers", "batch_size", "memory")
    asked = settings.get("problems")
    name = f"{len(problems):,} of {asked.name}" if isinstance(asked, ProblemSet) else f"{len(problems):,}"
    own = {"problems": name, "prompt": pair.prompt, "max_new_tokens": pair.max_new_tokens}
    asked_with = {"system": pair.system, "instruction": pair.instruction, "few_shot": pair.few_shot}
    own |= {key: value for key, value in asked_with.items() if value}
    return own | {key: value for key, value in settings.items() if key not in hidden}


def _kept(run: Run, step: Step, digests: list[str], make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """A table made of scores, with its attributes."""

    def build(folder: Path) -> None:
        table = make()
        (folder / "attrs.json").write_text(json.dumps({"index": table.index.name, **table.attrs}), "utf-8")
        save_table(table.reset_index(), folder / "table.parquet")

    folder = run.store.make(step.name, {"scores": digests, "code": str(step)}, build)
    attrs = json.loads((folder / "attrs.json").read_text("utf-8"))
    table = load_table(folder / "table.parquet").set_index(attrs.pop("index"))
    table.attrs = attrs
    return table


class _Beyond:
    """What a report measures of a pair beside its study."""

    def __init__(self, one: Any, run: Run, settings: Mapping[str, Any], models: Mapping[str, str]) -> None:
        self.one, self.run, self.settings = one, run, settings
        self.cut, self.problems = one.selection.t_cut, list(one.selection.problems)
        self.sides: dict[str, Side] = {
            name: run.side(one.pair, name, settings["device"], settings["dtype"]) for name in models
        }
        self.traces = {"base": one.selection.base_traces, "tuned": one.selection.tuned_traces}

    def measured(self, trust: int | str | None, shared: bool) -> dict[str, Any]:
        """Everything, as `Findings` has it."""
        absent: dict[str, str] = {}
        found: dict[str, Any] = {"absent": absent}
        if len(self.sides) > 1:
            found |= self.apart()
            if shared:
                found["shared"] = self.shared()
            else:
                absent["shared"] = "it was switched off"
        if trust is None:
            absent["trust"] = "it was switched off"
        elif (self.run.scoring.intervention, self.run.scoring.loss) != ("zero", "nll"):
            asked = f"{self.run.scoring.intervention} and {self.run.scoring.loss}"
            absent["trust"] = f"it is made for intervention zero and loss nll, not for {asked}"
        else:
            found["trust"] = {name: self.trusted(name, trust) for name in self.sides}
        return found

    def divergence(self, text: str) -> dict[str, pd.DataFrame]:
        """Both models on one's answers, see `rlcircuits.divergence`: its table, its summary and the most critical
        positions.
        """
        from rlcircuits.changes import DIVERGENCE, divergence

        base, tuned = (self.sides[name] for name in SIDES)
        traces = self.traces[text]
        inputs = {"base": base.key, "tuned": tuned.key, "traces": digest_of_traces(traces), "code": str(DIVERGENCE)}

        def build(folder: Path) -> None:
            found = divergence((base.model, tuned.model), traces, batch_size=self.run.batch_size)
            save_table(found.table.reset_index(), folder / "table.parquet")
            save_table(found.summary.reset_index(names="quantity"), folder / "summary.parquet")
            save_table(found.critical(CRITICAL).reset_index(), folder / "critical.parquet")

        folder = self.run.store.make("divergence", inputs, build, note=f"{self.one.pair.name} on the {text}'s answers")
        index = {"table": ["problem", "position"], "summary": ["quantity"], "critical": ["problem", "position"]}
        return {name: load_table(folder / f"{name}.parquet").set_index(columns) for name, columns in index.items()}

    def apart(self) -> dict[str, Any]:
        """How far the models are apart on each one's answers, and what each loses there, as `Findings` has it."""
        import pandas as pd

        rows, critical = {}, {}
        losses: dict[str, dict[str, Any]] = {side: {} for side in SIDES}
        for text in SIDES:
            found = self.divergence(text)
            critical[text] = found["critical"]
            for name, direction in (("kl_tuned_base", "tuned ‖ base"), ("kl_base_tuned", "base ‖ tuned")):
                ends = found["summary"].loc[name, ["value", "low", "high"]]
                rows[direction, text] = (*ends, float(found["table"][name].max()))
            scored = found["table"][found["table"].index.get_level_values("position") < self.cut]
            for side in SIDES:
                losses[side][text] = scored[f"nll_{side}"].groupby("problem", sort=False).mean()
        index = pd.MultiIndex.from_tuples(rows, names=["direction", "answers of"])
        columns = ["value", "low", "high", "largest"]
        base, tuned = (pd.DataFrame(losses[side]) for side in SIDES)
        crossed = compare_values(base, tuned)[["base", "tuned", "difference", "low", "high", "p"]]
        return {
            "divergence": pd.DataFrame(list(rows.values()), index=index, columns=columns),
            "critical": critical["tuned"],
            "crossed": crossed.rename_axis("answers of"),
        }

    def shared(self) -> dict[str, pd.DataFrame]:
        """Both models compared on the base's answers, and on the tuned model's."""
        found = {}
        for text in SIDES:
            base, tuned = (
                self.run.scores(self.sides[model], self.traces[text], self.cut, self.sides[other])
                for model, other in zip(SIDES, SIDES[::-1])
            )
            found[text] = self.run.comparison(base, tuned)
        return found

    def trusted(self, name: str, asked: int | str) -> Trusted:
        """Some of a model's cells removed for real, beside its scores."""
        from rlcircuits.attribution import EFFECTS, SCORES
        from rlcircuits.exactness import TRUST

        scores: xr.DataArray = getattr(self.one, f"{name}_scores")
        count = len(self.problems)
        some = min(count, max(FEWEST, min(MOST, count // ONE_OF)))
        chosen = [self.problems[int(at)] for at in np.linspace(0, count - 1, some)]
        traces = [trace for trace in self.traces[name] if trace.problem in chosen]
        cells = some * int(np.isfinite(scores.values[0]).sum())
        runs = min(cells, max(RUNS_A_PROBLEM * some, RUNS_A_TRACE * count) if asked == "auto" else int(asked))
        side, scoring = self.sides[name], self.run.scoring
        method = "EAP" if scoring.ig_steps == 1 else "EAP-IG"
        inputs = {
            **side.key,
            **scoring.key,
            "traces": digest_of_traces([trace.cut(self.cut) for trace in traces]),
            "scores": digest_of_scores(scores),
            "cut": self.cut,
            "runs": runs,
            "code": [str(step) for step in (TRUST, SCORES, EFFECTS)],
        }
        unfinished = self.run.store.root / "unfinished" / self.run.store.path("trust", inputs).name

        def build(folder: Path) -> None:
            found = self._removed(side, traces, scores, method, runs, unfinished)
            table, answers = _with_stability(found, method, scores)
            save_table(table.reset_index(), folder / "trust.parquet")
            facts = {"answers": answers, "runs": found.exact.runs, "cells": found.exact.cells}
            (folder / "trust.json").write_text(json.dumps(facts, ensure_ascii=False), "utf-8")

        folder = self.run.store.make("trust", inputs, build, note=f"{side.name}, {runs} removals")
        shutil.rmtree(unfinished, ignore_errors=True)
        facts = json.loads((folder / "trust.json").read_text("utf-8"))
        table = load_table(folder / "trust.parquet").set_index(["method", "quantity"])
        return Trusted(table, facts["answers"], facts["runs"], facts["cells"], some, method)

    def _removed(
        self, side: Side, traces: list[Any], scores: xr.DataArray, method: str, runs: int, unfinished: Path
    ) -> Any:
        from rlcircuits.exactness import trust

        return trust(
            side.model,
            traces,
            {method: scores.sel(sample=[trace.problem for trace in traces])},
            runs,
            self.run.scoring.level,
            self.cut,
            circuits=False,
            batch_size=self.run.batch_size,
            resume=unfinished,
            methods=["EAP"],
        )


def _with_stability(found: Any, method: str, scores: xr.DataArray) -> tuple[pd.DataFrame, dict[str, str]]:
    """What the check found, with stability over all problems instead of the check's few; without circuits, which it
    leaves out.
    """
    from rlcircuits.exactness import sentences, stability

    table = found.table.copy()
    for quantity, values in stability(scores, found.strongest).items():
        known = values[1:][np.isfinite(values[1:])]
        ends = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
        table.loc[(method, quantity), ["value", "low", "high"]] = [values[0], *ends]
    answers = sentences(table, found.strongest)
    del answers["circuit"]
    return table, answers
