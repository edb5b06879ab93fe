"""One cell of a sweep, in a process of its own.

1. The process leaves the terminal's group, so that a Ctrl-C is its parent's to handle, and ends when its parent does, however
   that ended; its kernel ends with it.
2. It holds the lock of the cell's folder: after a crash, the next attempt waits until the last one is really gone.
3. The notebook, a copy made when the sweep began, runs with the cell's parameters into ``running.ipynb``.
4. ``notebook.ipynb``, ``notebook.html`` and, last, ``record.json`` are written, each to a temporary name, flushed and renamed. A
   record tells what came out and carries its own checksum and the notebook's: half a record is no record.
5. What failed is worth another try when the fault may pass (memory, a lost kernel, a connection), and not when the input is wrong.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from rlcircuits.errors import InputError
from rlcircuits.storage import canonical_json, written

RECORD, NOTEBOOK, PAGE, LOG, RUNNING = (
    "record.json",
    "notebook.ipynb",
    "notebook.html",
    "log.txt",
    "running.ipynb",
)
CANNOT_WRITE = 74  # exit code when not even the record could be written
_PASSING = {
    errno.EAGAIN, errno.EINTR, errno.EIO, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED,
    errno.ECONNABORTED, errno.EPIPE, errno.EADDRINUSE, errno.EMFILE, errno.ENFILE, errno.EBUSY,
}  # fmt: skip
_PASSING_NAMES = {
    "MemoryError", "OutOfMemoryError", "DeadKernelError", "BlockingIOError", "InterruptedError", "TimeoutError", "ConnectionError",
    "ConnectionResetError", "ConnectionRefusedError", "ConnectionAbortedError", "BrokenPipeError", "ZMQError",
}  # fmt: skip
_PASSING_WORDS = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|Kernel died|Kernel didn't respond",
    re.IGNORECASE,
)
_MEMORY = re.compile(r"memory", re.IGNORECASE)
_LONGEST_ERROR = 2000


class Order(TypedDict):
    """What a worker is told; plain values, so that it can travel to another machine.

    Attributes:
        folder: the cell's folder.
        source, source_sha256: the copy of the notebook, and what it must be.
        cwd: where the notebook runs, its own folder.
        environment: variables that are set for it.
        timeout: seconds, or None.
        token: of this attempt, repeated in the record.
    """

    name: str
    key: str
    parameters: dict[str, Any]
    folder: str
    source: str
    source_sha256: str
    cwd: str
    environment: dict[str, str]
    timeout: float | None
    attempt: int
    token: str


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
    """``python -m rlcircuits.sweeps.worker``: the order as JSON on the standard input."""
    work(json.loads(sys.stdin.read()))


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a cell, None when there is none, when it is damaged, or when the notebook it speaks of is."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        checksum = record.pop("checksum")
        if hashlib.sha256(canonical_json(record).encode()).hexdigest() != checksum:
            return None
        if record["notebook_sha256"] is not None and _sha256(folder / NOTEBOOK) != record["notebook_sha256"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    record["metrics"] = {name: _number(value) for name, value in record["metrics"].items()}
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a cell, whole or not at all."""
    plain = {**record, "metrics": {name: _storable(value) for name, value in record["metrics"].items()}}
    plain["checksum"] = hashlib.sha256(canonical_json(plain).encode()).hexdigest()
    with written(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(plain, indent=1) + "\n", "utf-8")


def failure(order: Order, error: str, *, retry: bool, seconds: float) -> dict[str, Any]:
    """The record of a cell that did not come to an end."""
    return _record(order, "failed", seconds, error=error, retry=retry)


def worth_retrying(name: str, text: str) -> bool:
    """Whether an error may pass by itself.

    Args:
        name, text: its type and message, as a kernel reports them.

    >>> worth_retrying("OSError", "[Errno 5] Input/output error"), worth_retrying("InputError", "unknown pair")
    (True, False)
    """
    if name in _PASSING_NAMES:
        return True
    if name == "OSError" and (number := re.match(r"\[Errno (\d+)\]", text)):
        return int(number[1]) in _PASSING
    return name in ("RuntimeError", "OSError", "CellError") and bool(_PASSING_WORDS.search(text))


def is_memory(error: str) -> bool:
    """Whether an error speaks of memory, or of a process that was killed, as the system does where memory runs out."""
    return bool(_MEMORY.search(error)) or "died" in error or "signal 9" in error


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
            attempt.finish(failure(attempt.order, words, retry=False, seconds=time.monotonic() - attempt.started))
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
def _locked(folder: Path):
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
    from rlcircuits.lab import parameters as notebook

    folder, started = Path(order["folder"]), time.monotonic()
    status, error, retry, metrics = "done", None, False, {}
    (folder / RUNNING).unlink(missing_ok=True)
    try:
        if _sha256(Path(order["source"])) != order["source_sha256"]:
            raise InputError(f"{order['source']} is damaged: run the sweep again, which writes it anew")
        done = notebook.run(order["source"], folder / RUNNING, order["parameters"], cwd=order["cwd"])
        metrics = notebook.glued(done)
    except notebook.CellError as failed:
        status, error, retry = "failed", str(failed), worth_retrying(failed.ename, failed.evalue)
    except InputError as failed:
        status, error = "failed", str(failed)
    except OSError as failed:
        status, error, retry = "failed", f"{type(failed).__name__}: {failed}", failed.errno in _PASSING
    except Exception as failed:  # a lost kernel among them
        status, error = "failed", f"{type(failed).__name__}: {failed}"
        retry = worth_retrying(type(failed).__name__, str(failed))
    compute = _publish(folder, order["name"])
    digest = _sha256(folder / NOTEBOOK)
    seconds = time.monotonic() - started
    return _record(
        order,
        status,
        seconds,
        error=error,
        retry=retry,
        metrics=metrics,
        compute=compute,
        notebook_sha256=digest,
    )


def _publish(folder: Path, name: str) -> float:
    """Give the executed notebook its name and a page; returns the seconds its own cells took."""
    from rlcircuits.lab import parameters as notebook

    for old in (NOTEBOOK, PAGE):
        (folder / old).unlink(missing_ok=True)
    if not (folder / RUNNING).is_file():
        return 0.0
    with written(folder / NOTEBOOK) as temporary:
        os.replace(folder / RUNNING, temporary)
    try:
        executed = notebook.read(folder / NOTEBOOK)
        durations = [cell.metadata.get("papermill", {}).get("duration") for cell in executed.cells]
    except (InputError, AttributeError):
        return 0.0
    from rlcircuits.sweeps.report import notebook_page

    try:
        page = notebook_page(executed, name)
    except Exception as error:  # the page is a convenience: the notebook itself is there
        print(f"no page: {type(error).__name__}: {error}", file=sys.stderr)
        page = None
    if page is not None:
        with written(folder / PAGE) as temporary:
            temporary.write_text(page, "utf-8")
    return float(sum(duration for duration in durations if duration))


def _record(order: Order, status: str, seconds: float, **more: Any) -> dict[str, Any]:
    error = more.get("error")
    return {
        "name": order["name"],
        "key": order["key"],
        "token": order["token"],
        "parameters": order["parameters"],
        "status": status,
        "error": None if error is None else error.encode(errors="replace").decode()[:_LONGEST_ERROR],
        "retry": more.get("retry", False),
        "metrics": more.get("metrics", {}),
        "seconds": round(seconds, 3),
        "compute": round(more.get("compute", 0.0), 3),
        "attempts": order["attempt"],
        "notebook_sha256": more.get("notebook_sha256"),
        "host": platform.node(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _storable(value: Any) -> Any:
    """JSON has no NaN and no infinities."""
    return {"float": repr(value)} if isinstance(value, float) and value - value != 0 else value


def _number(value: Any) -> Any:
    return float(value["float"]) if isinstance(value, dict) else value


if __name__ == "__main__":
    main()
