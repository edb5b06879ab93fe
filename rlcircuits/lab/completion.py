"""The Tab key within a string: levels, pairs, metrics and whatever else is a choice among names.

1. jedi, which IPython brings, says of which function's which parameter the unfinished string is a value; it looks names
   up among what the session has, and runs nothing. Only functions of this package are completed.
2. `CHOICES` says where the names of a parameter are. (IPython itself completes no strings of arguments, with
   ``Literal`` hints or without.)
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

_NAMES = "models:known_pairs"
#: what a parameter chooses from, as module:attribute, a collection of names or a function that returns one; with the
#: function's name before the parameter's where another function's parameter of the same name is something else
CHOICES = {
    "level": "attribution:LEVELS",
    "intervention": "attribution:INTERVENTIONS",
    "memory": "attribution:MEMORY",
    "keep": "answers:KEEPS",
    "mean": "answers:MEANS",
    "engine": "answers:ENGINES",
    "dtype": "models:DTYPES",
    "rank": "attribution:RANKS",
    "metric": "metrics:METRICS",
    "metrics": "metrics:METRICS",
    "grader": "answers:GRADERS",
    "extractor": "answers:EXTRACTORS",
    "pair.name": _NAMES,
    "study.pairs": _NAMES,
    "generate_pair.pair": _NAMES,
    "problem_set.name": "answers:known_sets",
}
_STRING = re.compile(r"""(?<!\w)(["'])([^"'\n]*)\Z""")
_KEY = re.compile(r"""[\w)\]"']\s*\[\s*\Z""")  # a key of something is IPython's own matter


def register(ipython: Any) -> None:
    """Let the Tab key of an IPython shell offer these names; where its completer takes no more matchers, nothing
    happens.
    """
    matchers = getattr(getattr(ipython, "Completer", None), "custom_matchers", None)
    if matchers is None or any(getattr(one, "__module__", "") == __name__ for one in matchers):
        return
    from IPython.core.completer import SimpleCompletion, context_matcher

    @context_matcher()
    def rlcircuits_names(context: Any) -> dict[str, Any]:
        try:
            text = context.full_text[: _offset(context)]
            names, begun = offered(text, ipython.user_ns)
        except Exception:  # whatever a session holds, the Tab key must go on working
            names, begun = [], ""
        completions = [SimpleCompletion(text=name, type="choice") for name in names]
        return {"completions": completions, "matched_fragment": begun, "suppress": bool(names), "ordered": True}

    matchers.append(rlcircuits_names)


def offered(text: str, namespace: Mapping[str, Any]) -> tuple[list[str], str]:
    """The names that can complete the string at the end of `text`, and what of it is there already.

    Args:
        text: the code before the cursor.
        namespace: what the session has.

    >>> import rlcircuits
    >>> offered('rc.attribute(model, traces, level="', {"rc": rlcircuits})
    (['block', 'qkv', 'head'], '')
    >>> offered('rc.attribute(model, traces, "h', {"rc": rlcircuits})
    (['head'], 'h')
    """
    string = _STRING.search(text)
    if string is None or _KEY.search(text[: string.start()]):
        return [], ""
    import jedi

    before = re.sub(r"(?m)^\s*[%!].*$", "", text[: string.start()])  # magics and commands are no Python
    for call in jedi.Interpreter(before, [dict(namespace)]).get_signatures():
        if call.index is not None and (call.module_name or "").startswith("rlcircuits"):
            parameter = call.params[call.index].name
            where = CHOICES.get(f"{call.name}.{parameter}", CHOICES.get(parameter))
            return [name for name in _choices(where) if name.startswith(string[2])] if where else [], string[2]
    return [], string[2]


def _choices(where: str) -> Iterable[str]:
    module, _, name = where.partition(":")
    found = getattr(importlib.import_module(f"rlcircuits.{module}"), name)
    return [str(one) for one in (found() if callable(found) else found)]


def _offset(context: Any) -> int:
    """Where the cursor is in the whole text; a context counts lines and columns."""
    lines = context.full_text.split("\n")
    return sum(len(line) + 1 for line in lines[: context.cursor_line]) + context.cursor_position
