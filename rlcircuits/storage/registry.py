"""Tables of named things kept as YAML: what is known by name, and what a user's file adds to it.

1. A file is read by ``yaml.safe_load``; it maps names to mappings. A name or key that is there twice is refused.
2. Every key must be known and its value of the kind expected (`check_keys`); a mistake names file, entry, key and the
   nearest key.
3. A user's file extends the built-in one; an entry of the same name takes its place, which is said (`Overridden`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from rlcircuits.errors import InputError, near

Kinds = Mapping[str, type | tuple[type, ...]]
_WORDS = {str: "a text", int: "a whole number", bool: "true or false", dict: "a mapping", list: "a list"}


class Overridden(UserWarning):
    """An entry of the user's file takes the place of a built-in one."""


def entries(
    builtin: str, file: str | os.PathLike[str] | None, environment: str, kinds: Kinds, needed: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """The entries of a built-in table and of a user's, by name.

    Args:
        builtin: package and name of the package's own file, such as ``"rlcircuits.models:pairs.yaml"``.
        file: the user's file; None stands for what the variable `environment` names, if it is set.
        environment: an environment variable that may name a user's file.
        kinds, needed: as for `check_keys`.

    Returns:
        name -> entry. An entry of a user's file also has ``"_file"``, the file it stands in.

    Raises:
        InputError: a file that cannot be read, or an entry that is not as expected.
    """
    package, _, name = builtin.partition(":")
    own = resources.files(package) / name
    known = read(own, own.read_text("utf-8"), kinds, needed)
    given = file if file is not None else os.environ.get(environment) or None
    if given is None:
        return known
    path = Path(given).expanduser()
    added = read(path, _text(path, name), kinds, needed)
    for name in known.keys() & added.keys():
        warnings.warn(
            f"{str(path)!r}: {name!r} takes the place of the built-in entry of that name", Overridden, stacklevel=4
        )
    return known | {name: entry | {"_file": str(path)} for name, entry in added.items()}


def read(file: object, text: str, kinds: Kinds, needed: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The entries that a YAML text holds, checked; `file` is what messages call it.

    Raises:
        InputError: text that is no YAML, or an entry that is not as expected.
    """
    where = repr(str(file))
    try:
        content = _load(text)
    except RecursionError as error:
        raise InputError(f"{where} is nested too deeply: expected names with a mapping each") from error
    except Exception as error:  # the YAML reader lets through errors of the types it builds, such as dates
        if not isinstance(error, _yaml_errors()):
            raise
        raise InputError(f"{where} is not YAML that can be used ({' '.join(str(error).split())[:200]})") from error
    if content is None:
        raise InputError(f"{where} is empty: expected names with a mapping each, with keys {', '.join(kinds)}")
    if not isinstance(content, dict):
        raise InputError(f"{where} holds a {type(content).__name__}: expected names with a mapping each")
    for name, entry in content.items():
        _expect_entry(where, name, entry, kinds)
        check_keys(f"{where}: {name!r}", entry, kinds, needed)
    return content


def _expect_entry(where: str, name: object, entry: object, kinds: Kinds) -> None:
    if not isinstance(name, str) or not name.strip() or name != name.strip() or not name.isprintable():
        raise InputError(
            f"{where}: the name {_short(name)} is no plain text: expected a name, in quotes if it looks like a number"
        )
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {name!r} is {_short(entry)}: expected a mapping with the keys {', '.join(kinds)}")


def check_keys(where: str, entry: Mapping[Any, Any], kinds: Kinds, needed: Mapping[str, str]) -> None:
    """Make sure that a mapping of a user's has known keys, those that are needed, and values of the kinds expected.

    Args:
        where: what messages begin with, such as a file and the name of an entry.
        entry: what was given.
        kinds: the keys it may have, and of which type(s) each is.
        needed: the keys it must have, and in words what each is.

    Raises:
        InputError: it has not; the message names where, the key, what was expected and the nearest known key.
    """
    for key in entry:
        if key not in kinds:
            expected = ", ".join(kinds)
            raise InputError(
                f"{where} has the unknown key {_short(key)}: expected some of {expected}{near(key, kinds)}"
            )
    for key, words in needed.items():
        if key not in entry:
            raise InputError(f"{where} has no {key}: expected {words}{near(key, entry)}")
    for key, value in entry.items():
        kind = kinds[key]
        allowed = kind if isinstance(kind, tuple) else (kind,)
        if not any(isinstance(value, one) and (one is bool or not isinstance(value, bool)) for one in allowed):
            told = " or ".join(_WORDS.get(one, one.__name__) for one in allowed)
            raise InputError(f"{where}: {key} is {_short(value)}: expected {told}")


def _short(value: object) -> str:
    if isinstance(value, (dict, list)):
        return f"a {'mapping' if isinstance(value, dict) else 'list'}"
    return ascii(value)[:80]


def _text(path: Path, like: str) -> str:
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}: expected YAML as in the package's {like}")
    try:
        return path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read as UTF-8 text ({error}): expected YAML as in the package's {like}"
        ) from error


def _yaml_errors() -> tuple[type[Exception], ...]:
    import yaml

    return (yaml.YAMLError, ValueError, TypeError, OverflowError, KeyError, IndexError, AttributeError)


def _load(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """`yaml.SafeLoader` that refuses a key that is there twice, where YAML's own reader takes the last."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen = set()
            for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
                if key is not None and key != "<<" and key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
                seen.add(key)
            return super().construct_mapping(node, deep)

    return yaml.load(text, Loader)
