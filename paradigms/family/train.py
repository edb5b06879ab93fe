"""Train families: what is missing of them, a base first, then its descendants, two single-thread processes at a time.

1. A member's artefact is found by all that its training depends on: seed, member, its part of the recipe, the base's
   key, and the sources that train it (`paradigms.family.member.member_inputs`).
2. Members that exist are kept. The others are trained, each in a process of its own that puts its artefact in the store
   by itself: whatever ends this process, finished members stay.
3. Over several seeds no process waits for a whole family: a descendant can start once its base is there, the longest
   first, and each seed's base is trained along with the descendants of the seed before it.
4. A Ctrl-C ends the processes and says how to go on; a failed member lets the others finish. `make_family` then raises;
   `make_families` says so in its table. A divergence is kept in the store, so that it is not trained a second time.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Integral
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

from paradigms.family.member import CANNOT_BE_USED, DIVERGED, DIVERGENCES, member_inputs
from paradigms.family.recipe import CORE, DEFAULT, MEMBERS, Recipe
from paradigms.family.stories import PROMPT
from rlcircuits.errors import InputError, choose, require
from rlcircuits.interruption import Interruptions

if TYPE_CHECKING:
    import pandas as pd
    from tqdm import tqdm

    from rlcircuits.models import ModelPair
    from rlcircuits.storage import Store

METHODS = {"sft-more": "SFT", "rft": "RFT", "grpo": "GRPO", "ppo": "PPO", "dpo": "DPO", "online-dpo": "online DPO"}
_SECONDS_PER_UPDATE = {"sft": 0.1, "sft-more": 0.4, "rft": 0.3, "grpo": 0.3, "ppo": 2.5, "dpo": 0.3, "online-dpo": 0.35}
_REAL = 120.0
"""About how many times longer a step of a real base takes than one of `DEFAULT`."""
_GRACE = 3.0
#: seconds between lines of progress where they go to a log instead of a terminal
_LOG_INTERVAL = 15.0


def make_family(
    seed: int = 0,
    members: Sequence[str] = CORE,
    recipe: Recipe = DEFAULT,
    store: Store | str | os.PathLike[str] | None = None,
    processes: int = 2,
) -> dict[str, Path]:
    """Train what is missing of a family and return each member's folder.

    Args:
        seed: of problems, weights, demonstrations and samples.
        members: of `MEMBERS`, `CORE` unless given; the base is trained whenever one of its descendants is.
        recipe: the hyper-parameters.
        store: a `Store` or its folder; ``None`` is ``runs``.
        processes: how many members are trained at a time, one thread each.

    Returns:
        member -> its folder: a Hugging Face checkpoint with ``curves.parquet`` and ``member.json``.

    Raises:
        InputError: an unknown member, a seed or number of processes that is no whole number, or a training that
            diverged.
    """
    plan = _Plan([_whole("seed", seed, 0)], _checked(members), recipe, _store(store))
    failures = _train(plan, _at_once(recipe, processes), progress=True)
    for task in plan.tasks:
        if (seed, task.member) in failures:
            failure = failures[seed, task.member]
            raise InputError(failure.message) if failure.expected else RuntimeError(failure.message)
    return {m: plan.folder(seed, m) for m in plan.members}


def make_families(
    seeds: Sequence[int],
    members: Sequence[str] = MEMBERS,
    recipe: Recipe = DEFAULT,
    store: Store | str | os.PathLike[str] | None = None,
    processes: int = 2,
    progress: bool = True,
) -> pd.DataFrame:
    """Train what is missing of several families; whatever failed is a row that says why, and the others finish.

    Args:
        seeds: one family each.
        members, recipe, store, processes: as in `make_family`.
        progress: show one bar over all of it.

    Returns:
        One row per (seed, member), in the order given and of `MEMBERS`: ``seed``, ``member``, ``folder`` (a string, or
        None), ``status`` (``"done"``; ``"diverged: …"`` with the step, also where the base did; ``"failed: …"`` for all
        else, such as a process that was killed) and ``accuracy`` (greedy, on the test problems; NaN without a folder).
        Called again it trains what failed, but not what diverged.

    Raises:
        InputError: no seed, an unknown member, or a seed or number of processes that is no whole number.
    """
    import pandas as pd

    if isinstance(seeds, (int, str)) or not len(seeds):
        raise InputError(f"seeds is {seeds!r}: expected a list of whole numbers, such as [0, 1, 2]")
    distinct = list(dict.fromkeys(_whole("seed", seed, 0) for seed in seeds))
    plan = _Plan(distinct, _checked(members), recipe, _store(store))
    failures = _train(plan, _at_once(recipe, processes), progress)
    rows = []
    for seed in plan.seeds:
        for member in plan.members:
            failure = failures.get((seed, member))
            folder = None if failure else plan.folder(seed, member)
            accuracy = json.loads((folder / "member.json").read_text())["accuracy"] if folder else float("nan")
            status = f"{failure.kind}: {failure.message}" if failure else "done"
            rows.append((seed, member, None if failure else str(folder), status, accuracy))
    table = pd.DataFrame(rows, columns=["seed", "member", "folder", "status", "accuracy"])
    return table.assign(folder=pd.Series([row[2] for row in rows], dtype=object))


def family_pairs(paths: Mapping[str, str | os.PathLike[str]], recipe: Recipe = DEFAULT) -> dict[str, ModelPair]:
    """The family's pairs, the base against each descendant, by name: ``"family/ppo"``, ….

    Args:
        paths: member -> its folder, as `make_family` returns them; the base must be among them.
        recipe: only its longest answer matters here.
    """
    from rlcircuits.models import ModelPair

    if "sft" not in paths:
        raise InputError(
            f"the family given has {', '.join(paths) or 'no member'}: expected the base, sft, among its members"
        )
    return {
        f"family/{member}": ModelPair(
            name=f"family/{member}",
            base=os.fspath(paths["sft"]),
            tuned=os.fspath(path),
            method=METHODS[choose("member", member, METHODS)],
            prompt=PROMPT if recipe.start else "{question}",
            max_new_tokens=recipe.max_new_tokens,
            note=f"trained here: the family's base and its {member} descendant",
        )
        for member, path in paths.items()
        if member != "sft"
    }


def _at_once(recipe: Recipe, processes: int) -> int:
    """How many members are trained at a time: a real base takes all cores, unless there is an accelerator."""
    asked = _whole("processes", processes, 1)
    if not recipe.start:
        return asked
    import torch

    return asked if torch.cuda.is_available() else 1


def _whole(name: str, value: int, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise InputError(f"{name} is {value!r}: expected a whole number, at least {least}")
    return int(value)


def _checked(members: Sequence[str]) -> list[str]:
    if isinstance(members, str):
        raise InputError(f"members is {members!r}: expected a list of names, such as {[members]}")
    if not members:
        raise InputError(f"members is empty: expected some of {', '.join(MEMBERS)}")
    asked = {choose("member", member, MEMBERS) for member in members}
    return [member for member in MEMBERS if member in asked]


def _store(store: Store | str | os.PathLike[str] | None) -> Store:
    from rlcircuits.storage import Store

    return store if isinstance(store, Store) else Store("runs" if store is None else store)


@dataclass(frozen=True)
class _Task:
    """One member of one seed that is not there yet, and the time it takes, about, in seconds."""

    seed: int
    member: str
    seconds: float


@dataclass(frozen=True)
class _Failure:
    """Why a member is not there: its process's exit status and what it said."""

    code: int
    message: str

    @property
    def expected(self) -> bool:
        """Whether the message is meant for the user."""
        return self.code in (CANNOT_BE_USED, DIVERGED)

    @property
    def kind(self) -> str:
        return "diverged" if self.code == DIVERGED else "failed"


class _Plan:
    """Which members are wanted, where each is or will be, and which are missing: `tasks`, in the order to start
    them.
    """

    def __init__(self, seeds: list[int], members: list[str], recipe: Recipe, store: Store) -> None:
        self.seeds, self.members, self.recipe, self.store = seeds, members, recipe, store
        self.inputs: dict[tuple[int, str], dict[str, Any]] = {}
        for seed in seeds:
            base = self.inputs[seed, "sft"] = member_inputs("sft", seed, recipe)
            key = store.path("family", base).name
            self.inputs |= {(seed, m): member_inputs(m, seed, recipe, key) for m in members if m != "sft"}
        self.tasks = self._missing()

    def folder(self, seed: int, member: str) -> Path:
        return self.store.path("family", self.inputs[seed, member])

    def has(self, seed: int, member: str) -> bool:
        return self.store.has("family", self.inputs[seed, member])

    def divergences(self) -> dict[tuple[int, str], _Failure]:
        """What earlier trainings of the missing members said when they diverged, by (seed, member)."""
        found = {}
        for seed, member in ((task.seed, task.member) for task in self.tasks):
            inputs = self.inputs[seed, member]
            if self.store.has(DIVERGENCES, inputs):
                message = (self.store.path(DIVERGENCES, inputs) / "message.txt").read_text("utf-8")
                found[seed, member] = _Failure(DIVERGED, message)
        return found

    def order(self, task: _Task) -> dict[str, object]:
        """What the member's process is told."""
        return {
            "member": task.member,
            "seed": task.seed,
            "recipe": asdict(self.recipe),
            "store": str(Path(self.store.root).resolve()),
            "base": None if task.member == "sft" else str(self.folder(task.seed, "sft").resolve()),
        }

    def _missing(self) -> list[_Task]:
        def seconds(member: str) -> float:
            size = _REAL if self.recipe.start else self.recipe.shape.layers / DEFAULT.shape.layers
            return self.recipe.updates(member) * _SECONDS_PER_UPDATE[member] * size

        tasks = []
        for seed in self.seeds:
            missing = [m for m in self.members if not self.has(seed, m)]
            if missing and "sft" not in missing and not self.has(seed, "sft"):
                missing.append("sft")
            tasks += [_Task(seed, m, seconds(m)) for m in missing]
        turn = {seed: i for i, seed in enumerate(self.seeds)}
        return sorted(tasks, key=lambda t: (turn[t.seed] - (t.member == "sft"), t.member != "sft", -t.seconds))


@dataclass
class _Job:
    """One member's process: its progress and where its messages go."""

    task: _Task
    process: subprocess.Popen[str]
    messages: IO[str]
    done: float = 0.0
    ended: bool = False

    def failure(self) -> _Failure:
        """What the process, which failed, wrote to its standard error last."""
        self.messages.seek(0)
        lines = self.messages.read().strip().splitlines()
        code = self.process.returncode
        if code in (CANNOT_BE_USED, DIVERGED) and lines:
            return _Failure(code, lines[-1])
        said = "\n".join(lines[-12:])
        where = f"training {self.task.member} with seed {self.task.seed}"
        return _Failure(code, f"{where} ended with exit status {code}:\n{said}")


@dataclass
class _Crew:
    """The processes at work; used as a context, it leaves none behind."""

    events: queue.Queue[tuple[_Job, float | None]] = field(default_factory=queue.Queue)
    jobs: list[_Job] = field(default_factory=list)

    def start(self, task: _Task, order: dict[str, object]) -> None:
        messages = tempfile.TemporaryFile("w+")
        with Interruptions().noted() as wish:  # between its start and its place in `jobs` nobody would end a process
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "paradigms.family.member", json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                env=_environment(bool(order["recipe"]["start"])),
                start_new_session=True,
            )
            job = _Job(task, process, messages)
            self.jobs.append(job)
        wish.check()
        threading.Thread(target=self._listen, args=(job,), daemon=True).start()

    def _listen(self, job: _Job) -> None:
        for line in job.process.stdout:
            self.events.put((job, float(line)))
        job.process.wait()
        self.events.put((job, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for job in self.jobs:
            if job.process.poll() is None:
                job.process.terminate()
        for job in self.jobs:
            try:
                job.process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                job.process.kill()
                job.process.wait()
            job.messages.close()


def _train(plan: _Plan, processes: int, progress: bool) -> dict[tuple[int, str], _Failure]:
    """Train the plan's missing members; what failed, by (seed, member), a base's failure being its descendants',
    too.
    """
    from tqdm.auto import tqdm

    failures = plan.divergences()
    if not plan.tasks:
        return failures
    require("trl", "paradigms", "training the family")
    several = len(plan.seeds) > 1
    name = f"families, {len(plan.seeds)} seeds" if several else f"family, seed {plan.seeds[0]}"
    with tqdm(
        total=sum(task.seconds for task in plan.tasks),
        desc=name,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, about {remaining} left",
        smoothing=0,  # progress comes in jumps: estimate from the whole run, not from the last jump
        mininterval=0.1 if sys.stderr.isatty() else _LOG_INTERVAL,
        disable=not progress,
    ) as bar:
        try:
            _run(plan, processes, failures, bar, name)
        except KeyboardInterrupt:
            which = f"seeds {', '.join(map(str, plan.seeds))}" if several else f"seed {plan.seeds[0]}"
            tqdm.write(
                f"stopped while training the family of {which}: finished members are kept in {plan.store.root}; "
                "run the same again to go on with the others",
                file=sys.stderr,
            )
            raise
    for seed, member in ((t.seed, t.member) for t in plan.tasks):
        if (seed, member) not in failures and not plan.has(seed, member):
            raise InputError(
                f"trained {member} with seed {seed}, but not where expected in {plan.store.root}: "
                "the package's sources were changed meanwhile; run the same again"
            )
    return failures


def _run(plan: _Plan, processes: int, failures: dict[tuple[int, str], _Failure], bar: tqdm, name: str) -> None:
    """Start each task when its base is there and a process is free, and wait for all; notes what fails in
    `failures`.
    """
    waiting = list(plan.tasks)
    pending_bases = {t.seed for t in waiting if t.member == "sft" and (t.seed, "sft") not in failures}
    with _Crew() as crew:
        while waiting or any(not job.ended for job in crew.jobs):
            for task in list(waiting):
                failure = failures.get((task.seed, task.member)) or failures.get((task.seed, "sft"))
                if failure:
                    failures[task.seed, task.member] = failure
                    waiting.remove(task)
                    bar.update(min(task.seconds, bar.total - bar.n))
            ready = [t for t in waiting if t.member == "sft" or t.seed not in pending_bases]
            free = processes - sum(not job.ended for job in crew.jobs)
            for task in ready[:free]:
                waiting.remove(task)
                crew.start(task, plan.order(task))
            running = [job.task for job in crew.jobs if not job.ended]
            if not running:
                continue
            label = ", ".join(f"{t.seed} {t.member}" if len(plan.seeds) > 1 else t.member for t in running)
            bar.set_description_str(f"{name}: {label}", refresh=False)
            try:
                job, share = crew.events.get(timeout=1.0)
            except queue.Empty:
                if sys.stderr.isatty():  # a log is not filled with a line a second
                    bar.refresh()
                continue
            task = job.task
            if share is None:
                job.ended = True
                pending_bases -= {task.seed} if task.member == "sft" else set()
                if job.process.returncode:
                    failures[task.seed, task.member] = job.failure()
            share = 1.0 if share is None else min(share, 1.0)
            bar.update(min(task.seconds * max(0.0, share - job.done), bar.total - bar.n))
            job.done = max(job.done, share)


def _environment(real: bool) -> dict[str, str]:
    """No network for a member's process; for a small one also one thread and no accelerator: the same numbers on the
    same machine.
    """
    package = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        **({} if real else {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
