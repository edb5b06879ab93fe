"""The real model's members by name: ``smollm2/<member>``, and the problems they were trained for, ``stories``.

1. What each training gave is an adapter under ``results/smollm2``, with its curve and the recipe it was trained by. The
   base's own adapter is there, too.
2. The base is SmolLM2 with that adapter merged in, made once for each machine; the others are adapters on it. Nothing is
   trained, and nothing fetched: ``make smollm2`` has to have been run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paradigms.family import BASES, MEMBERS, METHODS, PROMPT, story_set
from rlcircuits.errors import InputError, choose
from rlcircuits.models import ModelPair, machine_store, packaged_folder, stored_parameters, which_are_here
from rlcircuits.storage import Step, Store

if TYPE_CHECKING:
    from rlcircuits.answers import ProblemSet

MODEL = "smollm2"
ADAPTERS = Path(__file__).resolve().parent.parent / "results" / MODEL
MERGED = Step("merged", 1)


def members() -> list[str]:
    """The members whose adapters are here, the base first."""
    return [member for member in MEMBERS if (ADAPTERS / member / "adapter_model.safetensors").is_file()]


def base_folder() -> Path:
    """The base, a whole checkpoint in float32: made now if it is not on this machine.

    The adapter is merged as it was when the descendants were trained: in the dtype of the recipe.

    Raises:
        InputError: SmolLM2 or the adapters are not here.
    """
    store, inputs = machine_store(), _inputs()
    return store.make("merged", inputs, _merge, note=f"{MODEL} with its members' base merged in")


def _inputs() -> dict[str, Any]:
    adapter = ADAPTERS / "sft" / "adapter_model.safetensors"
    if not adapter.is_file():
        raise InputError(f"no adapters in {str(ADAPTERS)!r}: they come with the repository, not with the package")
    return {"start": MODEL, "adapter": hashlib.sha256(adapter.read_bytes()).hexdigest(), "code": str(MERGED)}


def _merge(folder: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    start = packaged_folder(MODEL)
    if start is None:
        raise InputError(f"{MODEL} is not on this machine: run `make {MODEL}` or `rlcircuits models get {MODEL}` once")
    dtype = getattr(torch, BASES[MODEL].dtype)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=dtype)
    merged = PeftModel.from_pretrained(model, ADAPTERS / "sft").merge_and_unload()
    merged.float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(start).save_pretrained(folder)


def ship(member: str, folder: Path) -> None:
    """Keep what a training of `paradigms.family` left in `folder` under `ADAPTERS`: the adapter in the recipe's dtype, in
    which its numbers are exact, its curve and its summary.
    """
    import torch
    from safetensors.torch import load_file, save_file

    about = json.loads((folder / "member.json").read_text("utf-8"))
    adapter, to = folder / "adapter" if member == "sft" else folder, ADAPTERS / choose("member", member, MEMBERS)
    to.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, about["recipe"]["dtype"])
    weights = {name: weight.to(dtype) for name, weight in load_file(adapter / "adapter_model.safetensors").items()}
    save_file(weights, to / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    settings["base_model_name_or_path"] = (
        MODEL if member == "sft" else None
    )  # what was a folder of the training's machine
    (to / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", "utf-8")
    for name in ("curves.parquet", "member.json"):
        shutil.copyfile(folder / name, to / name)


class RealPairs:
    """``smollm2/<member>``: the base against that member; see `rlcircuits.models.PairProvider`."""

    problems = "stories"
    note = "smollm2/<member> are adapters that come with the repository; make smollm2 fetches what they adapt, once."

    def names(self) -> list[str]:
        return [f"{MODEL}/{member}" for member in members() if member != "sft"]

    def known(self, name: str) -> str:
        return choose("pair", name, self.names())

    def pair(self, name: str, store: Store | str | os.PathLike[str] | None = None) -> ModelPair:
        member = self.known(name).removeprefix(f"{MODEL}/")
        about = json.loads((ADAPTERS / member / "member.json").read_text("utf-8"))
        return ModelPair(
            name=name,
            base=os.fspath(base_folder()),
            tuned=os.fspath(ADAPTERS / member),
            method=METHODS[member],
            prompt=PROMPT,
            max_new_tokens=about["recipe"]["max_new_tokens"],
            note=f"SmolLM2-135M-Instruct taught word problems, and its {member} descendant",
        )

    def rows(self, store: Store | str | os.PathLike[str] | None = None) -> list[dict[str, object]]:
        start = packaged_folder(MODEL)
        return [
            {
                "pair": name,
                "method": METHODS[name.removeprefix(f"{MODEL}/")],
                "base": "SmolLM2-135M-Instruct taught word problems",
                "tuned": f"its {name.removeprefix(f'{MODEL}/')} descendant",
                "parameters": None if start is None else stored_parameters(start),
                "here": which_are_here(start is not None, True),
                "note": "" if start is not None else f"`make {MODEL}` fetches the model it adapts",
            }
            for name in self.names()
        ]


class Stories:
    """The test problems of the task; see `rlcircuits.answers.ProblemProvider`."""

    note = "Word problems in English, the test problems of smollm2/<member>."

    def problems(self, limit: int | None = None) -> ProblemSet:
        return story_set(n=limit or 500)


pairs = RealPairs()
problems = Stories()
