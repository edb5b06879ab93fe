"""The viewer in a file of its own, in a browser that can reach no host: what it draws, hears and saves."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import rlcircuits as rc
from rlcircuits.errors import InputError
from rlcircuits.lab import page
from tests.fixtures.browser import chromium, faults, sized
from tests.fixtures.viewer import (
    EVIL,
    WORDS,
    document_of,
    graph_scores,
    matrices,
    pair_study,
    scores_of,
    study,
    unpacked,
)
from tests.fixtures.waiting import until

ROOT = Path(__file__).resolve().parents[2]


# --- the file ---


def test_the_script_is_made_of_its_sources(tmp_path: Path) -> None:
    digest = hashlib.sha256()
    for source in sorted((ROOT / "viewer" / "src").iterdir()):
        digest.update(f"{source.name}\n".encode() + source.read_bytes())
    head = "run `npm install && npm run build` in viewer/"
    assert digest.hexdigest() in page.script().splitlines()[0], head
    if (ROOT / "viewer" / "node_modules" / "esbuild").is_dir() and shutil.which("node"):
        subprocess.run(["node", "build.mjs", str(tmp_path / "viewer.js")], cwd=ROOT / "viewer", check=True)
        assert (tmp_path / "viewer.js").read_text("utf-8") == page.script(), head


def test_text_of_models_cannot_end_its_element(tmp_path: Path) -> None:
    file = rc.export(study(**{f"a {EVIL}": pair_study()}), tmp_path / "study.html")
    text = file.read_text("utf-8")
    assert text.count("<script") == text.count("</script") == 2 and "<!--" not in text
    assert document_of(file)["texts"][f"a {EVIL}"]["tokens"][-1] == EVIL


def test_another_suffix_no_pair_and_strange_measures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.html"):
        rc.export(study(), tmp_path / "study.htm")
    with pytest.raises(InputError, match=r"no pair.*make one with rc\.study"):
        rc.export(study(none=None).__class__(pairs={}), tmp_path / "study.html")
    with pytest.raises(InputError, match="no study at"):
        rc.export(tmp_path / "nowhere", tmp_path / "study.html")
    with pytest.raises(InputError, match="unknown pair in more 'pp'"):
        rc.export(study(), tmp_path / "study.html", more={"pp": {}})
    other = graph_scores(0).rename(sample="problem")
    with pytest.raises(InputError, match=r"measure 'exact' has the dimensions \('problem'"):
        rc.export(study(), tmp_path / "study.html", more={"ppo": {"exact": {"base": other}}})
    assert not (tmp_path / "study.html").exists()


@pytest.mark.parametrize(
    ("room", "kind", "kept"), [(10**6, "f4", 28), (28 * (2 * (4 + 6) + 4), "f2", 28), (240, "f2", 10)]
)
def test_what_does_not_fit_is_rounded_then_left_out_weakest_first(
    tmp_path: Path, room: int, kind: str, kept: int
) -> None:
    pair = pair_study()
    scores = scores_of(document_of(rc.export(pair, tmp_path / "study.html", room=room)), "family/ppo")
    assert scores["total"] == 28 and len(unpacked(scores["rows"])) == kept
    base, tuned = (getattr(pair, f"{side}_scores") for side in ("base", "tuned"))
    found = matrices(scores)
    there = np.isfinite(found["base"][0])
    assert scores["measures"][0]["panels"][0]["each"]["type"] == kind
    np.testing.assert_allclose(found["base"][:, there], base.values[:, there], rtol=1e-6 if kind == "f4" else 1e-3)
    means = [one.mean("sample").values for one in (base, tuned, tuned - base)]
    size = np.max(np.abs(means), axis=0)
    assert np.nanmin(size[there]) >= np.max(size[~there & np.isfinite(size)], initial=0)


def test_further_measures_stand_in_the_order_of_the_scores(tmp_path: Path) -> None:
    pair = pair_study()
    exact = 2 * pair.base_scores.isel(sample=[2, 0], source=slice(None, None, -1))
    more = {"ppo": {"exact": {"base": exact}, "message of the tuned model": {"base": exact.mean("sample")}}}
    scores = scores_of(document_of(rc.export(study(ppo=pair), tmp_path / "study.html", more=more)), "ppo")
    found = matrices(scores, "exact")["base"]
    np.testing.assert_allclose(found[[0, 2]], 2 * pair.base_scores.values[[0, 2]], rtol=1e-6)
    assert np.isnan(found[1]).all()
    mean = matrices(scores, "message of the tuned model")["base"]
    np.testing.assert_allclose(mean, 2 * pair.base_scores.isel(sample=[0, 2]).mean("sample"), rtol=1e-6)


@pytest.mark.slow
def test_a_hundred_problems_of_a_real_depth_stay_below_5_mb(tmp_path: Path) -> None:
    """30 layers at block level with every edge on every problem; 32 heads in 32 layers with the strongest edges."""
    block = graph_scores(0, n=100, n_layers=30)
    file = rc.export(pair_study(base_scores=block, tuned_scores=-block), tmp_path / "block.html")
    scores = scores_of(document_of(file), "family/ppo")
    assert file.stat().st_size < 5e6 and len(unpacked(scores["rows"])) == scores["total"] == 1891
    head = graph_scores(0, level="head", n=100, n_layers=30)
    file = rc.export(pair_study(base_scores=head, tuned_scores=-head), tmp_path / "head.html")
    scores = document_of(file)["scores"][0]
    assert file.stat().st_size < 5e6 and 300 < len(unpacked(scores["rows"])) < scores["total"]


# --- in the browser ---


class Seen:
    """An exported page in the browser; `js` runs with ``v``, the viewer, and ``r``, the root of what it draws."""

    def __init__(self, browser: Any, file: Path, width: int = 1280, scheme: str = "light") -> None:
        self.browser = browser
        sized(browser, width, 900, mobile=width < 600)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.get(file.as_uri())
        until(lambda: browser.execute_script("return !!document.querySelector('.rlc-viewer-host')"), "the viewer")

    def js(self, code: str, *arguments: Any) -> Any:
        start = "const host = document.querySelector('.rlc-viewer-host'), v = host.viewer, r = host.shadowRoot;"
        return self.browser.execute_script(f"{start} return ({code})", *arguments)

    def text(self) -> str:
        return self.js("r.textContent")

    def control(self, label: str) -> Any:
        found = "[...r.querySelectorAll('label')].find(l => l.textContent.startsWith(arguments[0]))"
        return self.js(
            f"r.querySelector(`[aria-label='${{arguments[0]}}']`) || {found}.querySelector('select, input')", label
        )

    def choose(self, label: str, value: str) -> None:
        from selenium.webdriver.support.select import Select

        Select(self.control(label)).select_by_value(value)

    def drawn(self, panel: int) -> set[str]:
        return set(self.js("v.graph.shown[arguments[0]].picture.edges.map(e => v.scores.name(e))", panel))

    def dot(self, edge: str, panel: int) -> tuple[Any, int, int]:
        """The canvas and where an edge's dot lies, from its middle."""
        canvas = self.js("v.graph.canvases[arguments[0]]", panel)
        x, y, w, h = self.js(
            "(c => [...v.graph.shown[arguments[1]].picture.dot(v.scores.index.get(arguments[0]), v.graph.view, c.clientWidth,"
            " c.clientHeight), c.clientWidth, c.clientHeight])(v.graph.canvases[arguments[1]])", edge, panel,
        )  # fmt: skip
        return canvas, round(x - w / 2), round(y - h / 2)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as chrome:
        yield chrome


LOSSES = {"p/0": [0.25, 1.5], "p/1": [3.0, 0.0]}
PAIR = pair_study(base_losses=LOSSES, tuned_losses=LOSSES)
EXACT = {"base": 2 * PAIR.base_scores, "tuned": 2 * PAIR.tuned_scores}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    given = study(ppo=PAIR, dpo=pair_study(7, level="qkv"))
    given.alpha = 0.3
    more = {"ppo": {"exact": EXACT, "message": {"base": PAIR.base_scores.mean("sample")}}}
    return rc.export(given, tmp_path_factory.mktemp("exported") / "study.html", more=more)


@pytest.fixture
def seen(browser: Any, file: Path) -> Seen:
    return Seen(browser, file)


def difference(problem: str | None = None) -> np.ndarray:
    both = PAIR.tuned_scores - PAIR.base_scores
    return (both.mean("sample") if problem is None else both.sel(sample=problem)).values


def strongest(matrix: np.ndarray, k: int) -> set[str]:
    flat = np.argsort(-np.abs(np.nan_to_num(matrix)), axis=None)[:k]
    sources, destinations = (PAIR.base_scores[d].values for d in ("source", "destination"))
    return {f"{sources[i]}->{destinations[j]}" for i, j in zip(*np.unravel_index(flat, matrix.shape), strict=True)}


def test_it_opens_from_disk_asks_nobody_and_makes_no_error(seen: Seen, file: Path) -> None:
    asked = [json.loads(entry["message"])["message"] for entry in seen.browser.get_log("performance")]
    urls = [one["params"]["request"]["url"] for one in asked if one["method"] == "Network.requestWillBeSent"]
    asked_for = {url for url in urls if not url.startswith(("data:", "blob:"))}
    assert file.as_uri() in asked_for and all(url.startswith("file:") and url.endswith(file.name) for url in asked_for)
    seen.choose("problem", "p/0")
    assert [entry for entry in seen.browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_strongest_edges_are_drawn_and_the_table_has_their_numbers(seen: Seen) -> None:
    assert seen.drawn(2) == strongest(difference(), 20)
    seen.choose("problem", "p/1")
    seen.js("v.set({k: 5})")
    assert seen.drawn(2) == strongest(difference("p/1"), 5)
    assert seen.drawn(0) == strongest(PAIR.base_scores.sel(sample="p/1").values, 5)
    rows = seen.js("[...r.querySelectorAll('tbody tr')].map(row => [...row.cells].map(c => c.textContent))")
    assert len(rows) == 10
    for edge, *numbers in rows:
        source, _, destination = edge.partition(" → ")
        at = {"sample": "p/1", "source": source, "destination": destination}
        base, tuned = (float(getattr(PAIR, f"{side}_scores").sel(at)) for side in ("base", "tuned"))
        found = [float(n.replace("−", "-")) for n in numbers]
        assert found == pytest.approx([base, tuned, tuned - base], rel=0.006)


def test_layers_kinds_and_levels_are_filters(seen: Seen) -> None:
    seen.choose("into", "logits")
    assert len(seen.drawn(0)) == 7 and all(edge.endswith("->logits") for edge in seen.drawn(0))
    seen.choose("from", "MLP")
    assert seen.drawn(0) == {"m0->logits", "m1->logits", "m2->logits"}
    seen.choose("first layer", "1")
    assert seen.drawn(0) == {"m1->logits", "m2->logits"}
    seen.choose("into", "attention")
    seen.choose("first layer", "2")
    assert seen.drawn(0) == set() and "No edge is left" in seen.text()
    seen.choose("pair", "dpo")
    assert seen.js("[v.view.level, v.scores.destinations.length]") == ["block", 7]
    seen.choose("level", "qkv")
    assert seen.js("v.scores.destinations.length") == 13


def test_answers_are_read_token_by_token_and_stay_text(seen: Seen) -> None:
    seen.choose("problem", "p/1")
    shown = "[...r.querySelectorAll('.tokens')].map(t => [...t.querySelectorAll('.token')].map(s => [s.textContent, s.title, s.className]))"
    base, tuned = seen.js(shown)
    assert [word for word, _, _ in base] == WORDS[:5] and [word for word, _, _ in tuned] == ["29", "+", EVIL]
    assert [title for _, title, _ in base][:3] == [
        "token 1, id 0, loss 3 nats",
        "token 2, id 1, loss 0 nats",
        "token 3, id 2",
    ]
    assert ["scored" in kind for *_, kind in base] == [True, True, False, False, False]
    assert ["parts" in kind for *_, kind in tuned] == [False, False, True]
    assert f"how many 1? {EVIL}" in seen.text() and "(wrong, 5 tokens, first 2 scored)" in seen.text()
    assert seen.js("r.querySelectorAll('script, img').length") == 0
    darker = seen.js("[...r.querySelectorAll('.token')].slice(0, 2).map(s => getComputedStyle(s).backgroundColor)")
    assert "rgba(230, 159, 0, 0)" in darker[1] and darker[0] != darker[1]
    seen.choose("problem", "p/2")
    assert "(correct, not strictly, 5 tokens" in seen.text()
    seen.choose("problem", "p/3")
    assert "problem p/3 was not selected" in seen.text() and seen.js("v.pictures.className") == "empty"


def test_an_edge_is_clicked_hovered_and_walked_to(seen: Seen) -> None:
    from selenium.webdriver import ActionChains, Keys

    seen.js("v.set({k: 4, problem: 'p/0'})")
    edge = min(seen.drawn(2))
    canvas, x, y = seen.dot(edge, 2)
    act = lambda: ActionChains(seen.browser)  # noqa: E731
    act().move_to_element_with_offset(canvas, x, y).perform()
    source, destination = edge.split("->")
    score = PAIR.base_scores.sel(sample="p/0", source=source, destination=destination).item()
    until(lambda: not seen.js("v.graph.tip.hidden"), "what hovering tells")
    said = seen.js("v.graph.tip.textContent").splitlines()
    assert said[0] == edge.replace("->", " → ")
    assert float(said[1].split()[1].replace("−", "-")) == pytest.approx(score, rel=0.006)
    act().click().perform()
    assert seen.js("v.view.edge") == edge and f"Edge {said[0]}" in seen.text()
    mean = EXACT["tuned"].sel(source=source, destination=destination).mean().item()
    line = next(
        t for t in seen.js("[...r.querySelectorAll('li')].map(l => l.textContent)") if t.startswith("tuned: score")
    )
    assert float(re.search(r"exactly (\S+),", line)[1].replace("−", "-")) == pytest.approx(mean, rel=0.006)
    assert "What removing it really does" in seen.text()

    order = seen.js("v.graph.shown[2].picture.edges.map(e => v.scores.name(e))")
    act().send_keys_to_element(canvas, Keys.ARROW_DOWN, Keys.ENTER).perform()
    assert seen.js("v.view.edge") == order[(order.index(edge) + 1) % 4]
    heat = seen.js("v.heat.canvases[0]")
    seen.js("v.heat.canvases[0].scrollIntoView({block: 'center'})")
    left, top, cell, w, h = seen.js(
        "((b, c) => [b.left, b.top, b.cell, c.clientWidth, c.clientHeight])(v.heat.shown[0].picture.box(v.heat.canvases[0].clientWidth, "
        "v.heat.canvases[0].clientHeight), v.heat.canvases[0])"
    )
    at = round(left + 6.5 * cell[0] - w / 2), round(top + 1.5 * cell[1] - h / 2)  # second row, last column
    act().move_to_element_with_offset(heat, *at).click().perform()
    assert seen.js("v.view.edge") == "a0->logits"


def test_a_dot_of_the_scatter_is_a_problem(seen: Seen) -> None:
    from selenium.webdriver import ActionChains

    seen.js("v.set({edge: 'a0->m1'})")
    each = seen.js("v.scores.edge(v.chosen).map(one => [...one.values])")
    at = {"source": "a0", "destination": "m1"}
    np.testing.assert_allclose(each, [s.sel(at).values for s in (PAIR.base_scores, PAIR.tuned_scores)], rtol=1e-6)
    canvas = seen.js("v.dots[0].canvases[0]")
    seen.js("v.dots[0].canvases[0].scrollIntoView({block: 'center'})")
    x, y, w, h = seen.js(
        "(c => [...v.dots[0].shown[0].picture.spot(arguments[0], arguments[1], c.clientWidth, c.clientHeight), c.clientWidth, "
        "c.clientHeight])(v.dots[0].canvases[0])", each[0][1], each[1][1],
    )  # fmt: skip
    ActionChains(seen.browser).move_to_element_with_offset(canvas, round(x - w / 2), round(y - h / 2)).click().perform()
    assert seen.js("v.view.problem") == "p/1"


def test_a_field_is_replaced_as_fields_are(seen: Seen) -> None:
    """Ctrl+A selects what is in it. The keys go to what has the focus: sent to an element within a shadow root, the driver puts
    the caret at its end before each.
    """
    from selenium.webdriver import ActionChains, Keys

    field = seen.js("r.querySelector('input[type=search]')")
    ActionChains(seen.browser).click(field).send_keys("m1->log").key_down(Keys.CONTROL).send_keys("a").key_up(
        Keys.CONTROL
    ).send_keys("a0->m2").perform()
    assert field.get_property("value") == "a0 → m2" and seen.js("v.view.edge") == "a0->m2"


def test_edges_are_searched_by_name(seen: Seen) -> None:
    from selenium.webdriver import Keys

    field = seen.control("edge")
    field = seen.js("r.querySelector('input[type=search]')")
    field.send_keys("m1->log")
    assert seen.js("v.view.edge") == ""
    field.send_keys(Keys.ENTER)
    assert seen.js("v.view.edge") == "m1->logits"
    field.clear()
    field.send_keys("a0 → m2")
    assert seen.js("v.view.edge") == "a0->m2"
    field.clear()
    field.send_keys("m2->a0", Keys.ENTER)
    assert seen.js("v.view.edge") in ("a0->m2", "") and "no edge with m2->a0" in seen.text()


def test_pictures_move_together_and_come_back(seen: Seen) -> None:
    from selenium.webdriver import ActionChains

    canvas = seen.js("v.graph.canvases[1]")
    seen.js("v.graph.canvases[1].focus()")
    ActionChains(seen.browser).send_keys("++").perform()
    k, x, y = seen.js("[v.graph.view.k, v.graph.view.x, v.graph.view.y]")
    assert k == pytest.approx(2.25)
    ActionChains(seen.browser).move_to_element(canvas).click_and_hold().move_by_offset(-30, 20).release().perform()
    assert seen.js("[v.graph.view.x, v.graph.view.y]") == pytest.approx([x - 30, y + 20], abs=1)
    assert seen.js("v.view.edge") == ""  # a drag is no click
    edge = min(seen.drawn(1))  # and what is seen is still what is clicked
    at = seen.js("v.graph.shown[1].picture.dot(v.scores.index.get(arguments[0]), v.graph.view, v.graph.canvases[1].clientWidth, "
                 "v.graph.canvases[1].clientHeight)", edge)  # fmt: skip
    found = seen.js("v.graph.shown[1].picture.at(arguments[0], arguments[1], v.graph.view, v.graph.canvases[1].clientWidth, "
                    "v.graph.canvases[1].clientHeight).edge", *at)  # fmt: skip
    assert seen.js("v.scores.name(arguments[0])", found) == edge
    seen.js("v.graph.canvases[1].focus()")
    ActionChains(seen.browser).send_keys("0").perform()
    assert seen.js("[v.graph.view.k, v.graph.view.x, v.graph.view.y]") == [1, 0, 0]


def test_measures_can_be_chosen(seen: Seen) -> None:
    seen.choose("measure", "exact")
    assert seen.drawn(2) == strongest(2 * difference(), 20)
    found = seen.js("[...v.panels[0].values]")
    name = seen.js("Array.from({length: v.scores.n}, (_, e) => v.scores.name(e))")
    for edge, value in zip(name, found, strict=True):
        source, destination = edge.split("->")
        assert value == pytest.approx(
            2 * PAIR.base_scores.sel(source=source, destination=destination).mean().item(), rel=1e-5
        )
    seen.choose("measure", "message")
    assert seen.js("v.panels.length") == 1


def test_a_weak_model_beside_a_strong_one_has_colours_of_its_own(browser: Any, tmp_path: Path) -> None:
    """The heatmaps share their colours until one of them would be blank; each says how far its own go."""
    base, tuned = graph_scores(1), graph_scores(2)
    for factor, shared in ((1, True), (40, False)):
        pair = pair_study(base_scores=base, tuned_scores=factor * tuned)
        seen = Seen(browser, rc.export(study(ppo=pair), tmp_path / "study.html"))
        said = seen.js(
            "[...v.heat.element.querySelectorAll('figcaption')].slice(0, 2).map(f => f.textContent.split('±')[1])"
        )
        assert (said[0] == said[1]) == shared, said
        most = np.nanmax(np.abs(base.mean("sample").values))
        assert 0.3 * most < seen.js("v.heat.shown[0].picture.range") <= (2 if shared else 1) * most


def test_the_saved_picture_holds_what_is_drawn(seen: Seen) -> None:
    seen.js("v.set({k: 7})")
    root = ElementTree.fromstring(seen.js("v.graph.svg()"))
    lines = [one for one in root.iterfind("{*}path") if "Q" in one.get("d")]
    assert len(lines) == 3 * 7
    dashed = sum(one.get("stroke-dasharray") is not None for one in lines)
    below = sum(
        seen.js("v.graph.shown[arguments[0]].picture.edges.filter(e => v.panels[arguments[0]].values[e] < 0).length", i)
        for i in range(3)
    )
    assert dashed == below and {"tuned − base"} <= {t.text.split(":")[0] for t in root.iterfind("{*}text")}


def test_the_picture_as_png_is_the_svg_twice_as_large(seen: Seen) -> None:
    """A PNG by its first bytes; as the browser reads it again: white paper, ink, and both signs' colours."""
    head, size, pixels, whole = seen.browser.execute_async_script(
        "const done = arguments[0], { graph } = document.querySelector('.rlc-viewer-host').viewer;"
        "const box = new DOMParser().parseFromString(graph.svg(), 'image/svg+xml').documentElement;"
        "graph.png().then(async (blob) => {"
        "  const image = await createImageBitmap(blob), pen = new OffscreenCanvas(image.width, image.height).getContext('2d');"
        "  pen.drawImage(image, 0, 0);"
        "  done([[...new Uint8Array(await blob.slice(0, 8).arrayBuffer())], [image.width, image.height],"
        "    [...pen.getImageData(0, 0, image.width, image.height).data], ['width', 'height'].map((name) => +box.getAttribute(name))]);"
        "});"
    )
    assert bytes(head) == b"\x89PNG\r\n\x1a\n" and size == [2 * side for side in whole]
    red, green, blue = np.array(pixels).reshape(-1, 4)[:, :3].T
    assert np.mean((red == 255) & (green == 255) & (blue == 255)) > 0.5
    assert (red + green + blue < 150).any() and (red - blue > 80).any() and (blue - red > 80).any()


def test_a_view_is_opened_and_given_back(browser: Any, tmp_path: Path) -> None:
    view = {"rlcircuits view": 1, "pair": "dpo", "problem": "p/2", "level": "block", "alpha": 0.3, "k": 9, "layers": [0, 1],
            "sources": "MLP", "destinations": "all", "edge": "m0->a1", "exact": False}  # fmt: skip
    (tmp_path / "view.json").write_text(json.dumps(view))
    seen = Seen(browser, rc.export(study(), tmp_path / "study.html", view=tmp_path / "view.json"))
    found = seen.js("v.view")
    assert {**found, "alpha": 0.3, "rlcircuits view": 1} == {**view, "measure": "score", "panel": "all"}
    assert rc.explore(study(), view={**found, "rlcircuits view": 1}).explorer.view()["edge"] == "m0->a1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_can_be_used_by_everybody(browser: Any, file: Path, axe: str, width: int, scheme: str) -> None:
    seen = Seen(browser, file, width, scheme)
    assert faults(browser, axe) == []
    seen.js("v.set({problem: 'p/1', edge: 'a0->m1'})")
    assert faults(browser, axe) == []
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    back = seen.js("getComputedStyle(r.querySelector('.viewer')).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")
    pixel = seen.js("[...v.graph.canvases[0].getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)")
    assert (pixel == [255, 255, 255]) == (scheme == "light")
    assert len(seen.js("v.graph.shown")) == (3 if width > 600 else 1)


@pytest.mark.parametrize("outlier", [0.03, 40.0, -40.0])
def test_one_large_score_does_not_squeeze_the_others_of_a_scatter(seen: Seen, outlier: float) -> None:
    """Dots keep their order and the line y = x its place; only where one value is far larger are the axes logarithmic."""
    x = np.array([0.010, 0.012, 0.015, 0.020, 0.025, -0.020, outlier])
    made = "new v.dots[0].shown[0].picture.constructor([{name: 'scores', x: arguments[0], y: arguments[1]}], [], {across: '', up: ''})"
    seen.js("v.set({edge: 'a0->m1'})")
    places = np.array(
        seen.js(
            f"(p => arguments[0].map((x, i) => p.spot(x, arguments[1][i], 378, 364)))({made})",
            x.tolist(),
            (1.1 * x).tolist(),
        )
    )
    across, up = places[:, 0] - 64, 8 + 300 - places[:, 1]
    assert (np.argsort(across) == np.argsort(x)).all() and (np.argsort(up) == np.argsort(x)).all()
    assert (np.sign(up - across) == np.sign(x)).all()  # above the line where tuned is larger
    assert np.ptp(across[:6]) > 60  # of 300 pixels, where a linear axis would leave one
    spread, ticks = seen.js(f"(p => [p.axis.spread, p.axis.ticks])({made})", x.tolist(), (1.1 * x).tolist())
    assert spread == (abs(outlier) > 1) and 3 <= len(ticks) <= 10 and ticks == sorted(ticks) and 0 in ticks
