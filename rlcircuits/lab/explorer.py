"""The explorer: follow one problem through two models with a few clicks (ipywidgets).

1. Choose a pair, a problem (or the mean of all), the level of the graph and α, the share of an answer that is scored; the
   number k of edges, and which layers and kinds of edges to keep.
2. Read both answers token by token, shaded by each token's loss; what is scored is underlined.
3. See the residual graph and the heatmap of base, tuned and their difference, and the edges that differ most.
4. Click an edge, in a picture or in the table, or choose it from the list: its score on every problem, base against tuned,
   and the exact effect of removing it, which is computed when the store does not have it.
5. Save the view, to open it again with ``rc.explore(study, view=file)``, or the picture.

What is at hand is shown at once (`rlcircuits.lab.pictures` says how). What has to be computed, another α or level or an exact
effect, is computed in a process of its own (`rlcircuits.lab.jobs`), with a bar and a button to stop it, and shown when it is there.

`explore` takes a study as `rlcircuits.study` makes it, or anything shaped like it. Where a part is missing the explorer says
which, and how to make it, and shows the rest. All text that a model or a data set wrote is escaped.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import xarray as xr

from rlcircuits import figures
from rlcircuits.attribution import LEVELS
from rlcircuits.errors import InputError, choose, require
from rlcircuits.figures import NODE, node_of
from rlcircuits.lab.jobs import NotStored, Report, Worker, make_at, make_effects, only_stored, skeleton
from rlcircuits.lab.pictures import Dots, escaped, graph_svg, heatmap_svg, scatter_svg

MEAN = "mean of all problems"
NO_EDGE = ("(choose one, or click it in a picture or the table)", "")
KINDS = {"input": "input", "attention": "a", "MLP": "m", "logits": "logits"}
FORMAT = 1
LONGEST = 800
"""Tokens of an answer that are shown one by one; the rest is counted."""
ATTRIBUTE = "make them with rc.study(…) or rc.attribute(model, traces)"
GENERATE = "make them with rc.study(…) or rlcircuits.answers.generation.generate(model, problems)"
MAKE = {
    "pairs": "the study holds no pair; make one with rc.study(pairs=[…], problems=…)",
    "base_scores": f"no edge scores of the base; {ATTRIBUTE}",
    "tuned_scores": f"no edge scores of the tuned model; {ATTRIBUTE}",
    "base_answers": f"no answers of the base; {GENERATE}",
    "tuned_answers": f"no answers of the tuned model; {GENERATE}",
    "problems": "no problems, so no questions; make the study with rc.study(pairs=[…], problems=…)",
    "tokenizer": "no tokenizer, so answers are shown whole; keep the base's checkpoint where the pair has it",
}


def explore(study: Any, view: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Any:
    """The explorer of a study.

    Args:
        study: what `rlcircuits.study` returns, or anything with ``pairs``, a dictionary from name to `PairStudy` (or to
            anything with some of its attributes); a single `PairStudy` is a study of one pair, scores alone are one model,
            and a path is a folder that ``rlcircuits attribute --out`` wrote.
        view: the file that the explorer saved a view in, or what `Explorer.view` returns.

    Returns:
        An ``ipywidgets.VBox`` to display; its attribute ``explorer`` is the `Explorer` with every control by
        name.

    Raises:
        InputError: `view` is no saved view, or of a pair or problem that the study does not have.
    """
    return Explorer(study, view).box


@dataclass(frozen=True)
class Shown:
    """What the pictures show: the scores of one or two models, ready to be cut out of.

    Attributes:
        names: of the models.
        arrays: their scores ``(sample, source, destination)``, aligned.
        samples, sources, destinations: names.
        means: the mean over samples of each, float64 ``(source, destination)``.
    """

    names: tuple[str, ...]
    arrays: tuple[xr.DataArray, ...]
    samples: tuple[str, ...]
    sources: tuple[str, ...]
    destinations: tuple[str, ...]
    means: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, given: Mapping[str, xr.DataArray]) -> Shown:
        """From scores by model.

        Raises:
            InputError: two models that cannot be paired.
        """
        arrays = [scores.transpose("sample", "source", "destination") for scores in given.values()]
        if len(arrays) == 2:
            arrays = list(figures.paired_shown(*arrays))
        samples, sources, destinations = (
            tuple(str(n) for n in arrays[0][dim].values) for dim in ("sample", "source", "destination")
        )
        means = tuple(a.values.sum(axis=0, dtype=np.float64) / max(1, a.sizes["sample"]) for a in arrays)
        return cls(tuple(given), tuple(arrays), samples, sources, destinations, means)

    def panels(self, sample: str | None) -> dict[str, np.ndarray]:
        """Matrices by name, float64 ``(source, destination)``: each model, and with two their difference."""
        if sample is None:
            matrices = list(self.means)
        else:
            matrices = [a.values[self.samples.index(sample)].astype(np.float64) for a in self.arrays]
        found = dict(zip(self.names, matrices, strict=True))
        if len(matrices) == 2:
            found[f"{self.names[1]} − {self.names[0]}"] = matrices[1] - matrices[0]
        return found

    def of_edge(self, edge: str) -> list[np.ndarray]:
        """Each model's scores of one edge, ``(sample,)``; none where the edge is not in this graph."""
        source, _, destination = edge.partition("->")
        if source not in self.sources or destination not in self.destinations:
            return []
        at = self.sources.index(source), self.destinations.index(destination)
        if not np.isfinite(self.means[0][at]):
            return []
        return [a.values[:, at[0], at[1]].astype(np.float64) for a in self.arrays]


class Explorer:
    """The explorer's controls and views; changing a control's ``value`` redraws, with or without a browser.

    Attributes:
        box: all of it, an ``ipywidgets.VBox``.
        pair, problem, level: dropdowns. alpha: a number. k: slider. layers: range slider. sources, destinations: dropdowns of
        kinds. edge: dropdown. exact: a checkbox, whether a chosen edge is removed exactly.
        message: what is missing. answers: both answers. largest: table of the largest differences, all
        ``HTML``.
        graph, heatmap: each a `View`; its ``figure`` is what it shows. one_edge: the chosen edge, ``HTML``.
        file, save_view, save_picture: where to save, and the buttons that do. saved: what came of it, ``HTML``.
        bar, doing, stop: progress of what is computed, and the button that ends it.
        worker: computes; ``worker.waiting`` is how many jobs are not over.
    """

    def __init__(self, study: Any, view: Any = None) -> None:
        self.study, trouble = _opened(study)
        self.pairs = _pairs(self.study)
        # Loading a tokenizer takes a second, which the first answer shown should not wait for.
        threading.Thread(target=self._load_tokenizers, daemon=True).start()
        self.worker = Worker()
        self._drawing = False
        self._others: dict[tuple, Any] = {}  # pairs at another level or α, as the study would have them
        self._prepared: dict[tuple, Shown] = {}
        self._effects: dict[tuple, pd.DataFrame] = {}
        self._asked: dict[tuple, str] = {}  # what is being computed, or why it could not be
        self._texts: dict[tuple, str] = {}
        self._controls()
        self.box.explorer = self
        self.box.add_class("rlc-explorer")
        if not self.pairs:
            self.message.value = _notes([trouble or MAKE["pairs"]])
            return
        self._on_pair()
        self._listen()
        if view is not None:
            self.open(view)

    # --- controls ---

    def _controls(self) -> None:
        require("ipywidgets", "lab", "the explorer")
        import ipywidgets as w

        wide = {"description_width": "90px"}
        self.pair = w.Dropdown(options=list(self.pairs), description="pair", style=wide)
        self.problem = w.Dropdown(options=[MEAN], description="problem", style=wide, layout={"width": "460px"})
        self.level = w.Dropdown(options=["block"], description="level", style=wide)
        alpha = float(getattr(self.study, "alpha", None) or 0.3)
        self.alpha = w.BoundedFloatText(
            alpha, min=0.001, max=1.0, step=0.1, description="α (scored)", style=wide, disabled=not self._computes,
            tooltip="Share of the mean answer length that is scored; another value is computed when it is not in the store",
        )  # fmt: skip
        self.k = w.IntSlider(25, 1, 200, description="edges drawn", style=wide, continuous_update=False)
        self.layers = w.IntRangeSlider(
            value=(0, 0), min=0, max=0, description="layers", style=wide, continuous_update=False
        )
        kinds = ["all", *KINDS]
        self.sources = w.Dropdown(options=kinds[:-1], description="from", style=wide)
        self.destinations = w.Dropdown(options=["all", *kinds[2:]], description="into", style=wide)
        self.edge = w.Dropdown(options=[NO_EDGE], description="edge", style=wide, layout={"width": "460px"})
        self.exact = w.Checkbox(self._computes, description="remove the chosen edge exactly", indent=False,
                                disabled=not self._computes)  # fmt: skip
        self.bar = w.FloatProgress(0.0, min=0.0, max=1.0, layout={"width": "200px"})
        self.doing = w.HTML()
        self.stop = w.Button(description="stop", layout={"width": "80px"})
        self.progress = w.HBox([self.bar, self.doing, self.stop], layout={"display": "none"})
        self.file = w.Text("view.json", description="file", style=wide, continuous_update=False)
        self.save_view = w.Button(
            description="save view", tooltip="the choices, as .json; open with rc.explore(study, view=file)"
        )
        self.save_picture = w.Button(description="save picture", tooltip="the graph, as .svg, .html, .png or .pdf")
        self.message, self.answers, self.largest, self.one_edge, self.saved = (w.HTML() for _ in range(5))
        self.graph, self.heatmap = View(), View()
        rows = [
            [self.pair, self.problem],
            [self.level, self.alpha, self.k],
            [self.layers, self.sources, self.destinations],
            [self.edge, self.exact],
        ]
        # A row that is too wide for its page goes on below, so no control is out of sight.
        wrap = {"flex_flow": "row wrap", "align_items": "flex-start"}
        controls = w.VBox([w.HBox(row, layout=wrap) for row in rows])
        keep = w.HBox([self.file, self.save_view, self.save_picture, self.saved], layout=wrap)
        self.clicks = clicks()
        heard = [] if self.clicks is None else [w.Box([self.clicks], layout={"display": "none"})]
        views = [
            self.answers,
            self.graph.widget,
            w.HBox([self.largest, self.one_edge], layout=wrap),
            self.heatmap.widget,
        ]
        whole = [controls, self.progress, self.message, *views, keep, *heard]
        self.box = w.VBox(whole if self.pairs else [self.message])

    def _listen(self) -> None:
        self.pair.observe(self._on_pair, "value")
        for control in (self.problem, self.level, self.alpha, self.k, self.layers, self.sources, self.destinations):
            control.observe(self._on_choice, "value")
        self.edge.observe(self._on_choice, "value")
        self.exact.observe(self._on_choice, "value")
        self.stop.on_click(lambda _button: self.worker.stop())
        self.save_view.on_click(lambda _button: self._try(lambda: self.save(self.file.value)))
        self.save_picture.on_click(lambda _button: self._try(lambda: self.export(self.file.value)))
        if self.clicks is not None:
            self.clicks.observe(lambda change: self.choose_edge(change["new"].get("edge", "")), "picked")

    @property
    def _computes(self) -> bool:
        """Whether the study knows how to compute what it does not have."""
        return bool(getattr(self.study, "settings", None)) and hasattr(self.study, "at")

    def choose_edge(self, edge: str) -> None:
        """Choose an edge, as a click on it does; one that this graph does not have is left alone."""
        shown = self._shown()
        if shown is None or not shown.of_edge(edge):
            return
        if edge not in [value for _, value in self.edge.options]:
            self.edge.options = [*self.edge.options, (edge, edge)]
        self.edge.value = edge

    def _load_tokenizers(self) -> None:
        for pair in list(self.pairs.values()):
            try:
                _part(pair, "tokenizer")
            except Exception:  # it is loaded again, and the reason told, when an answer is shown
                return

    # --- what is shown ---

    def _on_pair(self, _change: Any = None) -> None:
        """Fill the controls with what the chosen pair has, then draw."""
        pair = self.pairs[self.pair.value]
        scores = [s for s in (_part(pair, "base_scores")[0], _part(pair, "tuned_scores")[0]) if s is not None]
        scored = [str(i) for i in scores[0]["sample"].values] if scores else []
        answered = [_part(pair, side)[0] or {} for side in ("base_answers", "tuned_answers")]
        others = [i for i in dict.fromkeys(str(i) for a in answered for i in a) if i not in set(scored)]
        questions = _part(pair, "problems")[0]
        self._drawing = True
        try:
            kept, level, all_layers = self.problem.value, self.level.value, self.layers.value == (0, self.layers.max)
            options = [(_shorten(f"{i}: {_question(questions, i)}"), i) for i in scored]
            options += [(_shorten(f"{i} (not selected): {_question(questions, i)}"), i) for i in others]
            self.problem.options = [(MEAN, MEAN), *options]
            self.problem.value = kept if kept in [i for _, i in options] else MEAN
            own = _levels(scores[0]) if scores else ["block"]
            self.level.options = list(dict.fromkeys([*own, *(LEVELS if self._computes else ())]))
            self.level.value = level if self._started and level in self.level.options else own[0]
            last = max((_layer(n) for n in scores[0]["source"].values), default=0) if scores else 0
            low, high = self.layers.value
            self.layers.max = max(last, 0)
            self.layers.value = (
                (0, self.layers.max) if all_layers else (min(low, self.layers.max), min(high, self.layers.max))
            )
            if scores:
                n_edges = int(np.isfinite(scores[0].values[0]).sum())
                self.k.max = max(1, min(200, n_edges))
            self._started = True
        finally:
            self._drawing = False
        self._draw()

    _started = False

    def _on_choice(self, _change: Any = None) -> None:
        if not self._drawing:
            self._draw()

    def _draw(self) -> None:
        """Show the chosen problem of the chosen pair; what cannot be shown is said in `message`."""
        notes: list[str] = []
        try:
            pair = self._current(notes)
            self._draw_scores(pair, notes)  # first, as the answers may have to wait for their tokenizer
            self._draw_answers(pair or self.pairs[self.pair.value], notes)
        except InputError as error:
            self._clear()
            notes.append(str(error))
            self._draw_answers(self.pairs[self.pair.value], notes)
        _put(self.message, _notes(notes))

    def _key(self) -> tuple[str, str, float]:
        return self.pair.value, self.level.value, float(self.alpha.value)

    def _current(self, notes: list[str]) -> Any:
        """The chosen pair at the chosen level and α; None, and a note, where that is being computed or cannot be had."""
        name, level, alpha = self._key()
        own = self.pairs[name]
        scores = next((s for s in (_part(own, "base_scores")[0], _part(own, "tuned_scores")[0]) if s is not None), None)
        same = not self._computes or alpha == self.study.alpha
        if same and (scores is None or level in _levels(scores)):
            return own
        key = (name, level, alpha)
        if key not in self._others and key not in self._asked:
            try:
                self._others[key] = only_stored(self.study).at(level, alpha, [name]).pairs[name]
            except NotStored:
                self._compute(key, make_at, {"pair": name, "level": level, "alpha": alpha})
            except InputError as error:
                self._asked[key] = str(error)
        if key not in self._others:
            notes.append(f"{name} at level {level} and α {alpha:g}: {self._asked[key]}")
        return self._others.get(key)

    def _shown(self) -> Shown | None:
        return self._prepared.get(self._key())

    def _prepare(self, pair: Any, notes: list[str]) -> Shown | None:
        given = {}
        for name in ("base_scores", "tuned_scores"):
            scores, note = _part(pair, name)
            if scores is None:
                notes.append(note)
            else:
                level = self.level.value
                merge = level != str(scores.attrs.get("level", "block")) and level in _levels(scores)
                given[name.removesuffix("_scores")] = merged(scores) if merge else scores
        if not given:
            return None
        key = self._key()
        if key not in self._prepared:
            while len(self._prepared) >= 8:
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[key] = Shown.of(given)
        return self._prepared[key]

    def _clear(self) -> None:
        self.graph.clear()
        self.heatmap.clear()
        for place in (self.largest, self.one_edge):
            _put(place, "")

    def _draw_answers(self, pair: Any, notes: list[str]) -> None:
        key = (id(pair), self.problem.value)
        if key not in self._texts:
            missing: list[str] = []
            text = _answers_html(pair, self.problem.value, missing)
            notes += missing
            if not missing:
                self._texts[key] = text
        _put(self.answers, self._texts[key] if key in self._texts else text)

    def _draw_scores(self, pair: Any, notes: list[str]) -> None:
        shown = None if pair is None else self._prepare(pair, notes)
        sample = None if self.problem.value == MEAN else self.problem.value
        if shown is not None and sample is not None and sample not in shown.samples:
            notes.append(f"problem {sample} was not selected, so it has no scores; see selection.dropped for the rules")
            shown = None
        if shown is None:
            self._clear()
            return
        keep = self._kept(shown)
        panels = {name: np.where(keep, matrix, np.nan) for name, matrix in shown.panels(sample).items()}
        table = _largest(panels, shown.sources, shown.destinations)
        self._fill_edges(table, shown)
        chosen = self.edge.value
        names: dict[str, Any] = {"sample": sample, "names": shown.names}
        nodes = shown.sources, shown.destinations
        k = self.k.value
        self.graph.show(
            graph_svg(panels, *nodes, k, chosen),
            lambda: figures.residual_graph(*self._filtered(shown, keep), k=k, **names),
        )
        _put(self.largest, _table_html(table.head(10), two=len(shown.arrays) == 2, chosen=chosen))
        self._draw_edge(pair, shown, sample, notes)
        self.heatmap.show(
            heatmap_svg(panels, *nodes, chosen), lambda: figures.adjacency(*self._filtered(shown, keep), **names)
        )

    def _filtered(self, shown: Shown, keep: np.ndarray) -> tuple[xr.DataArray, xr.DataArray | None]:
        first, *second = (array.where(xr.DataArray(keep, dims=("source", "destination"))) for array in shown.arrays)
        return first, second[0] if second else None

    def _kept(self, shown: Shown) -> np.ndarray:
        """Which edges the layers and kinds chosen leave, bool ``(source, destination)``."""
        low, high = self.layers.value
        sides = []
        for names, kind in ((shown.sources, self.sources.value), (shown.destinations, self.destinations.value)):
            keep = [
                (kind == "all" or _kind(n) == KINDS[kind]) and (_layer(n) < 0 or low <= _layer(n) <= high)
                for n in names
            ]
            sides.append(np.array(keep, bool))
        return sides[0][:, None] & sides[1][None, :]

    def _fill_edges(self, table: pd.DataFrame, shown: Shown) -> None:
        """Offer the edges that differ most, and keep the one that is chosen while the graph has it."""
        chosen = self.edge.value
        names = list(table["edge"])
        if chosen and shown.of_edge(chosen) and chosen not in names:
            names.append(chosen)
        options = (NO_EDGE, *((name, name) for name in names))
        if self.edge.options == options:
            return
        before, self._drawing = self._drawing, True
        try:
            self.edge.options = options
            self.edge.value = chosen if chosen in names else ""
        finally:
            self._drawing = before

    # --- one edge ---

    def _draw_edge(self, pair: Any, shown: Shown, sample: str | None, notes: list[str]) -> None:
        edge = self.edge.value
        scores = shown.of_edge(edge) if edge else []
        if not scores:
            _put(self.one_edge, "")
            return
        effects = self._exact_effects(pair, shown, edge, notes) if self.exact.value else None
        pictures = []
        if len(scores) == 2:
            dots = [Dots("problems", scores[0], scores[1], shown.samples)]
            pictures.append(
                scatter_svg(dots, f"{edge}: score on each problem", "base (nats)", "tuned (nats)", "no change", sample)
            )
        if effects is not None:
            dots = [
                Dots(name, values, effects[name].to_numpy(float), shown.samples)
                for name, values in zip(shown.names, scores, strict=True)
            ]
            pictures.append(
                scatter_svg(
                    dots,
                    "What removing it really does",
                    "score (nats)",
                    "loss without it − loss (nats)",
                    "exact = score",
                    sample,
                )
            )
        _put(self.one_edge, _edge_html(edge, shown, scores, effects, sample, pictures))

    def _exact_effects(self, pair: Any, shown: Shown, edge: str, notes: list[str]) -> pd.DataFrame | None:
        """Exact effects of an edge by problem; None, and a note, while they are computed or cannot be."""
        name, level, alpha = self._key()
        key = (name, level, alpha, edge)
        if not self._computes:
            notes.append(
                "no exact effects: a study that rc.study(…) made can remove edges, or use rc.ablate(model, traces, edges=[…])"
            )
            return None
        if key not in self._effects and key not in self._asked:
            try:
                at = SimpleNamespace(**{**vars(only_stored(self.study)), "pairs": {name: pair}, "level": level})
                self._take_effects(key, type(self.study).ablate(at, name, edge), shown)
            except NotStored:
                self._compute(key, make_effects, {"pair": name, "level": level, "alpha": alpha, "edge": edge})
            except InputError as error:
                self._asked[key] = str(error)
        if key not in self._effects:
            notes.append(f"exact effect of {edge}: {self._asked[key]}")
        return self._effects.get(key)

    def _take_effects(self, key: tuple, effects: pd.DataFrame, shown: Shown | None = None) -> None:
        shown = shown or self._prepared.get(key[:3])
        self._effects[key] = effects if shown is None else effects.reindex(list(shown.samples))

    # --- work that takes longer ---

    def _compute(self, key: tuple, function: Any, arguments: dict[str, Any]) -> None:
        """Let the worker do it; what it makes is drawn when it is there, if it is still asked for."""
        self._asked[key] = "being computed"
        title = " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in key)

        def told(report: Report) -> None:
            self._show_progress(title, report)
            if not report.over:
                return
            if report.state == "done":
                self._asked.pop(key, None)
                if report.result is not None:
                    self._take_effects(key, report.result)
            elif report.state == "stopped":
                self._asked[key] = "stopped; change a choice and come back to compute it"
            else:
                self._asked[key] = report.text
            self._draw()
            if report.state == "stopped":
                self._asked.pop(key, None)

        self._show_progress(title, Report("running", "waiting for its turn"))
        study = skeleton(self.study, arguments["pair"])
        self.worker.submit(function, {"study": study, **arguments}, told)

    def _show_progress(self, title: str, report: Report) -> None:
        if report.over and not self.worker.waiting:
            self.progress.layout.display = "none"
            return
        self.progress.layout.display = "flex"
        self.bar.value = report.share or 0.0
        self.bar.bar_style = "" if report.share is not None else "info"
        self.doing.value = f'<span class="mathjax_ignore">{escaped(title)}: {escaped(report.text or "done")}</span>'

    # --- saving ---

    def view(self) -> dict[str, Any]:
        """The choices, as JSON values."""
        values = {name: getattr(self, name).value for name in _VIEW}
        return {"rlcircuits view": FORMAT, **values, "layers": list(self.layers.value)}

    def open(self, view: str | os.PathLike[str] | Mapping[str, Any]) -> None:
        """Make the choices of a saved view.

        Raises:
            InputError: no view, or one that does not fit this study.
        """
        choices = _checked_view(view)
        choose("pair", choices["pair"], self.pairs)
        self.pair.value = choices["pair"]
        choose("problem", choices["problem"], [value for _, value in self.problem.options])
        choose("level", choices["level"], self.level.options)
        low, high = choices["layers"]
        if not 0 <= low <= high <= self.layers.max:
            raise InputError(
                f"the view's layers are {low} to {high}: expected within 0 to {self.layers.max}, as this pair has"
            )
        self._drawing = True
        try:
            for name in _VIEW:
                if name not in ("pair", "edge"):
                    getattr(self, name).value = tuple(choices[name]) if name == "layers" else choices[name]
            if choices["edge"]:
                self.edge.options = [NO_EDGE, (choices["edge"], choices["edge"])]
                self.edge.value = choices["edge"]
        finally:
            self._drawing = False
        self._draw()

    def save(self, file: str | os.PathLike[str]) -> Path:
        """Write `view` to a file, ``.json``.

        Raises:
            InputError: another suffix, or it cannot be written.
        """
        path = _target(file, (".json",))
        _written(path, json.dumps(self.view(), indent=1, ensure_ascii=False) + "\n")
        self.saved.value = _said_saved(path, f"open it with rc.explore(study, view={str(path)!r})")
        return path

    def export(self, file: str | os.PathLike[str]) -> Path:
        """Write the graph to a file: ``.svg`` as it is seen, ``.html`` interactive on its own, ``.png`` and ``.pdf`` through kaleido.

        Raises:
            InputError: nothing is shown, another suffix, no kaleido or browser, or it cannot be written.
        """
        path = _target(file, (".svg", ".html", ".png", ".pdf"))
        if not self.graph.svg:
            raise InputError("no graph is shown, so there is none to save; choose a problem that has scores")
        if path.suffix == ".svg":
            _written(path, self.graph.svg)
        else:
            from rlcircuits.lab.display import export

            export(self.graph.figure, path)
        self.saved.value = _said_saved(path, "")
        return path

    def _try(self, action: Any) -> None:
        """What a button does; why it could not is told beside it."""
        try:
            action()
        except InputError as error:
            self.saved.value = _notes([str(error)])


_VIEW = ("pair", "problem", "level", "alpha", "k", "layers", "sources", "destinations", "edge", "exact")
_CLICKS = """
export default { render({ model, el }) {
  // A click, or Enter, on anything within this explorer that stands for an edge.
  const heard = (event) => {
    const place = event.target.closest && event.target.closest("[data-edge]");
    const box = el.closest(".rlc-explorer");
    if (!place || !box || !box.contains(place)) return;
    if (event.type === "keydown" && event.key !== "Enter" && event.key !== " ") return;
    if (event.type === "keydown") event.preventDefault();
    model.set("picked", { edge: place.dataset.edge, at: Date.now() });
    model.save_changes();
  };
  document.addEventListener("click", heard);
  document.addEventListener("keydown", heard);
  return () => { document.removeEventListener("click", heard); document.removeEventListener("keydown", heard); };
} };
"""


def clicks() -> Any:
    """An invisible widget that tells which edge was clicked; None where anywidget is not installed (the list of edges remains)."""
    try:
        import anywidget
        import traitlets
    except ImportError:
        return None

    class Clicks(anywidget.AnyWidget):
        """``picked``: the edge last clicked, and when."""

        _esm = _CLICKS
        picked = traitlets.Dict().tag(sync=True)

    return Clicks()


class View:
    """A place for a picture.

    Attributes:
        widget: to put into the page.
        svg: the picture shown, empty when there is none.
    """

    def __init__(self) -> None:
        import ipywidgets

        self.svg = ""
        self._figure: Any = None
        self.widget = ipywidgets.HTML()

    @property
    def figure(self) -> go.Figure | None:
        """The same as a plotly figure, for saving; None when there is none."""
        return None if self._figure is None else self._figure()

    def show(self, svg: str, figure: Any) -> None:
        """Replace what is shown; `figure` makes the plotly figure when it is asked for."""
        self.svg, self._figure = svg, figure
        _put(self.widget, svg)

    def clear(self) -> None:
        """Show nothing."""
        self.svg, self._figure = "", None
        _put(self.widget, "")


def _put(widget: Any, text: str) -> None:
    if widget.value != text:
        widget.value = text


def largest_differences(
    base: xr.DataArray,
    tuned: xr.DataArray | None = None,
    sample: str | None = None,
    names: Sequence[str] = ("base", "tuned"),
    n: int = 10,
) -> pd.DataFrame:
    """The `n` edges that differ most between tuned and base, or the strongest of one model.

    Returns:
        A column ``edge``, one for each model under its name and, with two, ``difference`` (second − first),
        in nats, largest |difference| first; of one problem, or of the mean over problems.

    Raises:
        InputError: an unknown problem, or two models that cannot be paired.
    """
    return _largest(*figures.panels_of(base, tuned, sample, names), n)


def _largest(
    matrices: Mapping[str, np.ndarray], sources: Sequence[str], destinations: Sequence[str], n: int = 50
) -> pd.DataFrame:
    values = list(matrices.values())
    rows, columns = np.nonzero(np.isfinite(values[-1]))
    order = np.argsort(-np.abs(values[-1][rows, columns]), kind="stable")[:n]
    rows, columns = rows[order], columns[order]
    table: dict[str, Any] = {
        "edge": [f"{sources[int(i)]}->{destinations[int(j)]}" for i, j in zip(rows, columns, strict=True)]
    }
    for name, matrix in zip([*list(matrices)[:2], "difference"], values, strict=False):
        table[name] = matrix[rows, columns]
    return pd.DataFrame(table)


def merged(scores: xr.DataArray) -> xr.DataArray:
    """Scores at level ``block`` from those at level ``qkv``: an attention's is the sum of its q, k and v.

    Exact, as the gradient at the attention's input is the sum of the gradients through its three readers.
    """
    nodes = [node_of(str(n)) for n in scores["destination"].values]
    names = list(dict.fromkeys(nodes))
    scores = scores.transpose("sample", "source", "destination")
    parts = [scores.values[:, :, [i for i, n in enumerate(nodes) if n == name]].sum(axis=2) for name in names]
    coords = {"sample": scores["sample"].values, "source": scores["source"].values, "destination": names}
    return xr.DataArray(
        np.stack(parts, axis=2),
        dims=scores.dims,
        coords=coords,
        name=scores.name,
        attrs={**scores.attrs, "level": "block"},
    )


# --- parts of a study -----------------------------------------------------------------------------


def _pairs(study: Any) -> dict[str, Any]:
    """The study's pairs by name; none where there is nothing to show."""
    pairs = getattr(study, "pairs", None)
    if isinstance(pairs, Mapping):
        return {str(name): pair for name, pair in pairs.items()}
    if any(getattr(study, name, None) is not None for name in ("base_scores", "tuned_scores", "base_answers")):
        return {str(getattr(getattr(study, "pair", None), "name", "pair")): study}
    if isinstance(study, xr.DataArray):
        return {str(study.attrs.get("model", "scores")): SimpleNamespace(base_scores=study)}
    return {}


def _opened(study: Any) -> tuple[Any, str]:
    """The study, from a path too; None, and what is wrong, where there is none."""
    if not isinstance(study, (str, os.PathLike)):
        return study, ""
    from rlcircuits.storage import load_scores

    path = Path(study).expanduser()
    files = {f"{side}_scores": path / f"{side}.nc" for side in ("base", "tuned")}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found:
        there = "is no folder" if not path.is_dir() else "holds neither base.nc nor tuned.nc"
        return None, (
            f"no study at {str(path)!r}: it {there}. Give a folder that `rlcircuits attribute --out` wrote, or a study: "
            "rc.explore(rc.study(pairs=[…], problems=…))"
        )
    try:
        return SimpleNamespace(pairs={path.name: SimpleNamespace(**{n: load_scores(f) for n, f in found.items()})}), ""
    except InputError as error:
        return None, str(error)


def _part(pair: Any, name: str) -> tuple[Any, str]:
    """An attribute of the pair, or None and how to make it."""
    try:
        value = getattr(pair, name, None)
    except (InputError, OSError) as error:
        return None, f"{MAKE[name]} ({error})"
    return (None, MAKE[name]) if value is None else (value, "")


def _problem(problems: Any, problem: str) -> Any:
    """The problem with this id, from a mapping or a problem set."""
    if isinstance(problems, Mapping):
        return problems.get(problem)
    return next((p for p in problems or () if str(getattr(p, "id", None)) == problem), None)


def _question(problems: Any, problem: str) -> str:
    return str(getattr(_problem(problems, problem), "question", ""))


def _shorten(text: str, length: int = 80) -> str:
    text = " ".join(text.split()).removesuffix(":")
    return text if len(text) <= length else text[: length - 1] + "…"


def _levels(scores: xr.DataArray) -> list[str]:
    """Levels that can be shown: that of the scores, and what they sum to."""
    level = str(scores.attrs.get("level", "block"))
    return ["qkv", "block"] if level == "qkv" else [level]


def _layer(name: object) -> int:
    """Layer of a source or destination; −1 for the input, the logits and names that have none."""
    found = NODE.fullmatch(node_of(str(name)))
    return int(found["layer"]) if found and found["layer"] else -1


def _kind(name: str) -> str:
    found = NODE.fullmatch(node_of(name))
    return (found["kind"] or found[0]) if found else ""


# --- text -----------------------------------------------------------------------------------------


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escaped(note)}</li>" for note in dict.fromkeys(notes))
    return f'<ul class="mathjax_ignore" style="color:#8a3b00">{items}</ul>' if items else ""


def _answers_html(pair: Any, problem: str, notes: list[str]) -> str:
    """The question, the reference and both answers token by token."""
    if problem == MEAN:
        return ""
    parts = []
    problems, note = _part(pair, "problems")
    found = _problem(problems, problem)
    if found is not None:
        parts.append(f"<p><b>{escaped(found.question)}</b><br>reference: {escaped(found.reference)}</p>")
    elif problems is None:
        notes.append(note)
    tokenizer, note = _part(pair, "tokenizer")
    if tokenizer is None:
        notes.append(note)
    cut = getattr(getattr(pair, "selection", None), "t_cut", None)
    for side in ("base", "tuned"):
        answers, note = _part(pair, f"{side}_answers")
        if answers is None:
            notes.append(note)
        elif (answer := answers.get(problem)) is None:
            notes.append(
                f"no answer of the {side} model to {problem}; make it with rlcircuits.answers.generation.generate(…)"
            )
        else:
            losses = (getattr(pair, f"{side}_losses", None) or {}).get(problem)
            parts.append(_answer_html(side, answer, tokenizer, cut, losses))
    return f'<div class="mathjax_ignore tex2jax_ignore" style="line-height:1.9">{"".join(parts)}</div>'


def _answer_html(side: str, answer: Any, tokenizer: Any, cut: int | None, losses: Sequence[float] | None) -> str:
    verdict = "correct" if answer.correct else "wrong"
    if tokenizer is None:
        return f"<p><b>{side}</b> ({verdict}): {escaped(answer.text.strip())}</p>"
    ids = list(answer.answer)
    spans = []
    for position, token in enumerate(ids[:LONGEST]):
        scored = cut is None or position < cut
        loss = losses[position] if losses is not None and position < len(losses) else None
        title = f"token {position + 1}, id {token}" + (f", loss {loss:.3g} nats" if loss is not None else "")
        shade = "#ffe3a3" if scored else "#f0f0f0"
        if loss is not None:
            shade = f"rgba(230,159,0,{min(1.0, max(0.0, float(loss)) / 3):.2f})"
        border = "border-bottom:2px solid #0072B2;" if scored else ""
        spans.append(
            f'<span title="{escaped(title)}" style="background:{shade};{border}padding:1px 4px;margin:1px;'
            f'white-space:pre">{escaped(tokenizer.decode([token]))}</span>'
        )
    if len(ids) > LONGEST:
        spans.append(f"… {len(ids) - LONGEST:,} more")
    scored_tokens = f", first {min(cut, len(ids))} scored" if cut is not None else ""
    return f"<p><b>{side}</b> ({verdict}, {len(ids)} tokens{scored_tokens}): {' '.join(spans)}</p>"


def _table_html(table: pd.DataFrame, two: bool, chosen: str = "") -> str:
    if table.empty:
        return "<p>No edge is left by the layers and kinds chosen.</p>"
    title = "Largest differences (nats); click an edge" if two else "Strongest edges (nats); click one"
    head = "".join(f"<th style='padding:0 10px;text-align:right'>{escaped(c)}</th>" for c in table.columns)
    rows = "".join(
        f'<tr data-edge="{escaped(row[0])}" tabindex="0" style="cursor:pointer{";background:#ffe3a3" if row[0] == chosen else ""}">'
        + "".join(
            f"<td style='padding:0 10px;text-align:right;white-space:nowrap'>{escaped(cell)}</td>"
            for cell in (v if isinstance(v, str) else f"{v:.3g}" for v in row)
        )
        + "</tr>"
        for row in table.itertuples(index=False)
    )
    return f'<p><b>{title}</b></p><table class="mathjax_ignore tex2jax_ignore"><tr>{head}</tr>{rows}</table>'


def _edge_html(
    edge: str,
    shown: Shown,
    scores: Sequence[np.ndarray],
    effects: pd.DataFrame | None,
    sample: str | None,
    pictures: Sequence[str],
) -> str:
    """One edge in numbers and pictures."""
    rows = []
    for name, values in zip(shown.names, scores, strict=True):
        said = f"{name}: score {values.mean():.3g} nats on average over {len(values)} problems"
        if sample is not None:
            said += f", {values[shown.samples.index(sample)]:.3g} on this one"
        if effects is not None:
            exact = effects[name].to_numpy(float)
            said += f"; exactly {np.nanmean(exact):.3g}"
            if sample is not None:
                said += f", {exact[shown.samples.index(sample)]:.3g} on this one"
        rows.append(f"<li>{escaped(said)}</li>")
    head = f"<p><b>Edge {escaped(edge)}</b></p><ul>{''.join(rows)}</ul>"
    return f'<div class="mathjax_ignore tex2jax_ignore">{head}{"".join(pictures)}</div>'


# --- files ----------------------------------------------------------------------------------------


def _target(file: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    path = Path(file).expanduser()
    if path.suffix not in suffixes:
        raise InputError(f"cannot save to {str(file)!r}: expected a file name that ends in {' or '.join(suffixes)}")
    return path


def _written(path: Path, text: str) -> None:
    from rlcircuits.storage import written

    with written(path) as temporary:
        temporary.write_text(text, "utf-8")


def _said_saved(path: Path, more: str) -> str:
    return f'<span class="mathjax_ignore">saved: {escaped(path)}{escaped("; " + more if more else "")}</span>'


def _checked_view(view: str | os.PathLike[str] | Mapping[str, Any]) -> dict[str, Any]:
    """The choices of a saved view, each of its type.

    Raises:
        InputError: naming what is wrong.
    """
    where = "the view"
    if not isinstance(view, Mapping):
        path = Path(view).expanduser()
        where = f"the view {str(path)!r}"
        try:
            view = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise InputError(
                f"no view at {str(path)!r} ({error.strerror}): expected a file that the explorer saved"
            ) from None
        except ValueError as error:
            raise InputError(f"{where} cannot be read ({error}): expected a file that the explorer saved") from None
    if not isinstance(view, Mapping) or view.get("rlcircuits view") != FORMAT:
        raise InputError(f'{where} is none: expected a file that the explorer saved, with "rlcircuits view": {FORMAT}')
    for name in view:
        choose(f"choice in {where}:", name, ("rlcircuits view", *_VIEW))
    kinds: dict[str, Any] = {"alpha": (int, float), "k": int, "layers": list, "exact": bool}
    for name in _VIEW:
        kind = kinds.get(name, str)
        if not isinstance(view.get(name), kind):
            raise InputError(f"{where}: {name} is {view.get(name)!r}, expected {getattr(kind, '__name__', 'a number')}")
    if len(view["layers"]) != 2 or not all(isinstance(n, int) for n in view["layers"]):
        raise InputError(f"{where}: layers is {view['layers']!r}, expected the first and the last")
    kinds_of = ("all", *KINDS)
    for name in ("sources", "destinations"):
        choose(f"kind of {name} in {where}:", view[name], kinds_of)
    if not 0.001 <= view["alpha"] <= 1 or view["k"] < 1:
        raise InputError(
            f"{where}: alpha is {view['alpha']}, k is {view['k']}; expected α within 0.001 to 1 and k at least 1"
        )
    return dict(view)
