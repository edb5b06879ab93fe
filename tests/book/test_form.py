"""How pages are made: a question, an answer, a picture; drawing folded away; exercises with solutions; one finding everywhere."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from paradigms.study import controlled
from paradigms.study import finding as found

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book"))
import build as machinery  # noqa: E402  (found by the line above)
import finding  # noqa: E402
import reference  # noqa: E402

PARTS = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())["parts"]
READ = [chapter["file"] for part in PARTS if part["caption"] != "Look up" for chapter in part["chapters"]]
CHAPTERS = [name for name in READ if name.startswith("notebooks/")]
NOTEBOOKS = [
    path.relative_to(ROOT).with_suffix("").as_posix() for path in machinery.notebooks(ROOT / "book" / "_toc.yml")
]
TEACHING = [name for name in CHAPTERS if re.search(r"/0[2-6]_", name)]
QUESTION = re.compile(r"\A# .+\n\n\*\*[^*]+\?\*\*(?:\s|\Z)")
SHOWN = ('class="rlc-figure"', 'class="rlc-viewer"', 'class="rlc-report')


def cells(name: str, folder: Path = ROOT) -> list[nbformat.NotebookNode]:
    return nbformat.read(folder / f"{name}.ipynb", as_version=4).cells


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def sentences(text: str) -> int:
    """How many there are: a stop, then a space and no small letter, or the end."""
    return len(re.findall(r"[.!?][*`)]*(?=\s+[^a-z\s]|\s*\Z)", text.strip()))


def calls(source: str, name: str) -> list[ast.Call]:
    """The calls of a function by its bare name."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [node for node in nodes if isinstance(node.func, ast.Name) and node.func.id == name]


def test_sentences_are_counted() -> None:
    assert sentences("It is × 1.5 [0.2, 3.0] here. On *what?* That") == 2  # the last has no stop
    assert sentences("One, of which 2.5 are two? **Yes.**") == 2


def test_the_parts_are_in_the_order_of_reading() -> None:
    numbers = [int(name.split("/")[1][:2]) for name in NOTEBOOKS]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(READ) >= 14 and len(TEACHING) == 5


@pytest.mark.parametrize("name", [name for name in READ if name not in CHAPTERS])
def test_a_page_opens_with_question_answer_and_picture(name: str) -> None:
    text = (ROOT / "book" / f"{name}.md").read_text()
    first, _, rest = text.partition("\n\n```{figure}")
    assert QUESTION.match(first), "its first words are a question in bold"
    answer = first.partition("?**")[2]
    assert 1 <= sentences(answer.replace("\n", " ")) <= 3 and rest and "\n## " not in first
    caption = rest.partition("\n\n")[2].partition("```")[0]
    assert ":alt: " in rest and sentences(caption.replace("\n", " ")) >= 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_opens_with_its_question(name: str) -> None:
    first, *rest = cells(name)
    assert QUESTION.match(first.source) and first.source.startswith(f"# {int(name.split('/')[1][:2])}. ")
    if name in CHAPTERS:
        (opening,) = [number for number, cell in enumerate(rest) if "opening" in tags(cell)]
        before = rest[:opening]
        assert len(before) <= 3 and all(cell.cell_type == "code" for cell in before), "nothing comes between"


@pytest.mark.parametrize("name", CHAPTERS)
def test_its_answer_is_two_sentences_and_a_picture(name: str, book: Path) -> None:
    """As it was run: what the page shows first, but for a prompt that is printed as it is read."""
    ran = nbformat.reads(machinery.for_pages(book.parent / f"{name}.ipynb"), as_version=4).cells
    for cell in ran[1:]:
        if "opening" in tags(cell):
            break
        assert {output.output_type for output in cell.outputs} <= {"stream"}, "something is shown before the answer"
    shown = [output.get("data", {}) for output in cell.outputs]
    pages = [data.get("text/html", "") for data in shown]
    assert any(mark in page for page in pages for mark in SHOWN), "no picture"
    report = next((page for page in pages if 'class="rlr-short"' in page), None)
    if report is None:
        answer = next(data["text/markdown"] for data in shown if "text/markdown" in data)
        assert 1 <= sentences(answer) <= 2, answer
        assert re.search(r"\d", answer), "an answer has numbers, from the run"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_draws_is_folded_and_says_what_to_see(name: str) -> None:
    for cell in cells(name):
        if cell.cell_type != "code":
            continue
        for call in calls(cell.source, "show"):
            assert {"hide-input", "hide-cell"} & set(tags(cell)), f"code that draws stands open: {cell.source[:80]}"
            assert len(call.args) == 3, ast.unparse(call)
            caption = call.args[2]
            parts = caption.values if isinstance(caption, ast.JoinedStr) else [caption]
            assert isinstance(parts[-1], ast.Constant) and str(parts[-1].value).endswith("."), ast.unparse(caption)


@pytest.mark.parametrize("name", TEACHING)
def test_each_exercise_has_a_folded_solution(name: str) -> None:
    all_cells = cells(name)
    solutions = [number for number, cell in enumerate(all_cells) if "hide-cell" in tags(cell)]
    assert 2 <= len(solutions) <= 3
    for count, number in enumerate(solutions, 1):
        assert f"**Exercise {count}.** " in all_cells[number - 1].source
        metadata = all_cells[number].metadata
        assert metadata["mystnb"]["code_prompt_show"] == "Solution"
        assert metadata["jupyter"] == {"outputs_hidden": True, "source_hidden": True}, "folded in JupyterLab, too"
    said = sum(cell.source.count("**Exercise ") for cell in all_cells)
    assert said == len(solutions)


@pytest.mark.parametrize("name", TEACHING)
def test_solutions_say_something(name: str, book: Path) -> None:
    for cell in cells(name, book.parent):
        if "hide-cell" in tags(cell):
            assert re.search(r"\w", cell.outputs[-1].data["text/markdown"])


def test_the_finding_is_the_same_everywhere() -> None:
    """The README's sentence and figure, and the first page, say what the tables say."""
    said = found.in_one_sentence(controlled.load(finding.TABLES))
    readme = (ROOT / "README.md").read_text()
    assert said in re.sub(r"\s+", " ", readme)
    assert reference.finding() == f"**{said}**\n".replace("× ", "×\u00a0")
    assert "](book/_static/finding.svg)" in readme
    seeds = controlled.load(finding.TABLES).manifest["seeds"].values()
    assert sorted(map(len, seeds)) == [4, 8] and "eight seeds of one base and four of another" in readme
    assert finding.described() == finding.numbers(), "draw it anew: python book/finding.py"
    assert finding.FILE.stat().st_size < 120_000


def test_the_first_page_is_short_and_light() -> None:
    text = (ROOT / "book" / "intro.md").read_text()
    opening = text.partition("## Take an edge away")[0]
    assert QUESTION.match(opening) and opening.count("```{figure}") == 1
    before = re.sub(r"\s+", " ", opening.partition("?**")[2].partition("```")[0])
    assert sentences(before.replace(":", ".")) == 2, "two sentences, and the finding"
    assert "_generated/remove_an_edge.md" in text


def test_a_figure_is_taken_out_of_the_notebook_that_shows_it(tmp_path: Path) -> None:
    shown = nbformat.v4.new_output("display_data", data={"text/html": '<figure id="there"><b>x</b></figure>'})
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1", outputs=[shown])])
    nbformat.write(book, tmp_path / "one.ipynb")
    taken = machinery.figure_of([tmp_path / "one.ipynb"], "there")
    assert taken == '```{raw} html\n<figure id="there"><b>x</b></figure>\n```\n'
    with pytest.raises(machinery.InputError, match="no notebook shows a figure 'here'"):
        machinery.figure_of([tmp_path / "one.ipynb"], "here")
