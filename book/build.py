"""Run the notebooks and build the book: ``python book/build.py``.

1. The notebooks are those of `_toc.yml`, in reading order.
2. Each is executed with its default parameters, two at a time, in the folder `notebooks/`, into `_build/notebooks/`. A
   result is kept with a key, the hash of what it was made from: the notebook's cells, the package's source and the
       lock.
   As long as the key holds, the notebook is not run again; so a build that was interrupted goes on where it stopped.
3. `_build/source/` becomes the book's source: `book/`, `_config.yml`, the executed notebooks, the pages of reference
   made from the code, and in `vendor/` what the pages load: the viewer, and plotly.js and MathJax out of installed
   packages, so that no page asks the network for anything.
4. Jupyter Book turns it into `_build/html/`; any warning is an error.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from importlib import metadata
from multiprocessing import active_children, get_context
from pathlib import Path

import reference  # beside this file
import yaml

from rlcircuits.errors import InputError
from rlcircuits.interruption import uninterruptible_children
from rlcircuits.lab import parameters as notebook
from rlcircuits.lab import place

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
LAB_ONLY = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SECONDS = 40  # of a notebook that was never run here


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is out of date, build the book; returns the exit code."""
    parser = argparse.ArgumentParser(description="Run the notebooks and build the book.")
    parser.add_argument("--out", type=Path, default=ROOT / "_build", metavar="DIR", help="default: _build")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="notebooks run at a time (default: 2)")
    parser.add_argument("--run-only", action="store_true", help="run the notebooks, build no pages")
    options = parser.parse_args(arguments)
    try:
        paths = list(notebooks(BOOK / "_toc.yml"))
        failures = execute(paths, options.out / "notebooks", options.processes)
        if failures:
            print("\n".join(f"error: {line}" for line in failures), file=sys.stderr)
            print(f"{len(paths) - len(failures)} of {len(paths)} notebooks are done and kept.", file=sys.stderr)
            return 1
        if options.run_only:
            return 0
        return build(paths, options.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def notebooks(toc: Path) -> Iterator[Path]:
    """The notebooks of a table of contents, in its order."""
    for entry in pages(toc):
        path = (ROOT / entry).with_suffix(".ipynb")
        if entry.startswith("notebooks/"):
            if not path.is_file():
                raise InputError(f"{toc.name} lists {entry}, but there is no {path.relative_to(ROOT)}")
            yield path


def pages(toc: Path) -> list[str]:
    """Every page of a table of contents, in reading order, as it is named there."""
    content = yaml.safe_load(toc.read_text())
    found = [content["root"]]

    def collect(node: dict) -> None:
        for child in [*node.get("chapters", []), *node.get("sections", [])]:
            found.append(child["file"])
            collect(child)

    for part in content.get("parts", [content]):
        collect(part)
    return found


def execute(paths: Sequence[Path], folder: Path, processes: int) -> list[str]:
    """Execute the notebooks that are out of date into `folder`; returns one line per failure."""
    folder.mkdir(parents=True, exist_ok=True)
    keys = {path: key(path) for path in paths}
    due = [path for path in paths if _record(folder, path).get("key") != keys[path]]
    print(f"==> notebooks: {len(paths)}, of which {len(paths) - len(due)} are up to date", flush=True)
    if not due:
        return []
    expected = sum(_record(folder, path).get("seconds", SECONDS) for path in due)
    print(
        f"    running {', '.join(p.stem for p in due)}: about {expected / min(processes, len(due)):.0f} s", flush=True
    )
    failures, started = [], time.monotonic()
    # One process per notebook: papermill keeps state of its own, and a fault in one must not reach another.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        with uninterruptible_children():  # Ctrl-C is this process's to handle
            running = {pool.submit(_run, str(path), str(folder / path.name)): path for path in due}
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    path = running.pop(future)
                    seconds, failure = future.result()
                    if failure:
                        failures.append(failure)
                    else:
                        record = {"key": keys[path], "seconds": round(seconds, 1)}
                        _write(_record_path(folder, path), json.dumps(record))
                    count = f"{len(due) - len(running)}/{len(due)}"
                    word = "FAILED" if failure else "done"
                    print(f"    [{count}] {path.stem}: {word} in {seconds:.0f} s", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in active_children():  # a kernel ends when the worker that started it does
                worker.terminate()
            raise
    print(f"    {time.monotonic() - started:.0f} s", flush=True)
    return failures


def key(path: Path) -> str:
    """The hash of what an executed notebook depends on: its cells, the packages' source, committed results, the
    lock.
    """
    digest = hashlib.sha256()
    for cell in notebook.read_notebook(path).cells:
        digest.update(json.dumps([cell.cell_type, cell.source, cell.metadata.get("tags", [])]).encode())
    packages = (ROOT / "rlcircuits", ROOT / "paradigms")
    sources = sorted(p for package in packages for p in package.rglob("*") if p.suffix in (".py", ".yaml"))
    results = sorted(p for p in (ROOT / "results").rglob("*") if p.is_file())
    for source in [*sources, *results, ROOT / "requirements.lock"]:
        digest.update(str(source.relative_to(ROOT)).encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _run(path: str, out: str) -> tuple[float, str | None]:
    """Execute one notebook; the result replaces an older one only when all of it went well."""
    started = time.monotonic()
    partial = out.replace(".ipynb", ".failed.ipynb")
    with open(out.replace(".ipynb", ".log"), "w") as log:
        os.dup2(log.fileno(), 2)  # what kernel and libraries say; papermill keeps the notebook's own words
    try:
        notebook.run_notebook(path, partial)
        os.replace(partial, out)
        return time.monotonic() - started, None
    except InputError as error:
        return time.monotonic() - started, str(error)


def build(paths: Sequence[Path], out: Path) -> int:
    """Assemble the source and build the pages; returns the exit code."""
    started = time.monotonic()
    source = out / "source"
    assemble(paths, out / "notebooks", source)
    built = out / "frame"
    if not built.is_file() or built.read_text() != frame(source):
        built.unlink(missing_ok=True)
        for folder in ("html", ".doctrees"):
            shutil.rmtree(out / folder, ignore_errors=True)
    print("==> pages (about 30 s)", flush=True)
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command += ["build", str(source), "--path-output", str(out.parent), "-W", "--keep-going", "-q"]
    if out.name != "_build":
        raise InputError(f"--out {out}: Jupyter Book always builds into a folder named _build")
    result = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, env=_environment())
    if result.returncode or not (out / "html" / "index.html").is_file():
        lines = (result.stdout + result.stderr).splitlines()
        told = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines[-5:]
        print("error: the pages have faults:\n" + "\n".join(f"    {line}" for line in told), file=sys.stderr)
        return 1
    _write(built, frame(source))
    print(f"    {time.monotonic() - started:.0f} s: {out / 'html' / 'index.html'}", flush=True)
    return 0


def assemble(paths: Sequence[Path], executed: Path, source: Path) -> None:
    """Put the book's source together; a file that did not change keeps its time, so that its page is not built
    again.
    """
    wanted: set[Path] = set()

    def put(target: Path, content: bytes) -> None:
        wanted.add(target)
        if not target.is_file() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)

    put(source / "_config.yml", (ROOT / "_config.yml").read_bytes())
    for path in sorted(BOOK.rglob("*")):
        if path.suffix in (".md", ".bib", ".yml"):
            put(source / path.relative_to(BOOK), path.read_bytes())
        elif path.suffix in (".js", ".css"):
            put(source / "_static" / path.name, path.read_bytes())
        elif path.suffix in (".png", ".svg"):
            put(source / path.relative_to(BOOK), path.read_bytes())
    for path in paths:
        put(source / "notebooks" / path.name, for_pages(executed / path.name).encode())
    for name, file in assets():
        put(source / "_extra" / "vendor" / name, file.read_bytes())
    for name, text in (
        *((f"{name}.md", text) for name, text in reference.pages().items()),
        ("command_line.md", reference.command_page()),
        ("notebook_parameters.md", reference.parameters_page(paths)),
        ("_generated/recipe.md", reference.recipe_table()),
        ("_generated/finding.md", reference.finding()),
        ("_generated/remove_an_edge.md", figure_of([executed / path.name for path in paths], "remove-an-edge")),
    ):
        put(source / name, text.encode())
    put(source / "offline.py", (BOOK / "offline.py").read_bytes())
    for path in source.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()


def frame(source: Path) -> str:
    """The hash of all but the pages' text: when it changes (a script, the configuration, which pages there are), Sphinx
    would not notice everywhere, and all pages are built anew.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        digest.update(str(path.relative_to(source)).encode())
        if path.suffix not in (".md", ".ipynb"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def for_pages(path: Path) -> str:
    """An executed notebook without what is for who runs it: figures as only JupyterLab draws them, messages,
    progress.
    """
    content = notebook.read_notebook(path)
    # In the folder the number puts the notebooks in order; on pages the table of contents does.
    content.cells[0].source = re.sub(r"\A# \d+\. ", "# ", content.cells[0].source)
    saved = content.metadata.get("widgets", {}).values()
    widgets = {model: entry for one in saved for model, entry in one["state"].items()}
    for number, cell in enumerate(content.cells, 1):
        for output in cell.get("outputs", []):
            if LAB_ONLY in output.get("data", {}) and "text/html" not in output["data"]:
                raise InputError(
                    f"{path.name}, cell {number}: show this figure by rlcircuits.lab.display.show; pages drop it"
                )
            output.get("data", {}).pop(LAB_ONLY, None)
            if WIDGET in output.get("data", {}) and not is_progress(output, widgets):
                output["data"] = {"text/html": viewer_of(output, widgets, f"{path.name}, cell {number}")}
        if "outputs" in cell:
            cell.outputs = [
                output for output in cell.outputs if output.get("name") != "stderr" and not is_progress(output, widgets)
            ]
    content.metadata.pop("widgets", None)
    return json.dumps(content, ensure_ascii=False)


def figure_of(executed: Sequence[Path], name: str) -> str:
    """The figure with this id out of the executed notebook that shows it, for another page.

    Raises:
        InputError: none shows it.
    """
    for path in executed:
        for cell in notebook.read_notebook(path).cells:
            for output in cell.get("outputs", []):
                shown = output.get("data", {}).get("text/html", "")
                if f'id="{name}"' in shown:
                    return f"```{{raw}} html\n{shown}\n```\n"
    raise InputError(f"no notebook shows a figure {name!r}, which the first page takes from it")


def viewer_of(output: Mapping, state: Mapping, where: str) -> str:
    """The place of a page for a viewer that an output shows; what it would ask a kernel for is left out.

    Raises:
        InputError: it is another widget.
    """
    told = state.get(output["data"][WIDGET].get("model_id"), {}).get("state", {})
    if "rlcircuits viewer" not in told.get("data", {}):
        raise InputError(f"{where}: a widget needs a kernel, and pages have none; show a figure or rc.explore(study)")
    kept = {name: value for name, value in told["data"].items() if name != "levels"}
    return place({**kept, "computes": False, "view": told.get("view", {})})


def is_progress(output: Mapping, state: Mapping) -> bool:
    """Whether an output is a progress bar: a box that holds one, in the saved state of the notebook's widgets."""
    view = output.get("data", {}).get(WIDGET, {})
    children = state.get(view.get("model_id"), {}).get("state", {}).get("children", [])
    models = [state.get(child.removeprefix("IPY_MODEL_"), {}) for child in children]
    return any(model.get("model_name") == "FloatProgressModel" for model in models)


def assets() -> Iterator[tuple[str, Path]]:
    """What the pages load, each out of an installed package: (name in vendor, file)."""
    yield "viewer.js", ROOT / "rlcircuits" / "lab" / "viewer.js"
    yield "plotly.min.js", packaged("plotly", "plotly/package_data/plotly.min.js")
    mathjax = "sphinx-mathjax-offline/static/mathjax"
    # tex-svg needs no fonts; it fetches a macro package from input/tex/extensions the first time a formula uses it.
    yield "mathjax/tex-svg.js", packaged("sphinx-mathjax-offline", f"{mathjax}/tex-svg.js")
    extensions = packaged("sphinx-mathjax-offline", f"{mathjax}/input/tex/extensions/ams.js").parent
    for path in sorted(extensions.glob("*.js")):
        yield f"mathjax/input/tex/extensions/{path.name}", path


def packaged(package: str, name: str) -> Path:
    """A file of an installed package; raises InputError when it is not there."""
    try:
        path = Path(str(metadata.distribution(package).locate_file(name)))
    except metadata.PackageNotFoundError:
        path = None
    if path is None or not path.is_file():
        raise InputError(f"package {package} with {name} is not installed; install requirements.lock again (make venv)")
    return path


def _record_path(folder: Path, path: Path) -> Path:
    return folder / f"{path.stem}.json"


def _record(folder: Path, path: Path) -> dict:
    """What is known of the executed notebook: its key and how long it took; empty when it has to be made."""
    try:
        record = json.loads(_record_path(folder, path).read_text())
    except (OSError, ValueError):
        return {}
    if not (folder / path.name).is_file():
        record.pop("key", None)
    return record


def _write(path: Path, text: str) -> None:
    """Write a small file at once: never half of it."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _environment() -> dict[str, str]:
    # No bytecode beside the extension: a file that comes and goes in the source would look like a new frame.
    quiet = {"PYTHONWARNINGS": "ignore", "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return os.environ | quiet


if __name__ == "__main__":
    sys.exit(main())
