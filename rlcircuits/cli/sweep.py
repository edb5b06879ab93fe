"""``rlcircuits sweep``: a notebook over a grid of parameters."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcircuits.cli.options import duration, flag, option, value
from rlcircuits.errors import InputError

_few = value(int, lambda n: 1 <= n < 10**9, "a whole number of at least 1")
_count = value(int, lambda n: 0 <= n < 10**9, "a whole number of at least 0")
_gpus = value(float, lambda n: 0 <= n <= 1000, "a number of GPUs, at least 0")


_FILE = "the sweep, YAML: notebook, grid, cells, fixed, share, show, timeout"
_OUT = "where cells, summary.parquet and index.html go (default: runs/sweeps/<name of FILE>)"


def sweep(
    file: Annotated[str, typer.Argument(metavar="FILE", help=_FILE)],
    out: Annotated[str | None, option(_OUT, "DIR")] = None,
    engine: Annotated[str, option("local, ray or slurm", "NAME")] = "local",
    address: Annotated[
        str | None, option("of a Ray cluster, or auto (default: a Ray of this machine alone)", "A")
    ] = None,
    gpus_per_cell: Annotated[float, option("GPUs each cell has to itself", "N", _gpus)] = 0.0,
    cpus_per_cell: Annotated[
        int | None, option("cores of each cell (default: its share; on a cluster 1)", "N", _few)
    ] = None,
    memory_per_cell: Annotated[str | None, option("of its Slurm job, such as 16G", "SIZE")] = None,
    time_per_cell: Annotated[
        str | None, option("of its Slurm job, such as 4:00:00 (default: FILE's timeout, and 2 minutes)", "TIME")
    ] = None,
    sbatch: Annotated[
        str, option("further options of its Slurm job: '--partition=gpu --account=mine'", "OPTIONS")
    ] = "",
    processes: Annotated[int | None, option("cells at a time (default: as many as fit)", "N", _few)] = None,
    retries: Annotated[int, option("further attempts where a fault may pass", "N", _count)] = 2,
    dry_run: Annotated[bool, flag("--dry-run", "print the cells and what they would cost, run nothing")] = False,
    only: Annotated[str | None, option("failed: only the cells that failed before", "failed")] = None,
    resume: Annotated[bool, flag("--resume", "keep what finished under the same inputs (so without it, too)")] = False,
    fresh: Annotated[bool, flag("--fresh", "run finished cells, too; artefacts in the store are still found")] = False,
) -> int:
    """Run a notebook over a grid of parameters, on this machine, on Ray or on Slurm, and gather its numbers in one
    table.

    Each cell of a sweep file runs once. Finished cells are kept, so the same command goes on after an interruption.
    Ends with exit code 0, or 1 when a cell failed: the summary says which and why.
    """
    from rlcircuits import sweeps

    if resume and fresh:
        raise InputError("both --resume and --fresh are given: keep what finished, or run it again")
    settings = sweeps.Settings(
        engine=engine,
        processes=processes,
        address=address,
        gpus=gpus_per_cell,
        cpus=cpus_per_cell,
        memory=memory_per_cell,
        time=time_per_cell,
        sbatch=tuple(sbatch.split()),
        retries=retries,
        fresh=fresh,
        only=only,
    )
    if not dry_run:
        outcome = sweeps.sweep(file, out, settings)
        sweeps.tell(outcome)
        return 1 if outcome.failed else 0
    cells = sweeps.preview(file, out, settings)
    print(cells.to_string(index=False, na_rep="?", formatters={"seconds": _seconds}))
    due = cells[cells["state"].str.startswith("due")]
    unknown = int(due["seconds"].isna().sum())
    known = "" if unknown == len(due) > 0 else f": about {duration(due['seconds'].sum())} of work"
    print(f"\n{len(cells)} cells, {len(due)} to run{known}{f', {unknown} of unknown cost' if unknown else ''}")
    return 0


def _seconds(value: float) -> str:
    return "?" if value != value else f"{value:.0f}"
