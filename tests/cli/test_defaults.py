"""Shell, notebook and Python have one set of names and defaults, compared as they are declared."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import typer

import rlcircuits as rc
from rlcircuits import studies
from rlcircuits.answers import problem_set
from rlcircuits.cli.main import application
from rlcircuits.lab import default_parameters
from rlcircuits.models import estimate

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "11_your_own_pair.ipynb"
#: what has another default for a reason
OTHERWISE = {
    "change.alpha": "whole answers, as its accounts are of what is said, not of the beginning",
    "change.keep": "all answers, right or wrong",
    "weight_change.device": "a few matrices at a time, which no GPU makes faster",
}


def of(function) -> dict[str, object]:
    """The defaults of a function's parameters."""
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.default is not p.empty}


#: said by part to `rlcircuits.change`, each an option of its own to the shell
HOW = studies.DEFAULTS
STUDY, PAIR, PROBLEMS = of(rc.study), of(rc.ModelPair), of(problem_set)
KNOWN = {**STUDY, **PAIR, **PROBLEMS}


def commands() -> dict[str, dict[str, object]]:
    """The defaults of each command's options."""
    group = typer.main.get_command(application())
    return {
        name: {param.name: param.default for param in command.params if param.param_type_name == "option"}
        for name, command in group.commands.items()
    }


def test_functions_have_the_defaults_of_a_study():
    own = ("answers", "config", "method", "note")  # a pair's method is how it was tuned
    shared = {name: default for name, default in {**STUDY, **PAIR}.items() if name not in own}
    seen = set()
    for name in rc.__all__:
        function = getattr(rc, name)
        if not callable(function) or (isinstance(function, type) and issubclass(function, Exception)):
            continue
        for parameter, default in of(function).items():
            if default is None or parameter not in shared:  # None stands for the pair's, or the set's
                continue
            if f"{name}.{parameter}" in OTHERWISE:
                seen.add(f"{name}.{parameter}")
                assert default != shared[parameter]
            elif parameter == "seed":  # of a draw of problems as published; of resampling any
                assert default == (42 if name == "change" or "n" in of(function) else 0), name
            else:
                assert default == shared[parameter], f"{name}.{parameter}"
    assert seen == set(OTHERWISE) & {f"{name}.{p}" for name in rc.__all__ for p in KNOWN}


@pytest.mark.parametrize(
    ("command", "function", "own"),
    [
        (
            "attribute",
            rc.study,
            {"out", "html", "pairs", "sets", "pair", "base", "tuned", "problems", "trust", "no_shared"},
        ),
        ("answers", rc.generate_pair, {"out", "pairs", "sets", "pair", "base", "tuned", "problems"}),
        (
            "change",
            rc.change,
            {"out", "pairs", "sets", "pair", "base", "tuned", "problems", "parts", "modules", "accuracy"}
            | set(HOW["patching"]),
        ),
        ("estimate", estimate, {"pairs", "pair", "base", "tuned"}),
    ],
)
def test_a_commands_options_are_the_arguments_of_its_function(command, function, own):
    options, asked = commands()[command], {**PROBLEMS, **PAIR, **of(function)}
    assert set(options) - set(asked) <= own
    for name, default in options.items():
        if name not in own and default is not None:
            assert default == asked[name], name
    ways = {"max_new_tokens", "prompt", "system", "instruction", "few_shot"} | set(PROBLEMS) - {"file"}
    assert command == "estimate" or ways <= set(options)
    assert {"pair", "pairs", "base", "tuned"} <= set(options)


def test_the_shell_measures_each_part_of_a_change_as_python_does():
    options = commands()["change"]
    assert {name: options[name] for name in HOW["patching"]} == HOW["patching"]
    assert not options["modules"] and HOW["graft"] == {"modules": None}


def test_the_shell_leaves_nothing_out_of_a_study():
    assert set(STUDY) - set(commands()["attribute"]) == set()


def test_the_notebooks_parameters_are_the_arguments_of_a_study():
    parameters = default_parameters(NOTEBOOK)
    own = {"pair", "base", "tuned", "pairs", "problems", "runs", "n_problems", "trust", "shared"}
    assert set(parameters) - set(KNOWN) == own
    for name in set(parameters) - own:
        stands_for_theirs = name in PAIR or name in PROBLEMS  # empty or 0: the pair's, or the set's
        assert parameters[name] in ("", 0) if stands_for_theirs else parameters[name] == STUDY[name], name
    assert {"beta", "gamma", "delta", "keep", "seed", "n", "dtype", "few_shot", "system", "instruction"} <= set(
        parameters
    )
