"""Commands that this package adds to the shell: ``rlcircuits family`` and ``rlcircuits study``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from paradigms.family import BASES, CORE, MEMBERS
from rlcircuits.cli import StoreFolder, one_of, option, output, seed, some, whole
from rlcircuits.errors import InputError

_seeds = some(seed)
_members = some(one_of("member", MEMBERS))
_SECOND = "seeds of the second base, '' for none (default: 0 to 3)"


def add_family(app: typer.Typer) -> None:
    """Add ``family`` to the shell's commands."""
    app.command()(family)


def add_study(app: typer.Typer) -> None:
    """Add ``study`` to the shell's commands."""
    app.command()(study)


def family(
    seeds: Annotated[Sequence[int], option("seeds of the whole chain", "N,…", _seeds)] = (0,),
    members: Annotated[Sequence[str], option("these members, besides the base", "NAME,…", _members)] = CORE[1:],
    base: Annotated[str, option("which base: qwen2 or llama", "NAME", one_of("base", BASES))] = "qwen2",
    processes: Annotated[int, option("members trained at a time", "N", whole)] = 2,
    store: StoreFolder = "runs",
) -> None:
    """Train the family: one base and its descendants, sft-more, rft, grpo, ppo, dpo and online-dpo.

    What is missing is trained; finished members are kept, so an interrupted run goes on.
    """
    from paradigms.family import make_families

    table = make_families(seeds, ("sft", *members), BASES[base], store, processes)
    for row in table.itertuples():
        print(f"seed {row.seed}  {row.member:<10} {f'{row.accuracy:.3f}  {row.folder}' if row.folder else row.status}")
    missing = table[table["folder"].isna()]
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(table)} members could not be trained, as said above: "
            "the others are kept, and the same command tries again what did not diverge"
        )


def study(
    seeds: Annotated[Sequence[int] | None, option("seeds of the first base (default: 0 to 7)", "N,…", _seeds)] = None,
    second_seeds: Annotated[Sequence[int] | None, option(_SECOND, "N,…", _seeds)] = None,
    members: Annotated[
        Sequence[str] | None, option("these, besides the base (default: all)", "NAME,…", _members)
    ] = None,
    out: Annotated[str, output("where the tables go", "DIR")] = "results/study",
    store: StoreFolder = "runs",
    processes: Annotated[int, option("processes at a time", "N", whole)] = 2,
) -> None:
    """The controlled study: every paradigm from one base, over seeds, with nulls and verdicts.

    What is missing is trained and measured, then the tables are written; an interrupted study goes on and ends with the
    same tables.
    """
    from paradigms.study import SECOND_SEEDS, SEEDS, run

    found = run(
        seeds=SEEDS if seeds is None else seeds,
        second_seeds=SECOND_SEEDS if second_seeds is None else second_seeds,
        members=members,
        out=out,
        store=store,
        processes=processes,
    )
    shown = found.verdicts[found.verdicts["scope"] == "PPO and GRPO"]
    columns = ["base", "claim", "verdict", "effect", "low", "high", "spread", "null"]
    print(shown[columns].to_string(index=False, float_format="{:.3g}".format))
    failed = found.members[found.members["status"] != "done"]
    for row in failed.itertuples():
        print(f"{row.base}, seed {row.seed}, {row.paradigm}: {row.status}")
    print(f"\nwritten: the tables in {out}")
