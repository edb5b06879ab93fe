"""What a study holds for the explorer, and how to make what it lacks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import xarray as xr

from rlcircuits.errors import InputError

ATTRIBUTE = "make them with rc.study(…) or rc.attribute(model, traces)"
GENERATE = "make them with rc.study(…) or rlcircuits.answers.generation.generate(model, problems)"
MAKE = {
    "pairs": "the study holds no pair; make one with rc.study(pairs=[…], problems=…)",
    "base_scores": f"no edge scores of the base; {ATTRIBUTE}",
    "tuned_scores": f"no edge scores of the tuned model; {ATTRIBUTE}",
    "base_answers": f"no answers of the base; {GENERATE}",
    "tuned_answers": f"no answers of the tuned model; {GENERATE}",
    "problems": "no problems, so no questions; make the study with rc.study(pairs=[…], problems=…)",
    "tokenizer": "no tokenizer, so answers are shown whole; keep the base's checkpoint where the pair has it",
}


def pairs_of(study: Any) -> dict[str, Any]:
    """The study's pairs by name; none where there is nothing to show."""
    pairs = getattr(study, "pairs", None)
    if isinstance(pairs, Mapping):
        return {str(name): pair for name, pair in pairs.items()}
    if any(getattr(study, name, None) is not None for name in ("base_scores", "tuned_scores", "base_answers")):
        return {str(getattr(getattr(study, "pair", None), "name", "pair")): study}
    if isinstance(study, xr.DataArray):
        return {str(study.attrs.get("model", "scores")): SimpleNamespace(base_scores=study)}
    return {}


def opened(study: Any) -> tuple[Any, str]:
    """The study, from a path too; None, and what is wrong, where there is none."""
    if not isinstance(study, (str, os.PathLike)):
        return study, ""
    from rlcircuits.storage import load_scores

    path = Path(study).expanduser()
    files = {f"{side}_scores": path / f"{side}.nc" for side in ("base", "tuned")}
    found = {name: file for name, file in files.items() if file.is_file()}
    if not found:
        there = "is no folder" if not path.is_dir() else "holds neither base.nc nor tuned.nc"
        return None, (
            f"no study at {str(path)!r}: it {there}. Give a folder that `rlcircuits attribute --out` wrote, or a "
            "study: rc.explore(rc.study(pairs=[…], problems=…))"
        )
    try:
        return SimpleNamespace(pairs={path.name: SimpleNamespace(**{n: load_scores(f) for n, f in found.items()})}), ""
    except InputError as error:
        return None, str(error)


def part(pair: Any, name: str) -> tuple[Any, str]:
    """An attribute of the pair, or None and how to make it."""
    try:
        value = getattr(pair, name, None)
    except (InputError, OSError) as error:
        return None, f"{MAKE[name]} ({error})"
    return (None, MAKE[name]) if value is None else (value, "")


def problem_of(problems: Any, problem: str) -> Any:
    """The problem with this id, from a mapping or a problem set."""
    if isinstance(problems, Mapping):
        return problems.get(problem)
    return next((p for p in problems or () if str(getattr(p, "id", None)) == problem), None)


def question_of(problems: Any, problem: str) -> str:
    """The question of a problem; empty where there is none."""
    return str(getattr(problem_of(problems, problem), "question", ""))


def levels_of(scores: xr.DataArray) -> list[str]:
    """Levels that can be shown: that of the scores, and what they sum to."""
    level = str(scores.attrs.get("level", "block"))
    return ["qkv", "block"] if level == "qkv" else [level]
