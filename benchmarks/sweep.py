"""What a sweep costs beyond its cells' own work, and what a second worker gains: ``python benchmarks/sweep.py``.

1. **Overhead**: a sweep over an empty notebook, of 10, 100 and 1,000 cells (``--cells``). Seconds of the whole run,
   from the start of the command to its end, times the processes at work, minus the seconds the notebook's own code
   took, over the number of cells.
2. **Scheduler**: sweeps of 10, 100 and 1,000 cells by an engine that starts no process and only leaves a record, as a
   cell does: what planning, choosing, recording and reporting cost per cell, without any kernel.
3. **Two workers**: a sweep whose cells compute for `--work` seconds each in one thread, by one process and by two.

Nothing is kept but the figures, in ``<out>/sweep.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd

from rlcircuits.sweeps import End, Engine, Order, Settings, record_of, sweep, write_record

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}
# A loop of fixed work: a slower machine takes longer, it does not do less.
WORK = "total = 0\nfor i in range(int(turns)):\n    total += i * i % 7"


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description="What a sweep costs beyond its cells, and what a second worker gains.")
    parser.add_argument(
        "--cells",
        type=int,
        nargs="*",
        default=[10, 100],
        metavar="N",
        help="sizes of the empty sweeps (default: 10 100)",
    )
    parser.add_argument(
        "--work", type=float, default=10.0, metavar="S", help="seconds of work of a cell, about (default: 10)"
    )
    parser.add_argument("--work-cells", type=int, default=6, metavar="N", help="cells that work (default: 6)")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="for the empty sweeps (default: 2)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the figures go (default: only printed)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rlcircuits-sweep-") as scratch:
        found = measure(Path(scratch), options)
    text = json.dumps(found, indent=1)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "sweep.json").write_text(text + "\n")


def measure(scratch: Path, options: argparse.Namespace) -> dict:
    """All figures."""
    overhead = [empty(scratch / f"empty{cells}", cells, options.processes) for cells in options.cells]
    seconds = {}
    if options.work_cells:
        turns = calibrated(options.work)
        seconds = {n: working(scratch / f"work{n}", options.work_cells, turns, n) for n in (1, 2)}
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} in the end",
        "overhead": overhead,
        "scheduler": [scheduled(scratch / f"scheduled{cells}", cells) for cells in (10, 100, 1000)],
        "two_workers": {
            "cells": options.work_cells,
            "seconds": seconds,
            "speed_up": round(seconds[1] / seconds[2], 2) if seconds else None,
        },
    }


def empty(folder: Path, cells: int, processes: int) -> dict:
    """A sweep of so many cells that do nothing, and the same once more, when all of it is kept."""
    notebook(folder, "x = 0", "pass")
    (folder / "empty.yaml").write_text(f"notebook: cell.ipynb\ngrid: {{x: {list(range(cells))}}}\n")
    seconds = run(folder / "empty.yaml", folder / "out", processes)
    again = run(folder / "empty.yaml", folder / "out", processes)
    table = pd.read_parquet(folder / "out" / "summary.parquet")
    own = sum(json.loads(path.read_text())["compute"] for path in folder.glob("out/cells/*/record.json"))
    assert list(table["status"]) == ["done"] * cells
    shutil.rmtree(folder)
    return {
        "cells": cells,
        "processes": processes,
        "seconds": round(seconds, 2),
        "overhead_per_cell": round((seconds * processes - own) / cells, 3),
        "seconds_when_kept": round(again, 2),
        "kept_per_cell": round(again / cells, 4),
    }


class Instant(Engine):
    """An engine whose cells are done at once: a record, as a cell leaves it, and nothing else."""

    def __init__(self, settings: Settings) -> None:
        self.orders: list[Order] = []

    def room(self, running: int) -> bool:
        return running < 2

    def start(self, order: Order) -> None:
        Path(order["folder"]).mkdir(parents=True, exist_ok=True)
        write_record(Path(order["folder"]), record_of(order, 0.0, metrics={f"metric{i}": i / 7 for i in range(50)}))
        self.orders.append(order)

    def ended(self, seconds: float) -> list[tuple[Order, End | None]]:
        done, self.orders = [(order, None) for order in self.orders], []
        return done

    def stop(self) -> None:
        self.orders = []


def scheduled(folder: Path, cells: int) -> dict:
    """A sweep of so many cells in groups of ten, without processes."""
    notebook(folder, "x = 0\ngroup = 0", "pass")
    grid = {"group": list(range(cells // 10)), "x": list(range(10))}
    (folder / "cells.yaml").write_text(json.dumps({"notebook": "cell.ipynb", "grid": grid, "share": ["group"]}))
    started = time.monotonic()
    done = sweep(folder / "cells.yaml", folder / "out", engine=Instant)
    seconds = time.monotonic() - started
    assert list(done.table["status"]) == ["done"] * cells
    return {"cells": cells, "seconds": round(seconds, 2), "per_cell": round(seconds / cells, 4)}


def working(folder: Path, cells: int, turns: int, processes: int) -> float:
    """Seconds of a sweep whose cells compute."""
    notebook(folder, "x = 0\nturns = 1", WORK)
    (folder / "work.yaml").write_text(
        f"notebook: cell.ipynb\ngrid: {{x: {list(range(cells))}}}\nfixed: {{turns: {turns}}}\n"
    )
    return round(run(folder / "work.yaml", folder / "out", processes), 2)


def calibrated(seconds: float) -> int:
    """Turns of the loop that take about so long here and now."""
    started = time.process_time()
    exec(WORK, {"turns": 2_000_000})
    return int(2_000_000 * seconds / (time.process_time() - started))


def notebook(folder: Path, parameters: str, code: str) -> None:
    """A notebook of two cells."""
    folder.mkdir(parents=True)
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), folder / "cell.ipynb")


def run(file: Path, out: Path, processes: int) -> float:
    """Seconds of the command, from its start to its end."""
    command = [sys.executable, "-m", "rlcircuits", "sweep", str(file), "--out", str(out), "--processes", str(processes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    subprocess.run(command, check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    return time.monotonic() - started


if __name__ == "__main__":
    main()
