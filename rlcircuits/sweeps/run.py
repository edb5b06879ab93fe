"""A grid of papermill runs, on this machine or on a cluster: interrupted at any moment, it goes on where it was.

1. The sweep file becomes cells, checked before anything starts (`rlcircuits.sweeps.plan`).
2. The folder is locked: one sweep at a time. What finished there under the same key is kept; the rest is due.
3. Of each group of cells that share the models' answers, one runs first; then the others, which find these answers in
   the store.
4. Each cell runs in a process of its own (`rlcircuits.sweeps.worker`) and leaves its record in its folder: a fault
   stays there. A process that was lost, or an error that may pass, is tried again after the others, and alone when
   memory was short.
5. The records become ``summary.parquet`` and ``index.html`` (`rlcircuits.sweeps.report`): in the end, after a Ctrl-C,
   and now and then meanwhile.

Nothing but the records is state. A sweep that was killed leaves them; the next one reads them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError
from rlcircuits.interruption import Interruptions, terminable
from rlcircuits.storage import StoreError, written
from rlcircuits.sweeps.cost import seconds_of
from rlcircuits.sweeps.engines.engine import End, Engine, Settings
from rlcircuits.sweeps.plan import Cell, Plan, load_plan
from rlcircuits.sweeps.records import Order, is_memory, read_record, record_of, write_record
from rlcircuits.sweeps.report import shown, write_report, write_static

if TYPE_CHECKING:
    import pandas as pd

REPORT_SECONDS = 30.0  # between two summaries while cells run
_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "TOKENIZERS_PARALLELISM",
    "HF_HUB_OFFLINE",
    "PYTHONPATH",
)


@dataclass
class Outcome:
    """A sweep that came to its end.

    Attributes:
        plan: what was asked.
        folder: where it is.
        table: see `rlcircuits.sweeps.report.summary_table`.
    """

    plan: Plan
    folder: Path
    table: pd.DataFrame

    @property
    def failed(self) -> int:
        """Number of cells that failed."""
        return int((self.table["status"] == "failed").sum())


def sweep(
    file: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    engine: Callable[[Settings], Engine] | None = None,
) -> Outcome:
    """Run what is due of a sweep and write its summary.

    Args:
        file: the sweep file, see `rlcircuits.sweeps.plan`.
        out: its folder; ``runs/sweeps/<name of the file>`` by default.
        settings: how it runs.
        engine: makes what runs the cells; that which `settings` names by default.

    Raises:
        InputError: whatever is wrong with the file, before anything runs; or another sweep is at work in the folder.
        StoreError: the folder cannot be written.
        KeyboardInterrupt: after a Ctrl-C or a SIGTERM; what finished is kept and in the summary.
    """
    settings = settings or Settings()
    plan = load_plan(file)
    folder = folder_of(plan, out)
    engine = engine or _engine(settings)
    with _alone(folder, settings), terminable():
        source = _copied(plan.notebook, folder)
        write_static(folder)
        records = found(plan, folder)
        due = _due(plan, records, settings)
        kept = len(plan.cells) - len(due)
        print(
            f"{plan.file.name}: {len(plan.cells)} cells, {kept} kept, {len(due)} to run; in {folder}", file=sys.stderr
        )
        run = _Sweep(plan, folder, settings, source, records, due)
        try:
            if due:
                run.go(engine)
        finally:
            table = write_report(plan, run.records, folder)
    return Outcome(plan, folder, table)


def folder_of(plan: Plan, out: str | os.PathLike[str] | None) -> Path:
    """The folder of a sweep.

    Raises:
        InputError: it is a file.
    """
    folder = Path(out).expanduser() if out is not None else Path("runs") / "sweeps" / plan.file.stem
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {str(folder)!r} is a file: expected a folder, or a path where one can be made")
    return folder.absolute()


def found(plan: Plan, folder: Path) -> dict[str, dict[str, Any]]:
    """The sound records of a plan's cells that bear the cells' keys."""
    there = {cell.name: read_record(folder / "cells" / cell.name) for cell in plan.cells}
    return {c.name: record for c in plan.cells if (record := there[c.name]) is not None and record["key"] == c.key}


def preview(
    file: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, settings: Settings | None = None
) -> pd.DataFrame:
    """What a sweep would do: one row per cell with its parameters, what would become of it, and its cost.

    Returns:
        Columns ``cell``, the varying parameters, ``state`` (``"kept"``, ``"due"``, ``"due, failed before"``,
        ``"not asked for"``) and ``seconds``, estimated; NaN where nothing is known.
    """
    import pandas as pd

    settings = settings or Settings()
    plan = load_plan(file)
    folder = folder_of(plan, out)
    records = found(plan, folder)
    due = {cell.name for cell in _due(plan, records, settings)}
    costs = seconds_of(plan, folder, records)
    rows = []
    for cell in plan.cells:
        failed = records.get(cell.name, {}).get("status") == "failed"
        done = records.get(cell.name, {}).get("status") == "done"
        state = (
            ("due, failed before" if failed else "due") if cell.name in due else ("kept" if done else "not asked for")
        )
        values = {name: cell.parameters.get(name) for name in plan.varying}
        rows.append({"cell": cell.name, **values, "state": state, "seconds": costs[cell.name]})
    return pd.DataFrame(rows)


# --- what is due, in which order ----------------------------------------------------------------


def _due(plan: Plan, records: Mapping[str, Mapping[str, Any]], settings: Settings) -> list[Cell]:
    status = {cell.name: records.get(cell.name, {}).get("status") for cell in plan.cells}
    if settings.only == "failed":
        return [cell for cell in plan.cells if status[cell.name] == "failed"]
    return [cell for cell in plan.cells if settings.fresh or status[cell.name] != "done"]


class _Queue:
    """Cells that wait: one of each group first, its fellows when it has ended, then what is tried again."""

    def __init__(self, due: Sequence[Cell], ready: set[str]) -> None:
        self.leaders: deque[Cell] = deque()
        self.followers: deque[Cell] = deque()
        self.again: deque[tuple[float, Cell, bool]] = deque()
        self.begun = set(ready)  # groups of which a cell has ended
        led: set[str] = set()
        for cell in due:
            first = cell.group is None or (cell.group not in led and cell.group not in ready)
            (self.leaders if first else self.followers).append(cell)
            led.add(cell.group or "")

    def __bool__(self) -> bool:
        return bool(self.leaders or self.followers or self.again)

    def take(self, running: int) -> tuple[Cell, bool] | None:
        """A cell that can start now, and whether it must be alone."""
        if self.leaders:
            return self.leaders.popleft(), False
        ready = next((cell for cell in self.followers if cell.group in self.begun), None)
        if ready is not None:
            self.followers.remove(ready)
            return ready, False
        for one in self.again:
            when, cell, alone = one
            if time.monotonic() >= when and (not alone or running == 0):
                self.again.remove(one)
                return cell, alone
        return None

    def remove(self, cell: Cell) -> None:
        """Of a cell that runs already."""
        for waiting in (self.leaders, self.followers):
            if cell in waiting:
                waiting.remove(cell)

    def retry(self, cell: Cell, delay: float, alone: bool) -> None:
        self.again.append((time.monotonic() + delay, cell, alone))

    def ended(self, cell: Cell) -> None:
        if cell.group is not None:
            self.begun.add(cell.group)


class _Sweep:
    def __init__(
        self,
        plan: Plan,
        folder: Path,
        settings: Settings,
        source: tuple[Path, str],
        records: dict[str, Any],
        due: Sequence[Cell],
    ) -> None:
        self.plan, self.folder, self.settings, self.source = plan, folder, settings, source
        chosen = {cell.name for cell in due}
        self.records = {name: record for name, record in records.items() if name not in chosen}
        self.seen = {record["token"] for record in records.values()}
        ready = {
            cell.group for cell in plan.cells if self.records.get(cell.name, {}).get("status") == "done" and cell.group
        }
        self.due, self.queue = due, _Queue(due, ready)
        self.attempts: dict[str, int] = {}
        self.cells = {cell.name: cell for cell in plan.cells}
        self.begun: dict[str, float] = {}

    def go(self, factory: Callable[[Settings], Engine]) -> None:
        """Run all that is due; on an interruption, end what runs and leave the rest as it was."""
        engine = factory(self.settings)
        with Interruptions().noted() as interruptions:
            try:
                with _bar(len(self.due)) as bar:
                    self._loop(engine, bar, interruptions)
            finally:
                engine.stop()
                self.records = {**found(self.plan, self.folder), **self.records}

    def _loop(self, engine: Engine, bar: Any, interruptions: Interruptions) -> None:
        alone, reported = False, time.monotonic()
        self._resume(engine)
        while self.queue or self.begun:
            interruptions.check()
            while not alone and engine.room(len(self.begun)) and (next_one := self.queue.take(len(self.begun))):
                cell, alone = next_one
                self.begun[cell.name] = time.monotonic()
                engine.start(self._order(cell))
            for order, end in engine.ended(0.25):
                alone = False
                if self._settle(order, end):
                    bar.update()
            if time.monotonic() - reported > REPORT_SECONDS:
                with contextlib.suppress(StoreError):  # the disk may have room again in the end
                    write_report(self.plan, self.records, self.folder)
                reported = time.monotonic()

    def _resume(self, engine: Engine) -> None:
        """Wait for cells that an earlier sweep left at work, rather than begin them again."""
        orders = engine.resume(self.folder, self._wanted)
        if orders is None:
            return
        for order in orders:
            self.attempts[order["name"]], self.begun[order["name"]] = order["attempt"], time.monotonic()
            self.queue.remove(self.cells[order["name"]])
        for name, record in found(self.plan, self.folder).items():  # what ended since the records were read
            if record["status"] == "done" and record["token"] not in self.seen and name not in self.begun:
                self.records[name] = record
                self.queue.remove(self.cells[name])
                self.queue.ended(self.cells[name])

    def _wanted(self, order: Order) -> bool:
        """Whether an order of an earlier sweep is what this one would give."""
        cell = self.cells.get(order["name"])
        return cell is not None and cell.key == order["key"] and order["source_sha256"] == self.source[1]

    def _order(self, cell: Cell) -> Order:
        self.attempts[cell.name] = self.attempts.get(cell.name, 0) + 1
        return Order(
            name=cell.name,
            key=cell.key,
            parameters=dict(cell.inputs),
            folder=str(self.folder / "cells" / cell.name),
            source=str(self.source[0]),
            source_sha256=self.source[1],
            cwd=str(self.plan.notebook.parent),
            environment=_environment(self.settings),
            timeout=self.plan.timeout,
            attempt=self.attempts[cell.name],
            token=uuid.uuid4().hex,
        )

    def _settle(self, order: Order, end: End | None) -> bool:
        """Take in how an attempt ended; returns whether the cell is through."""
        cell, folder = self.cells[order["name"]], Path(order["folder"])
        seconds = time.monotonic() - self.begun.pop(cell.name)
        record = read_record(folder)
        if record is None or record["token"] != order["token"]:
            end = end or End("left no result")
            record = record_of(order, seconds, error=f"the process of the cell {end.words}", retry=end.passing)
            with contextlib.suppress(StoreError, OSError):
                write_record(folder, record)
        error = record["error"] or ""
        if record["status"] == "failed" and record["retry"] and order["attempt"] <= self.settings.retries:
            self.queue.retry(cell, delay=min(2.0 ** (order["attempt"] - 1), 30.0), alone=is_memory(error))
            return False
        self.records[cell.name] = record
        self.queue.ended(cell)
        return True


def _engine(settings: Settings) -> Callable[[Settings], Engine]:
    """Of the name in the settings; what it needs is looked for before anything is written."""
    if settings.engine == "local":
        from rlcircuits.sweeps.engines.local import Local

        return Local
    if settings.engine == "slurm":
        from rlcircuits.sweeps.engines import slurm

        slurm.require()
        return slurm.Slurm
    from rlcircuits.sweeps.engines import ray

    ray.require(settings.address)
    return ray.Ray


def _environment(settings: Settings) -> dict[str, str]:
    """What cells inherit of this process, with as many threads each as leave every cell its share of the cores."""
    found = {name: value for name, value in os.environ.items() if name in _VARIABLES or name.startswith("RLCIRCUITS_")}
    cores = os.cpu_count() or 1
    share = 1 if settings.engine == "slurm" else max(1, cores // (settings.processes or cores))
    found.setdefault("OMP_NUM_THREADS", str(settings.cpus or share))
    found.setdefault("TOKENIZERS_PARALLELISM", "false")
    return found


# --- the folder ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(folder: Path, settings: Settings) -> Iterator[None]:
    """Hold the lock of a sweep's folder; the operating system lets go of it when the process ends, however it ends."""
    from filelock import FileLock, Timeout

    holder = folder / ".sweep.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".sweep.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another sweep is at work in {str(folder)!r}{_holder(holder)}: wait for it, or give this one another --out"
        ) from None
    except OSError as error:
        raise StoreError(
            f"cannot write {str(folder)!r}: {error.strerror or error}; choose a folder that can be written"
        ) from None
    try:
        with written(holder) as temporary:
            temporary.write_text(
                json.dumps({"process": os.getpid(), "host": platform.node(), "engine": settings.engine}), "utf-8"
            )
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(file: Path) -> str:
    try:
        told = json.loads(file.read_text("utf-8"))
        return f" (process {told['process']} on {told['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _copied(notebook: Path, folder: Path) -> tuple[Path, str]:
    """A copy of the notebook, which every cell of this run uses, whatever is edited meanwhile; and its SHA-256."""
    content = notebook.read_bytes()
    copy, digest = folder / notebook.name, hashlib.sha256(content).hexdigest()
    with written(copy) as temporary:
        temporary.write_bytes(content)
    return copy, digest


def _bar(total: int) -> Any:
    from tqdm import tqdm

    layout = "{desc} {n_fmt}/{total_fmt} |{bar}| {elapsed} gone, about {remaining} left"
    interval = 0.1 if sys.stderr.isatty() else 15.0
    return tqdm(
        total=total,
        desc="cells",
        bar_format=layout,
        smoothing=0,
        mininterval=interval,
        disable=None if interval < 1 else False,
    )


def tell(outcome: Outcome) -> None:
    """Print the table of a finished sweep and where the rest is."""
    print(shown(outcome.plan, outcome.table))
    counts = ", ".join(f"{count} {status}" for status, count in outcome.table["status"].value_counts().items())
    print(f"\n{counts}\nwritten: {outcome.folder / 'summary.parquet'}\n         {outcome.folder / 'index.html'}")
