"""The cells of a sweep as tasks of a Ray cluster.

1. Without an address, a Ray of this machine alone is started, bound to 127.0.0.1, and ended with the sweep.
2. Each cell is one task that asks for CPUs and, perhaps, GPUs. The task starts the cell's own process on its node, as
   the local engine does, and waits for it; the process ends when its task's worker does.
3. Results travel through the sweep's folder, which must lie on storage that all nodes share, under the same path. A
   task that ended well but left no record there says so.
4. Ray itself retries nothing: a lost worker or node is reported to the sweep, which decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any

from rlcircuits.errors import InputError
from rlcircuits.sweeps.engines.engine import End, Engine, Settings
from rlcircuits.sweeps.records import Order
from rlcircuits.sweeps.worker import end_tree

STORE_BYTES = 100 * 2**20  # of Ray's object store: orders and words are all that passes through it


def require(address: str | None = None) -> None:
    """Make sure that Ray is installed, before it is first imported set for `address`.

    Raises:
        InputError: it is not installed; with the way to install it.
    """
    try:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault(
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"
        )  # a task without GPUs leaves CUDA_VISIBLE_DEVICES alone
        if address is None or address.rpartition(":")[0] in ("127.0.0.1", "localhost"):
            # Ray replaces 127.0.0.1 by the machine's outer address, unless its switch for several machines is off.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray  # noqa: F401
    except ImportError:
        raise InputError(
            "--engine ray needs Ray, which is not installed: pip install 'rlcircuits[cluster]', or use --engine local"
        ) from None


class Ray(Engine):
    """Tasks on a cluster."""

    def __init__(self, settings: Settings) -> None:
        require(settings.address)
        import ray

        self.ray, self.settings = ray, settings
        self.mine = not ray.is_initialized()
        if self.mine:
            _connect(settings)
        total = ray.cluster_resources()
        if settings.gpus and total.get("GPU", 0) < settings.gpus:
            self.stop()
            raise InputError(f"--gpus-per-cell {settings.gpus:g}: this cluster has {total.get('GPU', 0):g} GPUs in all")
        self.task = ray.remote(num_cpus=settings.cpus or 1, num_gpus=settings.gpus, max_retries=0, max_calls=1)(_cell)
        self.running: dict[Any, Order] = {}

    def room(self, running: int) -> bool:
        """Ray queues what does not fit now; no more than it could soon run are handed over."""
        if self.settings.processes is not None:
            return running < self.settings.processes
        return running < 2 * max(1.0, self.ray.cluster_resources().get("CPU", 1.0)) + 2

    def start(self, order: Order) -> None:
        reference = self.task.options(name=order["name"]).remote(order)
        self.running[reference] = order

    def ended(self, seconds: float) -> list[tuple[Order, End | None]]:
        if not self.running:
            time.sleep(min(seconds, 0.05))
            return []
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [(self.running.pop(reference), self._end(reference)) for reference in ready]

    def _end(self, reference: Any) -> End | None:
        from ray import exceptions

        try:
            return End.with_code(self.ray.get(reference))
        except exceptions.OutOfMemoryError:
            return End("was ended by Ray, as memory ran out")
        except (exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.RaySystemError) as error:
            return End(f"was lost with its worker ({type(error).__name__})")
        except exceptions.RayError as error:
            return End(f"could not be run by Ray ({' '.join(str(error).split())[-300:]})")

    def stop(self) -> None:
        for reference in getattr(self, "running", ()):
            with contextlib.suppress(Exception):
                self.ray.cancel(reference, force=True)
        if self.mine:
            self.ray.shutdown()


def _connect(settings: Settings) -> None:
    import ray

    common: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "error",
        "configure_logging": False,
    }
    try:
        if settings.address is not None:
            ray.init(address=settings.address, **{k: v for k, v in common.items() if k != "include_dashboard"})
        else:
            ray.init(
                address="local",  # one of its own, even where another runs
                num_cpus=settings.processes,
                object_store_memory=STORE_BYTES,
                _node_ip_address="127.0.0.1",
                **common,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        where = f"the Ray cluster at {settings.address!r}" if settings.address else "a Ray of this machine"
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{where} cannot be reached ({reason}): is it running (`ray start --head`), and the address right?"
        ) from None


def _cell(order: Order) -> int:
    """On a node: run the cell in a process of its own; returns its exit code."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rlcircuits.sweeps.worker"],
        stdin=subprocess.PIPE,
        env={**os.environ, **order["environment"]},
    )
    try:
        process.communicate(json.dumps(order).encode())
        return process.returncode
    finally:
        if process.poll() is None:
            end_tree(process.pid)
