"""Options that several commands share, each declared once, and the kinds of value that options take.

An option is a type hint: ``def answers(fields: Fields, store: StoreFolder = "runs")`` has ``--store``, and an option
for each field of the group `Fields`. A value is checked before a command begins, and before anything heavy is imported.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from rlcircuits import answers, attribution, models
from rlcircuits.errors import InputError, choose

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet
    from rlcircuits.models import ModelPair
    from rlcircuits.storage import Store

T = TypeVar("T")


def value(kind: Callable[[str], T], fits: Callable[[T], bool], expected: str) -> Callable[[Any], T]:
    """A reader of an option's value: what `kind` makes of the text, if it `fits`; otherwise an error that says what was
    `expected`.

    >>> value(int, lambda n: n > 0, "a number above 0")("3")
    3
    """

    def read(text: Any) -> T:
        try:
            found = kind(text)
            good = fits(found)
        except ValueError:
            good = False
        if not good:
            raise typer.BadParameter(f"{str(text)[:200]!r}, expected {expected}")
        return found

    return read


def one_of(kind: str, names: Iterable[str] | Callable[[], Iterable[str]]) -> Callable[[Any], str]:
    """A reader of a name: one of `names`, or of those that it gives when it is called, which nothing has to be imported
    for before.
    """

    def read(text: Any) -> str:
        try:
            return choose(kind, text, names() if callable(names) else names)
        except InputError as error:
            raise typer.BadParameter(str(error)) from None

    return read


def some(read: Callable[[str], T]) -> Callable[[Any], Sequence[T]]:
    """A reader of several values with commas between.

    >>> some(whole)("1,2")
    (1, 2)
    """

    def parts(text: Any) -> Sequence[T]:
        given = text.split(",") if isinstance(text, str) else text  # a default is a sequence already
        return tuple(read(str(part).strip()) for part in given if str(part).strip())

    return parts


whole = value(int, lambda n: n >= 1, "a whole number of at least 1")
seed = value(int, lambda n: n >= 0, "a whole number of at least 0")
_least = value(float, lambda number: 0 <= number < float("inf"), "a number of at least 0")
_share = value(float, lambda share: 0 < share <= 1, "a number above 0 and at most 1")
auto_none_or_whole = value(
    lambda text: {"auto": "auto", "none": None}[text] if text in ("auto", "none") else int(text),
    lambda n: n in ("auto", None) or int(n) >= 1,
    "auto, none or a whole number above 0",
)
_auto_or_whole = value(
    lambda text: text if text == "auto" else int(text),
    lambda n: n == "auto" or int(n) >= 1,
    "auto or a whole number above 0",
)


def option(help: str, metavar: str, read: Callable[[Any], Any] | None = None, heading: str = "options") -> Any:
    """An option with a value: what `read` makes of it; ``--help`` shows it under a heading."""
    return typer.Option(help=help, metavar=metavar, parser=read, rich_help_panel=heading)


def flag(name: str, help: str, heading: str = "options") -> Any:
    """An option without a value."""
    return typer.Option(name, help=help, rich_help_panel=heading)


model = partial(option, heading="models")
problem = partial(option, heading="problems")
score = partial(option, heading="scores")
output = partial(option, heading="output")

_pair = "a registered pair, or family/<member>[@<seed>], of `rlcircuits pairs`"
_grader_names = one_of("grader", lambda: answers.GRADERS)
_extractor_names = one_of("extractor", lambda: answers.EXTRACTORS)
_engine_names = one_of("engine", lambda: answers.ENGINES)
_keep_names = one_of("keep", lambda: answers.KEEPS)
_mean_names = one_of("mean", lambda: answers.MEANS)
dtype = one_of("dtype", lambda: models.DTYPES)
PAIRS = "YAML that adds pairs (default: what RLCIRCUITS_PAIRS names)"
_prompt = "with one {question}, or 'chat' (default: the pair's, else {question})"
_instruction = "after each question on a line of its own, or with {question} (default: the pair's)"
_few_shot = "examples before each question: a set or file, FILE:4 for its first 4 (default: the pair's)"
_longest = f"longest answer, in tokens (default: the pair's, else {models.LONGEST_ANSWER})"
_own = "a set such as gsm8k, gsm8k=FILE for a local copy, or a .jsonl or .parquet file (default: a package's pair brings its own)"
_sets = "YAML that adds problem sets (default: what RLCIRCUITS_PROBLEM_SETS names)"
_grader = "math, or final: what follows the last # (default: the set's, else math)"
_extractor = "what of the right answer is the answer: stated, boxed, hashes or whole"

ProblemsName = Annotated[str | None, problem(_own, "NAME")]
Level = Annotated[str, score("of the graph: block, qkv or head", "LEVEL", one_of("level", lambda: attribution.LEVELS))]
Alpha = Annotated[float, score("share of an answer that is scored", "A", _share)]
StoreFolder = Annotated[str, output("where finished steps are kept", "DIR")]


@dataclass(frozen=True)
class Models:
    """Which models: a pair by name, two checkpoints, or one alone."""

    pair: Annotated[str | None, model(_pair, "NAME")] = None
    pairs: Annotated[str | None, model(PAIRS, "FILE")] = None
    base: Annotated[str | None, model("the model before: a folder with safetensors, or a hub id", "PATH")] = None
    tuned: Annotated[str | None, model("the model after; without it, --base is studied alone", "PATH")] = None

    @property
    def alone(self) -> bool:
        """Whether it is one model, which stands on both sides of a pair."""
        return self.pair is None and self.tuned is None

    def check(self) -> None:
        """Make sure that something is named, once, and that a pair's name is known; nothing is loaded or made.

        Raises:
            InputError: it is not.
        """
        if self.pair is not None and (self.base is not None or self.tuned is not None):
            raise InputError("both --pair and --base or --tuned are given: name a pair, or give two checkpoints")
        if self.pair is not None:
            models.known_pair(self.pair, self.pairs)
        elif self.base is None:
            missing = "only --tuned is given" if self.tuned is not None else "no model is given"
            raise InputError(
                f"{missing}: expected --pair NAME, or --base PATH --tuned PATH, or --base PATH alone for one model"
            )
        elif self.pairs is not None:
            raise InputError("--pairs adds pairs by name, and none is named: expected --pair NAME with it")

    def chosen(self, store: Store | str | None = None) -> ModelPair:
        """The pair; two checkpoints are called by the tuned one's name. What a package provides may be made first."""
        if self.pair is not None:
            return models.pair(self.pair, self.pairs, store)
        return models.ModelPair.of(str(self.base), self.tuned)


@dataclass(frozen=True)
class Asking:
    """How the models are asked, where it is not as the pair says."""

    prompt: Annotated[str | None, model(_prompt, "TEMPLATE")] = None
    system: Annotated[str | None, model("system turn, of a chat (default: the pair's)", "TEXT")] = None
    instruction: Annotated[str | None, model(_instruction, "TEXT")] = None
    few_shot: Annotated[str | None, model(_few_shot, "NAME")] = None
    max_new_tokens: Annotated[int | None, model(_longest, "N", whole)] = None

    def of(self, pair: ModelPair, asked: ProblemSet, fields: Fields) -> ModelPair:
        """The pair, asked in this way; examples are read now, with the fields of the problems."""
        return answers.asked_as(pair, asked, fields.sets, fields.names, **vars(self))


@dataclass(frozen=True)
class Fields:
    """How problems are read."""

    sets: Annotated[str | None, problem(_sets, "FILE")] = None
    question: Annotated[str | None, problem("field with the question (default: the set's, else question)", "FIELD")] = (
        None
    )
    answer: Annotated[str | None, problem("field with the right answer (default: the set's, else answer)", "FIELD")] = (
        None
    )
    id: Annotated[str | None, problem("field with a unique id (default: set and row)", "FIELD")] = None
    grader: Annotated[str | None, problem(_grader, "NAME", _grader_names)] = None
    extractor: Annotated[str | None, problem(_extractor, "NAME", _extractor_names)] = None
    limit: Annotated[int | None, problem("read only the first N problems", "N", whole)] = None

    @property
    def names(self) -> dict[str, str | None]:
        """What `rlcircuits.problem_set` is told besides the set's name, file and limit."""
        return {name: value for name, value in vars(self).items() if name not in ("sets", "limit")}

    def chosen(self, problems: str | None, pair: str | None = None) -> ProblemSet:
        """The problems of a name or file; without one, those that a package's pair comes with.

        Raises:
            InputError: none, or fields of what is no file.
        """
        if problems is not None:
            return answers.problem_set(problems, self.sets, self.limit, **self.names)
        provider = models.provider_of(pair)
        if provider is None:
            raise InputError(
                "no problems are given: expected --problems FILE, JSON lines or parquet, or a set such as gsm8k"
            )
        refuse(f"{pair!r} brings its own problems", sets=self.sets, **self.names)
        return answers.problem_set(provider.problems, limit=self.limit)


@dataclass(frozen=True)
class Running:
    """What generates answers, and where models run."""

    engine: Annotated[
        str,
        model(
            "what generates: transformers, or vllm (an extra, untested)",
            "NAME",
            _engine_names,
        ),
    ] = "transformers"
    device: Annotated[str, model("auto, cpu, cuda, cuda:1, … or spread", "NAME")] = "auto"
    dtype: Annotated[
        str,
        model("auto (as saved), float32, bfloat16, float16 or float64", "NAME", dtype),
    ] = "auto"
    batch_size: Annotated[
        Any, model("answers generated, or traces scored, in one pass; or auto", "N", _auto_or_whole)
    ] = "auto"


@dataclass(frozen=True)
class Selecting:
    """Which of the answered problems are compared, see `rlcircuits.select`."""

    keep: Annotated[
        str, problem("right by both-correct, only-tuned, only-base or neither, or all", "RULE", _keep_names)
    ] = "both-correct"
    beta: Annotated[float, problem("answers from so many times the mean length", "B", _least)] = 0.5
    gamma: Annotated[float, problem("to so many times", "G", _least)] = 1.5
    delta: Annotated[
        float, problem("largest difference of a problem's two lengths, as a share of their mean", "D", _least)
    ] = 0.5
    mean: Annotated[
        str,
        problem("mean length as in the paper, or in the published code", "RULE", _mean_names),
    ] = "paper"
    n: Annotated[int, problem("how many are drawn of those kept", "N", whole)] = 100
    seed: Annotated[int, problem("of that draw", "N", seed)] = 42


def show_prompts(pair: ModelPair, asked: ProblemSet) -> None:
    """Show on stderr what the models will read before their answers to the first problem, once where it is the same."""
    from rlcircuits.studies import first_prompts

    prompts = first_prompts(pair, asked)
    for side, text in prompts.items() if len(set(prompts.values())) > 1 else [("", prompts["base"])]:
        lines = f"{text}⟨answer⟩".splitlines()
        print(f"what {f'the {side} model' if side else 'a model'} reads first:", file=sys.stderr)
        print("\n".join(f"  │ {line}" for line in lines), file=sys.stderr)


def duration(seconds: float) -> str:
    """In the unit that reads best.

    >>> duration(90), duration(90_000)
    ('90 s', '25.0 h')
    """
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 3 else f"{minutes:.0f} min" if minutes < 180 else f"{minutes / 60:.1f} h"


def refuse(because: str, **given: Any) -> None:
    """Refuse options that would be ignored, by their names in Python.

    Raises:
        InputError: one of them is not None.
    """
    for name, value in given.items():
        if value is not None:
            raise InputError(f"--{name.replace('_', '-')} is given, but {because}: leave it out")


def grouped(command: Callable[..., T]) -> Callable[..., T]:
    """The command as typer takes it: each parameter that is one of the groups above stands for its options."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Any, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=kind, kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        options = get_type_hints(kind, include_extras=True)
        groups[name] = kind, [one.name for one in fields(kind)]
        parameters += [
            inspect.Parameter(
                one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=options[one.name]
            )
            for one in fields(kind)
        ]

    def run(**given: Any) -> T:
        whole = {name: kind(**{one: given.pop(one) for one in own}) for name, (kind, own) in groups.items()}
        return command(**given, **whole)

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {}
    return run
