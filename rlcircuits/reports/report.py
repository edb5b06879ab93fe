"""A report: sections that each answer one question, with tables, and one page of HTML made of them.

1. A `Section` holds a question, its answer in a few words, the finding in a sentence, what the number **needs** in order to be
   believed and whether that is so here, and tables of plain numbers.
2. A `Report` is a title, a few sentences, sections and settings. Whatever shows it (terminal, notebook, page) shows this one
   object.
3. The page is one file: a tile for each question on the first screen, the sections below, styles inside, no scripts, nothing from a
   network. Dark where the reader's system is dark. Everything that models or users wrote is escaped, by jinja2.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcircuits.metrics import Interval
from rlcircuits.reports.numbers import NONE, interval, number, percent
from rlcircuits.storage import written

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Environment


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a section.

    Attributes:
        caption: what it shows, and in which unit.
        data: numbers and text; columns ``low`` and ``high`` are shown as one interval.
        shares: columns that are shown in percent.
    """

    caption: str
    data: pd.DataFrame
    shares: Sequence[str] = ()

    def shown(self, confidence: float = 0.95) -> pd.DataFrame:
        """The same as text, its index a column where it has a name."""
        import pandas as pd

        data = self._data()
        found: dict[str, list[str]] = {}
        for column in data.columns:
            if column == "high" and "low" in data:
                continue
            if column == "low" and "high" in data:
                n = 3 if "low" in self.shares else 2
                scale = 100 if "low" in self.shares else 1
                found[f"{100 * confidence:g} % interval"] = [
                    interval(scale * low, scale * high, n) for low, high in zip(data["low"], data["high"])
                ]
            else:
                found[str(column)] = [self._text(str(column), value) for value in data[column]]
        return pd.DataFrame(found)

    def is_text(self, column: str) -> bool:
        """Whether a column holds words, which a page sets flush left."""
        data = self._data()
        return column in data and bool(data[column].map(lambda value: isinstance(value, str)).any())

    def _data(self) -> pd.DataFrame:
        return self.data.reset_index() if any(self.data.index.names) else self.data

    def _text(self, column: str, value: Any) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, (bool,)) or value is None:
            return {True: "yes", False: "no", None: ""}[value]
        if column in self.shares:
            return percent(float(value), 1)
        if float(value).is_integer() and abs(value) < 1e15:
            return f"{int(value):,}".replace("-", "−")
        return number(float(value), 2 if column.startswith("p") else 3)


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer with the tokens that are scored marked.

    Attributes:
        title: whose answer to which problem.
        question: what was asked.
        pieces: for each token its text, whether it is scored, and its loss in nats (NaN where it is not known).
        more: how many further tokens are not shown.
    """

    title: str
    question: str
    pieces: Sequence[tuple[str, bool, float]]
    more: int = 0


@dataclass(frozen=True, eq=False)
class Section:
    """One question of a report.

    Attributes:
        name: lower-case words joined by hyphens; its place on the page.
        title: what it is about.
        question: as its tile asks it.
        answer: the number, or a few words.
        detail: what stands beside the answer: interval, p, the other rule.
        says: the finding, in a sentence or two.
        needs: what it needs in order to be believed, and how that stands here.
        holds: whether that is so; None where it is not measured.
        shown: the interval that the tile draws, and the value that stands for no change.
        tables, tokens: what there is to look at.
    """

    name: str
    title: str
    question: str
    answer: str
    detail: str
    says: str
    needs: str
    holds: bool | None
    shown: tuple[Interval, float] | None = None
    tables: Sequence[Table] = ()
    tokens: Sequence[ScoredAnswer] = ()

    @property
    def standing(self) -> str:
        """ "stands", "weak" or "not measured"."""
        return {True: "stands", False: "weak", None: "not measured"}[self.holds]

    @property
    def bar(self) -> dict[str, float] | None:
        """Where the tile's interval, its value and the null lie on a line of 100; None where there is no interval."""
        if self.shown is None:
            return None
        (value, low, high), null = self.shown
        if not all(map(math.isfinite, (value, low, high, null))):
            return None
        ends = min(low, null, value), max(high, null, value)
        width = (ends[1] - ends[0]) or 1.0

        def at(x: float) -> float:
            return round(4 + 92 * (x - ends[0]) / width, 2)

        return {"low": at(low), "width": round(at(high) - at(low), 2), "value": at(value), "null": at(null)}


@dataclass(frozen=True, eq=False, repr=False)
class Report:
    """What was measured, ready to be shown.

    Attributes:
        title: of the page.
        facts: what was looked at, by name.
        short: the answer in a few sentences.
        sections: by question, in their order.
        settings: everything that was asked for.
        confidence: coverage of the intervals.
    """

    title: str
    facts: Mapping[str, str]
    short: Sequence[str]
    sections: Sequence[Section]
    settings: Mapping[str, Any] = field(default_factory=dict)
    confidence: float = 0.95

    def __getitem__(self, name: str) -> Section:
        """One section by name.

        Raises:
            InputError: there is none of that name.
        """
        from rlcircuits.errors import choose

        choose("section", name, [section.name for section in self.sections])
        return next(section for section in self.sections if section.name == name)

    def _ipython_key_completions_(self) -> list[str]:
        return [section.name for section in self.sections]

    def html(self) -> str:
        """The whole page, one file without scripts."""
        return _templates().get_template("page.html").render(report=self, top=1, css=_file("page.css"))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; returns its path.

        Raises:
            StoreError: it cannot be written.
        """
        path = Path(path).expanduser()
        with written(path) as temporary:
            temporary.write_text(self.html(), "utf-8")
        return path

    def _repr_html_(self) -> str:
        return _templates().get_template("body.html").render(report=self, top=3, css=_file("page.css"))

    def __repr__(self) -> str:
        lines = [self.title, *self.short, ""]
        wide = max((len(section.question) for section in self.sections), default=0)
        for section in self.sections:
            if section.question:
                said = "; ".join(filter(None, (section.answer, section.detail)))
                mark = "" if section.holds else f"  ({section.standing})"
                lines.append(f"{section.question:{wide}}  {said}{mark}")
        return "\n".join(lines).replace("\u00a0", " ")


@functools.cache
def _templates() -> Environment:
    from jinja2 import DictLoader, Environment, StrictUndefined

    pages = DictLoader({name: _file(name) for name in ("page.html", "body.html")})
    environment = Environment(
        loader=pages, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["dash"] = NONE
    return environment


def _file(name: str) -> str:
    return (resources.files("rlcircuits.reports") / name).read_text("utf-8")
