"""Problem sets by name, from local files and through `datasets`, and the report of references that cannot be graded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

import rlcircuits as rc
from rlcircuits.answers.problems import Problem, ProblemSet, grade, reference_answer
from rlcircuits.answers.sets import check_problems, problem_set, problem_sets
from rlcircuits.cli.main import main
from rlcircuits.errors import InputError
from rlcircuits.storage.registry import Overridden
from tests.fixtures.published_formats import PROBLEMS, problems_file

DATA = os.environ.get("RLCIRCUITS_DATA")
#: all rows of the public sets (minutes), or a sample of so many
WHOLE = os.environ.get("RLCIRCUITS_WHOLE_DATA") == "1"


def registry(folder, **entries) -> Path:
    file = folder / "sets.yaml"
    file.write_text(yaml.safe_dump(entries))
    return file


def test_the_papers_sets_are_known():
    known = problem_sets()
    assert list(known) == ["gsm8k", "math", "math-500", "college-math"]
    assert {name: entry["extractor"] for name, entry in known.items()} == {
        "gsm8k": "hashes", "math": "boxed", "math-500": "whole", "college-math": "whole",
    }  # fmt: skip


def test_a_local_copy_stands_for_a_hub_set(tmp_path):
    problems = problem_set(f"gsm8k={problems_file(tmp_path)}", limit=5)
    assert problems.name == "gsm8k" and problems.extractor == "hashes" and len(problems) == 5
    assert [p.id for p in problems] == [f"gsm8k/{i}" for i in range(5)]
    assert [reference_answer(problems, p) for p in problems] == ["10", "120", "6", "40", "15"]
    assert problems[1].reference.startswith("60 * 2")  # the whole solution is kept


def test_a_hub_set_is_read_by_datasets(tmp_path, monkeypatch):
    """A folder laid out as a hub dataset is, under its hub name: `datasets` reads it as it would read the hub's."""
    import pandas as pd

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": q, "answer": a} for q, a in PROBLEMS]
    parts = {"openai/gsm8k": {"main": rows}, "EleutherAI/hendrycks_math": {}}
    for i, config in enumerate(problem_sets()["math"]["config"]):
        parts["EleutherAI/hendrycks_math"][config] = [
            {"problem": f"{config}?", "level": "1", "solution": f"so $\\boxed{{{i}}}$"}
        ]
    for hub, configs in parts.items():
        card = "".join(
            f"- config_name: {c}\n  data_files:\n  - split: test\n    path: {c}/test.parquet\n" for c in configs
        )
        for config, content in configs.items():
            (tmp_path / hub / config).mkdir(parents=True)
            pd.DataFrame(content).to_parquet(tmp_path / hub / config / "test.parquet")
        (tmp_path / hub / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    from_hub = problem_set("gsm8k")
    assert from_hub.fingerprint == problem_set(f"gsm8k={problems_file(tmp_path)}").fingerprint
    several = problem_set("math")
    assert [p.question.removesuffix("?") for p in several] == problem_sets()["math"]["config"]
    assert [reference_answer(several, p) for p in several] == [str(i) for i in range(7)]
    with pytest.raises(InputError, match="has no field 'solutions'.*did you mean 'solution'"):
        problem_set("math", answer="solutions")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    monkeypatch.setattr(
        "datasets.load_dataset", lambda *_a, **_k: (_ for _ in ()).throw(ConnectionError("no route\nto host"))
    )
    with pytest.raises(InputError, match="'gsm8k' could not be had from the hub .*no route to host.*as 'gsm8k=FILE'"):
        problem_set("gsm8k")


def test_a_users_file_extends_the_built_in_one(tmp_path, monkeypatch):
    problems_file(tmp_path)
    file = registry(
        tmp_path,
        mine={
            "path": "gsm8k.jsonl",
            "question": "question",
            "answer": "answer",
            "extractor": "hashes",
            "grader": "final",
        },
    )
    mine = problem_set("mine", file)
    assert len(mine) == 8 and mine.grader == "final" and mine.name == "mine"
    monkeypatch.setenv("RLCIRCUITS_PROBLEM_SETS", str(file))
    assert problem_set("mine", limit=2).problems == mine.problems[:2]
    assert problem_set("mine", grader="math").grader == "math"
    with pytest.warns(Overridden, match="'gsm8k' takes the place"):
        problem_sets(registry(tmp_path, gsm8k={"path": "gsm8k.jsonl", "question": "q", "answer": "a"}))


def test_files_and_the_family_are_sets_too(tmp_path):
    file = problems_file(tmp_path)
    assert problem_set(file).name == "gsm8k" and problem_set(str(file)).extractor == "stated"
    assert problem_set("family", limit=7).name == "family/test" and len(problem_set("family", limit=7)) == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gsm8", "unknown problem set 'gsm8'.*did you mean 'gsm8k'"),
        ("gsm8=x.jsonl", "unknown problem set 'gsm8' in .*did you mean 'gsm8k'"),
        ("gsm8k=nowhere.jsonl", "no problems at 'nowhere.jsonl'"),
        ("gsm8k=", "no problems at"),
        ("family=x", "expected 'family' alone"),
        ("nowhere.jsonl", "no problems at"),
    ],
)
def test_names_that_are_not_known(name, says):
    with pytest.raises(InputError, match=says):
        problem_set(name)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"hub": "a/b", "question": "q"}, "'mine' has no answer: expected the name of the field"),
        ({"hub": "a/b", "question": "q", "anser": "a"}, "unknown key 'anser'.*did you mean 'answer'"),
        ({"question": "q", "answer": "a"}, "neither hub nor path"),
        ({"hub": "a/b", "path": "x", "question": "q", "answer": "a"}, "both hub and path"),
        ({"hub": "a/b", "question": "q", "answer": "a", "grader": "mth"}, "unknown grader 'mth'.*did you mean 'math'"),
        (
            {"hub": "a/b", "question": "q", "answer": "a", "extractor": "box"},
            "unknown extractor 'box'.*did you mean 'boxed'",
        ),
        ({"hub": "a/b", "question": "q", "answer": "a", "config": [1]}, "config is .*a list of texts"),
        ({"hub": "a/b", "question": "q", "answer": "a", "config": []}, "config is"),
        ({"hub": " ", "question": "q", "answer": "a"}, "hub is empty"),
        ({"hub": 3, "question": "q", "answer": "a"}, "hub is 3: expected a text"),
    ],
)
def test_mistakes_in_a_file_are_named(tmp_path, capsys, entry, says):
    file = registry(tmp_path, mine=entry)
    with pytest.raises(InputError, match=says) as caught:
        problem_sets(file)
    assert "sets.yaml': 'mine'" in str(caught.value)
    assert main(["problems", "mine", "--sets", str(file)]) == 2
    assert capsys.readouterr().err.startswith("rlcircuits: ")


# Extractors


@pytest.mark.parametrize(
    ("extractor", "reference", "answer"),
    [
        ("hashes", "a\n#### 1,200\n", "1,200"),
        ("hashes", "\\boxed{3}", None),
        ("hashes", "a ####", None),
        ("boxed", "first $\\boxed{1}$, then $\\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("boxed", "so $\\boxed 5$", "5"),
        ("boxed", "so 5", None),
        ("boxed", "#### 5", None),
        ("whole", " $x$ ", "$x$"),
        ("stated", "all of it", "all of it"),
    ],
)
def test_extractors(extractor, reference, answer):
    problems = ProblemSet("s", (Problem("a", "q", reference),), "math", extractor)
    assert reference_answer(problems, problems[0]) == answer
    pytest.importorskip("math_verify")
    assert grade(problems, problems[0], f"\\boxed{{{answer}}}") is (answer is not None)
    assert not grade(problems, problems[0], "\\boxed{77}")


# What cannot be graded


def test_references_that_cannot_be_graded_are_listed_with_the_reason(tmp_path, capsys):
    pytest.importorskip("math_verify")
    rows = ["#### 5", "5", "#### ", "#### \\mathbf{", "#### 1/2"]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps({"question": "q", "answer": row}) + "\n" for row in rows))
    problems = problem_set(f"gsm8k={tmp_path / 'some.jsonl'}")
    table = check_problems(problems).set_index("problem")
    assert check_problems(problems).attrs["problems"] == 5
    assert list(table.index[:2]) == ["gsm8k/1", "gsm8k/2"]
    assert "has no ####" in table.reason["gsm8k/1"] and not table.graded["gsm8k/1"]
    assert "gsm8k/0" not in table.index and "gsm8k/4" not in table.index
    assert main(["problems", f"gsm8k={tmp_path / 'some.jsonl'}"]) == 0
    said = capsys.readouterr().out
    assert "gsm8k/1: the reference has no ####" in said and f"5 problems, {len(table)} whose" in said
    assert main(["problems"]) == 0 and "EleutherAI/hendrycks_math" in capsys.readouterr().out


def test_every_reference_of_the_family_grades_itself():
    assert check_problems(rc.problem_set("family", limit=50)).empty


@pytest.mark.skipif(not DATA, reason="RLCIRCUITS_DATA does not name a folder with the public test sets")
@pytest.mark.parametrize(
    ("name", "file", "rows", "most"),
    [
        ("gsm8k", "gsm8k_test.jsonl", 1319, 0),
        ("math-500", "math500_test.jsonl", 500, 0),
        ("math", "math500_test.jsonl", 500, 0),
        ("college-math", "college_math_test.jsonl", 2818, 40),  # by a time limit, so more on a busy machine
    ],
)
def test_real_references_grade_themselves_or_are_listed(name, file, rows, most):
    """With RLCIRCUITS_WHOLE_DATA=1 on every row (minutes), else on a sample of the quick ones."""
    pytest.importorskip("math_verify")
    problems = problem_set(f"{name}={Path(DATA) / file}")
    assert len(problems) == rows
    tried = problems if WHOLE else problems[:1000].take(60, 0) if rows > 1000 else problems.take(60, 0)
    table = check_problems(tried)
    assert len(table) <= (most if WHOLE else 0), table.to_string()
    assert table.graded.all()  # even those are taken as correct when the very same text is given
