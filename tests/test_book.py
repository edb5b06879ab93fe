"""The book: every page is there, says what it should, and works in a browser that can reach no host."""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
import yaml

import rlcircuits
from rlcircuits.display import figure_html
from rlcircuits.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book"))
import build as machinery  # noqa: E402, I001  (found by the line above)
import reference  # noqa: E402

PAGES = machinery.pages(ROOT / "book" / "_toc.yml")
SAYS = {
    "intro": ["RL fine-tuning", "PPO", "GRPO", "DPO", "control"],
    "method": ["activation intensity", "information complexity", "kurtosis", "effective number of edges"],
    "reference": ["activation_intensity", "structural_zeros", "Raises", "InputError"],
    "bibliography": [
        "2509.21044",
        "Attribution Patching",
        "Proximal Policy Optimization",
        "Direct Preference",
    ],
    "troubleshooting": ["make clean", "runs/"],
}


class Page(HTMLParser):
    """What a page loads, and what a reader sees of it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.figures = 0
        self._hidden = ""
        self.feed(path.read_text(encoding="utf-8"))
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag in ("script", "style"):
            self._hidden = tag
        if tag in ("script", "img", "iframe", "source", "video", "audio", "embed") and found.get("src"):
            self.loads.append(found["src"] or "")
        if tag == "link" and (found.get("rel") or "") in (
            "stylesheet",
            "preload",
            "icon",
            "shortcut icon",
            "preconnect",
        ):
            self.loads.append(found.get("href") or "")
        if found.get("id"):
            self.ids.append(found["id"] or "")
        self.figures += "rlc-plot" in (found.get("class") or "").split()

    def handle_endtag(self, tag: str) -> None:
        if tag == self._hidden:
            self._hidden = ""

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


@pytest.fixture(scope="module")
def parsed(book: Path) -> dict[str, Page]:
    return {name: Page(book / f"{name}.html") for name in PAGES if (book / f"{name}.html").is_file()}


# The files.


@pytest.mark.book
@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_there(name: str, parsed: dict[str, Page]) -> None:
    page = parsed[name]
    for words in SAYS.get(name, []):
        assert words.lower() in page.text.lower(), f"{name} does not say {words!r}"
    if name.startswith("notebooks/"):
        first = nbformat.read(ROOT / f"{name}.ipynb", as_version=4).cells[0].source
        title = first.splitlines()[0].lstrip("# ").strip()
        assert title in page.text
        assert "Traceback (most recent call last)" not in page.text


@pytest.mark.book
def test_the_book_opens_at_its_index(book: Path) -> None:
    assert "intro.html" in (book / "index.html").read_text()


@pytest.mark.book
def test_no_page_loads_from_elsewhere_and_all_it_loads_is_there(book: Path) -> None:
    pages = [
        path for path in book.rglob("*.html") if "_static" not in path.parts and "vendor" not in path.parts
    ]
    assert len(pages) >= len(PAGES)
    for path in pages:
        for target in Page(path).loads:
            assert not re.match(r"(?:\w+:)?//", target), f"{path.relative_to(book)} loads {target}"
            if not target.startswith("data:"):
                assert (path.parent / target.split("?")[0].split("#")[0]).is_file(), (
                    f"{path.name}: no {target}"
                )


@pytest.mark.book
def test_styles_load_nothing_from_elsewhere(book: Path) -> None:
    for path in book.rglob("*.css"):
        found = re.findall(
            r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)", path.read_text()
        )
        assert not found, f"{path.relative_to(book)}: {found[:3]}"


@pytest.mark.book
def test_ids_are_unique_and_figures_light(book: Path, parsed: dict[str, Page]) -> None:
    for name, page in parsed.items():
        twice = {i for i in page.ids if page.ids.count(i) > 1}
        assert not twice, f"{name}: {sorted(twice)[:5]}"
        size = (book / f"{name}.html").stat().st_size
        assert size < 6_000_000, f"{name}.html has {size / 1e6:.1f} MB"
        assert "plotly.js v" not in (book / f"{name}.html").read_text(), (
            "plotly.js belongs into a file of its own"
        )


@pytest.mark.book
def test_the_comparison_is_shown_as_it_came_out(parsed: dict[str, Page]) -> None:
    """The chapter that compares names every paradigm and draws figures."""
    name = next(n for n in PAGES if "comparing" in n)
    page = parsed[name]
    for word in ("ppo", "grpo", "dpo", "sft-more"):
        assert word in page.text.lower()
    assert page.figures >= 1


# In the browser.


@pytest.fixture(scope="module")
def browser(book: Path) -> Iterator[Any]:
    """Chromium, headless, for which no host name has an address."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip(
            "no Chromium with chromedriver here (on Debian: apt-get install chromium chromium-driver)"
        )
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        switches = (
            "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
        )
        switches += " disable-component-update disable-sync disable-dev-shm-usage window-size=1400,2000"
        for switch in switches.split():
            options.add_argument(f"--{switch}")
        options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")
        options.add_argument(f"--user-data-dir={profile}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        chrome.get("about:blank")
        (
            chrome.get_log("performance"),
            chrome.get_log("browser"),
        )  # what the browser itself asked for at its start
        yield chrome
        chrome.quit()


DRAWN = """
const plots = [...document.querySelectorAll('.rlc-plot')], widgets = [...document.querySelectorAll('.rlc-widget')];
const formulas = [...document.querySelectorAll('.math')], views = document.querySelectorAll('script[type="application/vnd.jupyter.widget-view+json"]');
return {
  plots: plots.map(p => p.dataset.drawn === 'yes' && !!p.querySelector('.main-svg')),
  formulas: formulas.map(f => !!f.querySelector('mjx-container svg')),
  widgets: widgets.map(w => w.dataset.drawn === 'yes' && w.getBoundingClientRect().height > 10),
  views: views.length,
  merror: document.querySelectorAll('[data-mml-node="merror"]').length,
};
"""


@pytest.mark.book
@pytest.mark.parametrize("name", PAGES)
def test_the_page_works_without_a_network(name: str, book: Path, browser: Any) -> None:
    browser.get((book / f"{name}.html").as_uri())
    deadline = time.monotonic() + 40
    while True:
        drawn = browser.execute_script(DRAWN)
        whole = all(
            [*drawn["plots"], *drawn["formulas"], *drawn["widgets"], len(drawn["widgets"]) == drawn["views"]]
        )
        if whole or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert whole, drawn
    assert not drawn["merror"], "a formula that MathJax does not understand"
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    failed = [event["params"] for event in events if event["method"] == "Network.loadingFailed"]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert asked and not failed, failed
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors, errors


@pytest.mark.book
def test_the_explorer_is_drawn(book: Path, browser: Any) -> None:
    """Its controls and, beside them, a figure that needs no kernel."""
    name = next(n for n in PAGES if "explore" in n)
    browser.get((book / f"{name}.html").as_uri())
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        count = browser.execute_script(
            "return document.querySelectorAll('.rlc-widget select, .rlc-widget input').length"
        )
        if count:
            break
        time.sleep(0.2)
    assert count >= 2
    assert browser.execute_script("return document.querySelectorAll('.rlc-plot').length") >= 1


@pytest.mark.book
def test_search_finds_on_disk(book: Path, browser: Any) -> None:
    browser.get((book / "search.html").as_uri() + "?q=kurtosis")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = browser.execute_script("return document.querySelectorAll('#search-results li').length")
        if found:
            break
        time.sleep(0.2)
    assert found


# The machinery by itself.


def test_figure_html_is_the_same_each_time_and_cannot_be_broken_out_of() -> None:
    title = "a </script><script>alert(1)</script> & \u00e9"
    fig = go.Figure(go.Scatter(x=np.arange(3), y=[1.5, np.nan, 2]), layout_title_text=title)
    once, again = (figure_html(fig, "a-name", caption='1 < 2 & "so"') for _ in range(2))
    assert once == again
    assert once.count("<script") == 1 and once.count("</script>") == 1
    assert 'id="a-name"' in once and "1 &lt; 2 &amp;" in once
    data = json.loads(re.search(r'id="a-name-data">(.*?)</script>', once)[1])
    assert data["layout"]["title"]["text"] == title
    assert json.dumps(data, sort_keys=True) == json.dumps(json.loads(fig.to_json()), sort_keys=True)
    assert len(once) < 30_000, "no plotly.js inside"


def test_alt_text_is_there_for_every_figure() -> None:
    fig = go.Figure(layout_title_text="<b>Finding</b>")
    assert re.search(r'role="img" aria-label=" ?Finding ?"', figure_html(fig, "one"))
    assert 'aria-label="seen"' in figure_html(fig, "one", caption="under", alt="seen")
    assert 'aria-label="under"' in figure_html(fig, "one", caption="under")
    assert 'aria-label="Figure one."' in figure_html(go.Figure(), "one")


@pytest.mark.parametrize("name", ["Two Words", "", "a_b", "9", "a--b", '"><script>', None])
def test_figure_names_are_ids(name: Any) -> None:
    with pytest.raises(InputError, match="cannot name a figure"):
        figure_html(go.Figure(), name)


def test_only_figures_are_shown() -> None:
    with pytest.raises(InputError, match="expected a plotly figure, got dict"):
        figure_html({}, "a")  # type: ignore[arg-type]


def test_show_gives_each_front_end_a_form_it_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    import IPython.display

    from rlcircuits.display import show

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, **more: shown.append((data, more)))
    fig = go.Figure(go.Bar(y=[1, 2]), layout_title_text="Two bars")
    show(fig, "bars", caption="c")
    ((bundle, more),) = shown
    assert more == {"raw": True}
    assert bundle["text/html"] == figure_html(fig, "bars", "c")
    assert bundle["application/vnd.plotly.v1+json"]["data"][0]["type"] == "bar"
    assert bundle["text/plain"]


def test_every_public_name_is_in_the_reference() -> None:
    page = reference.page()
    headings = re.findall(r"^### `(\w+)`$", page, re.MULTILINE)
    assert set(rlcircuits.__all__) <= set(headings)
    assert len(headings) == len(set(headings))


def test_docstrings_become_markdown() -> None:
    text = reference.prose(
        "First line.\n\nArgs:\n    a: one,\n        and more.\n    b (int): two.\n\nReturns:\n    What.\n\n>>> f(1)\n2\n\nWrite {glue:text}`x`."
    )
    assert "- `a`: one, and more." in text and "- `b` (int): two." in text
    assert "```python\n>>> f(1)\n2\n```" in text
    assert "{glue:text}" not in text


def test_the_table_of_contents_is_read_in_order(tmp_path: Path) -> None:
    toc = {
        "root": "a",
        "parts": [
            {"chapters": [{"file": "b", "sections": [{"file": "c"}]}, {"file": "d"}]},
            {"chapters": [{"file": "e"}]},
        ],
    }
    (tmp_path / "_toc.yml").write_text(yaml.safe_dump(toc))
    assert machinery.pages(tmp_path / "_toc.yml") == ["a", "b", "c", "d", "e"]
    (tmp_path / "_toc.yml").write_text("root: a\nchapters:\n- file: notebooks/99_not_there\n")
    with pytest.raises(InputError, match="99_not_there"):
        list(machinery.notebooks(tmp_path / "_toc.yml"))


def test_every_notebook_is_in_the_book() -> None:
    listed = {path.name for path in machinery.notebooks(ROOT / "book" / "_toc.yml")}
    greets = {"welcome.ipynb"}  # what `make lab` opens on; readers of the book have the introduction
    assert listed == {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} - greets


def _write(path: Path, source: str) -> Path:
    cells = [
        nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(source),
    ]
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_a_failure_is_one_line_and_the_others_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Then the second build runs what failed, and nothing else; a change of a notebook runs that notebook."""
    good, bad = _write(tmp_path / "good.ipynb", "n + 1"), _write(tmp_path / "bad.ipynb", "n / 0")
    out = tmp_path / "out"
    failures = machinery.execute([good, bad], out, 2)
    assert failures == ["bad.ipynb, cell 2 (`n / 0`): ZeroDivisionError: division by zero"]
    assert (out / "good.ipynb").is_file() and not (out / "bad.ipynb").exists()
    kept = (out / "good.ipynb").stat().st_mtime_ns
    _write(bad, "n / 2")
    capsys.readouterr()
    assert machinery.execute([good, bad], out, 2) == []
    assert "running bad:" in capsys.readouterr().out
    assert (out / "good.ipynb").stat().st_mtime_ns == kept
    assert machinery.execute([good, bad], out, 2) == []
    assert "2 are up to date" in capsys.readouterr().out
    (out / "good.ipynb").unlink()
    assert machinery.execute([good, bad], out, 2) == []
    assert "running good:" in capsys.readouterr().out


def test_a_figure_that_pages_would_drop_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "one.ipynb", "n")
    content = nbformat.read(path, as_version=4)
    bundle = {"application/vnd.plotly.v1+json": {"data": [], "layout": {}}, "text/plain": "Figure"}
    content.cells[1].outputs = [nbformat.v4.new_output("display_data", data=dict(bundle))]
    nbformat.write(content, path)
    with pytest.raises(InputError, match="one.ipynb, cell 2: show this figure by rlcircuits.display.show"):
        machinery.for_pages(path)
    content.cells[1].outputs[0].data["text/html"] = "<figure></figure>"
    nbformat.write(content, path)
    assert "application/vnd.plotly" not in machinery.for_pages(path) and "<figure>" in machinery.for_pages(
        path
    )


def test_an_asset_that_is_not_installed_is_named() -> None:
    with pytest.raises(InputError, match="package no-such-package .*make venv"):
        machinery.packaged("no-such-package", "a.js")


def test_pages_show_no_progress_bars(tmp_path: Path) -> None:
    """A real bar and a real slider, in a notebook that was really run."""
    path = _write(
        tmp_path / "one.ipynb",
        "from tqdm.notebook import tqdm\nlist(tqdm(range(3), desc='counting'))\n"
        "import ipywidgets\ndisplay(ipywidgets.HBox([ipywidgets.IntSlider(description='chosen')]))",
    )
    assert machinery.execute([path], tmp_path / "out", 1) == []
    ran = nbformat.read(tmp_path / "out" / "one.ipynb", as_version=4)
    view = "application/vnd.jupyter.widget-view+json"
    assert sum(view in output.get("data", {}) for output in ran.cells[1].outputs) == 2
    shown = json.loads(machinery.for_pages(tmp_path / "out" / "one.ipynb"))
    (left,) = (o for cell in shown["cells"] for o in cell.get("outputs", []) if view in o.get("data", {}))
    state = shown["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    (child,) = state[left["data"][view]["model_id"]]["state"]["children"]
    assert state[child.removeprefix("IPY_MODEL_")]["model_name"] == "IntSliderModel"
