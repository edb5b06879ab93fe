"""One cell of a sweep, in a process of its own.

1. The process leaves the terminal's group, so that a Ctrl-C is its parent's to handle, and ends when its parent does,
   however that ended; its kernel ends with it.
2. It holds the lock of the cell's folder: after a crash, the next attempt waits until the last one is really gone.
3. The notebook, a copy made when the sweep began, runs with the cell's parameters into ``running.ipynb``.
4. ``notebook.ipynb``, ``notebook.html`` and, last, ``record.json`` are written, each to a temporary name, flushed and
   renamed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError
from rlcircuits.lab import CellError, glued, read_notebook, run_notebook
from rlcircuits.storage import written
from rlcircuits.sweeps.records import NOTEBOOK, PAGE, Order, record_of, sha256_of, worth_retrying, write_record
from rlcircuits.sweeps.report import notebook_page

LOG, RUNNING = "log.txt", "running.ipynb"
CANNOT_WRITE = 74  # exit code when not even the record could be written


def work(order: Order) -> None:
    """Run the cell of an order in this process, which is its own; the record in its folder says how it went."""
    with contextlib.suppress(OSError, AttributeError):
        os.setsid()
    with contextlib.suppress(ValueError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(order["folder"])
    attempt = _Attempt(order)
    threading.Thread(target=_watch, args=(_parent_is_there(), attempt), daemon=True).start()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("w") as log:
            for stream in (1, 2):  # what kernel and libraries say; papermill keeps the notebook's own words
                os.dup2(log.fileno(), stream)
        os.environ.update(order["environment"])
        with _locked(folder):
            attempt.finish(_run(order))
    except (OSError, InputError) as error:  # a folder or disk that cannot be written
        with contextlib.suppress(OSError):
            print(error, file=sys.stderr, flush=True)
        os._exit(CANNOT_WRITE)


def main() -> None:
    """``python -m rlcircuits.sweeps.worker``: the order as JSON on the standard input; a SIGTERM ends the kernel with
    it.
    """
    signal.signal(signal.SIGTERM, lambda *_: end_tree(os.getpid()))
    work(json.loads(sys.stdin.read()))


# --- within the process -------------------------------------------------------------------------


class _Attempt:
    """Writes the record once, from whichever thread comes first."""

    def __init__(self, order: Order) -> None:
        self.order, self.started = order, time.monotonic()
        self._lock, self._done = threading.Lock(), False

    def finish(self, record: Mapping[str, Any]) -> None:
        with self._lock:
            if not self._done:
                write_record(Path(self.order["folder"]), record)
                self._done = True

    @property
    def overdue(self) -> bool:
        limit = self.order["timeout"]
        return limit is not None and time.monotonic() - self.started > limit


def _parent_is_there() -> Callable[[], bool]:
    """Tells whether the process that ordered the cell is alive; with a fork server, that is not the one that forked."""
    from multiprocessing import parent_process

    parent, above = parent_process(), os.getppid()
    return parent.is_alive if parent is not None else lambda: os.getppid() == above


def _watch(parent_is_there: Callable[[], bool], attempt: _Attempt) -> None:
    """End this process and its kernel when the parent is gone or the time is up."""
    while (there := parent_is_there()) and not attempt.overdue:
        time.sleep(0.2)
    if there:
        words = f"stopped after {attempt.order['timeout']:g} s, its timeout"
        with contextlib.suppress(OSError, InputError):
            attempt.finish(record_of(attempt.order, time.monotonic() - attempt.started, error=words))
    end_tree(os.getpid(), itself=False)
    os._exit(1)


def end_tree(pid: int, itself: bool = True) -> None:
    """Kill a process and all its descendants."""
    import psutil

    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        family = [*process.children(recursive=True), *([process] if itself else [])]
        for one in family:
            with contextlib.suppress(psutil.Error):
                one.kill()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=60)
    except Timeout:
        raise InputError(f"another process still works in {str(folder)!r}: end it, then run the same again") from None
    try:
        yield
    finally:
        lock.release()


def _run(order: Order) -> dict[str, Any]:
    """Steps 3 and 4, up to the record."""
    folder, started = Path(order["folder"]), time.monotonic()
    error, retry, metrics = None, False, {}
    (folder / RUNNING).unlink(missing_ok=True)
    try:
        if sha256_of(Path(order["source"])) != order["source_sha256"]:
            raise InputError(f"{order['source']} is damaged: run the sweep again, which writes it anew")
        metrics = glued(run_notebook(order["source"], folder / RUNNING, order["parameters"], cwd=order["cwd"]))
    except InputError as failed:
        error = str(failed)
        retry = isinstance(failed, CellError) and worth_retrying(failed.ename, failed.evalue)
    except Exception as failed:  # a lost kernel among them
        error = f"{type(failed).__name__}: {failed}"
        retry = worth_retrying(type(failed).__name__, str(failed))
    compute = _publish(folder, order["name"])
    return record_of(
        order,
        time.monotonic() - started,
        error=error,
        retry=retry,
        metrics=metrics,
        compute=compute,
        notebook_sha256=sha256_of(folder / NOTEBOOK),
    )


def _publish(folder: Path, name: str) -> float:
    """Give the executed notebook its name and a page; returns the seconds its own cells took."""
    for old in (NOTEBOOK, PAGE):
        (folder / old).unlink(missing_ok=True)
    if not (folder / RUNNING).is_file():
        return 0.0
    with written(folder / NOTEBOOK) as temporary:
        os.replace(folder / RUNNING, temporary)
    try:
        executed = read_notebook(folder / NOTEBOOK)
        durations = [cell.metadata.get("papermill", {}).get("duration") for cell in executed.cells]
    except (InputError, AttributeError):
        return 0.0
    try:
        page = notebook_page(executed, name)
    except Exception as error:  # the page is a convenience: the notebook itself is there
        print(f"no page: {type(error).__name__}: {error}", file=sys.stderr)
        page = None
    if page is not None:
        with written(folder / PAGE) as temporary:
            temporary.write_text(page, "utf-8")
    return float(sum(duration for duration in durations if duration))


if __name__ == "__main__":
    main()
