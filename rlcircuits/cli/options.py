"""Options that several commands share, each declared once, and the kinds of value that options take.

An option is a type hint: ``def answers(pair: PairName, limit: Limit = None)`` has ``--pair`` and ``--limit``. A value
is checked before a command begins, and before anything heavy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Annotated, Any, TypeVar

import typer

from rlcircuits import answers, attribution, models
from rlcircuits.errors import InputError, choose

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
_share = value(float, lambda share: 0 < share <= 1, "a number above 0 and at most 1")
_auto_or_whole = value(
    lambda text: text if text == "auto" else int(text),
    lambda n: n == "auto" or int(n) >= 1,
    "auto or a whole number above 0",
)


def option(help: str, metavar: str, read: Callable[[Any], Any] | None = None, heading: str = "options") -> Any:
    """An option with a value: what `read` makes of it; ``--help`` shows it under a heading."""
    return typer.Option(help=help, metavar=metavar, parser=read, rich_help_panel=heading)


def flag(name: str, help: str) -> Any:
    """An option without a value."""
    return typer.Option(name, help=help)


model = partial(option, heading="models")
problem = partial(option, heading="problems")
score = partial(option, heading="scores")
output = partial(option, heading="output")

PairName = Annotated[str | None, model("a registered pair, or family/<member>[@<seed>], of `rlcircuits pairs`", "NAME")]
PairsFile = Annotated[str | None, model("YAML that adds pairs (default: what RLCIRCUITS_PAIRS names)", "FILE")]
Device = Annotated[str, model("auto, cpu, cuda, cuda:1, … or spread", "NAME")]
_dtype = one_of("dtype", lambda: models.DTYPES)
Dtype = Annotated[str, model("auto (as saved), float32, bfloat16, float16 or float64", "NAME", _dtype)]
_engine = one_of("engine", lambda: answers.ENGINES)
Engine = Annotated[str, model("what generates: transformers, or vllm (an extra, untested)", "NAME", _engine)]
BatchSize = Annotated[Any, model("answers or traces at once, or auto", "N", _auto_or_whole)]

_sets = "YAML that adds problem sets (default: what RLCIRCUITS_PROBLEM_SETS names)"
SetsFile = Annotated[str | None, problem(_sets, "FILE")]
Question = Annotated[str | None, problem("field with the question (default: the set's, else question)", "FIELD")]
Right = Annotated[str | None, problem("field with the right answer (default: the set's, else answer)", "FIELD")]
Id = Annotated[str | None, problem("field with a unique id (default: set and row)", "FIELD")]
_grader = "math, or final: what follows the last # (default: the set's, else math)"
Grader = Annotated[str | None, problem(_grader, "NAME", one_of("grader", lambda: answers.GRADERS))]
_extractor = "what of the right answer is the answer: stated, boxed, hashes or whole"
Extractor = Annotated[str | None, problem(_extractor, "NAME", one_of("extractor", lambda: answers.EXTRACTORS))]
Limit = Annotated[int | None, problem("read only the first N problems", "N", whole)]

Level = Annotated[str, score("of the graph: block, qkv or head", "LEVEL", one_of("level", lambda: attribution.LEVELS))]
Alpha = Annotated[float, score("share of an answer that is scored", "A", _share)]

StoreFolder = Annotated[str, output("where finished steps are kept", "DIR")]
