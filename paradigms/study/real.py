"""The study on the real model: what each paradigm changed in SmolLM2, beside nulls, as tables.

1. Each member's adapter is compared with the base, as in the controlled study: same problems, greedy answers, both right,
   own and shared tokens (`paradigms.study.measurement`).
2. Nulls: more supervised steps (a member), **weight noise** of exactly the norm of GRPO's update in each tensor, and **two
   halves** of the base's own problems.
3. What is exact is sampled: `rlcircuits.trust` and `rlcircuits.exact_metrics` on a few problems of the base and of some members.
4. Every step is kept in the store, and long ones by batch: a run that is interrupted goes on.

``python -m paradigms.study.real`` writes the tables to ``results/smollm2``. One seed: intervals are over problems and speak
of these trained models only.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from paradigms.family import story_problems, story_set
from paradigms.smollm2 import ADAPTERS, MODEL, base_folder, members, pairs
from paradigms.study.measurement import SAMPLED, Measurement, load, measure, save
from paradigms.study.nulls import CONTROL, NOISE, add_noise
from paradigms.study.tables import corrected, pair_tables
from paradigms.study.tasks import Task
from rlcircuits.answers import Answer, generate, load_answers, problem_set, save_answers
from rlcircuits.models import ModelPair, load_tokenizer
from rlcircuits.storage import Step, Store, save_table, versions

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet
    from rlcircuits.models import Model

REAL_STUDY = Step("real-study", 1)
#: steps that a model's answers depend on, and what is measured of them
ANSWERED = ("real-study", "loading", "answers", "merged")
STEPS = (*ANSWERED, "scores", "losses", "effects", "trust")
#: what is measured, the most telling first: level, share α of an answer, and whether each model also reads the other's
CELLS = (
    ("block", 1.0, False),
    ("block", 0.3, False),
    ("head", 1.0, False),
    ("block", 1.0, True),
    ("block", 0.1, False),
    ("block", 0.5, False),
    ("head", 0.3, False),
    ("head", 0.1, False),
    ("head", 0.5, False),
)
PROBLEMS, N = 300, 100
NOISE_LIKE = "grpo"
#: problems whose answers are kept token by token
SHOWN = 6
HALVES = 200
EXACT = ("sft", "grpo", "ppo", "dpo", "sft-more")
EXACT_PROBLEMS, EXACT_BUDGET = 8, 600
#: of GSM8K: problems asked, problems whose answers are attributed, and the longest answer
HELD_OUT, HELD_OUT_N, LONGER = 100, 40, 128
#: what is told of all answers, right or wrong, and of each the effect's columns
ALL_ANSWERS = ("activation_intensity", "intensity_per_gradient", "loss")
EFFECT = ("log_ratio", "log_low", "log_high", "p")


def run(
    out: Path = ADAPTERS,
    store: Store | str = "runs",
    cells: Sequence[tuple[str, float, bool]] = CELLS,
    exact: bool = True,
    problems: int = PROBLEMS,
    n: int = N,
    gsm8k: str | None = None,
) -> dict[str, pd.DataFrame]:
    """Measure what is missing and write the tables: ``members``, ``problems``, ``shown``, ``effects``, ``values``, ``halves``,
    ``all_answers`` and, with `exact`, ``trust`` and ``exact``.

    Args:
        out: the folder of the tables.
        store: where the steps are kept.
        cells: of `CELLS`.
        exact: whether to remove edges for real, too.
        problems, n: test problems that every model answers, and how many are compared.
        gsm8k: a local copy of GSM8K's test set, of which the first `HELD_OUT` are asked, too.

    Raises:
        InputError: the model or its adapters are not here, or no problems are left.
    """
    work = _Work(store if isinstance(store, Store) else Store(store), story_set(n=problems), n)
    labels = [*(member for member in members() if member != "sft"), NOISE + NOISE_LIKE]
    found = {"members": work.members(labels), **work.each_problem(labels)}
    _write(found, out)
    for number in range(1, len(cells) + 1):
        done = cells[:number]
        both = [pair_tables([(Task("pair", MODEL, 0, label, ()), work.measured(label, done))]) for label in labels]
        effects, values = (pd.concat(tables, ignore_index=True) for tables in zip(*both))
        found |= {"effects": corrected(effects), "values": values, "halves": work.halves(done)}
        _write(found, out)  # a run that is cut short has kept what it measured
        if exact and number == 1:
            found |= work.exact([member for member in EXACT if member in members()])
            _write(found, out)
            every: list[tuple[ProblemSet, int, int | None]] = [(work.problems, n, None)]
            if gsm8k is not None:
                every.append((problem_set(f"gsm8k={gsm8k}", limit=HELD_OUT), HELD_OUT_N, LONGER))
            found["all_answers"] = pd.concat(
                [work.all_answers(some, labels, *how) for some, *how in every], ignore_index=True
            )
            _write(found, out)
    return found


class _Work:
    """The steps of one run."""

    def __init__(self, store: Store, problems: ProblemSet, n: int) -> None:
        self.store, self.problems, self.n = store, problems, n
        self.loaded: dict[str, Model] = {}
        self.known: dict[Any, Any] = {}  # scores of the base on its own answers, which every pair has

    def pair(self, label: str) -> ModelPair:
        """A member's pair; of the noise, that of the member whose norm it has."""
        return pairs.pair(f"{MODEL}/{NOISE_LIKE if label.startswith(NOISE) else label}")

    def model(self, label: str) -> Model:
        """The base (``"sft"``), a member, or the base with noise; the base stays loaded, of the others the last."""
        if label not in self.loaded:
            for other in [other for other in self.loaded if other != "sft"] if label != "sft" else []:
                del self.loaded[other]
            pair = self.pair(NOISE_LIKE if label == "sft" else label)
            if label.startswith(NOISE):
                model = pair.load("base", dtype="float32")
                add_noise(model.hf, pair.load("tuned", dtype="float32").hf, 0)
            else:
                model = pair.load("base" if label == "sft" else "tuned", dtype="float32")
            self.loaded[label] = model
        return self.loaded[label]

    def key(self, label: str, *steps: str) -> dict[str, Any]:
        """What identifies a model's answers, and with `steps` what is made of them."""
        pair = self.pair(NOISE_LIKE if label == "sft" else label)
        weights = pair.fingerprint("base") if label == "sft" else f"{label}: {pair.fingerprint('tuned')}"
        asked = {"problems": self.problems.fingerprint, "prompt": pair.prompt, "longest": pair.max_new_tokens}
        return {"weights": weights, **asked, "code": versions(*ANSWERED, *steps)}

    def made(self, kind: str, inputs: dict[str, Any], build: Callable[[Path], None], note: str) -> Path:
        return self.store.make(f"real-{kind}", inputs, build, note=note)

    def answers(self, label: str, problems: ProblemSet | None = None, longest: int | None = None) -> list[Answer]:
        """Greedy answers of a model to all problems, or to others."""
        inputs = self.key(label)
        if problems is not None:
            inputs |= {"problems": problems.fingerprint, "longest": longest or inputs["longest"]}

        def build(folder: Path) -> None:
            pair = self.pair(NOISE_LIKE if label == "sft" else label)
            resume = self.store.root / "unfinished" / self.store.path("real-answers", inputs).name
            asked, most = problems or self.problems, longest or pair.max_new_tokens
            said = generate(self.model(label), asked, pair.prompt, most, label=label, resume=resume)
            save_answers(said, folder / "answers.parquet")

        return load_answers(self.made("answers", inputs, build, label) / "answers.parquet")

    def measured(self, label: str, cells: Sequence[tuple[str, float, bool]]) -> Path:
        """The folder of a pair's measurement of some cells."""
        parts = [self._cell(label, *cell) for cell in cells]
        inputs = {"label": label, "of": [folder.name for folder in parts], "code": str(REAL_STUDY)}

        def build(folder: Path) -> None:
            whole, cuts = Measurement(), {}
            for one in map(load, (part / "measurement.npz" for part in parts)):
                whole.cells |= one.cells
                cuts |= one.facts["t_cut"]
                whole.facts = {**one.facts, "t_cut": cuts}
            save(whole, folder / "measurement.npz")

        return self.made("joined", inputs, build, label)

    def _cell(self, label: str, level: str, alpha: float, crossed: bool) -> Path:
        inputs = {
            "pair": [self.key(one, "scores") for one in ("sft", label)],
            "cell": [level, alpha, crossed],
            "n": self.n,
        }

        def build(folder: Path) -> None:
            said = self.answers("sft"), self.answers(label)
            models = self.model("sft"), self.model(label)
            found = measure(models, said, [alpha], [level], crossed, True, 0, self.n, known=self.known)
            save(found, folder / "measurement.npz")

        return self.made("measurement", inputs, build, f"{label}, {level}, α {alpha:g}")

    def members(self, labels: Sequence[str]) -> pd.DataFrame:
        """Accuracies with intervals, the loss of own answers, and how the training went, by member."""
        from rlcircuits.metrics import paired_shares, share_interval

        base = [answer.correct for answer in self.answers("sft")]
        rows = []
        for label in ("sft", *labels):
            said = self.answers(label)
            right = [answer.correct for answer in said]
            row: dict[str, Any] = {"member": label, "problems": len(said)}
            row |= dict(zip(("accuracy", "low", "high"), share_interval(sum(right), len(right))))
            row["strict"] = float(np.mean([answer.strict for answer in said]))
            if label != "sft":
                row |= dict(zip(("gain", "gain_low", "gain_high", "p"), paired_shares(base, right)))
            about = ADAPTERS / label / "member.json"
            if about.is_file():
                told = json.loads(about.read_text("utf-8"))
                curve = pd.read_parquet(ADAPTERS / label / "curves.parquet").iloc[-1]
                row |= {
                    "test_500": told["accuracy"],
                    "prompts_seen": told["prompts_seen"],
                    "updates": int(curve["update"]),
                }
                row |= {name: float(curve[name]) for name in ("kl", "entropy", "reward", "length")}
            rows.append(row)
        return pd.DataFrame(rows)

    def each_problem(self, labels: Sequence[str]) -> dict[str, pd.DataFrame]:
        """``problems``: what each member answered, where it first went wrong, and its loss on that, in nats a token;
        ``shown``: some answers of the base and a member, token by token.
        """
        stories = {one.id: story for one, story in zip(self.problems, story_problems("test", len(self.problems), 0))}
        from rlcircuits.attribution import token_losses

        rows, shown = [], []
        for label in ("sft", *labels):
            said = [answer for answer in self.answers(label) if answer.answer]

            def build(folder: Path, label: str = label, said: list[Answer] = said) -> None:
                losses = token_losses(self.model(label), [answer.trace for answer in said])
                (folder / "losses.json").write_text(json.dumps([np.asarray(one).tolist() for one in losses]), "utf-8")

            file = self.made("token-losses", self.key(label, "losses"), build, label) / "losses.json"
            tokenizer = load_tokenizer(base_folder())
            for number, (answer, losses) in enumerate(zip(said, json.loads(file.read_text("utf-8")))):
                told = {name: getattr(answer, name) for name in ("problem", "answer", "correct", "strict", "finished")}
                wrong = "" if answer.correct else stories[answer.problem].mistake(answer.text)
                rows.append({"member": label, **told, "mistake": wrong, "loss": float(np.mean(losses))})
                if label in ("sft", NOISE_LIKE) and number < SHOWN:
                    tokens = [tokenizer.decode([token]) for token in answer.answer]
                    shown += [
                        {
                            "member": label,
                            "problem": answer.problem,
                            "correct": answer.correct,
                            "token": token,
                            "loss": loss,
                        }
                        for token, loss in zip(tokens, losses)
                    ]
        return {"problems": pd.DataFrame(rows), "shown": pd.DataFrame(shown)}

    def halves(self, cells: Sequence[tuple[str, float, bool]]) -> pd.DataFrame:
        """How far metrics of the base differ between two halves of its problems: the root mean square of ln(one/other)."""
        rng = np.random.default_rng(0)
        found = []
        for (level, alpha), cell in load(self.measured(CONTROL, cells) / "measurement.npz").cells.items():
            own = cell.sampled[cell.corners.index("bb")]
            ratios = []
            for _ in range(HALVES):
                order = rng.permutation(len(own))
                one, other = (own[half].mean(0) for half in np.array_split(order, 2))
                with np.errstate(invalid="ignore", divide="ignore"):
                    ratios.append(np.log(one / other))
            size = np.sqrt(np.nanmean(np.square(ratios), axis=0))
            found += [
                {"level": level, "alpha": alpha, "metric": name, "spread": value}
                for name, value in zip(cell.metrics[: len(size)], size)
            ]
        return pd.DataFrame(found)

    def all_answers(self, problems: ProblemSet, labels: Sequence[str], n: int, longest: int | None) -> pd.DataFrame:
        """The same problems' answers, right or wrong: accuracy by both rules, and what the scores of `n` of them say."""
        from rlcircuits.metrics import share_interval

        rows = []
        said = {label: self.answers(label, problems, longest) for label in ("sft", *labels)}
        for label, answers in said.items():
            right = [answer.correct for answer in answers]
            row: dict[str, Any] = {"set": problems.name, "member": label, "problems": len(answers)}
            row |= {"strict": np.mean([answer.strict for answer in answers])}
            row |= dict(zip(("accuracy", "low", "high"), share_interval(sum(right), len(right))))
            if label != "sft":
                inputs = {"pair": [self.key(one, "scores") for one in ("sft", label)], "n": n}
                inputs |= {"held out": problems.fingerprint}

                def build(folder: Path, label: str = label) -> None:
                    models, both = (self.model("sft"), self.model(label)), (said["sft"], said[label])
                    save(
                        measure(models, both, [1.0], ["block"], False, True, 0, n, keep="all", known=self.known),
                        folder / "measurement.npz",
                    )

                folder = self.made("held-out", inputs, build, f"{label} on {problems.name}")
                effects, values = pair_tables([(Task("pair", MODEL, 0, label, ()), folder)])
                row |= {"compared": int(values["n_problems"].iloc[0])}
                for metric in ALL_ANSWERS:
                    one = effects[effects["metric"] == metric].iloc[0]
                    rows.append(row | {"metric": metric} | {name: float(one[name]) for name in EFFECT})
            else:
                rows.append(row)
        return pd.DataFrame(rows)

    def exact(self, labels: Sequence[str]) -> dict[str, pd.DataFrame]:
        """`rlcircuits.trust` and `rlcircuits.exact_metrics` of each on its own answers to the same problems."""
        from rlcircuits.attribution import attribute
        from rlcircuits.exactness import exact_metrics, trust

        tables: dict[str, list[pd.DataFrame]] = {"trust": [], "exact": []}
        said = {label: self.answers(label) for label in labels}
        right = set.intersection(*({a.problem for a in one if a.correct} for one in said.values()))
        chosen = sorted(right, key=lambda problem: int(problem.rpartition("/")[2]))[:EXACT_PROBLEMS]
        for label in labels:
            inputs = {
                "model": self.key(label, "scores", "effects", "trust"),
                "problems": chosen,
                "budget": EXACT_BUDGET,
            }

            def build(folder: Path, label: str = label) -> None:
                traces = [answer.trace for answer in said[label] if answer.problem in chosen]
                model = self.model(label)
                scores = {
                    f"EAP-IG, {m} steps" if m > 1 else "EAP": attribute(model, traces, ig_steps=m) for m in (1, 5)
                }
                resume = self.store.root / "unfinished" / folder.name
                found = exact_metrics(model, traces, scores, budget=EXACT_BUDGET, resume=resume / "exact")
                save_table(found.table.reset_index(names="metric"), folder / "exact.parquet")
                judged = trust(model, traces, budget=EXACT_BUDGET // 2, circuits=False, resume=resume / "trust")
                save_table(judged.table.reset_index(), folder / "trust.parquet")

            folder = self.made("exact", inputs, build, f"{label}, {EXACT_BUDGET} removals")
            for name, rows in tables.items():
                rows.append(pd.read_parquet(folder / f"{name}.parquet").assign(member=label))
        return {name: pd.concat(rows, ignore_index=True) for name, rows in tables.items()}


def _write(tables: dict[str, pd.DataFrame], out: Path) -> None:
    for name, table in tables.items():
        save_table(table, out / f"{name}.parquet")
    about = {"problems": "stories/test", "steps": versions(*STEPS), "metrics": list(SAMPLED)}
    (out / "manifest.json").write_text(json.dumps(about, indent=1) + "\n", "utf-8")


def main() -> None:
    """The command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=len(CELLS), help="only so many of the cells, in order of weight")
    parser.add_argument("--store", default="runs")
    parser.add_argument("--gsm8k", metavar="FILE", help="a local copy of GSM8K's test set")
    options = parser.parse_args()
    found = run(store=options.store, cells=CELLS[: options.cells], gsm8k=options.gsm8k)
    print(found["members"].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
