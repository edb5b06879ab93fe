"""The cells of a sweep as processes of this machine."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from rlcircuits.errors import InputError
from rlcircuits.interruption import uninterruptible_children
from rlcircuits.sweeps.engines.engine import End, Engine, Settings
from rlcircuits.sweeps.records import Order
from rlcircuits.sweeps.worker import end_tree, work


class Local(Engine):
    """A process for each cell, started from one that has papermill loaded already."""

    def __init__(self, settings: Settings) -> None:
        from multiprocessing import get_all_start_methods, get_context

        self.devices = _devices(int(settings.gpus)) if settings.gpus else None
        self.processes = settings.processes or max(1, (os.cpu_count() or 1) // (settings.cpus or 1))
        if self.devices is not None:
            self.processes = min(self.processes, len(self.devices))
        method = "forkserver" if "forkserver" in get_all_start_methods() else "spawn"
        self.context: Any = get_context(method)
        if method == "forkserver":
            from multiprocessing import forkserver

            self.context.set_forkserver_preload(
                ["papermill", "nbconvert.exporters", "psutil", "rlcircuits.sweeps.worker"]
            )
            with uninterruptible_children():
                forkserver.ensure_running()
        self.running: dict[Any, tuple[Order, Any, str | None]] = {}

    def room(self, running: int) -> bool:
        return running < self.processes

    def start(self, order: Order) -> None:
        device = self.devices.popleft() if self.devices is not None else None
        if device is not None:
            order = {**order, "environment": {**order["environment"], "CUDA_VISIBLE_DEVICES": device}}
        process = self.context.Process(target=work, args=(order,), name=order["name"], daemon=False)
        process.start()
        self.running[process.sentinel] = (order, process, device)

    def ended(self, seconds: float) -> list[tuple[Order, End | None]]:
        from multiprocessing.connection import wait

        if not self.running:
            time.sleep(min(seconds, 0.05))
            return []
        done = []
        for sentinel in wait(list(self.running), timeout=seconds):
            order, process, device = self.running.pop(sentinel)
            process.join()
            if device is not None and self.devices is not None:
                self.devices.append(device)
            done.append((order, End.with_code(process.exitcode)))
        return done

    def stop(self) -> None:
        for _, process, _ in self.running.values():
            end_tree(process.pid)
        for _, process, _ in self.running.values():
            process.join(5)
        self.running.clear()


def _devices(per_cell: int) -> deque[str]:
    """The GPUs of this machine in parts of so many, as values of ``CUDA_VISIBLE_DEVICES``."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        import torch

        names = [str(i) for i in range(torch.cuda.device_count())]
    else:
        names = [name.strip() for name in visible.split(",") if name.strip()]
    parts = [",".join(names[i : i + per_cell]) for i in range(0, len(names) - per_cell + 1, per_cell)]
    if not parts:
        raise InputError(
            f"--gpus-per-cell {per_cell}: only {len(names)} GPUs can be seen here; leave it out to run on the CPU"
        )
    return deque(parts)
