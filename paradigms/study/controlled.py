"""The controlled study: one base, every paradigm, several seeds, nulls; from training to the tables of
``results/study``.

1. **Train** the families of both bases (`paradigms.family.make_families`), and GRPO at other sampling temperatures.
2. **Measure**: a list of tasks (`paradigms.study.tasks`, `paradigms.study.work`), each an artefact of the store, by
   `processes` processes of one thread each. What was measured before is found; a study that was killed goes on and ends
   with the same tables.
3. **Tables** (`paradigms.study.tables`): members, curves, effects, values, exactness, exact_effects, dynamics, lags,
   cause, sensitivity, verdicts, as parquet, and ``manifest.json``, written last.
4. `load` reads them back: nothing else is needed to draw and to judge.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError
from rlcircuits.interruption import uninterruptible_children

if TYPE_CHECKING:
    import pandas as pd

    from paradigms.study.tasks import Settings, Task
    from rlcircuits.storage import Store

TABLES = (
    "members", "curves", "effects", "values", "exactness", "exact_effects", "dynamics", "lags", "cause",
    "sensitivity", "verdicts",
)  # fmt: skip
SEEDS, SECOND_SEEDS = tuple(range(8)), tuple(range(4))


@dataclass(frozen=True, eq=False)
class Results:
    """A study's tables; see `paradigms.study.tables` for their columns.

    Attributes:
        tables: name -> table, of `TABLES`; empty ones have no rows.
        manifest: settings, seeds, members, versions, date, seconds and failures.
    """

    tables: Mapping[str, pd.DataFrame]
    manifest: Mapping[str, Any]

    def __getattr__(self, name: str) -> pd.DataFrame:
        if name in TABLES:
            return self.tables[name]
        raise AttributeError(f"a study has no table {name!r}: expected one of {', '.join(TABLES)}")


def run(
    seeds: Sequence[int] = SEEDS,
    second_seeds: Sequence[int] = SECOND_SEEDS,
    members: Sequence[str] | None = None,
    out: str | os.PathLike[str] = "results/study",
    store: Store | str | os.PathLike[str] = "runs",
    processes: int = 2,
    settings: Settings | None = None,
) -> Results:
    """Train what is missing, measure what is missing, and write the tables.

    Args:
        seeds, second_seeds: of the first base and of the second; none leaves a base out.
        members: of `paradigms.family.MEMBERS`; all by default. The base is always among them.
        out: folder of the tables.
        store: where what was trained and measured is kept.
        processes: how many at a time.
        settings: what is measured.

    Raises:
        InputError: no seeds, an unknown member, or no family of which anything could be trained.
    """
    import pandas as pd

    from paradigms.family import BASES, MEMBERS, make_families
    from paradigms.study.tasks import Settings

    settings = settings or Settings()
    members = MEMBERS if members is None else tuple(members)
    per_base = {name: list(chosen) for name, chosen in zip(BASES, (seeds, second_seeds)) if len(chosen)}
    if not per_base:
        raise InputError("no seeds are given: expected at least one, such as --seeds 0")
    trained = []
    for name, chosen in per_base.items():
        wanted = tuple(dict.fromkeys(("sft", *members)))
        trained.append(make_families(chosen, wanted, BASES[name], store, processes).assign(base=name))
        if name == next(iter(per_base)) and "grpo" in members:
            for temperature in settings.temperatures:
                recipe = replace(BASES[name], grpo=replace(BASES[name].grpo, temperature=temperature))
                table = make_families(chosen[: settings.cause_seeds], ("sft", "grpo"), recipe, store, processes)
                table = table[table["member"] == "grpo"].assign(base=name, member=f"grpo, temperature {temperature:g}")
                trained.append(table)
    whole = pd.concat(trained, ignore_index=True)
    if not whole["folder"].notna().any():
        raise InputError(f"no model could be trained: {whole['status'].iloc[0]}")
    return analyse(whole, out, store, processes, settings)


def analyse(
    trained: pd.DataFrame,
    out: str | os.PathLike[str],
    store: Store | str | os.PathLike[str] = "runs",
    processes: int = 2,
    settings: Settings | None = None,
) -> Results:
    """Steps 2 and 3, for models that are trained.

    Args:
        trained: columns ``base``, ``seed``, ``member``, ``folder`` (None where there is none), ``status``.
    """
    from paradigms.study import tables as make
    from paradigms.study.tasks import Settings, tasks_of
    from paradigms.study.work import perform
    from rlcircuits.storage import Store

    started = time.monotonic()
    settings = settings or Settings()
    root = str(getattr(store, "root", store))
    tasks = tasks_of(trained, settings)
    with _workers(processes) as pool:
        weights = [task.seconds for task in tasks]
        folders = _in_parallel(
            pool, perform, [(root, settings, task) for task in tasks], weights, "measuring", processes
        )
        done = list(zip(tasks, folders, strict=True))
        pairs = make.usable(done, "pair")
        groups: dict[tuple[str, str], list[tuple[Task, Path]]] = {}
        for task, folder in pairs:
            groups.setdefault((task.base, task.label), []).append((task, folder))
        if not groups:
            raise InputError("no pair of models could be compared: see the status of the members' training")
        big = [10.0 if make.kind_of(label) in ("paradigm", "control") else 1.0 for _, label in groups]
        parts = _in_parallel(pool, make.pair_tables, [(group,) for group in groups.values()], big, "effects", processes)
    tables = _tables(trained, done, pairs, parts)
    measuring = sum(Store(root).manifest(folder)["seconds"] for _, folder in done)
    # Of one core each, also of what was trained and measured before an interruption; the tables are this run's own
    # time.
    seconds = {
        "training": float(tables["members"]["training_seconds"].sum()),
        "measuring": measuring,
        "this run": time.monotonic() - started,
    }
    seconds = {name: round(value, 1) for name, value in seconds.items()}
    return write(tables, _manifest(trained, settings, done, seconds), out)


def _tables(
    trained: pd.DataFrame, done: Sequence[tuple[Task, str]], pairs: Sequence[tuple[Task, Path]], parts: Sequence[Any]
) -> dict[str, pd.DataFrame]:
    import pandas as pd

    from paradigms.study import tables as make

    members, curves = make.member_tables(trained, done)
    effects = make.corrected(pd.concat([effects for effects, _ in parts], ignore_index=True))
    values = pd.concat([values for _, values in parts], ignore_index=True)
    exactness, exact_effects = make.exactness_tables(done)
    dynamics, lags = make.dynamics_tables(done, curves)
    return {
        "members": members,
        "curves": curves,
        "effects": effects,
        "values": values,
        "exactness": exactness,
        "exact_effects": exact_effects,
        "dynamics": dynamics,
        "lags": lags,
        "cause": make.cause_table(done, effects, values, members),
        "sensitivity": make.sensitivity_table(done),
        "verdicts": make.verdict_table(pairs, values),
    }


def _manifest(
    trained: pd.DataFrame, settings: Settings, done: Sequence[tuple[Task, str]], seconds: dict[str, float]
) -> dict[str, Any]:
    from importlib import metadata

    from paradigms.study.tables import settings_of
    from paradigms.study.tasks import failure
    from rlcircuits import __version__

    failures = [
        {"kind": task.kind, "base": task.base, "seed": task.seed, "label": task.label, "reason": failure(folder)}
        for task, folder in done
        if failure(folder) is not None
    ]
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "trl", "numpy", "scipy", "pandas")}
    kinds = {kind: sum(task.kind == kind for task, _ in done) for kind in sorted({task.kind for task, _ in done})}
    return {
        "settings": settings_of(settings),
        "seeds": {base: sorted({int(s) for s in group["seed"]}) for base, group in trained.groupby("base", sort=False)},
        "members": {base: list(dict.fromkeys(group["member"])) for base, group in trained.groupby("base", sort=False)},
        "tasks": kinds,
        "failures": failures,
        "versions": {"python": platform.python_version(), "rlcircuits": __version__, **versions},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": seconds,
    }


def write(tables: Mapping[str, pd.DataFrame], manifest: Mapping[str, Any], out: str | os.PathLike[str]) -> Results:
    """Write the tables and, last, ``manifest.json``."""
    from rlcircuits.storage import save_table, written

    folder = Path(out).expanduser()
    for name in TABLES:
        save_table(_small(tables[name]), folder / f"{name}.parquet")
    with written(folder / "manifest.json") as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return load(folder)


def _small(table: pd.DataFrame) -> pd.DataFrame:
    """Text that repeats as categories, so that a table is small on disk."""
    import pandas as pd

    text = [c for c in table if not pd.api.types.is_numeric_dtype(table[c]) and table[c].nunique() < len(table) // 4]
    return table.astype(dict.fromkeys(text, "category"))


def load(results: str | os.PathLike[str] = "results/study") -> Results:
    """The tables of a study.

    Raises:
        InputError: the folder holds no complete study.
    """
    from rlcircuits.storage import load_table

    folder = Path(results).expanduser()
    missing = [name for name in ("manifest.json", *(f"{t}.parquet" for t in TABLES)) if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{os.fspath(results)!r} holds no finished study ({missing[0]} is not there): make one with `rlcircuits "
            "study`"
        )
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    tables = {}
    for name in TABLES:
        table = load_table(folder / f"{name}.parquet")
        tables[name] = table.astype({c: object for c in table if table[c].dtype == "category"})
    return Results(tables, manifest)


# --- processes ------------------------------------------------------------------------------------


@contextmanager
def _workers(processes: int):
    """A pool of single-thread processes that end with this one."""
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise InputError(f"processes is {processes!r}: expected a whole number, at least 1")
    before = {name: os.environ.get(name) for name in _ONE_THREAD}
    os.environ.update(_ONE_THREAD)  # read when a process starts, before it imports anything
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)
    try:
        with uninterruptible_children():  # Ctrl-C is this process's to handle
            for _ in range(processes):
                pool.submit(os.getpid)
        yield pool
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in active_children():  # what they finished is in the store, what they are at is made again
            worker.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


_ONE_THREAD = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
    "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1",
}  # fmt: skip


def _begin() -> None:
    import torch

    torch.set_num_threads(1)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # whoever started the study was killed

    threading.Thread(target=watch, daemon=True).start()


def _in_parallel(
    pool: ProcessPoolExecutor,
    work: Callable,
    arguments: Sequence[tuple],
    weights: Sequence[float],
    title: str,
    processes: int,
) -> list[Any]:
    """Results of `work` on each of the arguments, in their order, with one bar that estimates the time left."""
    import sys

    from tqdm import tqdm

    found: list[Any] = [None] * len(arguments)
    waiting = list(range(len(arguments)))
    running: dict[Future, int] = {}
    layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed} gone, about {remaining} left"
    interval = 0.1 if sys.stderr.isatty() else 15.0
    with tqdm(
        total=sum(weights), desc=title, bar_format=layout, smoothing=0, mininterval=interval, disable=False
    ) as bar:
        while waiting or running:
            while waiting and len(running) < processes + 1:  # no more than needed, so that an interruption ends soon
                index = waiting.pop(0)
                running[pool.submit(work, *arguments[index])] = index
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                index = running.pop(future)
                found[index] = future.result()
                bar.update(weights[index])
    return found
