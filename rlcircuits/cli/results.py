"""What ``rlcircuits attribute`` writes and prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from rlcircuits import answers as answering
from rlcircuits.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from rlcircuits.reports import Report
    from rlcircuits.studies import PairStudy, Study


def check_folder(out: Path, asked: dict[str, Any]) -> None:
    """Never write over what other settings gave.

    Raises:
        InputError: `out` is a file, or holds results of other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {str(out)!r} is a file: expected a folder, or a path where one can be made")
    if not (out / "settings.json").exists():
        return
    try:
        there = json.loads((out / "settings.json").read_text("utf-8"))["asked"]
        name = next((name for name in asked if name in there and there[name] != asked[name]), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{str(out / 'settings.json')!r} cannot be read: remove it or choose another --out") from None
    if name is not None:
        what = {"number": "the number of problems", "problems_sha256": "the content of the problems"}.get(name, name)
        which = "another" if name == "problems_sha256" else f"{there[name]!r} there, {asked[name]!r} here"
        raise InputError(
            f"--out {str(out)!r} holds results of other settings ({what} is {which}): "
            "choose another folder, or remove it"
        )


def page(file: str) -> Path:
    """Where --html goes.

    Raises:
        InputError: no ``.html`` file.
    """
    path = Path(file).expanduser()
    if path.suffix != ".html" or path.is_dir():
        raise InputError(f"--html {file!r}: expected the name of a file that ends in .html")
    return path


def write_page(file: Path, study: Study, alone: bool) -> Path:
    """Write the study as a page to click through; of a model alone without the other side, which is itself."""
    from rlcircuits.lab import export

    if not alone:
        return export(study, file)
    (name, one), *_ = study.pairs.items()
    sides = ("pair", "problems", "selection", "tokenizer", "base_answers", "base_scores", "base_losses")
    base = SimpleNamespace(**{side: getattr(one, side) for side in sides})
    return export(SimpleNamespace(pairs={name: base}, alpha=study.alpha), file)


def write(out: Path, one: PairStudy, table: pd.DataFrame, asked: dict[str, Any], alone: bool) -> list[Path]:
    """Write scores, table and settings, the settings last; returns the files."""
    from rlcircuits import __version__
    from rlcircuits.storage import save_scores, save_table, written

    sides = {"base.nc": one.base_scores} if alone else {"base.nc": one.base_scores, "tuned.nc": one.tuned_scores}
    for name, scores in sides.items():
        save_scores(scores, out / name)
    save_table(table.reset_index(), out / "metrics.parquet")
    write_reasons(out, one.selection.reasons)
    (before, after), strictly = one.accuracy, one.strict_accuracy
    found = {
        "asked": asked,
        "problems": len(one.problems),
        "accuracy": {"base": before} if alone else {"base": before, "tuned": after},
        "strict_accuracy": dict(zip(("base",) if alone else ("base", "tuned"), strictly)),
        "t_bar": one.selection.t_bar,
        "t_cut": one.selection.t_cut,
        "kept": list(one.selection.problems),
        "rules": one.selection.dropped.to_dict("records"),
        "rlcircuits": __version__,
    }
    with written(out / "settings.json") as temporary:
        temporary.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return [out / name for name in (*sides, "metrics.parquet", "reasons.json", "settings.json")]


def write_reasons(out: Path, reasons: pd.DataFrame) -> None:
    """Why problems fell away, with examples; there even when none is left."""
    from rlcircuits.storage import written

    with written(out / "reasons.json") as temporary:
        temporary.write_text(json.dumps(reasons.to_dict("records"), indent=1, ensure_ascii=False) + "\n", "utf-8")


def show(report: Report, one: PairStudy, table: pd.DataFrame, alone: bool) -> None:
    """The report in lines, why problems fell away, and the table of metrics."""
    print(f"{report!r}\n")
    why = one.selection.reasons
    if len(why):
        print(f"why the others are not:\n{answering.told(why)}\n")
    for caution in one.selection.cautions(one.tokenizer):
        print(f"caution: {caution}", file=sys.stderr)
    shown = [c for c in ("value", "base", "tuned", "difference", "low", "high", "p", "p_holm") if c in table]
    shown = [c for c in shown if table[c].notna().any()]
    defined = table[shown].dropna(how="all")
    print(defined.to_string(float_format=lambda value: f"{value:.4g}", na_rep="–"))
    if missing := sorted(set(table.index) - set(defined.index)):
        print(f"\nnot defined on so few problems: {', '.join(missing)}")
    if alone:
        print("\none model: its intervals are in report.html; tests come with a pair (--tuned)")
    elif "low" not in shown:
        print("\nno intervals or tests: they need at least two problems")
    else:
        print(
            "\nlow, high: 95 % interval of the difference; p: two-sided, paired by problem; p_holm: corrected over the metrics"
        )
