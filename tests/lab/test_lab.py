"""The explorer as a person uses it: a real JupyterLab, clicked through in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest

import rlcircuits as rc
from tests.fixtures.browser import chromium
from tests.fixtures.checkpoints import save
from tests.fixtures.waiting import PATIENCE, ended, until

ROOT = Path(__file__).resolve().parents[2]
# Every token that the models can say is markup of some kind: it must be seen as it is.
WORDS = tuple(
    (f"$w_{i}$", f"<script>window.evil={i}</script>", f"\\(y_{i}\\)", f"**b{i}**", f"<b>{i}</b>")[i % 5]
    for i in range(50)
)
CELL = """\
import rlcircuits as rc
from rlcircuits import ModelPair, Problem, ProblemSet
problems = ProblemSet("evil", tuple(Problem(f"p/{{i}}", q, "1") for i, q in enumerate({questions!r})), "final")
pairs = [ModelPair(name, {folder!r} + "/base", {folder!r} + "/" + name, max_new_tokens=8) for name in ("one", "two")]
study = rc.study(pairs, problems, keep="all", alpha=0.4, n=8, store={folder!r} + "/runs")
box = rc.explore(study)
box
"""


def questions() -> list[str]:
    return [f"{WORDS[i]} {WORDS[i + 1]} {WORDS[2 * i + 3]}" for i in range(12)]


def made(folder: Path) -> rc.Study:
    """A study of two pairs of tiny checkpoints, in `folder`; what the notebook finds in its store."""
    for seed, name in enumerate(("base", "one", "two")):
        save(folder / name, words=WORDS, seed=seed)
    scope: dict[str, Any] = {}
    exec(CELL.format(questions=questions(), folder=str(folder)).split("box =")[0], scope)
    return scope["study"]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, rc.Study]]:
    """The address of a JupyterLab on a folder with one notebook and its artefacts."""
    pytest.importorskip("jupyterlab", reason="no JupyterLab here: pip install rlcircuits[book]")
    pytest.importorskip(
        "anywidget", reason="no anywidget here, so clicks on pictures are not heard: pip install rlcircuits[book]"
    )
    folder = tmp_path_factory.mktemp("lab")
    study = made(folder)
    cell = nbformat.v4.new_code_cell(CELL.format(questions=questions(), folder=str(folder)))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=kernel), folder / "explore.ipynb")
    mine = {f"JUPYTER_{kind}_DIR": str(folder / ".jupyter" / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **mine, "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
                   "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root",
               f"--ServerApp.root_dir={folder}", "--IdentityProvider.token=letmein", "--expose-app-in-browser",
               "--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    with ended(server):
        told = until(
            lambda: list((folder / ".jupyter" / "runtime").glob("jpserver-*.json")), "JupyterLab to answer", server
        )
        address = json.loads(told[0].read_text())["url"]
        yield f"{address}lab/tree/explore.ipynb?token=letmein", folder, study
        server.terminate()  # which ends its kernels, too
        server.wait(PATIENCE)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), reach="127.0.0.1") as chrome:
        yield chrome


OPEN = """
const app = window.jupyterapp;
if (!app || !app.shell.currentWidget || !app.shell.currentWidget.sessionContext) return false;
const session = app.shell.currentWidget.sessionContext.session;
return !!(session && session.kernel && session.kernel.status === 'idle');
"""


def shot(browser: Any, name: str) -> None:
    """Keep what is seen, for a person to look at, where RLCIRCUITS_SCREENSHOTS names a folder."""
    if folder := os.environ.get("RLCIRCUITS_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(Path(folder) / f"{name}.png"))


HOST = "document.querySelector('.rlc-viewer-host')"


def test_the_explorer_is_clicked_through(lab: tuple[str, Path, rc.Study], browser: Any) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.select import Select

    address, folder, study = lab
    browser.get(address)
    until(lambda: browser.execute_script(OPEN), "the notebook and its kernel")
    browser.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
    until(lambda: browser.execute_script(f"return !!{HOST}"), "the explorer")

    def js(code: str, *arguments: Any) -> Any:
        return browser.execute_script(
            f"const host = {HOST}, v = host.viewer, r = host.shadowRoot; return ({code})", *arguments
        )

    def text() -> str:
        return js("r.textContent")

    def choose(label: str, value: str) -> None:
        found = (
            "[...r.querySelectorAll('label')].find(l => l.textContent.startsWith(arguments[0])).querySelector('select')"
        )
        Select(js(found, label)).select_by_value(value)

    shot(browser, "opened")

    # a problem, and another pair
    both = [i for i in study.pairs["one"].selection.problems if i in study.pairs["two"].selection.problems]
    assert len(both) > 2
    for name in both:
        choose("problem", name)
    for name in ("two", "one"):
        choose("pair", name)
        assert js("v.view.problem") == both[-1]

    # model text is text
    answer = study.pairs["one"].base_answers[both[-1]]
    for token in {WORDS[i - 3] for i in answer.answer if 3 <= i < 53}:
        assert token in text()
    assert all(kind in " ".join(WORDS) for kind in ("$", "<script>", "\\(", "**", "<b>"))
    assert study.pairs["one"].problems[both[-1]].question in text()
    assert browser.execute_script("return window.evil") is None
    assert js("r.querySelectorAll('mjx-container, script, b').length") == 0

    # what is drawn is what the study holds
    scores = study.pairs["one"].base_scores.sel(sample=both[-1])
    drawn = js("Array.from(v.panels[0].values, (value, edge) => [v.scores.name(edge), value])")
    assert len(drawn) == int(np.isfinite(scores).sum())
    for edge, value in drawn:
        source, _, destination = edge.partition("->")
        assert value == pytest.approx(float(scores.sel(source=source, destination=destination)), rel=1e-6)

    # a click on an edge of the picture: its scores, then what removing it really does
    edge = js("v.scores.name(v.graph.shown[2].picture.edges[0])")
    x, y, width, height = js(
        "(c => [...v.graph.shown[2].picture.dot(v.graph.shown[2].picture.edges[0], v.graph.view, c.clientWidth, c.clientHeight), "
        "c.clientWidth, c.clientHeight])(v.graph.canvases[2])"
    )
    canvas = js("v.graph.canvases[2]")
    ActionChains(browser).move_to_element_with_offset(
        canvas, round(x - width / 2), round(y - height / 2)
    ).click().perform()
    until(lambda: f"Edge {edge.replace('->', ' → ')}" in text(), "the edge clicked")
    shot(browser, "computing")
    until(lambda: "What removing it really does" in text(), "its exact effect")
    mean = study.ablate("one", edge)["tuned"].mean()
    said = re.search(r"tuned: score .*?exactly ([^,]+),", text())[1].replace("−", "-")
    assert float(said) == pytest.approx(mean, rel=0.01)
    row = js("r.querySelectorAll('[data-edge]')[3]")
    other = row.get_attribute("data-edge")
    row.click()
    until(lambda: f"Edge {other.replace('->', ' → ')}" in text(), "the row clicked")
    shot(browser, "edge")

    # another α is computed while the page goes on; what is typed is not taken for a shortcut of JupyterLab's
    alpha = js("r.querySelector('[aria-label^=α]')")
    # To what has the focus: sent to an element within a shadow root, the driver would put the caret at its end before each.
    keys = ActionChains(browser).click(alpha).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL)
    keys.send_keys("0.8", Keys.ENTER).perform()
    cut = study.at(alpha=0.8).pairs["one"].selection.t_cut
    until(lambda: f"first {cut} scored" in text() and "being computed" not in text(), "the answers at another α")
    field = js("r.querySelector('input[type=search]')")
    field.send_keys("dd")
    field.send_keys(Keys.BACKSPACE * 2)
    assert browser.execute_script("return document.querySelectorAll('.jp-CodeCell').length") == 1 and js("!!v.view")
    shot(browser, "alpha")

    # the view is saved, and says what was chosen
    button = "[...r.querySelectorAll('button')].find(b => b.textContent === 'save view')"
    js(f"{button}.scrollIntoView({{block: 'center'}})")
    js(button).click()
    saved = until(
        lambda: (folder / "view.json").exists() and json.loads((folder / "view.json").read_text()), "the view"
    )
    assert (saved["pair"], saved["problem"], saved["alpha"], saved["edge"]) == ("one", both[-1], 0.8, other)
    assert rc.explore(study, view=saved).explorer.view() == saved


@pytest.mark.kernel
def test_interrupting_a_cell_loses_nothing_finished(tmp_path: Path) -> None:
    """A real kernel, interrupted while a study runs: what was finished stays, and the same cell goes on from there."""
    manager = pytest.importorskip("jupyter_client.manager")
    for seed, name in enumerate(("base", *"ab")):
        save(tmp_path / name, words=WORDS, seed=seed)
    (tmp_path / "held").touch()
    # While the file is there, attribution goes on to the second of them and no further.
    hold = """
import os, threading
from rlcircuits import attribution
attribute, begun = attribution.attribute, []
def held(*given, **more):
    begun.append(given)
    if len(begun) == 2 and os.path.exists("held"):
        open("reached", "w").close()
        threading.Event().wait()
    return attribute(*given, **more)
attribution.attribute = held
"""
    code = f"""
import rlcircuits as rc
problems = rc.ProblemSet("few", tuple(rc.Problem(f"p/{{i}}", q, "1") for i, q in enumerate({questions()!r})), "final")
pairs = [rc.ModelPair(name, {str(tmp_path)!r} + "/base", {str(tmp_path)!r} + "/" + name, max_new_tokens=8) for name in "ab"]
study = rc.study(pairs, problems, keep="all", alpha=0.9, n=12, store={str(tmp_path)!r} + "/runs")
print(len(study.pairs), "pairs")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    kernel, client = manager.start_new_kernel(
        startup_timeout=PATIENCE, kernel_name="python3", env=environment, cwd=str(tmp_path)
    )
    finished = lambda: {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/[!.]*/manifest.json")}  # noqa: E731
    printed: list[str] = []

    def execute(source: str) -> dict[str, Any]:
        hear = lambda m: printed.append(m["content"].get("text", "")) if m["msg_type"] == "stream" else None  # noqa: E731
        return client.execute_interactive(source, timeout=PATIENCE, output_hook=hear)["content"]

    try:
        assert execute(hold)["status"] == "ok"
        asked = client.execute(code)
        until((tmp_path / "reached").exists, "an attribution that does not end", kernel.provisioner.process)
        kernel.interrupt_kernel()
        while (message := client.get_shell_msg(timeout=PATIENCE))["parent_header"]["msg_id"] != asked:
            pass  # what the kernel was asked while it started may be answered late
        reply = message["content"]
        assert reply["status"] == "error" and reply["ename"] == "KeyboardInterrupt"
        kept = finished()
        assert len(kept) >= 3
        (tmp_path / "held").unlink()
        # After an error a kernel discards, for a moment, what it is asked; it is over when it answers again.
        until(lambda: execute("")["status"] == "ok", "the kernel to take requests again")
        assert execute(code)["status"] == "ok" and "2 pairs" in "".join(printed)
        after = finished()
        assert len(after) > len(kept) and {path: after[path] for path in kept} == kept
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
