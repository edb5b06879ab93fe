"""The two widgets that the explorer adds to those of ipywidgets: a place for a picture, and an ear for clicks on
edges.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

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
    """An invisible widget that tells which edge was clicked; None where anywidget is not installed (the list of
    edges remains).
    """
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
        put(self.widget, svg)

    def clear(self) -> None:
        """Show nothing."""
        self.svg, self._figure = "", None
        put(self.widget, "")


def put(widget: Any, text: str) -> None:
    """Show a text in an HTML widget, which is told only of what changes."""
    if widget.value != text:
        widget.value = text
