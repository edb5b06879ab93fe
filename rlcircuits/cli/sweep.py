"""The shell's ``rlcircuits sweep``: its arguments, and what it prints."""

from __future__ import annotations

import argparse
from typing import Any


def add_sweep(commands: Any) -> None:
    """Add ``sweep`` to the command line's subcommands."""
    sweep = commands.add_parser(
        "sweep",
        help="run a notebook over a grid of parameters, on this machine or on Ray, and gather its numbers in one table",
        description="Run each cell of a sweep file once. Finished cells are kept, so the same command goes on after an interruption. "
        "Ends with exit code 0, or 1 when a cell failed: the summary says which and why.",
    )
    option = sweep.add_argument
    option("file", metavar="FILE", help="the sweep, YAML: notebook, grid, cells, fixed, share, show, timeout")
    option(
        "--out",
        metavar="DIR",
        help="where cells, summary.parquet and index.html go (default: runs/sweeps/<name of FILE>)",
    )
    option("--engine", default="local", metavar="NAME", help="local or ray (default: local)")
    option("--address", metavar="A", help="of a Ray cluster, or auto (default: a Ray of this machine alone)")
    option("--gpus-per-cell", type=_gpus, default=0.0, metavar="N", help="GPUs each cell has to itself (default: 0)")
    option(
        "--processes", type=_least(1), metavar="N", help="cells at a time (default: one per core; on Ray all that fit)"
    )
    option(
        "--retries", type=_least(0), default=2, metavar="N", help="further attempts where a fault may pass (default: 2)"
    )
    option("--dry-run", action="store_true", help="print the cells and what they would cost, run nothing")
    option("--only", metavar="failed", help="failed: only the cells that failed before")
    again = sweep.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="keep what finished under the same inputs (the default)")
    again.add_argument(
        "--fresh", action="store_true", help="run finished cells, too; artefacts in the store are still found"
    )
    sweep.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from rlcircuits.sweeps import run as sweep

    settings = sweep.Settings(
        options.engine,
        options.processes,
        options.address,
        options.gpus_per_cell,
        options.retries,
        options.fresh,
        options.only,
    )
    if options.dry_run:
        cells = sweep.preview(options.file, options.out, settings)
        print(cells.to_string(index=False, na_rep="?", formatters={"seconds": _seconds}))
        due = cells[cells["state"].str.startswith("due")]
        unknown = int(due["seconds"].isna().sum())
        known = "" if unknown == len(due) > 0 else f": about {_duration(due['seconds'].sum())} of work"
        print(f"\n{len(cells)} cells, {len(due)} to run{known}{f', {unknown} of unknown cost' if unknown else ''}")
        return 0
    outcome = sweep.sweep(options.file, options.out, settings)
    sweep.tell(outcome)
    return 1 if outcome.failed else 0


def _seconds(value: float) -> str:
    return "?" if value != value else f"{value:.0f}"


def _duration(seconds: float) -> str:
    """In the unit that reads best.

    >>> _duration(90), _duration(90_000)
    ('90 s', '25.0 h')
    """
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 3 else f"{minutes:.0f} min" if minutes < 180 else f"{minutes / 60:.1f} h"


def _least(smallest: int) -> Any:
    def whole(text: str) -> int:
        if not text.isdecimal() or len(text) > 9 or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of at least {smallest}")
        return int(text)

    return whole


def _gpus(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number of GPUs, at least 0")
    return value
