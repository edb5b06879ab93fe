"""The shell's way in: ``rlcircuits pairs`` and ``rlcircuits family``.

Wrong input ends with exit code 2 and one message; an interrupted run with 130 and a word on how to go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rlcircuits.errors import InputError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except InputError as error:
        print(f"rlcircuits: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("rlcircuits: interrupted; all that was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    return 0


def _parser() -> argparse.ArgumentParser:
    from rlcircuits import __version__

    parser = argparse.ArgumentParser(prog="rlcircuits", description="See what RL fine-tuning does inside a language model.")
    parser.add_argument("--version", action="version", version=f"rlcircuits {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    pairs = commands.add_parser("pairs", help="list the registered pairs of models")
    pairs.set_defaults(run=_pairs)

    family = commands.add_parser(
        "family",
        help="train the family: one base and its descendants, sft-more, rft, grpo, ppo, dpo and online-dpo",
        description="Train what is missing of the family; finished members are kept, so an interrupted run goes on.",
    )
    family.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="seeds of the whole chain (default: 0)")
    family.add_argument(
        "--members", nargs="+", metavar="NAME", help="these members, besides the base (default: sft-more grpo ppo dpo)"
    )
    family.add_argument("--base", default="qwen2", metavar="NAME", help="which base: qwen2 or llama (default: qwen2)")
    family.add_argument("--processes", type=int, default=2, metavar="N", help="members trained at a time (default: 2)")
    family.add_argument("--store", default="runs", metavar="DIR", help="where artefacts are kept (default: runs)")
    family.set_defaults(run=_family)
    return parser


def _pairs(_options: argparse.Namespace) -> None:
    import pandas as pd

    from rlcircuits.models import pairs

    rows = [{"pair": p.name, "method": p.method, "base": p.base, "tuned": p.tuned} for p in pairs().values()]
    print(pd.DataFrame(rows).to_string(index=False))
    print("\nfamily/<member>: the family's base against its sft-more, grpo, ppo or dpo; made by `rlcircuits family`.")


def _family(options: argparse.Namespace) -> None:
    from rlcircuits.errors import choose
    from rlcircuits.family import BASES, CORE, make_families

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


if __name__ == "__main__":
    sys.exit(main())
