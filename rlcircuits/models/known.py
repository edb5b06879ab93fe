"""Pairs known by name: the package's ``pairs.yaml``, a file of one's own, and what other packages provide.

1. A file of one's own (``file=``, or the variable ``RLCIRCUITS_PAIRS``) adds to ``pairs.yaml``; an entry of the same
   name takes the place of the built-in one.
2. A package adds pairs by a `PairProvider` (entry point ``rlcircuits.pairs``); their names begin with the entry's name
   and a slash, such as ``family/grpo``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from rlcircuits.errors import InputError, choose
from rlcircuits.extensions import provided
from rlcircuits.models.pairing import ModelPair
from rlcircuits.storage import entries

if TYPE_CHECKING:
    from rlcircuits.storage import Store

_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "base": str,
    "tuned": str,
    "method": str,
    "prompt": str,
    "system": str,
    "instruction": str,
    "few_shot": str,
    "max_new_tokens": int,
    "base_revision": (str, type(None)),
    "tuned_revision": (str, type(None)),
    "trust_remote_code": bool,
    "note": str,
    "config": dict,
    "parameters": int,
}
_NEEDED = dict.fromkeys(("base", "tuned"), "a path or a hub id")
ENVIRONMENT = "RLCIRCUITS_PAIRS"
GROUP = "rlcircuits.pairs"


class PairProvider(Protocol):
    """Pairs that a package adds, all named ``<entry>/…``; an object named by the entry point ``rlcircuits.pairs``.

    Attributes:
        problems: the problem set that its pairs are studied on when none is given.
        note: one line for the end of a list of pairs, or nothing.
    """

    problems: str
    note: str

    def names(self) -> list[str]:
        """The names to show and complete."""

    def known(self, name: str) -> str:
        """The name, if `pair` knows it.

        Raises:
            InputError: it does not; the message says what was expected.
        """

    def pair(self, name: str, store: Store | str | os.PathLike[str] | None) -> ModelPair:
        """The pair of a name, whatever it takes to make it."""

    def rows(self, store: Store | str | os.PathLike[str] | None) -> list[dict[str, object]]:
        """What `rlcircuits.pair_table` shows of each, by its columns; nothing is made for it."""


def pairs(file: str | os.PathLike[str] | None = None) -> dict[str, ModelPair]:
    """The registered pairs by name: the package's ``pairs.yaml``, and what a file of one's own adds.

    Args:
        file: YAML as ``pairs.yaml``; None stands for what the variable ``RLCIRCUITS_PAIRS`` names, if it is set. Paths
            in it that begin with ``./`` or ``../`` are seen from its folder.

    Raises:
        InputError: a file that cannot be read, or an entry that is no pair; it names file, pair, key and what was
            expected.
    """
    found = {}
    for name, fields in entries("rlcircuits.models:pairs.yaml", file, ENVIRONMENT, _KEYS, _NEEDED).items():
        where = fields.pop("_file", None)
        label = repr(where or "pairs.yaml")
        for key in ("base", "tuned", "few_shot"):
            if where is not None and fields.get(key, "").startswith(("./", "../")):
                fields[key] = str(Path(where).expanduser().parent / fields[key])
        if provider_of(name) is not None or "@" in name:
            provided_by = ", ".join(f"'{one}/'" for one in provided(GROUP)) or "a provider's name"
            raise InputError(
                f"{label}: {name!r} cannot be the name of a pair: names with {provided_by} or '@' are provided by "
                "packages"
            )
        try:
            found[name] = ModelPair(name=name, **fields)
        except InputError as error:
            raise InputError(f"{label}: {name!r}: {str(error).removeprefix(f'pair {name!r}: ')}") from None
    return found


def pair(
    name: str, file: str | os.PathLike[str] | None = None, store: Store | str | os.PathLike[str] | None = None
) -> ModelPair:
    """One pair known by name.

    >>> pair("deepseek-math").method
    'GRPO'

    Args:
        name: a registered pair, or one that a package provides, such as ``"family/grpo"`` or, for another seed than 0,
            ``"family/grpo@3"``. What a package provides may have to be made first: a member of the family that is not
            in the store is trained, which takes minutes.
        file: as in `pairs`.
        store: where provided pairs are kept; ``runs`` by default.

    Raises:
        InputError: no pair of that name.
    """
    provider = provider_of(name)
    if provider is not None:
        return provider.pair(name, store)
    known = pairs(file)
    return known[choose("pair", name, known_pairs(known))]


def known_pair(name: str, file: str | os.PathLike[str] | None = None) -> str:
    """The name of a pair, which `pair` knows: checked without loading or training anything.

    Args:
        name, file: as in `pair`.

    Raises:
        InputError: as `pair`.
    """
    provider = provider_of(name)
    return provider.known(name) if provider is not None else choose("pair", name, known_pairs(pairs(file)))


def known_pairs(registered: Mapping[str, ModelPair] | None = None) -> list[str]:
    """Names of the registered pairs and of those that packages provide."""
    added = [name for provider in provided(GROUP).values() for name in provider.names()]
    return [*(pairs() if registered is None else registered), *added]


def provider_of(name: object) -> PairProvider | None:
    """The provider that a pair's name begins with."""
    prefix, slash, _ = name.partition("/") if isinstance(name, str) else ("", "", "")
    return provided(GROUP).get(prefix) if slash else None
