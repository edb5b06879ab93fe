"""The explorer: follow one problem through two models with a few clicks (anywidget).

1. Choose a pair, a problem (or the mean of all), the level of the graph and α, the share of an answer that is scored;
   the number k of edges, and which layers and kinds of edges to keep.
2. Read both answers token by token, shaded by each token's loss; what is scored is underlined, and where they part is
   marked.
3. See the residual graph and the heatmap of base, tuned and their difference, and the edges that differ most.
4. Choose an edge, in a picture, in the table or by its name: its score on every problem, base against tuned, and the
   exact effect of removing it, which is computed when the store does not have it.
5. Save the view, to open it again with ``rc.explore(study, view=file)``, or the picture.

What is seen is drawn in the browser, by the viewer that the book's pages and `rlcircuits.export` hold too. What is at
hand is in its document (`rlcircuits.lab.document`); what is not, it asks for here. What has to be computed, another α or
level or an exact effect, is computed in a process of its own (`rlcircuits.lab.jobs`), with a bar and a button to stop
it, and sent when it is there.

`explore` takes a study as `rlcircuits.study` makes it, or anything shaped like it. Where a part is missing the explorer
says which, and how to make it, and shows the rest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rlcircuits import figures
from rlcircuits.attribution import LEVELS
from rlcircuits.errors import InputError, choose, require
from rlcircuits.lab.document import MEAN, ROOM, Measures, document, scores
from rlcircuits.lab.jobs import NotStored, Report, Worker, make_at, make_effects, only_stored, skeleton
from rlcircuits.lab.page import script
from rlcircuits.lab.parts import MAKE, levels_of, opened, pairs_of, part
from rlcircuits.lab.views import FORMAT, checked_view, target, write


def explore(
    study: Any, view: str | os.PathLike[str] | Mapping[str, Any] | None = None, more: Measures | None = None
) -> Any:
    """The explorer of a study.

    Args:
        study: what `rlcircuits.study` returns, or anything with ``pairs``, a dictionary from name to `PairStudy` (or to
            anything with some of its attributes); a single `PairStudy` is a study of one pair, scores alone are one
            model, and a path is a folder that ``rlcircuits attribute --out`` wrote.
        view: the file that the explorer saved a view in, or what `Explorer.view` returns.
        more: further measures of the edges, as for `rlcircuits.export`.

    Returns:
        A widget to display; its attribute ``explorer`` is the `Explorer`.

    Raises:
        InputError: `view` is no saved view, or of a pair or problem that the study does not have.
    """
    return Explorer(study, view, more).widget


class Explorer:
    """What the viewer in a notebook shows, and what answers it.

    Attributes:
        widget: the viewer, whose traits are ``data``, the document it was given, and ``view``, what is chosen.
        worker: computes; ``worker.waiting`` is how many jobs are not over.
    """

    def __init__(self, study: Any, view: Any = None, more: Measures | None = None) -> None:
        self.study, trouble = opened(study)
        self.pairs = pairs_of(self.study)
        self.worker = Worker()
        self._others: dict[tuple, Any] = {}  # pairs at another level or α, as the study would have them
        told = self._document(more)
        if not self.pairs:
            told["notes"].append(trouble or MAKE["pairs"])
        self.widget = _widget(told, {} if view is None else checked_view(view, told))
        self.widget.explorer = self
        self.widget.on_msg(lambda _widget, content, _buffers: self.answer(content))

    @property
    def _computes(self) -> bool:
        """Whether the study knows how to compute what it does not have."""
        return bool(getattr(self.study, "settings", None)) and hasattr(self.study, "at")

    def _document(self, more: Measures | None) -> dict[str, Any]:
        told = document(self.study, more, ROOM)
        if self._computes:
            told |= {"computes": True, "levels": list(LEVELS)}
        return told

    # --- what the viewer asks for ---

    def answer(self, asked: Mapping[str, Any]) -> None:
        """Do what the viewer asks: send scores or exact effects, stop what is computed, save a view."""
        kind = asked.get("ask")
        if kind == "stop":
            self.worker.stop()
        elif kind == "save":
            self._save(asked)
        elif kind in ("scores", "effects"):
            try:
                self._send(asked)
            except NotStored:
                if "made" in asked:
                    self._tell(asked, note="computed, but the store does not keep it")
                else:
                    self._compute(asked)
            except InputError as error:
                self._tell(asked, note=str(error))
            except Exception as error:  # whatever it is, the viewer must not wait for ever
                self._tell(asked, note=f"{type(error).__name__}: {error}")

    def _tell(self, asked: Mapping[str, Any], **content: Any) -> None:
        self.widget.send({"key": asked["key"], **content})

    def _send(self, asked: Mapping[str, Any]) -> None:
        """Send what the store has.

        Raises:
            NotStored: it has to be computed.
            InputError: it cannot be had.
        """
        name, level, alpha = choose("pair", asked["pair"], self.pairs), asked["level"], float(asked["alpha"])
        pair = self._pair(name, level, alpha)
        if asked["ask"] == "scores":
            # Half of the room: a notebook's server drops what a kernel sends faster than 3 MB in 3 s.
            self._tell(asked, scores={"pair": name, **scores(pair, level, alpha, {}, ROOM // 2)})
            return
        at = replace(only_stored(self.study), pairs={name: pair}, level=level, alpha=alpha)
        effects = at.ablate(name, asked["edge"])
        shown = effects.reindex([str(i) for i in pair.base_scores["sample"].values])
        values = {side: [v if np.isfinite(v) else None for v in shown[side].tolist()] for side in shown}
        self._tell(asked, effects=values)

    def _pair(self, name: str, level: str, alpha: float) -> Any:
        """The pair at a level and α.

        Raises:
            NotStored: the store does not have it.
            InputError: it cannot be had.
        """
        own = self.pairs[name]
        known = next((s for s in (part(own, f"{side}_scores")[0] for side in ("base", "tuned")) if s is not None), None)
        if not self._computes or (alpha == self.study.alpha and (known is None or level in levels_of(known))):
            return own
        key = (name, level, alpha)
        if key not in self._others:
            self._others[key] = only_stored(self.study).at(level, alpha, [name]).pairs[name]
        return self._others[key]

    def _compute(self, asked: Mapping[str, Any]) -> None:
        """Let the worker do it; what it makes is sent when it is there."""
        what = {name: asked[name] for name in ("pair", "level", "alpha", "edge") if name in asked}
        title = " ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in what.values())

        def told(report: Report) -> None:
            self._show_progress(title, report)
            if report.state == "done":
                self.answer({**asked, "made": True})
            elif report.state == "stopped":
                self._tell(asked, note="stopped; change a choice and come back to compute it", again=True)
            elif report.over:
                self._tell(asked, note=report.text)

        self._show_progress(title, Report("running", "waiting for its turn"))
        job: Callable = make_effects if "edge" in asked else make_at
        self.worker.submit(job, {"study": skeleton(self.study, asked["pair"]), **what}, told)

    def _show_progress(self, title: str, report: Report) -> None:
        over = report.over and not self.worker.waiting
        shown = {"title": title, "text": report.text or "done", "share": report.share}
        self.widget.send({"progress": None if over else shown})

    # --- saving ---

    def view(self) -> dict[str, Any]:
        """The choices, as JSON values; before the viewer was displayed those it will open at."""
        return {"rlcircuits view": FORMAT, **{k: v for k, v in self.widget.view.items() if k != "rlcircuits view"}}

    def open(self, view: str | os.PathLike[str] | Mapping[str, Any]) -> None:
        """Make the choices of a saved view.

        Raises:
            InputError: no view, or one that does not fit this study.
        """
        self.widget.view = checked_view(view, self.widget.data)
        self.widget.send({"open": self.widget.view})

    def save(self, file: str | os.PathLike[str], view: Mapping[str, Any] | None = None) -> Path:
        """Write `view`, by default what is chosen, to a file, ``.json``.

        Raises:
            InputError: another suffix, or it cannot be written.
        """
        path = target(file, (".json",))
        content = checked_view(self.view() if view is None else view, self.widget.data)
        write(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return path

    def _save(self, asked: Mapping[str, Any]) -> None:
        try:
            path = self.save(str(asked["file"]), asked["view"])
            said = f"saved: {path}; open it with rc.explore(study, view={str(path)!r})"
        except InputError as error:
            said = str(error)
        self.widget.send({"saved": said})

    def export(self, file: str | os.PathLike[str]) -> Path:
        """Write the graph that is chosen to a file, ``.svg``, ``.html``, ``.png`` or ``.pdf``, as a plotly figure.

        Raises:
            InputError: no graph is shown, another suffix, no kaleido or browser, or it cannot be written.
        """
        from rlcircuits.lab.display import export

        view = self.view()
        pair = self._pair(view["pair"], view["level"], view["alpha"])
        shown = [s for s in (part(pair, f"{side}_scores")[0] for side in ("base", "tuned")) if s is not None]
        if not shown:
            raise InputError("no graph is shown, so there is none to save; choose a pair that has scores")
        sample = None if view["problem"] == MEAN else view["problem"]
        base, tuned = [*shown, None][:2]
        graph = figures.residual_graph(base, tuned, k=view["k"], sample=sample)
        return export(graph, target(file, (".svg", ".html", ".png", ".pdf")))


def _widget(told: dict[str, Any], view: dict[str, Any]) -> Any:
    """The viewer as a widget of its document."""
    require("anywidget", "lab", "the explorer")
    import anywidget
    import traitlets

    class Viewer(anywidget.AnyWidget):
        """``data``: the document. ``view``: what is chosen."""

        _esm = f"{script()}\nexport default rlcViewer.default;"
        data = traitlets.Dict().tag(sync=True)
        view = traitlets.Dict().tag(sync=True)

    return Viewer(data=told, view=view)
