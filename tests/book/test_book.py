"""The book: every page is there, says what it should, and works in a browser that can reach no host.

In the browser each page is opened twice, once as on a desk and once as on a phone; what was seen is kept, and the tests
ask about it.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from filelock import FileLock

import rlcircuits
from rlcircuits.errors import InputError
from rlcircuits.lab import parameters as notebook
from tests.fixtures.browser import chromium, collisions, faults, sized
from tests.fixtures.viewer import EVIL
from tests.fixtures.waiting import until

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))
import build as machinery  # noqa: E402  (found by the line above)
import reference  # noqa: E402

PAGES = machinery.pages(ROOT / "book" / "_toc.yml")
BEFORE_PAINT = 1_000_000  # bytes that a browser must have read before it shows anything, at most
SAYS = {
    "intro": ["RL fine-tuning", "PPO", "GRPO", "DPO", "control"],
    "method": ["activation intensity", "information complexity", "kurtosis", "effective number of edges"],
    "residual_graph": ["source", "destination", "a3.h5->m7", "grouped-query attention"],
    "paradigms": ["PPO", "GRPO", "DPO", "Rejection-sampling", "learning rate"],
    "glossary": ["edge score", "residual stream", "verifiable reward"],
    "genindex": ["attribute", "information complexity"],
    "command_line": ["rlcircuits attribute", "--alpha", "exit code 2"],
    "notebook_parameters": ["n_problems", "papermill"],
    "reference": ["rlcircuits.attribution", "paradigms.study", "InputError"],
    "reference/metrics": ["activation_intensity", "Raises", "InputError"],
    "bibliography": ["2509.21044", "Attribution Patching", "Proximal Policy Optimization", "Direct Preference"],
    "troubleshooting": ["make clean", "runs/", "Cause:", "Wrong:", "Right:", "Binder"],
}


class Page(HTMLParser):
    """What a page loads, and what a reader sees of it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.waits_for: list[str] = []  # before anything of it is seen
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
        if (tag == "script" and "src" in found and not {"async", "defer"} & set(found)) or (
            tag == "link" and found.get("rel") == "stylesheet"
        ):
            self.waits_for.append(self.loads[-1])
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


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_there(name: str, parsed: dict[str, Page]) -> None:
    page = parsed[name]
    for words in SAYS.get(name, []):
        assert words.lower() in page.text.lower(), f"{name} does not say {words!r}"
    if name.startswith("notebooks/"):
        first = nbformat.read(ROOT / f"{name}.ipynb", as_version=4).cells[0].source
        title = re.sub(r"^# (\d+\. )?", "", first.splitlines()[0]).strip()
        assert title in page.text
        assert "Traceback (most recent call last)" not in page.text


def test_building_again_would_build_no_page_anew(book: Path) -> None:
    """Assembled again, the source is what the pages were built from; nothing in it comes and goes."""
    built, paths = book.parent, list(machinery.notebooks(ROOT / "book" / "_toc.yml"))
    with FileLock(built / "tests.lock"):
        machinery.assemble(paths, built / "notebooks", built / "source")
        assert machinery.frame(built / "source") == (built / "frame").read_text()


def test_the_book_opens_at_its_index(book: Path) -> None:
    assert "intro.html" in (book / "index.html").read_text()


def test_no_page_loads_from_elsewhere_and_all_it_loads_is_there(book: Path) -> None:
    pages = [path for path in book.rglob("*.html") if "_static" not in path.parts and "vendor" not in path.parts]
    assert len(pages) >= len(PAGES)
    for path in pages:
        for target in Page(path).loads:
            assert not re.match(r"(?:\w+:)?//", target), f"{path.relative_to(book)} loads {target}"
            if not target.startswith("data:"):
                assert (path.parent / target.split("?")[0].split("#")[0]).is_file(), f"{path.name}: no {target}"


def test_styles_load_nothing_from_elsewhere(book: Path) -> None:
    for path in book.rglob("*.css"):
        found = re.findall(
            r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)", path.read_text()
        )
        assert not found, f"{path.relative_to(book)}: {found[:3]}"


def test_ids_are_unique_and_pages_light(book: Path, parsed: dict[str, Page]) -> None:
    for name, page in parsed.items():
        twice = {i for i in page.ids if page.ids.count(i) > 1}
        assert not twice, f"{name}: {sorted(twice)[:5]}"
        size = (book / f"{name}.html").stat().st_size
        assert size <= 1_000_000, f"{name}.html has {size / 1e6:.1f} MB"
        assert "plotly.js v" not in (book / f"{name}.html").read_text(), "plotly.js belongs into a file of its own"


def test_little_is_read_before_something_is_seen(book: Path, parsed: dict[str, Page]) -> None:
    """What is large (plotly.js, MathJax) is loaded beside the page."""
    for name, page in parsed.items():
        files = [(book / name).parent / target.split("?")[0] for target in page.waits_for if target[:5] != "data:"]
        assert len(files) > 5 and sum(file.stat().st_size for file in files) <= BEFORE_PAINT, name


def test_the_comparison_is_shown_as_it_came_out(parsed: dict[str, Page]) -> None:
    """The chapter that compares names every paradigm and draws figures."""
    name = next(n for n in PAGES if "comparing" in n)
    page = parsed[name]
    for word in ("ppo", "grpo", "dpo", "sft-more"):
        assert word in page.text.lower()
    assert page.figures >= 1


# In the browser.


@pytest.fixture(scope="module")
def browser(book: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, headless, for which no host name has an address."""
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


DRAWN = """
const plots = [...document.querySelectorAll('.rlc-plot')], formulas = [...document.querySelectorAll('.math')];
return {
  plots: plots.map(p => p.dataset.drawn === 'yes' && !!p.querySelector('.main-svg')),
  formulas: formulas.map(f => !!f.querySelector('mjx-container svg')),
  viewers: [...document.querySelectorAll('.rlc-viewer')].map(p => p.dataset.drawn === 'yes'),
  merror: document.querySelectorAll('[data-mml-node="merror"]').length,
};
"""


@dataclass(frozen=True)
class Visit:
    """What was seen of one page."""

    drawn: dict[str, Any]
    asked: list[str]
    failed: list[Any]
    errors: list[str]
    faults: list[dict[str, Any]]  # of accessibility, serious or critical, at both widths and in the dark
    collisions: list[list[str]]  # of texts of figures, at both widths
    phone: dict[str, Any]
    height: int  # on a desk, in pixels


# How wide the page is on a phone, and what is too wide without a place of its own in which it scrolls.
WIDTHS = """
const inside = e => { if (getComputedStyle(e).position === 'fixed') return true; for (let p = e.parentElement; p; p = p.parentElement)
  if (getComputedStyle(p).overflowX !== 'visible' || getComputedStyle(p).position === 'fixed') return true; return false; };
return { width: Math.max(document.documentElement.scrollWidth, document.body.scrollWidth), window: innerWidth,
  wide: [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 376
    && e.getBoundingClientRect().width && !inside(e)).slice(0, 5).map(e => e.outerHTML.slice(0, 120)) };
"""
# As the theme's own button does it, but at once: colours that are still on their way have a contrast of their own.
DARK = """
document.head.insertAdjacentHTML('beforeend', '<style>*, *::before, *::after { transition: none !important; }</style>');
document.documentElement.dataset.theme = 'dark';
"""
SERIOUS = ("serious", "critical")
# On a phone, only what depends on the width is looked at again.
NARROW = ("scrollable-region-focusable", "meta-viewport", "aria-hidden-focus", "link-name", "button-name")


def _open(browser: Any, path: Path) -> dict[str, Any]:
    """Open a page and wait until all of it is drawn."""
    browser.get(path.as_uri())

    def whole() -> dict[str, Any] | None:
        drawn = browser.execute_script(DRAWN)
        return drawn if all([*drawn["plots"], *drawn["formulas"], *drawn["viewers"]]) else None

    return until(whole, f"{path.name} to be drawn")


@pytest.fixture(scope="module")
def visit(book: Path, browser: Any, axe: str) -> Callable[[str], Visit]:
    """Opens a page as on a desk, then as on a phone; the second time it is asked for, it tells what it saw the first
    time.
    """
    seen: dict[str, Visit] = {}

    def look(name: str) -> Visit:
        if name in seen:
            return seen[name]
        path = book / f"{name}.html"
        sized(browser, 1280, 900, mobile=False)
        drawn = _open(browser, path)
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        errors = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        found, covered = faults(browser, axe, impacts=SERIOUS), collisions(browser)
        height = browser.execute_script("return document.documentElement.scrollHeight")
        browser.execute_script(DARK)
        found += faults(browser, axe, ("color-contrast",), SERIOUS)
        sized(browser, 375, 800, mobile=True)
        _open(browser, path)
        phone = browser.execute_script(WIDTHS)
        found += faults(browser, axe, NARROW, SERIOUS)
        covered += collisions(browser)
        sized(browser, 1280, 900, mobile=False)
        browser.get("about:blank")
        browser.get_log("performance"), browser.get_log("browser")
        seen[name] = Visit(
            drawn=drawn,
            asked=[e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"],
            failed=[event["params"] for event in events if event["method"] == "Network.loadingFailed"],
            errors=errors,
            faults=found,
            collisions=covered,
            phone=phone,
            height=height,
        )
        return seen[name]

    return look


@pytest.mark.parametrize("name", PAGES)
def test_the_page_works_without_a_network(name: str, visit: Callable[[str], Visit]) -> None:
    """Everything is drawn, nothing is asked of another host, nothing fails."""
    found = visit(name)
    assert not found.drawn["merror"], "a formula that MathJax does not understand"
    assert found.asked and not found.failed, found.failed
    assert [url for url in found.asked if not url.startswith(("file:", "data:", "blob:"))] == []
    assert not found.errors, found.errors


@pytest.mark.parametrize("name", [*PAGES, "search"])
def test_no_serious_accessibility_fault(name: str, visit: Callable[[str], Visit]) -> None:
    assert visit(name).faults == []


@pytest.mark.parametrize("name", [*PAGES, "search"])
def test_a_phone_needs_no_sideways_scroll(name: str, visit: Callable[[str], Visit]) -> None:
    phone = visit(name).phone
    assert phone["window"] == 375 and phone["width"] <= 375 and not phone["wide"], phone


@pytest.mark.parametrize("name", PAGES)
def test_texts_of_figures_stand_clear_of_each_other(name: str, visit: Callable[[str], Visit]) -> None:
    assert visit(name).collisions == []


def test_the_finding_is_no_longer_than_a_few_screens(visit: Callable[[str], Visit]) -> None:
    assert visit("notebooks/08_what_we_found").height <= 5000


# Of a picture of something on the page, the share of its points that are dark.
DARKNESS = """
const [png, done] = arguments, image = new Image();
image.onload = () => {
  const canvas = Object.assign(document.createElement('canvas'), { width: 40, height: 40 }), pen = canvas.getContext('2d');
  pen.drawImage(image, 0, 0, 40, 40);
  const points = pen.getImageData(0, 0, 40, 40).data.filter((_, i) => i % 4 === 1);
  done(points.filter(green => green < 100).length / points.length);
};
image.src = 'data:image/png;base64,' + png;
"""


@pytest.mark.parametrize(("name", "picture"), [("intro", "img[src$='.svg']"), ("notebooks/06_metrics", ".rlc-plot")])
def test_pictures_are_as_dark_as_the_page(name: str, picture: str, book: Path, browser: Any) -> None:
    sized(browser, 1280, 900, mobile=False)
    _open(browser, book / f"{name}.html")

    def darkness() -> float:
        png = browser.find_element("css selector", f"article {picture}").screenshot_as_base64
        return browser.execute_async_script(DARKNESS, png)

    light = darkness()
    browser.execute_script(DARK)
    assert light < 0.2 and darkness() > 0.8


def test_what_looks_for_faults_finds_them(book: Path, browser: Any, axe: str) -> None:
    """An image without a text, a button without a name, a line too wide: all are seen."""
    sized(browser, 375, 800, mobile=True)
    _open(browser, book / "glossary.html")
    browser.execute_script(
        "const place = document.querySelector('article'); place.insertAdjacentHTML('beforeend',"
        '\'<img src="data:,"><button></button><div style="width: 900px">wide</div><p style="color: #ddd">pale</p>\')'
    )
    assert {"image-alt", "button-name", "color-contrast"} <= {fault["id"] for fault in faults(browser, axe)}
    phone = browser.execute_script(WIDTHS)
    assert phone["width"] > 375 and phone["wide"]
    sized(browser, 1280, 900, mobile=False)


FOCUS = """
const e = document.activeElement, s = getComputedStyle(e);
return { href: e.getAttribute && e.getAttribute('href'), navigation: !!e.closest && !!e.closest('.bd-sidebar-primary nav'),
  seen: s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0 || s.boxShadow !== 'none' };
"""


def test_the_keyboard_reaches_the_navigation(book: Path, browser: Any) -> None:
    """By Tab alone to a page of the table of contents, each stop visible, and by Enter to that page."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    sized(browser, 1280, 900, mobile=False)
    _open(browser, book / "method.html")
    for _ in range(40):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        stop = browser.execute_script(FOCUS)
        if stop["navigation"] and (stop["href"] or "").startswith("paradigms"):
            break
        if stop["navigation"]:
            assert stop["seen"], stop
    assert stop["navigation"] and stop["seen"], stop
    ActionChains(browser).send_keys(Keys.ENTER).perform()
    until(lambda: browser.current_url.endswith("paradigms.html"), "the page chosen")


def test_hidden_code_and_menus_open(book: Path, browser: Any) -> None:
    sized(browser, 1280, 900, mobile=False)
    name = next(n for n in PAGES if "metrics" in n)
    _open(browser, book / f"{name}.html")
    shut = "return [...document.querySelectorAll('article details')].map(d => d.querySelector('pre').checkVisibility())"
    assert browser.execute_script(shut) and not any(browser.execute_script(shut))
    for part in browser.find_elements("css selector", "article details > summary"):
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", part)
        part.click()
    assert all(browser.execute_script(shut))
    links = browser.find_elements("css selector", ".dropdown-launch-buttons a")
    assert len(links) == 2 and not any(link.is_displayed() for link in links)
    browser.execute_script("scrollTo(0, 0)")
    browser.find_element("css selector", ".dropdown-launch-buttons button").click()
    assert all(link.is_displayed() for link in links)


def test_the_viewer_lives_on_its_page(book: Path, browser: Any, axe: str) -> None:
    """Without a kernel: problems and edges can be chosen, it is as dark as the page, fits a phone, and has no faults."""
    name = next(n for n in PAGES if "explore" in n)
    for width in (1280, 375):
        sized(browser, width, 900, mobile=width < 600)
        _open(browser, book / f"{name}.html")
        start = "const host = document.querySelector('.rlc-viewer-host'), v = host.viewer, r = host.shadowRoot;"
        browser.execute_script(
            f"{start} v.set({{problem: v.pair.problems[0][0], edge: v.scores.name(v.order[0]), pair: v.told.pairs[1].name}})"
        )
        text = browser.execute_script(f"{start} return r.textContent")
        assert "strongest edges" in text and "Score on each problem" in text and "reference:" in text
        assert "being computed" not in text and "no kernel" not in text
        assert [one for one in faults(browser, axe) if "rlc-viewer" in str(one)] == []
        page = browser.execute_script(WIDTHS)
        assert page["width"] <= page["window"], page
        back = f"{start} return getComputedStyle(r.querySelector('.viewer')).backgroundColor"
        browser.execute_script(DARK)
        until(lambda: browser.execute_script(back) != "rgb(255, 255, 255)", "the viewer to be dark")
    sized(browser, 1280, 900, mobile=False)


SLIDER = """
const f = document.querySelector('.rlc-removal'), data = JSON.parse(f.querySelector('script').textContent);
const edge = Number(f.querySelector('select').value), share = Number(f.querySelector('input').value);
return { edge: data.edges[edge], share: data.shares[share], losses: data.losses[edge][share], said: f.querySelector('output').textContent,
  bars: [...f.querySelectorAll('.bar')].map(b => parseFloat(b.style.height)), token: [...f.querySelectorAll('.token')].map(t => t.textContent),
  tokens: data.tokens, focused: f.contains(document.activeElement), table: f.querySelector('table').checkVisibility(),
  right: Math.max(...[...f.querySelectorAll('*')].map(e => e.getBoundingClientRect().right)), dot: Number(f.querySelector('circle').getAttribute('cx')) };
"""


def test_the_slider_removes_an_edge(book: Path, browser: Any, axe: str) -> None:
    """By keyboard alone, on a desk and on a phone, in the light and in the dark; its numbers are also a table."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    for width, theme in ((1280, "light"), (375, "dark")):
        sized(browser, width, 900, mobile=width < 600)
        _open(browser, book / "intro.html")
        browser.execute_script(f"document.documentElement.dataset.theme = '{theme}'")
        browser.execute_script("document.querySelector('.rlc-removal select').focus()")
        before = browser.execute_script(SLIDER)
        assert before["share"] == 0 and before["said"].startswith("0 %") and not before["table"]
        assert before["token"] == before["tokens"] and before["right"] <= width
        ActionChains(browser).send_keys(Keys.ARROW_DOWN, Keys.TAB, Keys.END).perform()
        after = browser.execute_script(SLIDER)
        assert after["edge"] != before["edge"] and after["share"] == 1 and after["dot"] > before["dot"]
        mean = sum(after["losses"]) / len(after["losses"])
        shown = float(re.search(r"removed: ([\d.e−]+) nats", after["said"])[1].replace("−", "-"))
        assert after["said"].startswith("100 %") and shown == pytest.approx(mean, rel=0.1, abs=0.005)
        order = sorted(range(len(after["losses"])), key=lambda i: after["losses"][i])
        heights = [after["bars"][i] for i in order]
        assert heights == sorted(heights) and heights[-1] > heights[0], "a bar is as high as its token's loss"
        ActionChains(browser).send_keys(Keys.TAB, Keys.ENTER).perform()
        assert browser.execute_script(SLIDER)["table"], "the table unfolds"
        assert faults(browser, axe, impacts=SERIOUS) == []
    sized(browser, 1280, 900, mobile=False)


def test_search_finds_on_disk(book: Path, browser: Any) -> None:
    found = _search(book, browser, "kurtosis")
    assert any("method.html" in target for target in found)
    assert any("reference/metrics.html" in target for target in found)
    assert _search(book, browser, "zyzzyva") == []


def _search(book: Path, browser: Any, words: str) -> list[str]:
    """The pages that the search page lists, once it says that it is done."""
    browser.get((book / "search.html").as_uri() + f"?q={words}")
    said = "return (document.querySelector('#search-results p') || {}).textContent || ''"
    links = "return [...document.querySelectorAll('#search-results li a')].map(a => a.getAttribute('href'))"
    over = re.compile(r"found|did not match|finished", re.IGNORECASE)
    until(lambda: over.search(browser.execute_script(said)), f"the search for {words!r} to end")
    return browser.execute_script(links)


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("notebooks/")])
def test_launch_buttons_lead_to_the_notebook(name: str, book: Path) -> None:
    text = (book / f"{name}.html").read_text()
    binder = re.findall(r'href="https://mybinder\.org/v2/gh/([^"?]+)\?urlpath=lab/tree/([^"]+)"', text)
    colab = re.findall(r'href="https://colab\.research\.google\.com/github/([^"]+?)/blob/main/([^"]+)"', text)
    assert binder == [("rlcircuits/rlcircuits/main", f"{name}.ipynb")]
    assert colab == [("rlcircuits/rlcircuits", f"{name}.ipynb")]
    assert (ROOT / f"{name}.ipynb").is_file()


def test_every_public_name_has_an_anchor_and_a_place_in_the_index(parsed: dict[str, Page]) -> None:
    anchors = [reference.anchor(name) for name in rlcircuits.__all__]
    assert len(set(anchors)) == len(anchors)
    assert not set(anchors) - {known for name in PAGES if name.startswith("reference") for known in parsed[name].ids}
    for name in rlcircuits.__all__:
        assert name in parsed["genindex"].text


def test_every_term_of_the_glossary_is_in_the_index(parsed: dict[str, Page]) -> None:
    glossary = (ROOT / "book" / "glossary.md").read_text().partition("```{glossary}\n")[2]
    terms = re.findall(r"^(\S.*)$", glossary.replace("```", ""), re.MULTILINE)
    assert len(terms) > 20 and terms == sorted(terms, key=str.lower)
    for term in terms:
        assert term in parsed["genindex"].text, term


def test_the_argument_is_connected(book: Path) -> None:
    """Every chapter is led to by another one, not by the table of contents alone."""
    led = {page: set() for page in PAGES}
    for page in PAGES:
        article = re.search(r"<article.*?</article>", (book / f"{page}.html").read_text(), re.DOTALL)
        for target in re.findall(r'href="([^"#:]+\.html)', article[0] if article else ""):
            goal = (
                (book / page).parent.joinpath(target).resolve().relative_to(book.resolve()).with_suffix("").as_posix()
            )
            if goal in led and goal != page:
                led[goal].add(page)
    lonely = [page for page, sources in led.items() if not sources and page not in ("intro", "genindex")]
    assert not lonely, f"no chapter leads to {lonely}"


# The machinery by itself.


def test_every_public_name_is_in_the_reference() -> None:
    page = "\n".join(reference.pages().values())
    headings = re.findall(r"^### `(\w+)`$", page, re.MULTILINE)
    assert set(rlcircuits.__all__) <= set(headings)
    anchors = re.findall(r"^\((api-[\w-]+)\)=$", page, re.MULTILINE)
    assert sorted(anchors) == sorted(reference.anchor(name) for name in rlcircuits.__all__)


def test_every_room_has_a_page_of_the_reference_with_all_that_it_hands_on() -> None:
    pages = reference.pages()
    stubs = [stub.parent for package in ("rlcircuits", "paradigms") for stub in (ROOT / package).glob("*/__init__.pyi")]
    rooms = {f"{folder.parent.name}.{folder.name}" for folder in stubs}
    assert rooms == set(reference.ROOMS)
    assert list(pages) == [name for name in PAGES if name.startswith("reference")]
    for room in rooms:
        name = f"reference/{room.partition('.')[2]}"
        assert f"[{room}]({name}.md)" in pages["reference"]
        handed = set(importlib.import_module(room).__all__)
        assert handed <= set(re.findall(r"^### `(\w+)`$", pages[name], re.MULTILINE)), room


def test_every_command_and_option_is_on_its_page() -> None:
    page = reference.command_page()
    commands = reference.commands()
    assert {"pairs", "attribute", "family"} <= set(commands)
    for name, command in commands.items():
        section = page.split(f"## `rlcircuits {name}`\n")[1].split("\n## ")[0]
        for param in command.params:
            for shown in [*param.opts, param.help]:
                assert reference._plain(shown) in section or shown in section, f"{name} {shown}"


def test_every_parameter_of_every_notebook_is_on_its_page() -> None:
    paths = list(machinery.notebooks(ROOT / "book" / "_toc.yml"))
    page = reference.parameters_page(paths)
    for path in paths:
        section = page.split(f"](notebooks/{path.name})\n")[1].split("\n## ")[0]
        rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert rows == list(notebook.default_parameters(path)), path.name
        assert "`any`" not in section, f"{path.name} does not check one of its parameters"


def test_parameters_are_read_as_they_are_written() -> None:
    source = 'é = "ü#"  # a name, and "text"\nmany = [\n    1,\n    2,\n]  # two\nx = -1\n'
    assert reference.parameters(source) == [
        ("é", "'ü#'", 'a name, and "text"'),
        ("many", "[1, 2]", "two"),
        ("x", "-1", ""),
    ]


def test_text_of_the_parser_cannot_become_markup() -> None:
    shown = reference._plain("with --base: <b> {question} | *x* `a|b` $y$")
    assert shown == r"with `--base`: \<b\> \{question\} \| \*x\* `a|b` \$y\$"


def test_the_recipe_of_the_book_is_the_recipe() -> None:
    from paradigms.family.recipe import DEFAULT, MEMBERS

    table = reference.recipe_table()
    for member in MEMBERS:
        assert f"| `{member}` | {DEFAULT.updates(member):,} |" in table
    assert f"clip {DEFAULT.ppo.clip:g}" in table and f"{DEFAULT.prompts:,} prompts" in table


def test_docstrings_become_markdown() -> None:
    text = reference.prose(
        "First line.\n\nArgs:\n    a: one,\n        and more.\n    b (int): two.\n\nReturns:\n    What.\n\n>>> "
        "f(1)\n2\n\nWrite {glue:text}`x`."
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
    cells = [nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(source)]
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.mark.kernel
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
    with pytest.raises(InputError, match="one.ipynb, cell 2: show this figure by rlcircuits.lab.display.show"):
        machinery.for_pages(path)
    content.cells[1].outputs[0].data["text/html"] = "<figure></figure>"
    nbformat.write(content, path)
    assert "application/vnd.plotly" not in machinery.for_pages(path) and "<figure>" in machinery.for_pages(path)


def test_an_asset_that_is_not_installed_is_named() -> None:
    with pytest.raises(InputError, match="package no-such-package .*make venv"):
        machinery.packaged("no-such-package", "a.js")


@pytest.mark.kernel
def test_pages_show_viewers_no_progress_bars_and_no_other_widget(tmp_path: Path) -> None:
    """In notebooks that were really run."""
    viewer = _write(
        tmp_path / "one.ipynb",
        "from tqdm.notebook import tqdm\nlist(tqdm(range(3), desc='counting'))\n"
        f"import sys\nsys.path.insert(0, {str(Path(__file__).resolve().parents[2])!r})\n"
        "import rlcircuits as rc\nfrom tests.fixtures.viewer import study\nrc.explore(study())",
    )
    slider = _write(tmp_path / "two.ipynb", "import ipywidgets\nipywidgets.IntSlider()")
    assert machinery.execute([viewer, slider], tmp_path / "out", 1) == []
    ran = nbformat.read(tmp_path / "out" / "one.ipynb", as_version=4)
    view = "application/vnd.jupyter.widget-view+json"
    assert sum(view in output.get("data", {}) for output in ran.cells[1].outputs) == 2
    shown = json.loads(machinery.for_pages(tmp_path / "out" / "one.ipynb"))
    (output,) = shown["cells"][1]["outputs"]
    assert "widgets" not in shown["metadata"] and list(output["data"]) == ["text/html"]
    text = output["data"]["text/html"]
    kept = json.loads(re.search(r">(\{.*\})</script>", text)[1])
    assert text.count("</script>") == 1 and EVIL in kept["texts"]["ppo"]["tokens"]
    assert [pair["name"] for pair in kept["pairs"]] == ["ppo", "dpo"] and kept["computes"] is False
    with pytest.raises(InputError, match="two.ipynb, cell 2: a widget needs a kernel, and pages have none"):
        machinery.for_pages(tmp_path / "out" / "two.ipynb")
