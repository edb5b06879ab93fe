"""The steps of the controlled study that load models, each an artefact of the store, each in one process with one
thread.

| kind | of | what is kept |
|---|---|---|
| `answers` | one model | its greedy answers to the test problems |
| `pair` | two models | what `paradigms.study.measurement` measures, for every α and level |
| `exactness` | two models | EAP and EAP-IG beside exact ablation of every block edge, CPR and CMD, metrics from each |
| `dynamics` | a member and its base | the metrics at every checkpoint, on its own answers |
| `sensitivity` | two models | the metrics under other settings |
| `push` | a base | accuracy, loss and metrics after pushing its intensity (`paradigms.study.interventions`) |

1. A `ModelSpec` says which model: a checkpoint, possibly with weight noise or scaled logits.
2. `tasks_of` lists every `Task`; `paradigms.study.work` performs them.
3. What cannot be measured (a model with no right answer, say) leaves an artefact with ``failed.json``: the reason, for
   the tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from rlcircuits.models import Model

FAILED = "failed.json"
REFERENCE_ALPHA = 0.3


@dataclass(frozen=True)
class Settings:
    """What is measured, and how finely.

    Args:
        alphas, levels: the grid of the main comparison.
        problems: test problems every model answers.
        n, keep: of `rlcircuits.select`.
        noise_draws: draws of weight noise per member and seed.
        exact_problems, exact_alphas, ig_steps, random_circuits: of the exactness; steps of EAP-IG, random rankings of
            edges.
        cause_seeds: seeds of the first base whose sampling temperature and intensity are changed.
        temperatures, factors: sampling temperatures of GRPO's training beside 1; factors of the base's logits.
        push_demonstrations: how many demonstrations a pushed base goes on with.
        max_new_tokens: longest answer.
    """

    alphas: tuple[float, ...] = (0.03, 0.1, 0.3, 0.5, 1.0)
    levels: tuple[str, ...] = ("block", "head")
    problems: int = 500
    n: int = 100
    keep: str = "both-correct"
    noise_draws: int = 2
    exact_problems: int = 20
    exact_alphas: tuple[float, ...] = (0.3, 1.0)
    ig_steps: int = 8
    random_circuits: int = 1
    cause_seeds: int = 3
    temperatures: tuple[float, ...] = (0.7, 1.3)
    factors: tuple[float, ...] = (0.5, 0.8, 1.25, 2.0)
    push_demonstrations: int = 960
    max_new_tokens: int = 24

    def __post_init__(self) -> None:
        if REFERENCE_ALPHA not in self.alphas or "block" not in self.levels:
            raise InputError(
                f"settings: alphas must hold {REFERENCE_ALPHA} and levels 'block', on which the verdicts rest"
            )
        if min(self.problems, self.n, self.exact_problems) < 2 or self.noise_draws < 1:
            raise InputError("settings: at least two problems everywhere, and one draw of weight noise, are needed")


@dataclass(frozen=True)
class ModelSpec:
    """A model: a checkpoint's folder, with weight noise as large as another's update, or with its logits scaled."""

    folder: str
    noise_like: str | None = None
    draw: int = 0
    factor: float = 1.0

    @property
    def key(self) -> dict[str, Any]:
        """What identifies it, wherever its files lie."""
        like = None if self.noise_like is None else fingerprint_of(self.noise_like)
        return {"model": fingerprint_of(self.folder), "noise": like, "draw": self.draw, "factor": float(self.factor)}

    def load(self) -> Model:
        """The model in float32."""
        from paradigms.study.interventions import scale_logits
        from paradigms.study.nulls import add_noise
        from rlcircuits.models import load_model

        model = load_model(self.folder, device="cpu", dtype="float32")
        if self.noise_like is not None:
            add_noise(model.hf, load_model(self.noise_like, device="cpu", dtype="float32").hf, self.draw)
        if self.factor != 1:
            scale_logits(model.hf, self.factor)
        return model


@cache
def fingerprint_of(folder: str) -> str:
    """Of a checkpoint, read once."""
    from rlcircuits.models import fingerprint

    return fingerprint(Path(folder))


@dataclass(frozen=True)
class Task:
    """One step.

    Args:
        kind: see the table above.
        base, seed, label, draw: where its result belongs in the tables; `label` is a paradigm or a null.
        models: one or two.
        options: JSON values on which the result depends.
        seconds: about how long it takes, for the estimate.
    """

    kind: str
    base: str
    seed: int
    label: str
    models: tuple[ModelSpec, ...]
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    draw: int = 0
    seconds: float = 1.0


def failure(folder: str | Path) -> str | None:
    """Why a task could not be done; None when it was."""
    file = Path(folder) / FAILED
    return json.loads(file.read_text("utf-8"))["failed"] if file.is_file() else None


def tasks_of(trained: pd.DataFrame, settings: Settings) -> list[Task]:
    """Every task of a study, the longest first.

    Args:
        trained: columns ``base``, ``seed``, ``member``, ``folder`` (None where training failed); a member that is not
            one of the family's is named like ``"grpo, temperature 0.7"``.
    """
    from paradigms.family import MEMBERS
    from paradigms.study.nulls import ANOTHER_BASE, NOISE, TWO_SEEDS, neighbours

    main = {"alphas": list(settings.alphas), "levels": list(settings.levels), "n": settings.n, "keep": settings.keep}
    null = {**main, "levels": ["block"], "crossed": False, "tests": False}
    short = {"n": settings.n, "keep": settings.keep}
    tasks: list[Task] = []
    for base, group in trained[trained["folder"].notna()].groupby("base", sort=False):
        folders = {(row.seed, row.member): str(row.folder) for row in group.itertuples()}
        seeds = [seed for seed, member in folders if member == "sft"]
        for (seed, member), folder in folders.items():
            if (seed, "sft") not in folders:
                continue
            root, spec = ModelSpec(folders[seed, "sft"]), ModelSpec(folder)
            here = {"base": base, "seed": int(seed), "label": member}
            if member != "sft":
                own = member in MEMBERS
                tasks.append(
                    Task("pair", **here, models=(root, spec), options={**main, "crossed": own, "tests": own}, seconds=9)
                )
            if member not in MEMBERS:
                continue
            along = {**short, "alphas": [REFERENCE_ALPHA, max(settings.alphas)]}
            tasks.append(Task("dynamics", **here, models=(root, spec), options=along, seconds=9))
            if member == "sft":
                continue
            exact = {
                "alphas": list(settings.exact_alphas), "n": settings.exact_problems, "keep": settings.keep,
                "ig_steps": settings.ig_steps, "random_circuits": settings.random_circuits,
            }  # fmt: skip
            tasks.append(Task("exactness", **here, models=(root, spec), options=exact, seconds=12))
            tasks.append(
                Task("sensitivity", **here, models=(root, spec), options={**short, "alpha": REFERENCE_ALPHA}, seconds=3)
            )
            for draw in range(settings.noise_draws):
                noisy = ModelSpec(root.folder, noise_like=folder, draw=draw)
                tasks.append(Task("pair", base, int(seed), NOISE + member, (root, noisy), null, draw=draw, seconds=3))
        for one, other in neighbours(seeds):
            for member in MEMBERS:
                if (one, member) in folders and (other, member) in folders:
                    label = ANOTHER_BASE if member == "sft" else TWO_SEEDS + member
                    both = (ModelSpec(folders[one, member]), ModelSpec(folders[other, member]))
                    tasks.append(Task("pair", base, int(one), label, both, null, seconds=3))
        for seed in seeds:
            root = ModelSpec(folders[seed, "sft"])
            for factor in settings.factors:
                scaled = ModelSpec(root.folder, factor=factor)
                tasks.append(Task("pair", base, int(seed), f"logits × {factor:g}", (root, scaled), null, seconds=3))
        if base == trained["base"].iloc[0]:
            for seed in seeds[: settings.cause_seeds]:
                options = {"demonstrations": settings.push_demonstrations}
                tasks.append(
                    Task("push", base, int(seed), "push", (ModelSpec(folders[seed, "sft"]),), options, seconds=20)
                )
    return sorted(tasks, key=lambda task: -task.seconds)
