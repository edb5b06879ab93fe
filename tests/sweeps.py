"""Small notebooks and sweep files that tests of sweeps share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parent.parent
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}

COUNTED = [
    'x = 1\ngroup = "a"\nstore = "."\npause = 0.0',
    "from rlcircuits.notebook import glue, number, validate\n\n"
    'validate(globals(), x=number(int, least=0), group=("a", "b", "c"), store=str, pause=number(least=0))',
    # What a cell computes goes through the store: one artefact a group, which its cells share, and one of its own.
    "import os, time\nfrom rlcircuits.store import Store\n\n"
    "with open(store + '-journal.txt', 'a') as lines:\n    lines.write(f'{x} {group}\\n')\n\n"
    "def build(folder):\n    (folder / 'first.txt').write_text(group)\n    time.sleep(0.2)\n"
    "    (folder / 'second.bin').write_bytes(group.encode() * 5000)\n\n"
    "def own(folder):\n    (folder / 'square.txt').write_text(str(x * x))\n\n"
    "shared = Store(store).make('shared', {'group': group}, build)\n"
    "mine = Store(store).make('square', {'x': x, 'group': group}, own)",
    "time.sleep(pause)",
    "glue('square', int((mine / 'square.txt').read_text()))\n"
    "glue('length', len((shared / 'second.bin').read_bytes()))\nglue('group_name', group)",
]


def write_notebook(path: Path, sources: list[str]) -> Path:
    """A notebook of these code cells, the first tagged `parameters`."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL}), path)
    return path


def write_sweep(path: Path, **content: object) -> Path:
    """A sweep file of these keys."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), "utf-8")
    return path


def counted(folder: Path, xs: int = 4, groups: str = "abc", pause: float = 0.0) -> Path:
    """A sweep over a notebook that counts its runs in ``store-journal.txt`` and computes through the store ``store``, and then waits
    for `pause` seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    write_notebook(folder / "counted.ipynb", COUNTED)
    return write_sweep(
        folder / "counted.yaml",
        notebook="counted.ipynb",
        grid={"group": list(groups), "x": list(range(xs))},
        fixed={"store": str(folder / "store"), "pause": pause},
        share=["group"],
    )


def runs(folder: Path) -> int:
    """How many times cells of `counted` began."""
    journal = folder / "store-journal.txt"
    return len(journal.read_text().splitlines()) if journal.is_file() else 0


def start(file: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen:
    """`rlcircuits sweep` as a process of its own; its words go into ``<out>.log``.

    It leads a process group, as a command typed in a terminal does.
    """
    log = out.with_suffix(".log").open("a")
    return subprocess.Popen(
        [sys.executable, "-m", "rlcircuits.cli", "sweep", str(file), "--out", str(out), *options],
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )
