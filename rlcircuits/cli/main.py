"""The shell's way in: the commands, and how each of them ends.

Wrong input ends with exit code 2 and one message; an interrupted run with 130 and a word on how to go on.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from rlcircuits import __version__
from rlcircuits.cli import answers, attribute, change, estimate, models, pairs, problems, sweep
from rlcircuits.cli.options import grouped
from rlcircuits.errors import InputError, flags
from rlcircuits.extensions import provided


class Command(TyperCommand):
    """A command whose ``--help`` keeps the headings of its options, whose line in the list of commands is not cut
    short, and whose messages call its arguments by their flags.
    """

    def headings(self, ctx: Any) -> dict[str, list[tuple[str, str]]]:
        """What it takes and what that means, by heading."""
        found: dict[str, list[tuple[str, str]]] = {}
        params: Any = self.get_params(ctx)
        for param in params:
            heading = "arguments" if param.param_type_name == "argument" else param.rich_help_panel or "options"
            found.setdefault(heading, []).append(param.get_help_record(ctx))
        return found

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for heading, records in self.headings(ctx).items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def invoke(self, ctx: Any) -> Any:
        with flags({param.name: param.opts[0] for param in self.params if param.param_type_name == "option"}):
            return super().invoke(ctx)

    def get_short_help_str(self, limit: int = 0) -> str:
        return " ".join((self.help or "").partition("\n\n")[0].split()).rstrip(".")


def application() -> typer.Typer:
    """The commands, those of other packages included."""
    app = typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_whole_program)
    for command in (pairs.pairs, models.models, problems.problems, answers.answers, estimate.estimate):
        app.command()(grouped(command))
    app.command(epilog=attribute.EXAMPLES)(grouped(attribute.attribute))
    app.command(epilog=change.EXAMPLES)(grouped(change.change))
    for add in provided("rlcircuits.commands").values():
        add(app)
    app.command()(sweep.sweep)
    for registered in app.registered_commands:
        registered.cls = Command
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    before, warnings.formatwarning = warnings.formatwarning, _caution
    try:
        code = application()(arguments, prog_name="rlcircuits", standalone_mode=False) or 0
        sys.stdout.flush()
    except InputError as error:
        code, message = 2, str(error)
    except typer.TyperException as error:  # a word that is no option, or a value that an option does not take
        code, message = 2, _one_line(error)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # nobody reads any more; what is still to be written is lost on purpose
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    finally:
        warnings.formatwarning = before
    if code == 130:
        message = "interrupted; all that was finished is kept, and the same command goes on from there"
    if code in (2, 130):
        print(f"rlcircuits: {message}", file=sys.stderr)
    return code


def _caution(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning to the user as one line without the place in the code; others as Python shows them."""
    if issubclass(category, UserWarning):
        return f"caution: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _one_line(error: Any) -> str:
    near = getattr(error, "possibilities", None)  # of an option; typer names the nearest command by itself
    said = (
        f"{error.message}; did you mean {near[0]!r}?" if near else " ".join(error.format_message().split()).rstrip(".")
    )
    command = error.ctx.command_path if error.ctx is not None else "rlcircuits COMMAND"
    return f"{said[:1].lower()}{said[1:]} (see `{command} --help`)"


def _show_version(asked: bool) -> None:
    if asked:
        print(f"rlcircuits {__version__}")
        raise typer.Exit


def _whole_program(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="show the version and exit")
    ] = False,
) -> None:
    """See what RL fine-tuning does inside a language model."""
