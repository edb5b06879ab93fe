"""What a sweep asks of whatever runs its cells, and how it may be set up."""

from __future__ import annotations

import re
import reprlib
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from rlcircuits.errors import InputError, choose
from rlcircuits.sweeps.records import Order
from rlcircuits.sweeps.worker import CANNOT_WRITE, LOG

ENGINES = ("local", "ray", "slurm")
OURS = ("array", "clusters", "job-name", "output", "parsable", "requeue", "wait", "wrap")  # of sbatch's options


@dataclass(frozen=True)
class Settings:
    """How a sweep runs; what it computes is the sweep file's.

    Attributes:
        engine: one of `ENGINES`.
        processes: cells at a time; by default as many as there are cores for here, as many as its resources allow on
            Ray, and 100 jobs on Slurm.
        address: of a Ray cluster; one on this machine when None.
        gpus: per cell.
        cpus: per cell; by default an equal share of this machine's, and on a cluster one.
        memory, time: per cell, as Slurm's ``--mem`` and ``--time`` take them.
        sbatch: further options of Slurm, each ``--name`` or ``--name=value``.
        retries: further attempts where a fault may pass.
        fresh: run finished cells, too.
        only: ``"failed"`` runs only the cells that failed.

    Raises:
        InputError: a setting out of range, or two that exclude each other.
    """

    engine: str = "local"
    processes: int | None = None
    address: str | None = None
    gpus: float = 0.0
    cpus: int | None = None
    memory: str | None = None
    time: str | None = None
    sbatch: tuple[str, ...] = ()
    retries: int = 2
    fresh: bool = False
    only: str | None = None

    def __post_init__(self) -> None:
        choose("engine", self.engine, ENGINES)
        if self.only is not None:
            choose("choice of --only", self.only, ("failed",))
        if self.only is not None and self.fresh:
            raise InputError(
                "--only failed and --fresh exclude each other: the first keeps what finished, the second runs it again"
            )
        if self.address is not None and self.engine != "ray":
            raise InputError(f"--address {self.address} is of a Ray cluster: expected --engine ray with it")
        for option, value in (("memory-per-cell", self.memory), ("time-per-cell", self.time), ("sbatch", self.sbatch)):
            if value and self.engine != "slurm":
                raise InputError(f"--{option} {reprlib.repr(value)} is of Slurm: expected --engine slurm with it")
        for word in self.sbatch:
            if not (name := re.fullmatch(r"--([a-z][a-z-]*)(=.*)?", word)) or name[1] in OURS:
                raise InputError(
                    f"--sbatch {reprlib.repr(word)}: expected options such as --partition=gpu; the sweep itself sets "
                    f"{', '.join(OURS)}"
                )
        if self.engine != "ray" and self.gpus != int(self.gpus):
            raise InputError(
                f"--gpus-per-cell {self.gpus:g}: expected a whole number here; only Ray shares a GPU between cells"
            )


class End(NamedTuple):
    """What is known of a cell's process that did not end as it should.

    Attributes:
        words: what happened to it.
        passing: whether another attempt may go better.
    """

    words: str
    passing: bool = True

    @classmethod
    def with_code(cls, code: int | None) -> End | None:
        """Of a process with this exit code, negative for a signal; None for a regular end.

        >>> End.with_code(0), End.with_code(-15)
        (None, End(words='was ended by signal 15', passing=True))
        """
        if code == 0:
            return None
        if code == CANNOT_WRITE:
            words = (
                "ended, as its result could not be written: is the disk full, and the folder there on every machine?"
            )
            return cls(words, passing=False)
        if code is not None and code < 0:
            hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
            return cls(f"was ended by signal {-code}{hint}")
        return cls(f"ended with exit code {code}, see {LOG} in its folder")


class Engine(Protocol):
    """Runs orders somewhere."""

    def resume(self, folder: Path, wanted: Callable[[Order], bool]) -> list[Order] | None:
        """Take over, once and before the first start, what an earlier sweep in this folder began and its end did not
        end.

        Args:
            folder: of the sweep.
            wanted: whether an order is to go on; others are ended.

        Returns:
            The orders that go on; None where cells end with their sweep.
        """
        return None

    def room(self, running: int) -> bool:
        """Whether another order can start beside so many."""

    def start(self, order: Order) -> None:
        """Begin an order."""

    def ended(self, seconds: float) -> list[tuple[Order, End | None]]:
        """Wait so long for orders to end: each with what is known of its end, None for a regular one."""

    def stop(self) -> None:
        """End all that runs, and the engine; nothing of it is left."""
