"""What a sweep asks of whatever runs its cells, and how it may be set up."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from rlcircuits.errors import InputError, choose
from rlcircuits.sweeps.records import Order
from rlcircuits.sweeps.worker import CANNOT_WRITE, LOG

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class Settings:
    """How a sweep runs; what it computes is the sweep file's.

    Attributes:
        engine: one of `ENGINES`.
        processes: cells at a time; by default a process per core here, and on Ray as many as its resources allow.
        address: of a Ray cluster; one on this machine when None.
        gpus: per cell.
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

    def resume(self, folder: Path, wanted: Callable[[Order], bool]) -> list[Order]:
        """Orders of an earlier sweep in this folder that run still, once, before the first start; ends those that are not `wanted`."""
        return []

    def room(self, running: int) -> bool:
        """Whether another order can start beside so many."""

    def start(self, order: Order) -> None:
        """Begin an order."""

    def ended(self, seconds: float) -> list[tuple[Order, End | None]]:
        """Wait so long for orders to end: each with what is known of its end, None for a regular one."""

    def stop(self) -> None:
        """End all that runs, and the engine; nothing of it is left."""
