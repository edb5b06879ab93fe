"""What tests share: one folder of artefacts, one book, and the hint that the family's training starts at once."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from coverage.exceptions import CoverageException
from filelock import FileLock
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parent.parent
# How long an example takes says something of the machine, nothing of the code.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("unhurried")
# A run in a shell's background ignores Ctrl-C, and so would every process that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The tests of notebooks and book come last and need the family; it is trained in one core's shade of the others.
LAST = ("test_notebooks.py", "test_book.py")
FAMILY = [sys.executable, "-m", "rlcircuits", "family"]
# What a test needs, told by its fixtures; other needs are marked where the test stands.
NEEDS = {
    "family": "training", "tiny_family": "training", "trained": "training", "book": "book", "browser": "browser",
    "ran": "kernel", "undisturbed": "kernel", "faulty": "kernel", "cluster": "kernel", "ours": "kernel",
}  # fmt: skip


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by what it needs."""
    for fixture in NEEDS.keys() & set(getattr(item, "fixturenames", ())):
        item.add_marker(NEEDS[fixture])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that need the family at the end, in whatever order they are."""

    def place(item: pytest.Item) -> int:
        if item.path.name in LAST:
            return LAST.index(item.path.name) + 1
        return int("family" in getattr(item, "fixturenames", ()))

    items.sort(key=place)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Where coverage was measured, one line of it: of each package, the share of its lines and branches that ran."""
    plugin = config.pluginmanager.getplugin("_cov")
    if plugin is None or plugin.cov_controller is None:
        return
    found = []
    for package in ("rlcircuits", "paradigms"):
        with contextlib.suppress(CoverageException):  # nothing of it ran
            total = plugin.cov_controller.cov.report(include=f"{package}/*", file=io.StringIO())
            found.append(f"{package} {total:.1f} %")
    terminalreporter.write_line(f"coverage of lines and branches: {', '.join(found) or 'none'}")


class Background:
    """A command in the background, its output in a file; `wait` fails the test with the last lines if it failed."""

    def __init__(self, command: list[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.command, self.log = command, log
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=log.open("w"), stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Until it ends."""
        if self.process.wait():
            tail = "\n".join(self.log.read_text().splitlines()[-15:])
            pytest.fail(f"{' '.join(self.command)} ended with {self.process.returncode}:\n{tail}", pytrace=False)


_family: list[Background] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start training what is missing of the family when a test of this run will need it."""
    if session.config.option.collectonly or os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return
    if any("family" in getattr(item, "fixturenames", ()) for item in session.items):
        _family.append(Background(FAMILY, ROOT / "_build" / "family.log"))


def pytest_sessionfinish() -> None:
    """Leave nothing running; what was trained is kept."""
    for background in _family:
        if background.process.poll() is None:
            background.process.terminate()
            background.process.wait()


@pytest.fixture(scope="session")
def family() -> None:
    """The default family in `runs/`, as `make book` makes it."""
    if _family:
        _family[0].wait()
    else:  # another worker of this run trains it: this command waits for what that one has begun
        Background(FAMILY, ROOT / "_build" / "family-again.log").wait()


@pytest.fixture(scope="session")
def book(family: None) -> Path:
    """The folder of the built book; built as by `make book` from the same artefacts, whatever is up to date reused."""
    with FileLock(ROOT / "_build" / "tests.lock"):  # one worker builds, the others find it done
        build = subprocess.run(
            [sys.executable, "book/build.py"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=dict(os.environ),
        )
    if build.returncode:
        pytest.fail(
            f"book/build.py ended with {build.returncode}:\n{build.stdout[-2000:]}\n{build.stderr[-3000:]}",
            pytrace=False,
        )
    return ROOT / "_build" / "html"


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core."""
    found = pytest.importorskip(
        "axe_core_python", reason="axe-core-python is not installed: pip install 'rlcircuits[test]'"
    )
    return next(Path(found.__file__).parent.rglob("axe.min.js")).read_text(encoding="utf-8")
