"""The explorer: follow one problem through two models with a few clicks (ipywidgets).

1. Choose a pair, a problem (or the mean of all), the level of the graph and α, the share of an answer that is scored;
   the number k of edges, and which layers and kinds of edges to keep.
2. Read both answers token by token, shaded by each token's loss; what is scored is underlined.
3. See the residual graph and the heatmap of base, tuned and their difference, and the edges that differ most.
4. Click an edge, in a picture or in the table, or choose it from the list: its score on every problem, base against
   tuned, and the exact effect of removing it, which is computed when the store does not have it.
5. Save the view, to open it again with ``rc.explore(study, view=file)``, or the picture.

What is at hand is shown at once (`rlcircuits.lab.pictures` says how). What has to be computed, another α or level or an
exact effect, is computed in a process of its own (`rlcircuits.lab.jobs`), with a bar and a button to stop it, and shown
when it is there.

`explore` takes a study as `rlcircuits.study` makes it, or anything shaped like it. Where a part is missing the explorer
says which, and how to make it, and shows the rest. All text that a model or a data set wrote is escaped.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from rlcircuits import figures
from rlcircuits.attribution import LEVELS
from rlcircuits.errors import InputError, choose, require
from rlcircuits.lab.jobs import NotStored, Report, Worker, make_at, make_effects, only_stored, skeleton
from rlcircuits.lab.markup import answers_html, edge_html, notes_html, saved_html, shorten, table_html
from rlcircuits.lab.panels import KINDS, Shown, largest, layer_of, merged
from rlcircuits.lab.parts import MAKE, levels_of, opened, pairs_of, part, question_of
from rlcircuits.lab.pictures import escaped, graph_svg, heatmap_svg
from rlcircuits.lab.views import CHOICES, FORMAT, checked_view, target, write
from rlcircuits.lab.widgets import View, clicks, put

MEAN = "mean of all problems"
NO_EDGE = ("(choose one, or click it in a picture or the table)", "")


def explore(study: Any, view: str | os.PathLike[str] | Mapping[str, Any] | None = None) -> Any:
    """The explorer of a study.

    Args:
        study: what `rlcircuits.study` returns, or anything with ``pairs``, a dictionary from name to `PairStudy` (or to
            anything with some of its attributes); a single `PairStudy` is a study of one pair, scores alone are one
            model, and a path is a folder that ``rlcircuits attribute --out`` wrote.
        view: the file that the explorer saved a view in, or what `Explorer.view` returns.

    Returns:
        An ``ipywidgets.VBox`` to display; its attribute ``explorer`` is the `Explorer` with every control by
        name.

    Raises:
        InputError: `view` is no saved view, or of a pair or problem that the study does not have.
    """
    return Explorer(study, view).box


class Explorer:
    """The explorer's controls and views; changing a control's ``value`` redraws, with or without a browser.

    Attributes:
        box: all of it, an ``ipywidgets.VBox``.
        pair, problem, level: dropdowns. alpha: a number. k: slider. layers: range slider. sources, destinations:
            dropdowns of
        kinds. edge: dropdown. exact: a checkbox, whether a chosen edge is removed exactly.
        message: what is missing. answers: both answers. largest: table of the largest differences, all
        ``HTML``.
        graph, heatmap: each a `View`; its ``figure`` is what it shows. one_edge: the chosen edge, ``HTML``.
        file, save_view, save_picture: where to save, and the buttons that do. saved: what came of it, ``HTML``.
        bar, doing, stop: progress of what is computed, and the button that ends it.
        worker: computes; ``worker.waiting`` is how many jobs are not over.
    """

    def __init__(self, study: Any, view: Any = None) -> None:
        self.study, trouble = opened(study)
        self.pairs = pairs_of(self.study)
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
            self.message.value = notes_html([trouble or MAKE["pairs"]])
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
            tooltip="Share of the mean answer length that is scored; another value is computed when it is not in the "
                    "store",
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
                part(pair, "tokenizer")
            except Exception:  # it is loaded again, and the reason told, when an answer is shown
                return

    # --- what is shown ---

    def _on_pair(self, _change: Any = None) -> None:
        """Fill the controls with what the chosen pair has, then draw."""
        pair = self.pairs[self.pair.value]
        scores = [s for s in (part(pair, "base_scores")[0], part(pair, "tuned_scores")[0]) if s is not None]
        scored = [str(i) for i in scores[0]["sample"].values] if scores else []
        answered = [part(pair, side)[0] or {} for side in ("base_answers", "tuned_answers")]
        others = [i for i in dict.fromkeys(str(i) for a in answered for i in a) if i not in set(scored)]
        questions = part(pair, "problems")[0]
        self._drawing = True
        try:
            kept, level, all_layers = self.problem.value, self.level.value, self.layers.value == (0, self.layers.max)
            options = [(shorten(f"{i}: {question_of(questions, i)}"), i) for i in scored]
            options += [(shorten(f"{i} (not selected): {question_of(questions, i)}"), i) for i in others]
            self.problem.options = [(MEAN, MEAN), *options]
            self.problem.value = kept if kept in [i for _, i in options] else MEAN
            own = levels_of(scores[0]) if scores else ["block"]
            self.level.options = list(dict.fromkeys([*own, *(LEVELS if self._computes else ())]))
            self.level.value = level if self._started and level in self.level.options else own[0]
            last = max((layer_of(n) for n in scores[0]["source"].values), default=0) if scores else 0
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
        put(self.message, notes_html(notes))

    def _key(self) -> tuple[str, str, float]:
        return self.pair.value, self.level.value, float(self.alpha.value)

    def _current(self, notes: list[str]) -> Any:
        """The chosen pair at the chosen level and α; None, and a note, where that is being computed or cannot be
        had.
        """
        name, level, alpha = self._key()
        own = self.pairs[name]
        scores = next((s for s in (part(own, "base_scores")[0], part(own, "tuned_scores")[0]) if s is not None), None)
        same = not self._computes or alpha == self.study.alpha
        if same and (scores is None or level in levels_of(scores)):
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
            scores, note = part(pair, name)
            if scores is None:
                notes.append(note)
            else:
                level = self.level.value
                merge = level != str(scores.attrs.get("level", "block")) and level in levels_of(scores)
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
            put(place, "")

    def _draw_answers(self, pair: Any, notes: list[str]) -> None:
        key = (id(pair), self.problem.value)
        if self.problem.value == MEAN:
            self._texts[key] = ""
        if key in self._texts:
            put(self.answers, self._texts[key])
            return
        missing: list[str] = []
        text = answers_html(pair, self.problem.value, missing)
        notes += missing
        if not missing:
            self._texts[key] = text
        put(self.answers, text)

    def _draw_scores(self, pair: Any, notes: list[str]) -> None:
        shown = None if pair is None else self._prepare(pair, notes)
        sample = None if self.problem.value == MEAN else self.problem.value
        if shown is not None and sample is not None and sample not in shown.samples:
            notes.append(f"problem {sample} was not selected, so it has no scores; see selection.dropped for the rules")
            shown = None
        if shown is None:
            self._clear()
            return
        keep = shown.kept(self.layers.value, self.sources.value, self.destinations.value)
        panels = {name: np.where(keep, matrix, np.nan) for name, matrix in shown.panels(sample).items()}
        table = largest(panels, shown.sources, shown.destinations)
        self._fill_edges(table, shown)
        chosen = self.edge.value
        names: dict[str, Any] = {"sample": sample, "names": shown.names}
        nodes = shown.sources, shown.destinations
        k = self.k.value
        self.graph.show(
            graph_svg(panels, *nodes, k, chosen), lambda: figures.residual_graph(*shown.where(keep), k=k, **names)
        )
        put(self.largest, table_html(table.head(10), two=len(shown.arrays) == 2, chosen=chosen))
        self._draw_edge(pair, shown, sample, notes)
        self.heatmap.show(heatmap_svg(panels, *nodes, chosen), lambda: figures.adjacency(*shown.where(keep), **names))

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
            put(self.one_edge, "")
            return
        effects = self._exact_effects(pair, shown, edge, notes) if self.exact.value else None
        put(self.one_edge, edge_html(edge, shown, scores, effects, sample))

    def _exact_effects(self, pair: Any, shown: Shown, edge: str, notes: list[str]) -> pd.DataFrame | None:
        """Exact effects of an edge by problem; None, and a note, while they are computed or cannot be."""
        name, level, alpha = self._key()
        key = (name, level, alpha, edge)
        if not self._computes:
            notes.append(
                "no exact effects: a study that rc.study(…) made can remove edges, or use rc.ablate(model, traces, "
                "edges=[…])"
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
        values = {name: getattr(self, name).value for name in CHOICES}
        return {"rlcircuits view": FORMAT, **values, "layers": list(self.layers.value)}

    def open(self, view: str | os.PathLike[str] | Mapping[str, Any]) -> None:
        """Make the choices of a saved view.

        Raises:
            InputError: no view, or one that does not fit this study.
        """
        choices = checked_view(view)
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
            for name in CHOICES:
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
        path = target(file, (".json",))
        write(path, json.dumps(self.view(), indent=1, ensure_ascii=False) + "\n")
        self.saved.value = saved_html(path, f"open it with rc.explore(study, view={str(path)!r})")
        return path

    def export(self, file: str | os.PathLike[str]) -> Path:
        """Write the graph to a file: ``.svg`` as it is seen, ``.html`` interactive on its own, ``.png`` and ``.pdf``
        through kaleido.

        Raises:
            InputError: nothing is shown, another suffix, no kaleido or browser, or it cannot be written.
        """
        path = target(file, (".svg", ".html", ".png", ".pdf"))
        if not self.graph.svg:
            raise InputError("no graph is shown, so there is none to save; choose a problem that has scores")
        if path.suffix == ".svg":
            write(path, self.graph.svg)
        else:
            from rlcircuits.lab.display import export

            export(self.graph.figure, path)
        self.saved.value = saved_html(path, "")
        return path

    def _try(self, action: Any) -> None:
        """What a button does; why it could not is told beside it."""
        try:
            action()
        except InputError as error:
            self.saved.value = notes_html([str(error)])
