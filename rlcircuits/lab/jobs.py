"""What a click starts and what takes longer than a click: computed in a process beside the notebook's.

1. `Worker.submit` puts a job into a queue: a function of a module and its arguments. Jobs run one after another.
2. They run in one process of their own, started with the first job and kept, so that models once loaded stay loaded.
   The notebook's process only waits, in a thread: it answers clicks and runs other cells meanwhile.
3. In that process every progress bar reports how far it is instead of drawing itself.
4. Reports and results reach the notebook in the thread that made the worker, where widgets may be changed; without
   an event loop (a plain script, a test), in the waiting thread.
5. `Worker.stop` ends the process, whatever it does, and forgets the queue. What it had finished is in the store.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from rlcircuits.errors import InputError
from rlcircuits.storage import Store

REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class Report:
    """What is known of a job.

    Attributes:
        state: ``"running"``, ``"done"``, ``"failed"`` or ``"stopped"``.
        text: what is being done, or why it failed.
        share: how much of this step is done, 0 to 1; None where that is not known.
        result: what the function returned, when it is done.
    """

    state: str
    text: str = ""
    share: float | None = None
    result: Any = None

    @property
    def over(self) -> bool:
        """Whether this is the job's last report."""
        return self.state != "running"


Told = Callable[[Report], None]


class Worker:
    """Runs jobs in a process of its own, one after another; see the module's description.

    Attributes:
        waiting: how many jobs are not over.
    """

    def __init__(self) -> None:
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._process: Any = None
        self._connection: Any = None
        self._thread: threading.Thread | None = None
        self._stopped = 0  # jobs numbered up to this are not wanted any more
        self._number = 0
        self.waiting = 0

    def submit(self, function: Callable, arguments: Mapping[str, Any], told: Told) -> None:
        """Run ``function(**arguments)`` over there and call `told` with each `Report`, the last one with the result.

        Args:
            function: found by name in its module; arguments and result can be pickled.
        """
        with self._lock:
            self._number += 1
            self.waiting += 1
            self._jobs.put((self._number, function, dict(arguments), told))
            if self._thread is None:
                self._thread = threading.Thread(target=self._attend, name="explorer jobs", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End what runs and forget what waits."""
        with self._lock:
            self._stopped = self._number
            if self._process is not None:
                self._process.terminate()

    def _attend(self) -> None:
        while True:
            number, function, arguments, told = self._jobs.get()
            last = self._run(number, function, arguments, told)
            with self._lock:
                self.waiting -= 1
            self._tell(told, last)

    def _run(self, number: int, function: Callable, arguments: dict, told: Told) -> Report:
        if number <= self._stopped:
            return Report("stopped", "stopped")
        self._tell(told, Report("running", "starting"))
        try:
            connection = self._ready()
            if number <= self._stopped:  # stopped while the process was being started
                raise EOFError
            connection.send((function, arguments))
            while True:
                report = connection.recv()
                if report.over:
                    return report
                self._tell(told, report)
        except Exception as error:  # whatever it is, the explorer must hear that this job is over
            self._forget()
            if number <= self._stopped:
                return Report("stopped", "stopped; what was finished is kept")
            if isinstance(error, (EOFError, OSError)):
                return Report("failed", "the process that computes has ended; was the memory enough?")
            return Report("failed", f"{type(error).__name__}: {error}")

    def _ready(self) -> Connection:
        """The connection to the process, which is started when there is none."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                # A plain command rather than multiprocessing's own start: that would run a script's main module again.
                self._connection, theirs = Pipe()
                code = f"from rlcircuits.lab.jobs import serve; serve({theirs.fileno()})"
                environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
                self._process = subprocess.Popen(
                    [sys.executable, "-c", code], pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
                )
                atexit.register(self._process.terminate)
                theirs.close()
            return self._connection

    def _forget(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.terminate()
                atexit.unregister(self._process.terminate)
            self._process, self._connection = None, None

    def _tell(self, told: Told, report: Report) -> None:
        if self._loop is None or self._loop.is_closed():
            told(report)
        else:
            self._loop.call_soon_threadsafe(told, report)


def serve(descriptor: int) -> None:
    """In the process: run what comes through the connection, report, until the other end is gone."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupting a cell is not meant for this process
    connection = Connection(descriptor)
    _report_bars(connection)
    from rlcircuits.studies import keep_models

    keep_models()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            report = Report("done", result=function(**arguments))
        except InputError as error:
            report = Report("failed", str(error))
        except Exception as error:  # whatever it is, the notebook must hear of it
            report = Report("failed", f"{type(error).__name__}: {error}")
        connection.send(report)


def _report_bars(connection: Any) -> None:
    """Let every progress bar of this process report through the connection."""
    import tqdm.auto
    import tqdm.std

    class Bar(tqdm.std.tqdm):
        """A bar that is not drawn."""

        def __init__(self, *args: Any, **options: Any) -> None:
            self._told = 0.0
            super().__init__(*args, **{**options, "file": open(os.devnull, "w"), "disable": False})
            self._tell()

        def update(self, n: float | None = 1) -> bool | None:
            found = super().update(n)
            self._tell()
            return found

        def _tell(self) -> None:
            if time.monotonic() - self._told > REPORT_SECONDS:
                self._told = time.monotonic()
                share = self.n / self.total if self.total else None
                connection.send(Report("running", self.desc.removesuffix(": "), share))

    tqdm.auto.tqdm = Bar  # type: ignore[assignment]


# --- the jobs -------------------------------------------------------------------------------------


class NotStored(LookupError):
    """The store does not have it."""


class Stored(Store):
    """A store that only finds: where anything would have to be made, it raises `NotStored`."""

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """True, or it raises `NotStored`."""
        if not super().has(kind, inputs):
            raise NotStored(kind)
        return True

    def make(self, kind: str, inputs: Mapping[str, Any], build: Any, *, note: str = "") -> Any:
        """The artefact's folder, or it raises `NotStored`."""
        self.has(kind, inputs)
        return self.path(kind, inputs)


def only_stored(study: Any) -> Any:
    """The study with a store that only finds."""
    from dataclasses import replace

    return replace(study, settings={**study.settings, "store": Stored(study.settings["store"].root)})


def make_at(study: Any, pair: str, level: str, alpha: float) -> None:
    """Job: see to it that the store has a pair at a level and α."""
    study.at(level, alpha, [pair])


def make_effects(study: Any, pair: str, level: str, alpha: float, edge: str) -> None:
    """Job: see to it that the store has the exact effects of an edge at a level and α."""
    study.at(level, alpha, [pair]).ablate(pair, edge)


def skeleton(study: Any, pair: str) -> Any:
    """The study without what is large: what a job needs to make the rest from the store."""
    from dataclasses import replace
    from types import SimpleNamespace

    return replace(study, pairs={pair: SimpleNamespace(pair=study.pairs[pair].pair)})
