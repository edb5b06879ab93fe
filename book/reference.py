"""The pages that are made from the code: every public name, the command line, the notebooks' parameters, the family's
recipe.

1. Names stand in the room and the module they live in, as the rooms' ``__init__.pyi`` hand them on; room and module are
   introduced by their docstrings, a module's being its algorithm.
2. A name gives its signature and its docstring. The docstrings' sections (Args, Returns, Raises, ...) become lists. The
   names of ``rlcircuits`` itself have an anchor each, `api-` and the name, and an entry in the index.
3. The command line is read from the parser itself, the parameters from the cells that hold and check them, the recipe
   from its data: none of these pages can fall behind.

Docstrings are Markdown here, not reStructuredText: any text is valid Markdown, so no docstring can break the book.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

import rlcircuits
from rlcircuits.cli import main as cli
from rlcircuits.lab import parameters as notebook

HEAD = """# Python reference

What the package gives, from its docstrings, a page a room as in its folders. `import rlcircuits as rc` gives the names
that have an entry in the index; all others are imported from their room (`from rlcircuits.storage import Step`). Each
is loaded when it is first used. `paradigms` is the experiment that the book reports, made with the rest.
"""
ROOMS = (
    *(
        f"rlcircuits.{room}"
        for room in ("attribution", "metrics", "exactness", "models", "answers", "changes", "reports", "studies")
    ),
    *(f"rlcircuits.{room}" for room in ("storage", "figures", "lab", "sweeps", "lessons", "cli")),
    *(f"paradigms.{room}" for room in ("family", "study", "paper")),
)
_SECTION = re.compile(r"(Args|Arguments|Attributes|Returns|Yields|Raises|Example|Examples|Note|Source):\s*(.*)")
_ENTRY = re.compile(r"([`*\w, .]+?)(\s*\([^)]*\))?: (.*)")
#: names that pages and notebooks take from a module itself
_BESIDE = {
    "rlcircuits.lab": {"display": ("figure_html", "export"), "parameters": ("check_parameters",)},
    "rlcircuits.lessons": {"by_hand": ("llama",)},
}


def pages() -> dict[str, str]:
    """The reference as Markdown, by the page's name: ``reference``, which leads to all others, and a page a room."""
    return {"reference": overview(), **{f"reference/{room.partition('.')[2]}": room_page(room) for room in ROOMS}}


def overview() -> str:
    """Every room with what it is for and what it gives, and what is in no room."""
    rows = ["| room | is for | gives |", "|---|---|---|"]
    for room in ROOMS:
        about = (inspect.getdoc(importlib.import_module(room)) or "").partition("\n\n")[0].replace("\n", " ")
        names = ", ".join(f"`{name}`" for found in homes(room).values() for name in found)
        rows.append(f"| [{room}](reference/{room.partition('.')[2]}.md) | {_plain(about)} | {names} |")
    errors = importlib.import_module("rlcircuits.errors")
    return "\n".join([HEAD, *rows, "", module_section(errors, ("InputError",), "## rlcircuits.errors")])


def anchor(name: str) -> str:
    """The label of a public name's entry: {ref}`text <api-name>` leads there from any page."""
    ending = "-class" if name[0].isupper() and not name.isupper() else ""  # labels know no case: `study` and `Study`
    return "api-" + name.lower().replace("_", "-") + ending


def homes(room: str) -> dict[str, tuple[str, ...]]:
    """What a room hands on, by the module it lives in."""
    found: dict[str, list[str]] = {}
    stub = Path(importlib.import_module(room).__file__).with_suffix(".pyi")
    for line in ast.parse(stub.read_text("utf-8")).body:
        if isinstance(line, ast.ImportFrom):
            found.setdefault(line.module or "", []).extend(alias.name for alias in line.names)
    for module, names in _BESIDE.get(room, {}).items():
        found.setdefault(module, []).extend(names)
    return {module: tuple(dict.fromkeys(names)) for module, names in found.items()}


def room_page(room: str) -> str:
    """A room: its docstring, then its modules with what they give to others."""
    parts = [f"# {room}\n", prose(inspect.getdoc(importlib.import_module(room)) or ""), ""]
    for name, names in homes(room).items():
        module = importlib.import_module(f"{room}.{name}")
        parts.append(module_section(module, names, f"## {room.partition('.')[2]}.{name}"))
    parts.append("All rooms: [Python reference](../reference.md).\n")
    return "\n".join(parts)


def module_section(module: ModuleType, names: tuple[str, ...], heading: str) -> str:
    """One module: its docstring, then its public names."""
    return "\n".join(
        [f"{heading}\n", prose(inspect.getdoc(module) or ""), "", *(entry(module, public) for public in names)]
    )


def entry(module: ModuleType, name: str) -> str:
    """One public name: heading, signature, docstring; for a class its public methods, too."""
    value = getattr(module, name)
    parts = []
    if getattr(rlcircuits, name, None) is value:
        parts += [f"```{{index}} single: {name} (rlcircuits)\n```\n", f"({anchor(name)})="]
    parts.append(f"### `{name}`\n")
    if not callable(value):
        parts.append(prose(_comment_above(module, name)))
        parts.append(_values(value))
        return "\n".join(parts)
    parts += [_signature(name, value), prose(inspect.getdoc(value) or "")]
    if inspect.isclass(value):
        for method, function in vars(value).items():
            inner = function.fget if isinstance(function, property) else getattr(function, "__func__", function)
            if method.startswith("_") or not inspect.isfunction(inner) or not inner.__doc__:
                continue
            parts.append(f"\n`{name}.{method}`\n")
            parts.append(_signature(method, inner) if not isinstance(function, property) else "")
            parts.append(prose(inspect.getdoc(inner)))
    return "\n".join(parts) + "\n"


def command_page() -> str:
    """Every command of the shell with its options, from the commands themselves."""
    parts = [
        "# Command line\n",
        "The commands of `rlcircuits`, as `rlcircuits COMMAND --help` shows them. Wrong input ends with exit code 2 "
        "and one message; an",
        "interrupted run ends with 130, keeps what was finished, and goes on from there when it is called again.\n",
    ]
    for name, command in commands().items():
        context = typer.Context(command, info_name=f"rlcircuits {name}")
        parts += [f"```{{index}} single: {name} (command)\n```\n", f"(command-{name})=\n## `rlcircuits {name}`\n"]
        parts.append(f"{_plain(inspect.cleandoc(command.help))}\n")
        parts.append(f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n")
        for heading, records in command.headings(context).items():
            options = [f"- `{shown}`: {_plain(meaning)}" for shown, meaning in records if "--help" not in shown]
            parts += [f"**{_plain(heading)}**\n", *options, ""] if options else []
        if command.epilog:
            parts.append(f"```text\n{command.epilog.replace(chr(8), '').strip()}\n```\n")
    return "\n".join(parts)


def commands() -> dict[str, Any]:
    """The commands of the shell by name."""
    return typer.main.get_command(cli.application()).commands


def _plain(text: str) -> str:
    """Text that MyST shows as it is: what could open a tag, a role, a table or emphasis is escaped outside of
    `code`.
    """
    text = re.sub(r"(?<![`\w-])(--[a-z][\w-]*)(?![`\w])", r"`\1`", text)  # "--base" would become "–base"
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\<>{}\[\]*_#|$~])", r"\\\1", part) for part in parts)


def parameters_page(notebooks: Iterable[Path]) -> str:
    """The parameters of each notebook: name, default, what it means, and what is allowed."""
    parts = [
        "# Notebook parameters\n",
        "Each notebook's first code cell holds its parameters, the second checks them. Set them there, or give them "
        "to papermill with `-p name value`; a name that the notebook does not have, or a value that it does not "
        "allow, is refused.\n",
        "*Allowed* is what the second cell says: `number(...)` gives the bounds of a number, names in capitals are "
        "lists of names in the package.\n",
    ]
    for path in notebooks:
        cells = notebook.read_notebook(path).cells
        title = re.sub(r"^# (\d+\. )?", "", cells[0].source.splitlines()[0])
        code = [cell.source for cell in cells if cell.cell_type == "code"]
        allowed = _allowed(code[1])
        parts += [
            f"## [{title}](notebooks/{path.name})\n",
            "| parameter | default | meaning | allowed |",
            "|---|---|---|---|",
        ]
        for name, default, meaning in parameters(code[0]):
            cell = (f"`{text}`".replace("|", "\\|") for text in (name, default))
            parts.append(
                f"| {' | '.join(cell)} | {_plain(meaning)} | `{allowed.get(name, 'any')}` |".replace(
                    "str | None", "str or None"
                )
            )
        parts.append("")
    return "\n".join(parts)


def parameters(source: str) -> list[tuple[str, str, str]]:
    """(name, default as written, comment) of each assignment of a parameters cell."""
    lines = source.splitlines()
    found = []
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            line = lines[statement.end_lineno - 1].encode()  # the columns of `ast` are bytes
            after = line[statement.value.end_col_offset :].decode()
            found.append((statement.targets[0].id, ast.unparse(statement.value), after.partition("#")[2].strip()))
    return found


def _allowed(source: str) -> dict[str, str]:
    """What the call of `validate` in a cell allows for each parameter, as it is written there."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "validate":
            return {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg}
    return {}


def finding() -> str:
    """What was found, in one sentence, from the study's tables."""
    from paradigms.study import controlled, finding

    tables = Path(__file__).resolve().parent.parent / "results" / "study"
    return f"**{finding.in_one_sentence(controlled.load(tables))}**\n".replace("× ", "×\u00a0")


def recipe_table() -> str:
    """The family's settings by member, from its recipe, as a table."""
    from paradigms.family.recipe import DEFAULT, MEMBERS

    rows = ["| member | updates | settings |", "|---|---|---|"]
    for member in MEMBERS:
        settings = asdict(getattr(DEFAULT, member.replace("-", "_")))
        said = ", ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in settings.items())
        rows.append(f"| `{member}` | {DEFAULT.updates(member):,} | {said} |")
    rows += ["", f"Every descendant sees the same {DEFAULT.prompts:,} prompts, none of which the base has seen. *Lam* "
                 "is $\\lambda$ and",
             "*clip* $\\varepsilon$; a learning rate is constant unless a warm-up (in steps) is "
             "given.", ""]  # fmt: skip
    return "\n".join(rows)


def prose(docstring: str) -> str:
    """A docstring as Markdown: sections as lists, indented blocks and examples as code."""
    out: list[str] = []
    lines = re.sub(r"\{([\w:]+)\}(?=`)", r"\\{\1\\}", docstring).splitlines()  # what would be a role of MyST
    index = 0
    while index < len(lines):
        line = lines[index]
        section = _SECTION.fullmatch(line)
        if section:
            body, index = _indented(lines, index + 1)
            out += [
                "",
                f"**{section[1]}**",
                "",
                *(_section(section[1], [section[2], *body] if section[2] else body)),
                "",
            ]
        elif line.startswith(">>>"):
            block = []
            while index < len(lines) and lines[index].strip():
                block.append(lines[index])
                index += 1
            out += ["", "```python", *block, "```", ""]
        elif line.startswith("    ") and (not out or not out[-1].strip()):
            block, index = _indented(lines, index)
            out += ["```text", *block, "```", ""]
        else:
            out.append(line)
            index += 1
    return "\n".join(out)


def _indented(lines: list[str], index: int) -> tuple[list[str], int]:
    """The indented lines from `index` on, dedented, and the index after them."""
    block = []
    while index < len(lines) and (not lines[index].strip() or lines[index].startswith("    ")):
        block.append(lines[index])
        index += 1
    return textwrap.dedent("\n".join(block)).strip("\n").splitlines(), index


def _section(title: str, body: list[str]) -> list[str]:
    """The lines of a section; those of the form "name: text" as a list."""
    if title in ("Returns", "Yields", "Note", "Source"):
        return body
    if title in ("Example", "Examples"):
        return ["```python", *body, "```"]
    items: list[str] = []
    for line in body:
        match = _ENTRY.fullmatch(line)
        if match and not line.startswith(" "):
            kind = match[2] or ""
            items.append(f"- `{match[1].strip('`* ')}`{kind}: {match[3]}")
        elif items:
            items[-1] += " " + line.strip()
        elif line.strip():
            items.append(f"- {line.strip()}")
    return items


class _Plain:
    """Something that is shown as it is written."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _signature(name: str, value: Any) -> str:
    """The call as code: annotations without quotes, classes and functions as defaults by their names."""
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return ""
    parameters = []
    for parameter in found.parameters.values():
        if parameter.name in ("self", "cls"):
            continue
        if isinstance(parameter.annotation, str):
            parameter = parameter.replace(annotation=_Plain(parameter.annotation))
        if hasattr(parameter.default, "__name__") and parameter.default is not inspect.Parameter.empty:
            parameter = parameter.replace(default=_Plain(parameter.default.__name__))
        parameters.append(parameter)
    result = found.return_annotation
    result = _Plain(result) if isinstance(result, str) else result
    text = name + str(found.replace(parameters=parameters, return_annotation=result))
    if len(text) > 88:
        arguments, _, rest = text[len(name) + 1 :].rpartition(")")
        text = f"{name}(\n    " + ",\n    ".join(_split(arguments)) + f",\n){rest}"
    return f"```python\n{text}\n```\n"


def _split(arguments: str) -> list[str]:
    """Arguments at the commas that are in no bracket and no text."""
    parts, depth, quote = [""], 0, ""
    for character in arguments:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        depth += (character in "([{") - (character in ")]}") if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _comment_above(module: ModuleType, name: str) -> str:
    """What is said of a constant: the comment lines right above its definition, or the text right below."""
    source = inspect.getsource(module)
    for this, after in itertools.pairwise([*ast.parse(source).body, ast.Pass()]):
        targets = (
            this.targets if isinstance(this, ast.Assign) else [this.target] if isinstance(this, ast.AnnAssign) else []
        )
        if name in [getattr(target, "id", None) for target in targets]:
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                return inspect.cleandoc(str(after.value.value))
            above = itertools.takewhile(
                lambda line: line.startswith("#"), reversed(source.splitlines()[: this.lineno - 1])
            )
            return "\n".join(line.lstrip("#: ") for line in reversed(list(above)))
    return ""


def _values(value: Any) -> str:
    """A constant as text; a mapping of documented entries as a list."""
    if isinstance(value, dict) or hasattr(value, "items"):
        return "\n".join(
            f"- `{key}`: {getattr(item, 'doc', None) or getattr(item, 'label', '')}" for key, item in value.items()
        )
    return f"```python\n{value!r}\n```"
