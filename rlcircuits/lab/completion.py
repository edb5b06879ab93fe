"""The Tab key within a string: levels, pairs, metrics and whatever else is a choice among names.

1. Find the call that the unfinished string stands in, by the tokens before the cursor: ``rc.attribute(model, traces, level="b``.
2. Look the called name up among what the session has; nothing is run for it. Only functions of this package are completed.
3. Which parameter the string is for: the keyword before it, or its place among the arguments.
4. `CHOICES` says where the names of a parameter are.
"""

from __future__ import annotations

import importlib
import inspect
import io
import re
import tokenize
from collections.abc import Iterable, Mapping
from typing import Any

_NAMES = "models:known_pairs"
#: what a parameter chooses from, as module:attribute, a collection of names or a function that returns one; with the function's
#: name before the parameter's where another function's parameter of the same name is something else
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
_CLOSES, _OPENS = ")]}", "([{"


def register(ipython: Any) -> None:
    """Let the Tab key of an IPython shell offer these names; where its completer takes no more matchers, nothing happens."""
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
    if string is None:
        return [], ""
    begun = string[2]
    call = _call(text[: string.start()])
    if call is None:
        return [], begun
    path, keyword, place = call
    function = _found(path, namespace)
    if function is None or not (getattr(function, "__module__", None) or "").startswith("rlcircuits"):
        return [], begun
    parameter = _parameter(function, keyword, place)
    where = CHOICES.get(f"{function.__name__}.{parameter}", CHOICES.get(parameter or ""))
    return ([] if where is None else [name for name in _choices(where) if name.startswith(begun)]), begun


def _choices(where: str) -> Iterable[str]:
    module, _, name = where.partition(":")
    found = getattr(importlib.import_module(f"rlcircuits.{module}"), name)
    return [str(one) for one in (found() if callable(found) else found)]


def _offset(context: Any) -> int:
    """Where the cursor is in the whole text; a context counts lines and columns."""
    lines = context.full_text.split("\n")
    return sum(len(line) + 1 for line in lines[: context.cursor_line]) + context.cursor_position


def _call(text: str) -> tuple[list[str], str | None, int] | None:
    """The innermost call that `text` leaves open: the dotted name called, the keyword of the argument at its end, and its place."""
    tokens = []
    plain = re.sub(r"(?m)^\s*[%!].*$", "", text)  # magics and commands are no Python
    try:
        for token in tokenize.generate_tokens(io.StringIO(plain).readline):
            if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING):
                tokens.append(token)
    except (tokenize.TokenError, IndentationError, SyntaxError):
        pass  # it ends in the middle of things, as it must
    depth, place, keyword = 0, 0, None
    for i in range(len(tokens) - 1, -1, -1):
        said = tokens[i].string
        if tokens[i].type != tokenize.OP:
            continue
        if said in _CLOSES:
            depth += 1
        elif said in _OPENS and depth:
            depth -= 1
        elif said in "[{":  # a list of names within a call; a key of something else is IPython's own matter
            if i and (tokens[i - 1].type in (tokenize.NAME, tokenize.STRING) or tokens[i - 1].string in _CLOSES):
                return None
            place, keyword = 0, None
        elif said == "(":
            return (path, keyword, place) if (path := _path(tokens[:i])) else None
        elif said == "," and not depth:
            place += 1
        elif said == "=" and not depth and not place and i and tokens[i - 1].type == tokenize.NAME:
            keyword = keyword or tokens[i - 1].string
    return None


def _path(tokens: list[tokenize.TokenInfo]) -> list[str]:
    """The dotted name at the end: ``["rc", "attribute"]``; empty where there is none."""
    path: list[str] = []
    for token in reversed(tokens):
        if len(path) % 2 == 0 and token.type == tokenize.NAME:
            path.append(token.string)
        elif len(path) % 2 == 1 and token.string == ".":
            path.append(".")
        else:
            break
    return [name for name in reversed(path) if name != "."] if len(path) % 2 else []


def _found(path: list[str], namespace: Mapping[str, Any]) -> Any:
    """What a dotted name of modules and instances means, without running properties; None where it means nothing."""
    found = namespace.get(path[0])
    for name in path[1:]:
        if found is None:
            return None
        found = getattr(found if inspect.ismodule(found) or inspect.isclass(found) else type(found), name, None)
    return found


def _parameter(function: Any, keyword: str | None, place: int) -> str | None:
    """The name of the parameter that an argument is for."""
    if keyword is not None:
        return keyword
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    return names[place] if place < len(names) else None
