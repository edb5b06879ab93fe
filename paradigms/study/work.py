"""The controlled study's tasks, performed: each makes its artefact, or finds it, in one process with one thread.

1. A task is found by the fingerprints of its models, its options and the versions of `STEPS` (`inputs_of`).
2. `perform` makes what is not there; what cannot be measured leaves the reason (`paradigms.study.tasks.failure`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from paradigms.study.tasks import FAILED, ModelSpec, Settings, Task, fingerprint_of
from rlcircuits.errors import InputError
from rlcircuits.storage import Step, versions

if TYPE_CHECKING:
    from rlcircuits.answers import Answer, ProblemSet
    from rlcircuits.models import Model
    from rlcircuits.storage import Store

STUDY = Step("study", 1, also=("rlcircuits.answers.selection", "rlcircuits.metrics.edges", "paradigms.family.task"))
STEPS = ("study", "loading", "answers", "scores", "effects", "circuits", "comparison")
"""On which every task of the controlled study depends: its own, and those of the instrument."""


def inputs_of(task: Task) -> dict[str, Any]:
    """What the artefact is found by."""
    found = {
        "models": [m.key for m in task.models],
        "options": task.options,
        "seed": task.seed,
        "code": versions(*STEPS),
    }
    if task.kind == "dynamics":  # two runs may end with the same weights, and have come there by other ways
        from paradigms.family import checkpoints

        with contextlib.suppress(InputError):
            steps = checkpoints(task.models[-1].folder)
            found["checkpoints"] = {str(update): fingerprint_of(str(folder)) for update, folder in steps.items()}
    return found


def perform(root: str, settings: Settings, task: Task) -> str:
    """Make or find a task's artefact; returns its folder."""
    from rlcircuits.storage import Store

    store = Store(root)
    work: Callable[[Store, Settings, Task, Path], None] = {
        "answers": _answers,
        "pair": _pair,
        "exactness": _exactness,
        "dynamics": _dynamics,
        "sensitivity": _sensitivity,
        "push": _push,
    }[task.kind]

    def build(folder: Path) -> None:
        try:
            work(store, settings, task, folder)
        except InputError as error:
            for file in folder.iterdir():
                file.unlink()
            reason = str(error)
            for spec in task.models:  # the tables hold no paths of the machine they were made on
                reason = reason.replace(spec.folder, f"the checkpoint {Path(spec.folder).name}")
            (folder / FAILED).write_text(json.dumps({"failed": reason}) + "\n", "utf-8")

    note = f"{task.kind} of {task.label}, {task.base}, seed {task.seed}"
    return str(store.make(f"study-{task.kind}", inputs_of(task), build, note=note))


# --- answers and pairs ----------------------------------------------------------------------------


def _problems(settings: Settings) -> ProblemSet:
    from paradigms.family import family_problems

    return family_problems("test", settings.problems)


def _answers(_store: Store, settings: Settings, task: Task, folder: Path) -> None:
    from rlcircuits.answers import generate, save_answers

    found = generate(task.models[0].load(), _problems(settings), max_new_tokens=settings.max_new_tokens)
    save_answers(found, folder / "answers.parquet")


def answers_of(store: Store, settings: Settings, spec: ModelSpec) -> list[Answer]:
    """A model's answers, from the store or made now."""
    from rlcircuits.answers import load_answers

    options = {"problems": settings.problems, "max_new_tokens": settings.max_new_tokens}
    folder = perform(str(store.root), settings, Task("answers", "", 0, Path(spec.folder).name, (spec,), options))
    return load_answers(Path(folder) / "answers.parquet")


def _loaded(store: Store, settings: Settings, task: Task) -> tuple[list[Model], list[list[Answer]]]:
    answers = [answers_of(store, settings, spec) for spec in task.models]
    models = [spec.load() for spec in task.models]
    for model in models:
        model.hf.double()
    return models, answers


def _pair(store: Store, settings: Settings, task: Task, folder: Path) -> None:
    from paradigms.study.measurement import measure, save

    models, answers = _loaded(store, settings, task)
    measured = measure(tuple(models), tuple(answers), seed=task.seed, **task.options)
    save(measured, folder / "measurement.npz")


# --- exactness ------------------------------------------------------------------------------------


def _exactness(store: Store, settings: Settings, task: Task, folder: Path) -> None:
    from rlcircuits.answers import select

    models, answers = _loaded(store, settings, task)
    rows: list[dict[str, Any]] = []
    for alpha in task.options["alphas"]:
        chosen = select(*answers, alpha=alpha, n=task.options["n"], keep=task.options["keep"])
        for side, model, traces in zip(("base", "tuned"), models, (chosen.base_traces, chosen.tuned_traces)):
            circuits = task.options["random_circuits"] if alpha == max(task.options["alphas"]) else None
            for row in judged(model, traces, chosen.t_cut, task.options["ig_steps"], circuits):
                rows.append({"side": side, "alpha": float(alpha), "n_problems": len(traces), **row})
    pd.DataFrame(rows).to_parquet(folder / "exactness.parquet")


def judged(
    model: Model, traces: Sequence[Any], cut: int, ig_steps: int, random_circuits: int | None
) -> list[dict[str, Any]]:
    """EAP, EAP-IG and exact ablation of every block edge on the same traces: rows of method, quantity and value.

    Quantities of an estimate against exact ablation: ``rank correlation`` (Spearman over edges, mean over samples;
    signed), ``rank correlation of sizes``, ``slope`` (exact on estimate through the origin, over all edges and
    samples), ``CPR``, ``CMD`` and those of so many random rankings (none of these for None); and of all three methods
    every metric.
    """
    from scipy import stats

    from rlcircuits.attribution import ablate, attribute, faithfulness
    from rlcircuits.metrics import edge_values, summary

    exact = ablate(model, traces, cut=cut, progress=False)
    scores = {
        "EAP": attribute(model, traces, cut=cut, progress=False),
        "EAP-IG": attribute(model, traces, cut=cut, ig_steps=ig_steps, progress=False),
    }
    truth = edge_values(exact)
    rows: list[tuple[str, str, float]] = []
    for method, found in scores.items():
        values = edge_values(found)
        for name, change in (("rank correlation", np.asarray), ("rank correlation of sizes", np.abs)):
            each = [stats.spearmanr(change(a), change(b)).statistic for a, b in zip(values, truth)]
            rows.append((method, name, float(np.mean(each))))
        rows.append((method, "slope", float((values * truth).sum() / (values**2).sum())))
        if random_circuits is None:
            continue
        seeds = random_circuits if method == "EAP" else 0
        faith = faithfulness(model, traces, found, seeds=seeds, cut=cut, progress=False)
        rows += [(method, name, float(faith[name])) for name in ("CPR", "CMD")]
        if seeds:
            rows += [("random", name, float(faith[f"random_{name}"].mean())) for name in ("CPR", "CMD")]
    for method, found in {"exact": exact, **scores}.items():
        rows += [(method, metric, float(value)) for metric, value in summary(found).items()]
    return [{"method": method, "quantity": quantity, "value": value} for method, quantity, value in rows]


# --- dynamics -------------------------------------------------------------------------------------


def _dynamics(store: Store, settings: Settings, task: Task, folder: Path) -> None:
    from safetensors.torch import load_file

    from paradigms.family import checkpoints
    from rlcircuits.answers import ProblemSet, generate, select
    from rlcircuits.attribution import attribute
    from rlcircuits.metrics import summary

    answers = [answers_of(store, settings, spec) for spec in task.models]
    kept = {
        alpha: select(*answers, alpha=alpha, n=task.options["n"], keep=task.options["keep"])
        for alpha in task.options["alphas"]
    }
    wanted = set(next(iter(kept.values())).problems)
    whole = _problems(settings)
    asked = ProblemSet(
        name=whole.name, problems=tuple(p for p in whole.problems if p.id in wanted), grader=whole.grader
    )
    model = task.models[1].load()
    rows = []
    for update, checkpoint in checkpoints(task.models[1].folder).items():
        model.hf.float().load_state_dict(load_file(checkpoint / "model.safetensors"))
        found = generate(model, asked, max_new_tokens=settings.max_new_tokens)
        traces = [a.trace for a in found if a.answer]
        model.hf.double()
        for alpha, chosen in kept.items():
            row = {"update": update, "alpha": float(alpha), "n_problems": len(traces)}
            row["accuracy_here"] = float(np.mean([a.correct for a in found]))
            if len(traces) > 1:
                scores = attribute(model, traces, cut=chosen.t_cut, progress=False)
                row |= {"loss": float(scores.loss.mean()), **summary(scores).to_dict()}
            rows.append(row)
    pd.DataFrame(rows).to_parquet(folder / "dynamics.parquet")


# --- sensitivity ----------------------------------------------------------------------------------

BINS = (20, 50, 100, 200, 500)
EPSILONS = (1e-12, 1e-6, 1e-3)
SIZES = (50, 200)


def _sensitivity(store: Store, settings: Settings, task: Task, folder: Path) -> None:
    from paradigms.study.measurement import attributed, measure, save
    from rlcircuits.answers import select

    models, answers = _loaded(store, settings, task)
    n, keep, alpha = task.options["n"], task.options["keep"], task.options["alpha"]
    variants = {
        "reference": {},
        "T̄ as in the published code": {"mean": "code"},
        "all answers, right or wrong": {"keep": "all"},
    }
    variants |= {f"n = {size}": {"n": size} for size in SIZES}
    for number, (name, changed) in enumerate(variants.items()):
        given = {"n": n, "keep": keep, **changed}
        measured = measure(
            tuple(models), tuple(answers), (alpha,), ("block",), crossed=False, tests=False, seed=task.seed, **given
        )
        measured.facts["variant"] = name
        save(measured, folder / f"variant-{number}.npz")
    chosen = select(*answers, alpha=alpha, n=n, keep=keep)
    scores = [
        attributed(m, t, "block", chosen.t_cut) for m, t in zip(models, (chosen.base_traces, chosen.tuned_traces))
    ]
    np.savez(folder / "histograms.npz", **_histogram_variants(scores))


def _histogram_variants(scores: Sequence[Any]) -> dict[str, np.ndarray]:
    """Paper's metrics under other bins, ε, and structural zeros: "variant|metric" -> ``(corner, 1 + resample)``,
    observed first.
    """
    from paradigms.study.measurement import complexity_statistic, diversity_statistic
    from paradigms.study.resampling import problem_counts
    from rlcircuits.metrics import edge_values, sample_intensity, sample_kurtosis

    n = scores[0].sizes["sample"]
    counts = np.concatenate([np.ones((1, n)), problem_counts(n)])
    rows = {f"{bins} bins": (bins, 1e-12, False) for bins in BINS}
    rows |= {f"ε = {epsilon:g}": (100, epsilon, False) for epsilon in EPSILONS} | {
        "structural zeros": (100, 1e-12, True)
    }
    found = {}
    for name, (bins, epsilon, zeros) in rows.items():
        values = [complexity_statistic(edge_values(s, zeros), counts, bins, epsilon) for s in scores]
        found[f"{name}|information_complexity"] = np.stack(values)
    zero = "structural zeros|"
    found[f"{zero}inter_sample_diversity"] = np.stack(
        [diversity_statistic(edge_values(s, True), counts) for s in scores]
    )
    for metric, per_sample in (("activation_intensity", sample_intensity), ("distribution_kurtosis", sample_kurtosis)):
        found[zero + metric] = np.stack([counts @ per_sample(s, True).values / n for s in scores])
    return found


# --- pushing the base's intensity -----------------------------------------------------------------


def _push(store: Store, settings: Settings, task: Task, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from paradigms.family import BASES
    from paradigms.study.interventions import PUSHES, push_intensity
    from rlcircuits.answers import generate
    from rlcircuits.attribution import attribute
    from rlcircuits.metrics import summary
    from rlcircuits.models import Model

    spec = task.models[0]
    tokenizer = spec.load().tokenizer
    own = [a.trace for a in answers_of(store, settings, spec) if a.correct and a.answer]
    if len(own) < 2:
        raise InputError("the base answers fewer than two problems right: there is nothing to push the intensity of")
    size = task.options["demonstrations"]
    seen = BASES[task.base].task.demonstrations + BASES[task.base].prompts if task.base in BASES else 0
    shown, held = _demonstrations(tokenizer, seen, size, task)
    rows = []
    for arm, factor in PUSHES.items():
        torch.manual_seed(task.seed)
        hf = AutoModelForCausalLM.from_pretrained(spec.folder, attn_implementation="eager", dtype=torch.float32).eval()
        push_intensity(hf, shown, own, factor)
        model = Model(hf, tokenizer, spec.folder)
        found = generate(model, _problems(settings), max_new_tokens=settings.max_new_tokens)
        hf.double()
        row = {"arm": arm, "accuracy": float(np.mean([a.correct for a in found]))}
        row["supervised_loss"] = float(attribute(hf, held, progress=False).loss.mean())
        scores = attribute(hf, own[: settings.n], progress=False)
        rows.append(row | {"loss": float(scores.loss.mean()), **summary(scores).to_dict()})
    pd.DataFrame(rows).to_parquet(folder / "push.parquet")


def _demonstrations(tokenizer: Any, seen: int, size: int, task: Task) -> tuple[list[Any], list[Any]]:
    """Demonstrations that no member has seen, to train on and held out, as traces (the end token belongs to the
    answer).
    """
    from paradigms.family import BASES, demonstrations, word_problems
    from rlcircuits.attribution import Trace

    held = max(32, size // 4)
    problems = word_problems("train", seen + size + held, task.seed)[seen:]
    wrong = BASES[task.base].task.wrong_share if task.base in BASES else 0.65
    traces = [
        Trace(
            str(i),
            tuple(tokenizer(question)["input_ids"]),
            (*tokenizer(f" {worked}")["input_ids"], tokenizer.eos_token_id),
        )
        for i, (question, worked) in enumerate(demonstrations(problems, wrong, task.seed))
    ]
    return traces[:size], traces[size:]
