"""The cells of a sweep as jobs of Slurm, one job a cell.

1. `sbatch` is given a script that starts the cell's own process with its order; the order also lies in the cell's
   folder. What comes out travels through that folder, which must lie on storage that all nodes share, under the same
   path.
2. A job's name holds the cell, the sweep's folder and the attempt. So the jobs of a sweep that was killed are found
   again: what is still wanted is waited for, the rest is cancelled.
3. A cell is through when its record is there. `squeue`, which needs no accounting, tells of the jobs that end without
   one.
4. Slurm itself retries nothing (``--no-requeue``): a lost node is reported to the sweep, which decides.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from rlcircuits.errors import InputError
from rlcircuits.storage import written
from rlcircuits.sweeps.engines.engine import End, Engine, Settings
from rlcircuits.sweeps.records import RECORD, Order
from rlcircuits.sweeps.worker import LOG

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
ORDER = "order.json"
MOST_JOBS = 100  # queued or running at a time, unless --processes says otherwise
ASK_SECONDS = 5.0  # between two calls of squeue
LOOK_SECONDS = 1.0  # between two looks for records
SETTLE_SECONDS = 30.0  # after which a result written on another machine must be seen on this one
_OVER = {
    "COMPLETED": End("left no result, though its job ended well: is its folder on storage that all nodes share?"),
    "FAILED": End(f"ended, see {LOG} in its folder"),
    "NODE_FAIL": End("was lost with its node"),
    "BOOT_FAIL": End("was lost with its node, which did not boot"),
    "PREEMPTED": End("was preempted by another job"),
    "REVOKED": End("was taken back by Slurm"),
    "CANCELLED": End("was cancelled", passing=False),
    "TIMEOUT": End("was ended by Slurm at its time limit: --time-per-cell gives it longer", passing=False),
    "DEADLINE": End("was ended by Slurm at its deadline", passing=False),
    "OUT_OF_MEMORY": End("needed more memory than its job had: --memory-per-cell gives it more", passing=False),
}


class Job(NamedTuple):
    """A job as `squeue` tells of it."""

    number: str
    state: str

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.state in _OVER


def require() -> None:
    """Make sure that Slurm's commands are there.

    Raises:
        InputError: one is missing.
    """
    for command in COMMANDS:
        if shutil.which(command) is None:
            raise InputError(
                f"--engine slurm needs Slurm, and there is no {command} here: start it where jobs are submitted, "
                "or use --engine local"
            )


class Slurm(Engine):
    """Jobs of a cluster, by their names."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.mark = settings, ""
        self.running: dict[str, Order] = {}
        self.refused: set[str] = set()  # those that wait for room in Slurm's queue
        self.over: dict[str, float] = {}  # since when a job has been over without a record
        self.asked = self.looked = -math.inf
        self.silent = False

    def resume(self, folder: Path, wanted: Callable[[Order], bool]) -> list[Order]:
        """See `Engine.resume`; raises InputError when Slurm does not answer."""
        self.mark = hashlib.sha256(os.path.realpath(folder).encode()).hexdigest()[:8]
        found, unwanted = _jobs(), []
        if isinstance(found, str):
            raise InputError(f"Slurm does not answer ({found}): is it running, and this machine one of its own?")
        for name, job in found.items():
            parts = name.rsplit(".", 2)
            if len(parts) != 3 or parts[1] != self.mark or job.over:
                continue
            order = _order(folder / "cells" / parts[0], parts[2])
            if order is None or not wanted(order):
                unwanted.append(job)
            elif not _through(order):
                self.running[name] = order
        _cancel(unwanted)
        return list(self.running.values())

    def room(self, running: int) -> bool:
        return not self.refused and running < (self.settings.processes or MOST_JOBS)

    def start(self, order: Order) -> None:
        folder = Path(order["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        with written(folder / ORDER) as temporary:
            temporary.write_text(json.dumps(order), "utf-8")
        self._submit(f"{order['name']}.{self.mark}.{order['token'][:8]}", order)

    def ended(self, seconds: float) -> list[tuple[Order, End | None]]:
        time.sleep(seconds if self.running else min(seconds, 0.05))
        now = time.monotonic()
        if now - self.looked < LOOK_SECONDS:
            return []
        self.looked = now
        ends: dict[str, End | None] = {name: None for name, order in self.running.items() if _through(order)}
        if now - self.asked >= ASK_SECONDS:
            self.asked = now
            ends |= self._lost(self.running.keys() - ends.keys())
        return [(self.running.pop(name), end) for name, end in ends.items()]

    def stop(self) -> None:
        """Cancel what runs; after a submission that was cut off, too, as jobs are looked for by name."""
        deadline = time.monotonic() + SETTLE_SECONDS
        cancelled = False
        while self.running and time.monotonic() < deadline:
            found = _jobs()
            if isinstance(found, str):
                print(f"Slurm does not answer ({found}): jobs may go on; the same command finds them", file=sys.stderr)
                return
            there = [job for name, job in found.items() if name in self.running and not job.over]
            if not there:
                self.running.clear()
            elif not cancelled:
                _cancel(there)
                cancelled = True
            time.sleep(0.2)

    def _submit(self, name: str, order: Order) -> None:
        """Hand a job over; while others of this sweep run, one that Slurm refuses waits until it has room again."""
        others = self.running.keys() - {name} - self.refused
        self.running[name] = order
        _, refusal = _call(_command(name, order, self.settings), _script(order))
        if refusal is not None and not others:
            raise InputError(f"Slurm refuses the job of a cell: {refusal}")
        (self.refused.discard if refusal is None else self.refused.add)(name)

    def _lost(self, names: Collection[str]) -> dict[str, End | None]:
        """Of the jobs that are over without a record, how they ended; what was refused is handed over again."""
        found = _jobs()
        if isinstance(found, str):
            if not self.silent:
                print(f"Slurm does not answer ({found}); waiting for it", file=sys.stderr)
            self.silent = True
            return {}
        self.silent, now = False, time.monotonic()
        ends: dict[str, End | None] = {}
        for name in names:
            job = found.get(name)
            if job is not None and not job.over:
                self.refused.discard(name)  # it was taken, though its answer was lost
            elif name in self.refused:
                self._submit(name, self.running[name])
            elif _through(self.running[name]):
                ends[name] = None
            elif job is not None and job.state != "COMPLETED":
                ends[name] = _end(job)
            elif now - self.over.setdefault(name, now) > SETTLE_SECONDS:  # a result may come from another machine
                ends[name] = _OVER["COMPLETED"] if job else End("is no longer known to Slurm")
        return ends


def _command(name: str, order: Order, settings: Settings) -> list[str]:
    """The call of `sbatch`; what the user adds comes last and goes before."""
    log = str(Path(order["folder"]) / LOG).replace("%", "%%")
    options = ["--parsable", "--no-requeue", f"--job-name={name}", f"--output={log}", "--open-mode=append"]
    options += [f"--cpus-per-task={settings.cpus or 1}"]
    limit = settings.time
    if limit is None and order["timeout"] is not None:  # the cell's own clock goes off first
        limit = str(math.ceil(order["timeout"] / 60) + 2)
    options += [f"--time={limit}"] if limit is not None else []
    options += [f"--mem={settings.memory}"] if settings.memory is not None else []
    options += [f"--gres=gpu:{settings.gpus:.0f}"] if settings.gpus else []
    return ["sbatch", *options, *settings.sbatch]


def _script(order: Order) -> str:
    """What the job runs; an order as JSON is one line of ASCII."""
    variables = [f"export {name}={shlex.quote(value)}" for name, value in order["environment"].items()]
    worker = f"exec {shlex.quote(sys.executable)} -m rlcircuits.sweeps.worker <<'ORDER'"
    return "\n".join(["#!/bin/bash", *variables, worker, json.dumps(order), "ORDER", ""])


def _order(folder: Path, token: str) -> Order | None:
    """The last order that was given for a cell, if it is that of the token."""
    try:
        order: Order = json.loads((folder / ORDER).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return order if order["token"].startswith(token) else None


def _through(order: Order) -> bool:
    """Whether the record of an attempt is there; whether it is sound, the sweep sees."""
    try:
        return json.loads((Path(order["folder"]) / RECORD).read_text("utf-8"))["token"] == order["token"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _end(job: Job) -> End | None:
    """How a job ended; of one that failed `scontrol` knows the exit code."""
    if job.state == "FAILED":
        told, _ = _call(["scontrol", "show", "job", job.number, "--oneliner"])
        if code := re.search(r"\bExitCode=(\d+):(\d+)", told):
            return End.with_code(-int(code[2]) or int(code[1])) or _OVER["FAILED"]
    return _OVER[job.state]


def _jobs() -> dict[str, Job] | str:
    """This user's jobs by name, those that ended a while ago, too; or why Slurm does not tell."""
    told, refusal = _call(["squeue", "--noheader", "--states=all", f"--user={os.getuid()}", "--format=%i|%T|%j"])
    if refusal is not None:
        return refusal
    rows = [line.split("|", 2) for line in told.splitlines()]
    jobs = [(name, Job(number, state)) for number, state, name in rows]
    return dict(sorted(jobs, key=lambda one: not one[1].over))  # of one name, the one that is not over


def _cancel(jobs: Collection[Job]) -> None:
    if jobs:
        _call(["scancel", *(job.number for job in jobs)])


def _call(command: list[str], text: str = "") -> tuple[str, str | None]:
    """What a command of Slurm tells, and why it refused, if it did.

    It knows nothing of a job within which the sweep itself may run, and hears nothing of a Ctrl-C.
    """
    outside = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k == "SLURM_CONF"}
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, env=outside, start_new_session=True, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", " ".join(str(error).split())[:300]
    said = "; ".join(line.partition("error: ")[2] or line for line in done.stderr.splitlines() if line.strip())
    return done.stdout, None if done.returncode == 0 else said[:300] or f"{command[0]} ended with {done.returncode}"
