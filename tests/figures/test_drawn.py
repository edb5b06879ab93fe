"""Figures as a browser draws them: no text covers another or is cut off, on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import plotly
import plotly.graph_objects as go
import pytest

from rlcircuits import figures
from rlcircuits.lab.display import figure_html
from tests.figures.test_figures import all_figures, graph_scores
from tests.fixtures.browser import chromium, collisions, sized
from tests.fixtures.waiting import until

ROOT = Path(__file__).resolve().parents[2]
LONG = "smollm2/online-dpo, seed 12"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


def drawn(browser: Any, folder: Path, width: int, shown: dict[str, go.Figure]) -> list[list[str]]:
    """The collisions of figures on a page like the book's."""
    (folder / "vendor").mkdir(exist_ok=True)
    shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", folder / "vendor")
    script = (ROOT / "book" / "figures.js").read_text("utf-8")
    style = (ROOT / "book" / "figures.css").read_text("utf-8")
    body = "".join(figure_html(figure, name.replace("_", "-")) for name, figure in shown.items())
    page = f'<!doctype html><meta charset="utf-8"><style>{style} body {{ margin: 16px; }}</style><script>{script}</script>{body}'
    (folder / "page.html").write_text(page, "utf-8")
    sized(browser, width, 900, mobile=width < 600)
    browser.get((folder / "page.html").as_uri())
    done = "return [...document.querySelectorAll('.rlc-plot')].every(p => p.dataset.drawn === 'yes')"
    until(lambda: browser.execute_script(done), "all figures to be drawn")
    return collisions(browser)


@pytest.mark.parametrize("width", [820, 375])
@pytest.mark.parametrize("name", ["ppo", LONG])
def test_no_text_covers_another(browser: Any, tmp_path: Path, width: int, name: str) -> None:
    base, tuned = graph_scores(0), graph_scores(1)
    assert drawn(browser, tmp_path, width, all_figures(base, tuned, name)) == []


def test_a_title_on_a_panels_title_would_be_seen(browser: Any, tmp_path: Path) -> None:
    """As it was before the room above the panels followed from what stands there."""
    table = pd.DataFrame({"accuracy": [0.5, 0.6], "step": [0, 1], "prompts_seen": [0, 8]})
    figure = figures.training_curves({"ppo": table}).update_layout(margin_t=40)
    found = drawn(browser, tmp_path, 820, {"one": figure})
    assert any("greedy accuracy" in texts and "What did each member" in " ".join(texts) for texts in found)
