"""What every paradigm changed, from six angles, each beside its null: the family's pairs and the real model's, as tables.

1. Each pair is looked at by `rlcircuits.change`, on answers to all problems, not only to those that both get right: overlap,
   transfer, patching, grafts, divergence and weights.
2. On the real model re-runs take long. What one pass gives is measured on `PROBLEMS` of its problems, what takes a hundred
   re-runs a problem on `FEW`, at fewer sizes and beside one random ranking (`REAL`); every line says on how many. The family's
   pairs are looked at on `FAMILY`, as the chapter does.
3. Every step is kept in the store, and long ones by batch: a run that is interrupted goes on.

``python -m paradigms.study.angles`` writes the tables to ``results/changes``. One training of each member: intervals are over
problems and speak of these models only; PPO, GRPO and DPO are never pooled.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from paradigms.smollm2 import pairs as real_pairs
from rlcircuits.answers import problem_set
from rlcircuits.models import pair, provider_of
from rlcircuits.reports import interval, number
from rlcircuits.storage import save_table
from rlcircuits.studies import PARTS, Change, change

OUT = Path(__file__).resolve().parents[2] / "results" / "changes"
MEMBERS = ("sft-more", "rft", "ppo", "grpo", "dpo", "online-dpo")
#: problems asked; problems looked at; of the real model, those asked, looked at, and looked at by many re-runs
ASKED, FAMILY = 300, 60
REAL_ASKED, PROBLEMS, FEW = 40, 20, 3
#: parts that take a hundred re-runs of every problem, and how the real model is re-run
RERUN = ("transfer", "patching", "graft")
REAL: dict[str, dict[str, Any]] = {
    "transfer": {"interventions": ["mean"], "shares": [0.001, 0.1, 0.5, 1.0], "seeds": 1},
    "patching": {"directions": ["bring"], "steps": 5, "exact": 0, "counts": [200], "seeds": 1},
    "graft": {"modules": [f"l{layer}" for layer in range(30)], "into": ["base"]},
}
#: as the chapter asks, so that it finds these in the store
LIVE: dict[str, dict[str, Any]] = {"patching": {"exact": 10}}

#: what is kept of `Change.tables`, under which name
KEPT = {
    "overlap": "overlap", "transfer": "transfer-curves", "patching": "patching", "graft": "graft", "weights": "weights",
    "summary": "summary", "strata": "strata",
}  # fmt: skip

#: what `side_by_side` shows: a heading, and which line of the summary that is, by angle, words and null
LINES = {
    "overlap of halves, across · own": ("overlap", ("across halves",), "one model on two halves"),
    "base's circuit in the tuned model · its own": ("transfer", ("the tuned model on", "mean"), "its own circuit"),
    "brought by 10 % of edges · random": ("patching", ("brought",), "random edges"),
    "brought by the best module or layer · all alike": ("graft", ("alone brings",), "alike"),
    "KL from the base, nats · none": ("divergence", ("KL", "the tuned model's answers"), "the same model"),
    "size of the weights' change · none": ("weights", ("size",), "the same model"),
    "in leading directions · chance": ("weights", ("directions",), "a change that knows nothing of them"),
}


def names() -> list[str]:
    """The pairs: the family's members, then those of the real model that are here."""
    return [*(f"family/{member}" for member in MEMBERS), *real_pairs.names()]


@dataclass(frozen=True)
class Job:
    """Parts of one pair's change, on `n` of its problems, of which `asked` are answered."""

    pair: str
    parts: Sequence[str] = PARTS
    asked: int = ASKED
    n: int = FAMILY
    how: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: LIVE)

    def measured(self, store: str = "runs") -> Change:
        """The change; what the store has is not measured again."""
        provider = provider_of(self.pair)
        assert provider is not None
        problems = problem_set(provider.problems, limit=self.asked)
        return change(pair(self.pair, store=store), problems, self.parts, n=self.n, how=self.how, store=store)


def jobs(chosen: Sequence[str] = ()) -> list[Job]:
    """What is measured of some pairs (all when empty): what takes longest comes last."""
    wanted = list(chosen) or names()
    real = [name for name in wanted if name in real_pairs.names()]
    once = [part for part in PARTS if part not in RERUN]
    found = [Job(name) for name in wanted if name not in real]
    found += [Job(name, once, REAL_ASKED, PROBLEMS, {}) for name in real]
    return found + [Job(name, RERUN, REAL_ASKED, FEW, REAL) for name in real]


def run(chosen: Sequence[str] = (), out: Path = OUT, store: str = "runs") -> dict[str, pd.DataFrame]:
    """Measure what is missing and write the tables, after each job: ``summary``, ``strata``, and one for each angle.

    Args:
        chosen: pairs; all when empty.
        out: the folder of the tables.
        store: where the steps are kept.

    Raises:
        InputError: a model is not here.
    """
    rows: dict[str, list[pd.DataFrame]] = {}
    found: dict[str, pd.DataFrame] = {}
    for job in jobs(chosen):
        began, worked = time.perf_counter(), time.process_time()
        one = job.measured(store)
        about: dict[str, Any] = {
            "pair": job.pair,
            "method": one.pair.method,
            "problems": len(one.study.selection.problems),
        }
        for table, each in _by_angle(one).items():  # a stratum has problems of its own
            rows.setdefault(table, []).append(each.assign(**{k: v for k, v in about.items() if k not in each}))
        seconds, cpu = time.perf_counter() - began, time.process_time() - worked
        print(f"{job.pair}, {', '.join(job.parts)}: {seconds:.0f} s, of the processor {cpu:.0f} s", flush=True)
        order = {name: place for place, name in enumerate(names())}
        for table, parts in rows.items():
            whole = pd.concat(parts, ignore_index=True)
            whole = whole.sort_values("pair", key=lambda column: column.map(order), kind="stable", ignore_index=True)
            found[table] = whole[["pair", *(column for column in whole if column != "pair")]]
            save_table(found[table], out / f"{table}.parquet")
        (out / "manifest.json").write_text(json.dumps(_about(), indent=1) + "\n", "utf-8")
    return found


def side_by_side(summary: pd.DataFrame) -> pd.DataFrame:
    """One line of each angle for each pair: rows by pair, columns by `LINES`, each "value [low, high] · null, on n".

    Args:
        summary: the table ``summary`` of `run`.
    """
    found: dict[str, dict[str, str]] = {}
    for (name, _), rows in summary.groupby(["pair", "angle"], sort=False):
        for heading, (angle, words, against) in LINES.items():
            of = rows[(rows["angle"] == angle) & rows["against"].str.endswith(against)]
            of = of[[all(word in quantity for word in words) for quantity in of["quantity"]]]
            for row in of.head(1).to_dict("records"):
                ends = interval(row["low"], row["high"])
                null = interval(row["null_low"], row["null_high"]) or number(row["null"], 2)
                found.setdefault(str(name), {})[heading] = (
                    f"{number(row['value'], 2)} {ends} · {null}, {row['problems']}"
                )
    return pd.DataFrame.from_dict(found, orient="index", columns=list(LINES)).rename_axis("pair")


def _by_angle(one: Change) -> dict[str, pd.DataFrame]:
    """The tables of the change that are kept: the summary, the strata, and one for each angle that was measured."""
    every = one.tables()
    found = {name: every[kept] for name, kept in KEPT.items() if kept in every}
    if "strata" in found:
        found["strata"] = found["strata"][found["strata"]["angle"] != "weights"]  # these are no problem's
    if one.divergence:
        each = {side: part.summary.reset_index() for side, part in one.divergence.items()}
        found["divergence"] = pd.concat(each, names=["answers"]).reset_index("answers")
    return found


def _about() -> dict[str, Any]:
    return {
        "family": {"asked": ASKED, "looked at": FAMILY, "how": LIVE},
        "smollm2": {"asked": REAL_ASKED, "looked at": PROBLEMS, "by re-runs": FEW, "how": REAL},
    }


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", nargs="*", help="names of pairs (default: all)")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = run(options.pairs, options.out, options.store)
    print(found["summary"].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
