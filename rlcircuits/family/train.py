"""Train a family: what is missing of it, the base first, then its descendants, two single-thread processes at a time.

1. A member's artefact is found by all that its training depends on: seed, member, its part of the recipe, the base's key,
   and the sources that train it (`rlcircuits.family.member.member_inputs`).
2. Members that exist are kept. The others are trained, each in a process of its own that puts its artefact in the store
   by itself: whatever ends this process, finished members stay.
3. A Ctrl-C ends the processes and says how to go on; a failed member lets the others finish and is then an error.
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
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from rlcircuits.errors import InputError, choose
from rlcircuits.family.member import CANNOT_BE_USED, member_inputs
from rlcircuits.family.recipe import DEFAULT, MEMBERS, Recipe

if TYPE_CHECKING:
    from tqdm import tqdm

    from rlcircuits.models import ModelPair
    from rlcircuits.store import Store

METHODS = {"sft-more": "SFT", "grpo": "GRPO", "ppo": "PPO", "dpo": "DPO"}
_SECONDS_PER_UPDATE = {"sft": 0.07, "sft-more": 0.07, "grpo": 0.35, "ppo": 1.2, "dpo": 0.3}
_GRACE = 3.0
#: seconds between lines of progress where they go to a log instead of a terminal
_LOG_INTERVAL = 15.0


def make_family(
    seed: int = 0,
    members: Sequence[str] = MEMBERS,
    recipe: Recipe = DEFAULT,
    store: Store | str | os.PathLike[str] | None = None,
    processes: int = 2,
) -> dict[str, Path]:
    """Train what is missing of a family and return each member's folder.

    Args:
        seed: of problems, weights, demonstrations and samples.
        members: of `MEMBERS`; the base is trained whenever one of its descendants is.
        recipe: the hyper-parameters.
        store: a `Store` or its folder; ``None`` is ``runs``.
        processes: how many members are trained at a time, one thread each.

    Returns:
        member -> its folder: a Hugging Face checkpoint with ``curves.parquet`` and ``member.json``.

    Raises:
        InputError: an unknown member, a seed or number of processes that is no whole number, or a training that diverged.
    """
    wanted = _checked(seed, members, processes)
    store = _store(store)
    base_inputs = member_inputs("sft", seed, recipe)
    base = store.path("family", base_inputs)
    inputs = {m: base_inputs if m == "sft" else member_inputs(m, seed, recipe, base.name) for m in wanted}
    missing = [m for m in wanted if not store.has("family", inputs[m])]
    if missing and "sft" not in missing and not store.has("family", base_inputs):
        missing.insert(0, "sft")
    if missing:
        _train(missing, seed, recipe, store, base, processes)
        absent = [m for m in missing if m in inputs and not store.has("family", inputs[m])]
        if absent:
            raise InputError(
                f"trained {', '.join(absent)}, but not where expected in {store.root}: "
                "the package's sources were changed meanwhile; run the same again"
            )
    return {m: store.path("family", inputs[m]) for m in wanted}


def family_pairs(
    paths: Mapping[str, str | os.PathLike[str]], recipe: Recipe = DEFAULT
) -> dict[str, ModelPair]:
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
            max_new_tokens=recipe.max_new_tokens,
            note=f"trained here: the family's base and its {member} descendant",
        )
        for member, path in paths.items()
        if member != "sft"
    }


def _checked(seed: int, members: Sequence[str], processes: int) -> list[str]:
    for name, value, least in (("seed", seed, 0), ("processes", processes, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} is {value!r}: expected a whole number, at least {least}")
    if isinstance(members, str):
        raise InputError(f"members is {members!r}: expected a list of names, such as {[members]}")
    if not members:
        raise InputError(f"members is empty: expected some of {', '.join(MEMBERS)}")
    asked = {choose("member", member, MEMBERS) for member in members}
    return [member for member in MEMBERS if member in asked]


def _store(store: Store | str | os.PathLike[str] | None) -> Store:
    from rlcircuits.store import Store

    return store if isinstance(store, Store) else Store("runs" if store is None else store)


@dataclass
class _Job:
    """One member's process: its progress and where its messages go."""

    member: str
    process: subprocess.Popen[str]
    messages: IO[str]
    weight: float
    done: float = 0.0

    def error(self) -> str:
        """The last of what the process wrote to its standard error."""
        self.messages.seek(0)
        return "\n".join(self.messages.read().strip().splitlines()[-12:])


@dataclass
class _Crew:
    """The processes at work; used as a context, it leaves none behind."""

    events: queue.Queue[tuple[_Job, float | None]] = field(default_factory=queue.Queue)
    jobs: list[_Job] = field(default_factory=list)

    def start(self, member: str, order: dict[str, object], weight: float) -> None:
        messages = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in __exit__)
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "rlcircuits.family.member", json.dumps(order)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
            env=_environment(),
            start_new_session=True,
        )
        job = _Job(member, process, messages, weight)
        self.jobs.append(job)
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


def _train(missing: list[str], seed: int, recipe: Recipe, store: Store, base: Path, processes: int) -> None:
    """Train the missing members, the base alone and first; see the module's steps 2 and 3."""
    from tqdm.auto import tqdm

    stages = [[m for m in missing if m == "sft"], _longest_first([m for m in missing if m != "sft"], recipe)]
    weights = {m: recipe.updates(m) * _SECONDS_PER_UPDATE[m] for m in missing}
    weights = {m: w if m == "sft" else w / processes for m, w in weights.items()}
    orders = {
        m: {
            "member": m,
            "seed": seed,
            "recipe": asdict(recipe),
            "store": str(Path(store.root).resolve()),
            "base": None if m == "sft" else str(base.resolve()),
        }
        for m in missing
    }
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, about {remaining} left"
    with tqdm(
        total=sum(weights.values()),
        desc=f"family, seed {seed}",
        bar_format=layout,
        smoothing=0,  # progress comes in jumps: estimate from the whole run, not from the last jump
        mininterval=0.1 if sys.stderr.isatty() else _LOG_INTERVAL,
    ) as bar:
        try:
            for stage in filter(None, stages):
                _run([(m, orders[m], weights[m]) for m in stage], processes, seed, bar)
        except KeyboardInterrupt:
            bar.write(
                f"stopped while training the family of seed {seed}: finished members are kept in {store.root}; "
                "run the same again to go on with the others"
            )
            raise


def _longest_first(members: list[str], recipe: Recipe) -> list[str]:
    return sorted(members, key=lambda m: -recipe.updates(m) * _SECONDS_PER_UPDATE[m])


def _run(orders: list[tuple[str, dict[str, object], float]], processes: int, seed: int, bar: tqdm) -> None:
    """Run one process an order, `processes` at a time; one that fails lets the others finish.

    Raises:
        InputError: a process ended with a message for the user.
        RuntimeError: a process ended otherwise than by finishing.
    """
    waiting, failed = list(orders), []
    with _Crew() as crew:
        while waiting or any(job.process.poll() is None for job in crew.jobs) or not crew.events.empty():
            while waiting and sum(job.process.poll() is None for job in crew.jobs) < processes:
                crew.start(*waiting.pop(0))
            running = ", ".join(job.member for job in crew.jobs if job.process.poll() is None)
            bar.set_description_str(f"family, seed {seed}: {running or '…'}", refresh=False)
            try:
                job, share = crew.events.get(timeout=1.0)
            except queue.Empty:
                if sys.stderr.isatty():  # a log is not filled with a line a second
                    bar.refresh()
                continue
            if share is None and job.process.returncode:
                failed.append((job.member, job.process.returncode, job.error()))
            share = 1.0 if share is None else min(share, 1.0)
            bar.update(min(job.weight * max(0.0, share - job.done), bar.total - bar.n))
            job.done = max(job.done, share)
    for member, code, message in failed:
        if code == CANNOT_BE_USED:
            raise InputError(message.splitlines()[-1])
        raise RuntimeError(f"training {member} with seed {seed} ended with exit status {code}:\n{message}")


def _environment() -> dict[str, str]:
    """One thread, no accelerator and no network for a member's process: the same numbers on the same machine."""
    package = str(Path(__file__).resolve().parents[2])
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH")))),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
    }
