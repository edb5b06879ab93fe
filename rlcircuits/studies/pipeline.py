"""From pairs of models to a comparison, every step kept in the store.

For each pair:

1. both models answer every problem greedily (`rlcircuits.answers.generation.generate`), or their answers are read from a file
   (`rlcircuits.answers.interchange`);
2. the problems that both answer correctly, with answers of balanced length, are selected and cut at
   T_cut = max(⌊α T̄⌋, 1) tokens (`rlcircuits.answers.selection.select`);
3. each model's loss on its own cut answers is attributed to the edges of its graph (`rlcircuits.attribute`);
4. the metrics of both are compared, paired by problem (`rlcircuits.compare`).

A step is computed once for all inputs that matter (weights, problems, parameters, the code of the step) and found again
afterwards; a warm study loads no model. Source: arXiv 2509.21044, sections 3 and 4.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from rlcircuits.answers import (
    ENGINES,
    SIDES,
    STRATA,
    Answer,
    Caution,
    NothingLeft,
    Problem,
    ProblemSet,
    Selection,
    expect_settings,
    prompt_of,
    select,
    stratum_of,
)
from rlcircuits.errors import InputError, choose, counted
from rlcircuits.models import ModelPair, decode_prompt, encode_prompt, load_tokenizer, local_checkpoint
from rlcircuits.models import pair as registered_pair
from rlcircuits.storage import Store
from rlcircuits.studies.steps import Run, Scoring
from rlcircuits.studies.stratified import Strata

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from transformers import PreTrainedTokenizerBase

    from rlcircuits.reports import Report


#: settings of a study that its scores depend on beside the level
_SCORING = {"memory": "auto", "intervention": "zero", "ig_steps": 1, "loss": "nll"}


@dataclass(frozen=True, eq=False)
class PairStudy:
    """One pair, answered, selected, attributed and compared.

    Attributes:
        pair: the models.
        problems: every problem by id.
        base_answers, tuned_answers: each model's answer by problem id.
        selection: which problems were kept, T̄, T_cut and what each rule dropped.
        base_scores, tuned_scores: edge scores ``(sample, source, destination)`` on each model's own answers, aligned.
        base_losses, tuned_losses: by problem id the loss of every answer token (the whole answer), in nats.
        comparison: one row per metric with base, tuned, difference, interval and p-value, see `rlcircuits.compare`.
    """

    pair: ModelPair
    problems: Mapping[str, Problem]
    base_answers: Mapping[str, Answer]
    tuned_answers: Mapping[str, Answer]
    selection: Selection
    base_scores: xr.DataArray
    tuned_scores: xr.DataArray
    base_losses: Mapping[str, Sequence[float]]
    tuned_losses: Mapping[str, Sequence[float]]
    comparison: pd.DataFrame

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base's tokenizer (the tuned model's has the same vocabulary)."""
        return _tokenizer(self.pair)

    @property
    def first_prompts(self) -> dict[str, str]:
        """What each model read before its answer to the first problem, special tokens spelt out."""
        sides = zip(SIDES, (self.base_answers, self.tuned_answers))
        return {side: decode_prompt(self.tokenizer, next(iter(said.values())).prompt) for side, said in sides}

    @property
    def accuracy(self) -> tuple[float, float]:
        """Share of all problems answered correctly, base and tuned."""
        return self._share("correct")

    @property
    def strict_accuracy(self) -> tuple[float, float]:
        """Share answered correctly in a form made for answers: where this gains and `accuracy` does not, the form has changed."""
        return self._share("strict")

    def _share(self, which: str) -> tuple[float, float]:
        base, tuned = (
            sum(getattr(answer, which) for answer in answers.values()) / len(answers)
            for answers in (self.base_answers, self.tuned_answers)
        )
        return base, tuned

    def __repr__(self) -> str:
        right, strictly = (
            " → ".join(f"{share:.1%}" for share in (shares[:1] if self.pair.alone else shares))
            for shares in (self.accuracy, self.strict_accuracy)
        )
        return (
            f"PairStudy({self.pair.name!r}: {counted(len(self.selection.problems), 'problem')}, T_cut {self.selection.t_cut}, "
            f"accuracy {right}, strictly {strictly})"
        )


@dataclass(frozen=True, eq=False)
class Study:
    """Several pairs under the same settings.

    Attributes:
        pairs: `PairStudy` by pair name.
        level, alpha, n, seed: the settings they share.
        settings: the other arguments of `study`; empty for a study that was put together by hand.
    """

    pairs: Mapping[str, PairStudy]
    level: str
    alpha: float
    n: int
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, pair: str) -> PairStudy:
        """One pair by name, which the Tab key completes.

        Raises:
            InputError: no pair of that name.
        """
        return self.pairs[choose("pair", pair, self.pairs)]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.pairs)

    def at(
        self,
        level: str | None = None,
        alpha: float | None = None,
        pairs: Iterable[str] | None = None,
        keep: str | None = None,
    ) -> Study:
        """The same study at another level or α, or of some of its pairs or other problems; what the store has is not
        computed again.

        Args:
            level, alpha, keep: as for `study`; this study's when None.
            pairs: names among ``self.pairs``; all when None.

        Raises:
            InputError: an unknown name, a study put together by hand, or as `study`.
        """
        if not self.settings:
            raise InputError(
                "this study does not know how it was made: make it with rc.study(…) to see it at other settings"
            )
        names = list(self.pairs) if pairs is None else [choose("pair", name, self.pairs) for name in pairs]
        return study(
            [self.pairs[name].pair for name in names],
            level=self.level if level is None else level,
            alpha=self.alpha if alpha is None else alpha,
            n=self.n,
            seed=self.seed,
            **{
                **self.settings,
                **({} if keep is None else {"keep": keep}),
                "answers": {name: file for name, file in self.settings["answers"].items() if name in names},
            },
        )

    def strata(self, pair: str | None = None) -> Strata:
        """A pair's problems by who answers them right, each stratum selected, scored and compared on its own.

        Args:
            pair: a name among ``self.pairs``; None for the only one.

        Returns:
            A `Strata`; what is not in the store is computed. A stratum in which the rules leave nothing says so.

        Raises:
            InputError: an unknown pair or several, one model alone, a study put together by hand, or as `study`.
        """
        if pair is None and len(self.pairs) > 1:
            raise InputError(f"this study has {len(self.pairs)} pairs: name one of {', '.join(self.pairs)}")
        name = next(iter(self.pairs)) if pair is None else choose("pair", pair, self.pairs)
        whole = self.pairs[name]
        if whole.pair.alone:
            raise InputError(f"{name!r} is one model alone: strata are of two models' answers")
        answers = [(whole.base_answers[q], whole.tuned_answers[q]) for q in whole.problems]
        studies: dict[str, PairStudy] = {}
        empty: dict[str, str] = {}
        for stratum in STRATA:
            try:
                studies[stratum] = self.at(pairs=[name], keep=stratum).pairs[name]
            except NothingLeft as error:
                empty[stratum] = str(error)
        return Strata(name, Counter(stratum_of(*two) for two in answers), studies, empty)

    def ablate(self, pair: str, edge: str) -> pd.DataFrame:
        """The exact effect of one edge on every problem of a pair, each model on its own answers; kept in the store.

        Args:
            pair: a name among ``self.pairs``.
            edge: ``"source->destination"``, of the study's level.

        Returns:
            Index problem; columns base and tuned: loss without the edge − loss, in nats, see `rlcircuits.ablate`.

        Raises:
            InputError: an unknown pair or edge, or a study put together by hand.
        """
        import pandas as pd

        if not self.settings:
            raise InputError(
                "this study does not know its models' settings: make it with rc.study(…), or use rc.ablate(model, …)"
            )
        one = self.pairs[choose("pair", pair, self.pairs)]
        scores = one.base_scores
        for kind, name in zip(("source", "destination"), edge.partition("->")[::2]):
            choose(kind, name, [str(n) for n in scores[kind].values])
        settings, run = self.settings, self._run(Scoring(self.level))
        found = {}
        for side, traces in (("base", one.selection.base_traces), ("tuned", one.selection.tuned_traces)):
            model = run.side(one.pair, side, settings["device"], settings["dtype"])
            found[side] = run.effects(model, traces, one.selection.t_cut, edge)
        return pd.DataFrame(found).rename_axis("problem")

    def report(
        self,
        path: str | os.PathLike[str] | None = None,
        pair: str | None = None,
        trust: int | str | None = "auto",
        shared: bool = True,
    ) -> Report:
        """Everything one wants to know of a pair, and what each number needs to be believed, as one page.

        What the study has not measured is measured now and kept in the store: divergence, each model on the other's
        answers, and some edges removed for real. That takes about two to three times as long as attributing did.

        Args:
            path: where to write the page, one file of HTML; nothing is written when None.
            pair: a name among ``self.pairs``; needed where there are several.
            trust: how many edges of a few problems are removed for real, of each model; ``"auto"``: as many as take
                about as long as its attribution did; None: none.
            shared: whether to score each model on the other's answers too, which takes as long as attributing did.

        Returns:
            The report, which shows itself in a notebook and has ``save(path)``.

        Raises:
            InputError: no or an unknown pair, or `trust` out of range.
            StoreError: `path` cannot be written.
        """
        from rlcircuits.studies.reporting import study_report

        if pair is None and len(self.pairs) > 1:
            raise InputError(f"a report is on one pair: expected pair=… among {', '.join(self.pairs)}")
        one = self[next(iter(self.pairs)) if pair is None else pair]
        shown = {"level": self.level, "alpha": self.alpha, "n": self.n, "seed": self.seed, **self.settings}
        scoring = Scoring(self.level, *(self.settings.get(k, v) for k, v in _SCORING.items()))
        found = study_report(one, shown, self._run(scoring) if self.settings else None, trust, shared)
        if path is not None:
            found.save(path)
        return found

    def _run(self, scoring: Scoring) -> Run:
        """The steps of this study."""
        settings = self.settings
        return Run(settings["store"], settings["problems"], scoring, settings["batch_size"], settings["engine"])

    def table(self) -> pd.DataFrame:
        """All comparisons in one table, indexed by (pair, metric), with Holm-corrected p-values over all its rows."""
        import pandas as pd

        from rlcircuits.metrics import holm

        table = pd.concat({name: one.comparison for name, one in self.pairs.items()}, names=["pair", "metric"])
        return table.assign(p_holm=holm(table["p"]))

    def __repr__(self) -> str:
        return f"Study(level={self.level!r}, alpha={self.alpha}, pairs={list(self.pairs)})"


def study(
    pairs: Iterable[ModelPair | str] | ModelPair | str,
    problems: ProblemSet,
    level: str = "block",
    alpha: float = 0.3,
    n: int = 100,
    seed: int = 42,
    mean: str = "paper",
    keep: str = "both-correct",
    beta: float = 0.5,
    gamma: float = 1.5,
    delta: float = 0.5,
    store: Store | str = "runs",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | str = "auto",
    engine: str = "transformers",
    answers: str | os.PathLike[str] | tuple[str, str] | Mapping[str, Any] | None = None,
    memory: str = "auto",
    intervention: str = "zero",
    ig_steps: int = 1,
    loss: str = "nll",
) -> Study:
    """Run every step for every pair, or find it in the store.

    Args:
        pairs: `ModelPair` objects or registered names.
        problems: what the models answer.
        level: of the graph, ``"block"``, ``"qkv"`` or ``"head"``.
        alpha: share α of the mean answer length that is scored, in (0, 1].
        n: problems drawn after filtering (fewer when fewer are left).
        seed: of the draw; the published value is 42.
        mean: T̄ as the ``"paper"`` or the published ``"code"`` takes it, see `rlcircuits.select`.
        keep: ``"both-correct"`` or ``"all"`` problems, or another stratum, see `rlcircuits.select`; `Study.strata` looks at
            all strata.
        beta, gamma, delta: which lengths of answers are kept, see `rlcircuits.select`.
        store: a `Store` or its folder.
        device, dtype: of the models, as for `rlcircuits.load_model`.
        batch_size: answers generated, or traces scored, in one pass; ``"auto"`` as many as fit.
        engine: what generates answers, ``"transformers"`` or ``"vllm"``, see `rlcircuits.answers.generation.generate`.
        answers: answers that are there already, instead of generating them: a file as `rlcircuits.write_answers` makes it, or the
            base's and the tuned model's files; with several pairs, such by pair name.
        memory, ig_steps: as for `rlcircuits.attribute`.
        intervention: ``"zero"``, ``"mean"`` or ``"model"``, as for `rlcircuits.attribute`; the mean is over each model's own
            traces, and the model is the other one of the pair, on the same tokens.
        loss: ``"nll"``, or ``"kl"`` for the divergence from the other model of the pair.

    Raises:
        InputError: a pair that cannot be loaded or compared, answers that are not as expected, settings out of range, or no
            problem left by the rules.
    """
    choose("engine", engine, ENGINES)
    expect_settings(alpha, beta, gamma, delta, n, seed, mean, keep)
    scoring = Scoring(level, memory, intervention, ig_steps, loss)
    store = store if isinstance(store, Store) else Store(store)
    if isinstance(pairs, (ModelPair, str)):
        pairs = [pairs]
    chosen = [registered_pair(one) if isinstance(one, str) else one for one in pairs]
    if not chosen:
        raise InputError("no pairs given: expected at least one rlcircuits.ModelPair or the name of a registered pair")
    names = [one.name for one in chosen]
    if len(set(names)) < len(names):
        raise InputError(
            f"two pairs are called {next(x for x in names if names.count(x) > 1)!r}: give each its own name"
        )
    files = _files(answers, names)
    run = Run(store, problems, scoring, batch_size, engine)
    done = {}
    for one in chosen:
        sides = [run.side(one, name, device, dtype) for name in SIDES]
        said = run.imported(one, files[one.name]) if one.name in files else run.answers(one, sides)
        selection = select(
            said[0], None if one.alone else said[1], alpha, beta, gamma, delta, n=n, seed=seed, mean=mean, keep=keep
        )
        for caution in selection.cautions(_tokenizer(one)):
            warnings.warn(f"{one.name}: {caution}", Caution, stacklevel=2)
        scores = [
            run.scores(side, traces, selection.t_cut, other)
            for side, traces, other in zip(sides, (selection.base_traces, selection.tuned_traces), sides[::-1])
        ]
        losses = [
            run.losses(side, traces) for side, traces in zip(sides, (selection.base_traces, selection.tuned_traces))
        ]
        done[one.name] = PairStudy(
            pair=one,
            problems={problem.id: problem for problem in problems},
            base_answers={a.problem: a for a in said[0]},
            tuned_answers={a.problem: a for a in said[1]},
            selection=selection,
            base_scores=scores[0],
            tuned_scores=scores[1],
            base_losses=losses[0],
            tuned_losses=losses[1],
            comparison=run.comparison(*scores),
        )
    settings = {
        "problems": problems,
        "mean": mean,
        "keep": keep,
        "beta": beta,
        "gamma": gamma,
        "delta": delta,
        "store": store,
    }
    settings |= {"engine": engine, "answers": files, "device": device, "dtype": dtype, "batch_size": batch_size}
    settings |= {"memory": memory, "intervention": intervention, "ig_steps": ig_steps, "loss": loss}
    return Study(done, level, alpha, n, seed, settings)


def generate_pair(
    pair: ModelPair | str,
    problems: ProblemSet,
    store: Store | str = "runs",
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int | str = "auto",
    engine: str = "transformers",
) -> dict[str, list[Answer]]:
    """Both models' answers, generated now or found in the store: the first step of `study` alone.

    Args:
        pair, problems, store, device, dtype, batch_size, engine: as in `study`.

    Returns:
        ``{"base": …, "tuned": …}``, as `rlcircuits.write_answers` takes them.

    Raises:
        InputError: as `study`.
    """
    choose("engine", engine, ENGINES)
    one = registered_pair(pair) if isinstance(pair, str) else pair
    run = Run(store if isinstance(store, Store) else Store(store), problems, Scoring("block"), batch_size, engine)
    found = run.answers(one, [run.side(one, name, device, dtype) for name in SIDES])
    return dict(zip(SIDES, found))


def _tokenizer(pair: ModelPair) -> PreTrainedTokenizerBase:
    return load_tokenizer(local_checkpoint(pair.base) or pair.base, pair.base_revision, pair.trust_remote_code)


def first_prompts(pair: ModelPair, problems: ProblemSet) -> dict[str, str]:
    """What each model of a pair will read before its answer to the first problem, special tokens spelt out: no weight
    is read for it.

    Raises:
        InputError: as `study`.
    """
    prompt = prompt_of(pair, problems)
    tokenizers = [one.tokenizer for one in pair.outlines()]
    return {
        side: decode_prompt(one, encode_prompt(one, prompt, problems[0].question))
        for side, one in zip(SIDES, tokenizers)
    }


def _files(given: Any, names: Sequence[str]) -> dict[str, Any]:
    """The files of answers by pair name."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        for name in given:
            choose("pair in answers", name, names)
        return dict(given)
    if len(names) > 1:
        raise InputError(f"answers of {len(names)} pairs: expected a mapping of pair name to file, {{{names[0]!r}: …}}")
    return {names[0]: given}
