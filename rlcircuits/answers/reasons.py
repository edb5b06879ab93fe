"""Why problems fall away: for each rule of the selection and each model how many, with three of their answers to look at.

1. An answer that is not right is told apart: **cut off** before the model ended it, **states no answer** (nothing that a grader could
   read), or **wrong**.
2. A problem that is not in the stratum asked for counts once, under the stratum it is in, with the tuned model's answer.
3. Rules on the pair's lengths and prompts count once, for both models, and show the two numbers of tokens.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rlcircuits.answers.answer import Answer
from rlcircuits.answers.extraction import stated

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("rule", "model", "reason", "problems", "examples")
SHOWN = 3
_CORRECT = ("both answers correct", "answer correct")
#: by stratum of the problems, the rule that keeps it
STRATA = {
    "both-correct": "both answers correct",
    "only-tuned": "only the tuned model's answer correct",
    "only-base": "only the base's answer correct",
    "neither": "neither answer correct",
}


def stratum_of(base: Answer, tuned: Answer) -> str:
    """Which of `STRATA` a problem is in."""
    if base.correct:
        return "both-correct" if tuned.correct else "only-base"
    return "only-tuned" if tuned.correct else "neither"


def reasons(
    pairs: Mapping[str, tuple[Answer, Answer]], gone: Iterable[tuple[str, Sequence[str]]], alone: bool = False
) -> pd.DataFrame:
    """A row for each rule, model and reason.

    Args:
        pairs: both models' answers by problem.
        gone: every rule with the problems that it dropped, in the order in which they apply.
        alone: it is one model, whose answers stand twice in `pairs`; rows then name no model.

    Returns:
        Columns ``rule``; ``model``: base, tuned, both or, of one alone, nothing; ``reason``; ``problems``, how many (one that both models fail counts for
        each); ``examples``: up to three of them, a line each.
    """
    import pandas as pd

    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for rule, problems in gone:
        for q in problems:
            if rule in (*_CORRECT, "no answer empty"):
                for model, answer in zip(("",) if alone else ("base", "tuned"), pairs[q]):
                    if not (answer.correct if rule in _CORRECT else answer.answer):
                        found[rule, model, _why(answer)].append(f"{q}: {_end(answer.text)}")
            elif rule in STRATA.values():
                before, after = pairs[q]
                found[rule, "both", STRATA[stratum_of(before, after)]].append(f"{q}: {_end(after.text)}")
            elif alone:
                found[rule, "", rule].append(f"{q}: {len(pairs[q][0].answer)} tokens")
            else:
                field = "prompt" if rule == "prompts equally long" else "answer"
                base, tuned = (len(getattr(answer, field)) for answer in pairs[q])
                found[rule, "both", rule].append(f"{q}: {base} and {tuned} tokens")
    rows = [(*key, len(lines), "\n".join(lines[:SHOWN])) for key, lines in found.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def told(table: pd.DataFrame) -> str:
    """The reasons as lines for a terminal; empty where no problem fell away."""
    lines = []
    for row in table.to_dict("records"):
        who = "" if row["model"] in ("", "both") else f"{row['model']}: "
        what = (
            row["reason"]
            if row["reason"] != row["rule"]
            else {"drawn": "not drawn"}.get(row["rule"], f"not {row['rule']}")
        )
        lines.append(f"  {row['problems']:4d}  {who}{what}")
        lines += [f"          {example}" for example in row["examples"].splitlines()]
    return "\n".join(lines)


def _why(answer: Answer) -> str:
    if not answer.answer:
        return "says nothing"
    if not answer.finished:
        return "cut off"
    return "wrong" if stated(answer.text) is not None else "states no answer"


def _end(text: str) -> str:
    """The end of a text, on one line."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 80 else f"…{line[-79:]}")
