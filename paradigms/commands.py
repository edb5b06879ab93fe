"""Commands that this package adds to the shell: ``rlcircuits family`` and ``rlcircuits study``."""

from __future__ import annotations

import argparse
from typing import Any

from rlcircuits.errors import InputError, choose


def add_family(commands: Any, whole: Any, seed: Any) -> None:
    """Add ``family``; `whole` and `seed` are the shell's types of arguments."""
    family = commands.add_parser(
        "family",
        help="train the family: one base and its descendants, sft-more, rft, grpo, ppo, dpo and online-dpo",
        description="Train what is missing of the family; finished members are kept, so an interrupted run goes on.",
    )
    family.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="seeds of the whole chain (default: 0)"
    )
    family.add_argument(
        "--members", nargs="+", metavar="NAME", help="these members, besides the base (default: sft-more grpo ppo dpo)"
    )
    family.add_argument("--base", default="qwen2", metavar="NAME", help="which base: qwen2 or llama (default: qwen2)")
    family.add_argument("--processes", type=int, default=2, metavar="N", help="members trained at a time (default: 2)")
    family.add_argument("--store", default="runs", metavar="DIR", help="where artefacts are kept (default: runs)")
    family.set_defaults(run=_family)


def add_study(commands: Any, whole: Any, seed: Any) -> None:
    """Add ``study``; arguments as for `add_family`."""
    study = commands.add_parser(
        "study",
        help="the controlled study: every paradigm from one base, over seeds, with nulls and verdicts",
        description="Train and measure what is missing, then write the tables; an interrupted study goes on and ends with the same tables.",
    )
    study.add_argument("--seeds", type=seed, nargs="*", metavar="N", help="seeds of the first base (default: 0 to 7)")
    study.add_argument(
        "--second-seeds", type=seed, nargs="*", metavar="N", help="seeds of the second base (default: 0 to 3)"
    )
    study.add_argument(
        "--members", nargs="+", metavar="NAME", help="only these members, besides the base (default: all)"
    )
    study.add_argument(
        "--out", default="results/study", metavar="DIR", help="where the tables go (default: results/study)"
    )
    study.add_argument("--store", default="runs", metavar="DIR", help="where artefacts are kept (default: runs)")
    study.add_argument("--processes", type=whole, default=2, metavar="N", help="processes at a time (default: 2)")
    study.set_defaults(run=_study)


def _family(options: argparse.Namespace) -> None:
    from paradigms.family import BASES, CORE, make_families

    recipe = BASES[choose("base", options.base, BASES)]
    members = CORE if options.members is None else ("sft", *options.members)
    table = make_families(options.seeds, members, recipe, options.store, options.processes)
    for row in table.itertuples():
        print(f"seed {row.seed}  {row.member:<10} {f'{row.accuracy:.3f}  {row.folder}' if row.folder else row.status}")
    missing = table[table["folder"].isna()]
    if len(missing):
        raise InputError(
            f"{len(missing)} of {len(table)} members could not be trained, as said above: "
            "the others are kept, and the same command tries again what did not diverge"
        )


def _study(options: argparse.Namespace) -> None:
    from paradigms.study import SECOND_SEEDS, SEEDS, run

    found = run(
        seeds=SEEDS if options.seeds is None else options.seeds,
        second_seeds=SECOND_SEEDS if options.second_seeds is None else options.second_seeds,
        members=options.members,
        out=options.out,
        store=options.store,
        processes=options.processes,
    )
    shown = found.verdicts[found.verdicts["scope"] == "PPO and GRPO"]
    print(
        shown[["base", "claim", "verdict", "effect", "low", "high", "spread", "null"]].to_string(
            index=False, float_format="{:.3g}".format
        )
    )
    failed = found.members[found.members["status"] != "done"]
    for row in failed.itertuples():
        print(f"{row.base}, seed {row.seed}, {row.paradigm}: {row.status}")
    print(f"\nwritten: the tables in {options.out}")
