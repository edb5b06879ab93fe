"""Steps' versions are in the keys they belong to, and no change of a step's code goes unnoticed."""

from __future__ import annotations

import pytest

from paradigms.family import DEFAULT, MEMBERS, member_inputs
from rlcircuits.storage import steps as module
from rlcircuits.storage import versions
from tests.fixtures.steps import changed, digest_of, now, recorded, steps

CODE = "def area(r):\n    return 3.14 * r * r\n"


def test_no_steps_code_changed_without_a_decision():
    modules = {name: step.modules for name, step in steps().items()}
    different = list(changed(recorded(), now(), modules))
    assert not different, "\n".join(different)


@pytest.mark.parametrize(
    "same",
    [
        "# the area\ndef area(r):\n    return 3.14 * r * r  # of a disc\n",
        'def area(r):\n    """Of a disc."""\n    return 3.14 * r * r\n',
        "def area(\n    r,\n):\n    return (3.14 * r) * r\n",
        "from typing import Any\n\ndef area(r: Any) -> Any:\n    return 3.14 * r * r\n",
        "if TYPE_CHECKING:\n    import torch\ndef area(r):\n    return 3.14 * r * r\n",
    ],
)
def test_what_changes_no_result_is_no_change(same):
    assert digest_of(same) == digest_of(CODE)


@pytest.mark.parametrize(
    "other",
    [
        "def area(r):\n    return 3.14159 * r * r\n",
        "def area(r):\n    return 3.14 * r * 2\n",
        "def area(r, q=1):\n    return 3.14 * r * r\n",
        "from math import pi\n\ndef area(r):\n    return 3.14 * r * r\n",
        "def area(r):\n    if r:\n        return 3.14 * r * r\n",
    ],
)
def test_what_may_change_a_result_is_a_change(other):
    assert digest_of(other) != digest_of(CODE)


def test_a_version_is_no_code_but_a_steps_name_is():
    assert digest_of('A = Step("a", 1)') == digest_of('A = Step("a", 2, also=("b",))') != digest_of('A = Step("b", 1)')


def test_the_message_says_which_step_which_modules_and_what_to_do():
    before = {"steps": {"scores": 1, "losses": 4, "gone": 1}, "modules": {"a.eap": "1", "a.loss": "2"}}
    after = {"steps": {"scores": 1, "losses": 5, "new": 1}, "modules": {"a.eap": "3", "a.loss": "2"}}
    modules = {"scores": ("a.eap", "a.loss"), "losses": ("a.loss",), "new": ()}
    first, second, third, fourth = changed(before, after, modules)
    assert "'scores' (version 1)" in first and "in a.eap:" in first and "raise the version" in first
    assert "python -m tests.fixtures.steps" in first
    assert "'losses' went from version 4 to 5" in second and "'new'" in third and "'gone' is gone" in fourth
    assert list(changed(after, after, modules)) == []


def test_versions_are_those_that_the_sources_declare():
    assert versions() == {name: step.version for name, step in steps().items()}
    assert versions("scores", "family-ppo").keys() == {"scores", "family-ppo"}


def raised(monkeypatch, name):
    known = module._all()
    monkeypatch.setattr(module, "_all", lambda: known | {name: known[name] + 1})


def test_a_members_key_holds_its_own_step_and_that_of_all(monkeypatch):
    def keys():
        return {m: member_inputs(m, 0, DEFAULT, None if m == "sft" else "base") for m in MEMBERS}

    before = keys()
    for name, whose in (("family-ppo", {"ppo"}), ("family-sft", {"sft"}), ("family", set(MEMBERS))):
        with monkeypatch.context() as patch:
            raised(patch, name)
            assert {member for member, key in keys().items() if key != before[member]} == whose


def test_what_members_have_apart_is_in_their_own_steps():
    found = steps()
    shared = set(found["family"].modules)
    for member in MEMBERS:
        own = f"paradigms.family.{'sft' if member == 'sft-more' else member.replace('-', '_')}"
        assert own in found[f"family-{member}"].modules and own not in shared
