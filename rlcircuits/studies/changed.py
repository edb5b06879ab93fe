"""The change itself, from every side at once, every step kept in the store.

1. A `rlcircuits.study` of the pair: answers, problems, both models' scores on their own answers. All problems are taken by
   default (`keep`), and whole answers: a change shows most where the two models part.
2. Its parts, each of which can be had alone, too:

   - **overlap** (`rlcircuits.overlap`): how much the two circuits share, beside two halves of the problems, and chance;
   - **transfer** (`rlcircuits.transfer`): how far each model runs on the other's circuit, beside its own and random ones;
   - **patching** (`rlcircuits.cross_patch`): what each edge carries of the change, and how few bring or undo it;
   - **graft** (`rlcircuits.graft`): which modules' weights carry it, and from which depth on;
   - **divergence** (`rlcircuits.divergence`): at which tokens the two models part, on the answers of each;
   - **weights** (`rlcircuits.weight_change`): how far each module's weights moved.

3. A part is measured once for all inputs that matter, and goes on where it was interrupted; a warm change loads no model.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.answers import SIDES, ProblemSet, prompt_of
from rlcircuits.changes import (
    DIVERGENCE,
    GRAFTS,
    PATCHING,
    TRANSFER,
    Divergence,
    Graft,
    Overlap,
    Patching,
    Transfer,
    cross_patch,
    divergence,
    graft,
    overlap,
    partners,
    transfer,
)
from rlcircuits.errors import InputError, choose, expect_whole
from rlcircuits.models import WEIGHTS, ModelPair, weight_change
from rlcircuits.reports import Report
from rlcircuits.storage import Step, Store, load_table, save_table
from rlcircuits.studies.accounts import by_stratum, change_report, summary_of
from rlcircuits.studies.pipeline import PairStudy, Study, study
from rlcircuits.studies.steps import Run, Scoring, digest_of_traces

if TYPE_CHECKING:
    import os

    import pandas as pd
    import xarray as xr

#: the parts, and what can be said of how each is measured
HOW = {
    "overlap": ("rank",),
    "transfer": ("interventions", "shares", "seeds"),
    "patching": ("directions", "steps", "exact", "counts", "seeds"),
    "graft": ("modules", "into"),
    "divergence": ("share",),
    "weights": ("directions",),
}
PARTS = tuple(HOW)
#: where it is not as the parts' own functions have it
DEFAULTS: dict[str, dict[str, Any]] = {
    "patching": {"steps": 5, "exact": 20},
    "graft": {"modules": None},
    "weights": {"directions": 16},
}
#: fewer problems than this with a partner as long, and no circuit is run with corrupted replacement
FEWEST_PARTNERS = 10
REPLACEMENTS = ("zero", "mean", "corrupted")


@dataclass(frozen=True, eq=False, repr=False)
class Change:
    """What fine-tuning changed, from every side.

    Attributes:
        study: the pair, answered, selected and attributed.
        overlap, transfer, patching, graft: see `rlcircuits.overlap`, …; None where it was not asked for.
        divergence: by whose answers (base, tuned), see `rlcircuits.divergence`; empty where it was not asked for.
        weights: see `rlcircuits.weight_change`.
        level: of the graph.
        settings: everything that was asked for.
    """

    study: PairStudy
    level: str
    overlap: Overlap | None = None
    transfer: Transfer | None = None
    patching: Patching | None = None
    graft: Graft | None = None
    divergence: Mapping[str, Divergence] = field(default_factory=dict)
    weights: pd.DataFrame | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def pair(self) -> ModelPair:
        """The models."""
        return self.study.pair

    @cached_property
    def summary(self) -> pd.DataFrame:
        """The change in a line for each angle: indexed by ``angle`` and ``quantity``, ``value`` with ``low``, ``high``; and
        ``null``, what it would be by chance or without a change, with ``null_low``, ``null_high`` and ``against``, what
        that is.
        """
        return summary_of(self)

    @cached_property
    def strata(self) -> pd.DataFrame:
        """The same lines on the problems that both models answer right, only the tuned one, only the base, and neither:
        indexed by ``stratum``, ``angle`` and ``quantity``, with ``problems``, how many of those looked at are in it, and
        ``asked``, how many of all; a stratum without problems is one line that says so. Nothing is run for it.
        """
        return by_stratum(self)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name, as ``rlcircuits change`` writes them."""
        found: dict[str, pd.DataFrame] = {"summary": self.summary.reset_index()}
        if self.overlap is not None:
            found["overlap"] = self.overlap.table.reset_index()
        if self.transfer is not None:
            found |= {"transfer": self.transfer.table(), "transfer-curves": self.transfer.curves()}
        if self.patching is not None:
            found |= {"patching": self.patching.curves(), "edges": self.patching.edges(None)}
            found["accounts"] = self.patching.accounts().reset_index()
        if self.graft is not None:
            found["graft"] = self.graft.table()
        for side, one in self.divergence.items():
            found[f"divergence-{side}"] = one.table.reset_index()
        if self.weights is not None:
            found["weights"] = self.weights
        if len(found) > 1 + (self.weights is not None):  # weights are no problem's
            found["strata"] = self.strata.reset_index()
        return found

    def report(self, path: str | os.PathLike[str] | None = None) -> Report:
        """What changed, on one page.

        Args:
            path: where to write it as a file of HTML, if it is to be written.

        Raises:
            StoreError: it cannot be written.
        """
        found = change_report(self)
        if path is not None:
            found.save(path)
        return found

    @property
    def title(self) -> str:
        """Whose change it is, in a line."""
        (before, after), n = self.study.accuracy, len(self.study.selection.problems)
        return f"Change of {self.pair.name} ({self.pair.method}): accuracy {before:.1%} → {after:.1%}, {n} problems"

    def __repr__(self) -> str:
        shown = self.summary.drop(columns=["null_low", "null_high"])
        return f"{self.title}\n{shown.to_string(float_format='{:.3g}'.format, na_rep='')}"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()


def change(
    pair: ModelPair | str,
    problems: ProblemSet,
    parts: Sequence[str] = PARTS,
    level: str = "block",
    alpha: float = 1.0,
    n: int = 100,
    seed: int = 42,
    keep: str = "all",
    how: Mapping[str, Mapping[str, Any]] | None = None,
    accuracy: ProblemSet | None = None,
    store: Store | str = "runs",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | str = "auto",
    engine: str = "transformers",
    answers: Any = None,
    progress: bool = True,
) -> Change:
    """What fine-tuning changed: overlap, transfer, patching, grafts, divergence and weights of a pair, each with its null.

    Args:
        pair: a `ModelPair` or a registered name.
        problems: what the models answer.
        parts: which of `PARTS` to measure.
        level, alpha, n, seed, keep, answers: as for `rlcircuits.study`, but with whole answers to all problems.
        how: by part, arguments of its function: ``{"patching": {"exact": None}, "graft": {"modules": ["l0-l3"]}}``. By default
            the exact effects of 20 edges are measured, and 16 principal directions of each weight are looked along.
        accuracy: problems that every chimaera answers, too; that takes long.
        store: a `Store` or its folder.
        device, dtype, batch_size, engine: for loading and running the models.
        progress: show bars for parts that take longer than a few seconds.

    Raises:
        InputError: a part that is none of these, an argument that it does not take, or as for the functions named above.
    """
    wanted = [choose("part", part, PARTS) for part in ([parts] if isinstance(parts, str) else parts)]
    asked = _asked(how or {})
    settings: dict[str, Any] = {"level": level, "alpha": alpha, "n": n, "seed": seed, "keep": keep, "engine": engine}
    settings |= {"device": device, "dtype": dtype, "batch_size": batch_size, "answers": answers}
    if keep == "all":  # no rule on lengths either: they would drop the answers that changed most
        settings |= {"beta": 0.0, "gamma": 1e9, "delta": 2.0}
    done = study(pair, problems, store=store, **settings)
    (one,) = done.pairs.values()
    measured = _Parts(done, one, asked, accuracy, progress)
    found: dict[str, Any] = {part: getattr(measured, part)() for part in PARTS if part in wanted}
    told = {"level": level, "alpha": alpha, "n": n, "seed": seed, "keep": keep, "problems": problems.name}
    told |= {"parts": ", ".join(found)}
    told |= {f"{part}, {name}": value for part in found for name, value in asked[part].items()}
    return Change(one, level, settings=told, **found)


def _asked(how: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By part, the arguments of its function.

    Raises:
        InputError: another part, or an argument that it does not take.
    """
    for part, given in how.items():
        choose("part", part, PARTS)
        for name in given:
            choose(f"argument of {part}", name, HOW[part])
    asked = {part: {**DEFAULTS.get(part, {}), **how.get(part, {})} for part in PARTS}
    expect_whole("steps", asked["patching"]["steps"], 2)
    return asked


class _Parts:
    """The parts of a change, each found in the store or measured now."""

    def __init__(
        self,
        done: Study,
        one: PairStudy,
        asked: Mapping[str, Mapping[str, Any]],
        accuracy: ProblemSet | None,
        progress: bool,
    ) -> None:
        self.one, self.asked, self.accuracy, self.level = one, asked, accuracy, done.level
        self.settings: Mapping[str, Any] = done.settings
        self.store: Store = self.settings["store"]
        problems, batch_size, engine = (self.settings[name] for name in ("problems", "batch_size", "engine"))
        self.run = Run(self.store, problems, Scoring(self.level), batch_size, engine)
        self.sides = {
            name: self.run.side(one.pair, name, self.settings["device"], self.settings["dtype"]) for name in SIDES
        }
        self.cut = one.selection.t_cut
        self.traces = {"base": one.selection.base_traces, "tuned": one.selection.tuned_traces}
        self.common = {"cut": self.cut, "batch_size": self.settings["batch_size"], "progress": progress}

    @property
    def models(self) -> tuple[Any, Any]:
        """Both models, loaded now if no step has loaded them yet."""
        return self.sides["base"].model, self.sides["tuned"].model

    def inputs(self, step: Step, **more: Any) -> dict[str, Any]:
        """What a part depends on."""
        traces = {name: digest_of_traces(some) for name, some in self.traces.items()}
        models = {name: side.key for name, side in self.sides.items()}
        return {**models, "traces": traces, "cut": self.cut, "level": self.level, **more, "code": str(step)}

    def kept(
        self, kind: str, inputs: Mapping[str, Any], make: Callable[[Path], Mapping[str, xr.Dataset]]
    ) -> dict[str, xr.Dataset]:
        """Datasets by name; `make` is given a folder in which it may keep what it has finished."""
        import xarray as xr

        unfinished = self.store.root / "unfinished" / self.store.path(kind, inputs).name

        def build(folder: Path) -> None:
            for name, data in make(unfinished).items():
                data.to_netcdf(folder / f"{name}.nc", engine="h5netcdf")

        folder = self.store.make(kind, inputs, build, note=self.one.pair.name)
        shutil.rmtree(unfinished, ignore_errors=True)
        return {file.stem: xr.load_dataset(file, engine="h5netcdf") for file in sorted(folder.glob("*.nc"))}

    def overlap(self) -> Overlap:
        return overlap(self.one.base_scores, self.one.tuned_scores, **self.asked["overlap"])

    def transfer(self) -> Transfer:
        given = dict(self.asked["transfer"])
        inputs = self.inputs(TRANSFER, **given)
        wanted = [choose("intervention", name, REPLACEMENTS) for name in given.pop("interventions", REPLACEMENTS)]
        paired = partners(self.traces) if "corrupted" in wanted else None

        def make(unfinished: Path) -> dict[str, xr.Dataset]:
            common = {**self.common, **given, "level": self.level, "resume": unfinished}
            found: dict[str, Any] = {}
            if plain := [name for name in wanted if name != "corrupted"]:
                found |= transfer(self.models, self.traces, interventions=plain, **common).data
            if paired is not None and len(paired[0]["base"]) >= FEWEST_PARTNERS:
                theirs = transfer(self.models, paired[0], interventions="corrupted", corrupted=paired[1], **common)
                found |= theirs.data
            if not found:
                raise InputError(
                    f"corrupted replacement needs {FEWEST_PARTNERS} problems that share prompt and answer lengths with "
                    "another: ask for 'zero' or 'mean', or for more problems"
                )
            return found

        found = self.kept("transfer", inputs, make)
        return Transfer({name: found[name] for name in REPLACEMENTS if name in found})

    def patching(self) -> Patching:
        given = self.asked["patching"]

        def make(unfinished: Path) -> dict[str, xr.Dataset]:
            common = {**self.common, **given, "level": self.level, "resume": unfinished}
            return dict(cross_patch(self.models, self.traces, **common).data)

        return Patching(self.kept("patching", self.inputs(PATCHING, **given), make))

    def graft(self) -> Graft:
        asked, pair = self.accuracy, self.one.pair
        given = dict(self.asked["graft"])
        inputs = self.inputs(GRAFTS, **given)
        more: dict[str, Any] = {}
        if asked is not None:
            more = {"problems": asked, "prompt": prompt_of(pair, asked), "max_new_tokens": pair.max_new_tokens}
            inputs["accuracy"] = [asked.fingerprint, more["prompt"].key, pair.max_new_tokens]

        def make(unfinished: Path) -> dict[str, xr.Dataset]:
            common = {**self.common, **given, **more, "resume": unfinished}
            return {"graft": graft(self.models, self.traces, **common).data}

        return Graft(self.kept("graft", inputs, make)["graft"])

    def divergence(self) -> dict[str, Divergence]:
        given, found = self.asked["divergence"], {}
        for side, traces in self.traces.items():
            inputs = {**self.inputs(DIVERGENCE, **given), "of": side}

            def build(folder: Path, traces: Any = traces) -> None:
                made = divergence(self.models, traces, **{**self.common, **given, "cut": None})
                for name, table in (("table", made.table), ("problems", made.problems), ("summary", made.summary)):
                    save_table(table.reset_index(), folder / f"{name}.parquet")

            folder = self.store.make(
                "divergence-of-change", inputs, build, note=f"{self.one.pair.name}, {side}'s answers"
            )
            index = {"table": ["problem", "position"], "problems": ["problem"], "summary": ["quantity"]}
            tables: dict[str, Any] = {
                name: load_table(folder / f"{name}.parquet").set_index(columns) for name, columns in index.items()
            }
            kept: dict[str, Any] = {
                "share": given.get("share", 0.1),
                "confidence": 0.95,
                "tokenizer": self.one.tokenizer,
            }
            found[side] = Divergence(**tables, traces=traces, **kept)
        return found

    def weights(self) -> pd.DataFrame:
        given = self.asked["weights"]
        inputs = {**{name: side.key for name, side in self.sides.items()}, **given, "code": str(WEIGHTS)}

        def build(folder: Path) -> None:
            save_table(weight_change(self.one.pair, **given), folder / "weights.parquet")

        return load_table(self.store.make("weights", inputs, build, note=self.one.pair.name) / "weights.parquet")
