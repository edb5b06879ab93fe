"""A sweep on a real Slurm: its cells are jobs that outlive it, are found again, move from a lost node, and end with a
Ctrl-C.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest

from rlcircuits.cli.main import main
from rlcircuits.sweeps import Settings
from rlcircuits.sweeps.engines import slurm
from rlcircuits.sweeps.engines.slurm import Slurm
from rlcircuits.sweeps.records import record_of, write_record
from tests.fixtures.slurm import Cluster, missing
from tests.fixtures.sweeps import counted, runs, start, write_notebook, write_sweep
from tests.fixtures.waiting import PATIENCE, until

WAITING = [
    'x = 1\ngroup = "a"\nstore = "."',
    "import os, time\nfrom rlcircuits.lab.parameters import glue\n\n"
    "with open(store + '-journal.txt', 'a') as lines:\n    lines.write(f'{x} {os.getpid()}\\n')\n\n"
    "while not os.path.exists(store + '-open'):\n    time.sleep(0.1)",
    "glue('square', x * x)\nglue('node', os.environ['SLURMD_NODENAME'])\nglue('threads', "
    "os.environ['OMP_NUM_THREADS'])",
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def ours(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """The cluster, as the one that this process and its children speak to; without jobs of earlier tests."""
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert not [state for state, _, _ in cluster.jobs() if state in ("PENDING", "RUNNING")]
    return cluster


def waiting(folder: Path, xs: int, **more: object) -> Path:
    """A sweep whose cells tell that they have begun and wait until `opened`."""
    write_notebook(folder / "waiting.ipynb", WAITING)
    fixed = {"store": str(folder / "store")}
    return write_sweep(folder / "w.yaml", notebook="waiting.ipynb", grid={"x": list(range(xs))}, fixed=fixed, **more)


def opened(folder: Path) -> None:
    (folder / "store-open").touch()


def kernels(folder: Path) -> list[int]:
    """The processes of cells that began and are there still."""
    lines = (folder / "store-journal.txt").read_text().splitlines()
    return [pid for line in lines if psutil.pid_exists(pid := int(line.split()[1]))]


def test_jobs_of_a_killed_sweep_are_found_again(ours: Cluster, tmp_path: Path) -> None:
    """The first cell of a group is a job, the other waits in the sweep; what outlives the sweep is waited for, not
    begun again.
    """
    file, out, before = waiting(tmp_path, xs=2, share=["store"]), tmp_path / "out", len(ours.jobs())
    options = ["--engine", "slurm", "--cpus-per-cell", "1", "--memory-per-cell", "100M", "--time-per-cell", "7"]
    first = start(file, out, *options, "--sbatch=--comment=ours --nice=3")
    until(lambda: runs(tmp_path), "a cell at work", first)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert [state for state, _, _ in ours.jobs()[before:]] == ["RUNNING"]
    told = ours.tell("scontrol", "show", "job", "--oneliner").splitlines()[-1]
    assert all(word in told for word in ("TimeLimit=00:07:00", "MinMemoryNode=100M", "Comment=ours", "NumCPUs=1"))
    second = start(file, out, *options)
    until(lambda: f'"process": {second.pid}' in (out / ".sweep.json").read_text(), "the second sweep at work", second)
    opened(tmp_path)
    assert second.wait(PATIENCE) == 0, out.with_suffix(".log").read_text()
    until(lambda: [state for state, _, _ in ours.jobs()[before:]] == ["COMPLETED", "COMPLETED"], "both jobs to end")
    assert runs(tmp_path) == 2
    table = pd.read_parquet(out / "summary.parquet")
    assert list(table["status"]) == ["done"] * 2 and list(table["square"]) == [0, 1]
    assert list(table["attempts"]) == [1, 1] and list(table["threads"]) == [1, 1]


def test_a_drained_node_gets_no_more_cells_and_a_lost_one_gives_its_own_back(ours: Cluster, tmp_path: Path) -> None:
    file, out, before = waiting(tmp_path, xs=3), tmp_path / "out", len(ours.jobs())
    sweep = start(file, out, "--engine", "slurm")
    until(lambda: runs(tmp_path) == 2 and len(ours.jobs()) == before + 3, "two cells at work and one waiting", sweep)
    ours.tell("scontrol", "update", "nodename=n1", "state=drain", "reason=test")
    until(lambda: ours.nodes().get("n1") == "draining", "the node to drain")
    assert sorted(state for state, _, _ in ours.jobs()[before:]) == ["PENDING", "RUNNING", "RUNNING"]
    lost = next(name for _, node, name in ours.jobs()[before:] if node == "n1")
    ours.tell("scontrol", "update", "nodename=n1", "state=down", "reason=test")
    until(lambda: len(ours.jobs()) == before + 4, "another job for the cell of the lost node", sweep)
    opened(tmp_path)
    assert sweep.wait(PATIENCE) == 0, out.with_suffix(".log").read_text()
    # What has left its record still ends.
    until(lambda: not {state for state, _, _ in ours.jobs()} & {"RUNNING", "COMPLETING"}, "the jobs to end")
    ours.tell("scontrol", "update", "nodename=n1", "state=resume")
    until(lambda: ours.nodes().get("n1") == "idle", "the node to be idle")
    ended = {name: (state, node) for state, node, name in ours.jobs()[before:]}
    assert ended.pop(lost)[0] == "NODE_FAIL" and set(ended.values()) == {("COMPLETED", "n2")}
    table = pd.read_parquet(out / "summary.parquet")
    assert list(table["status"]) == ["done"] * 3 and list(table["node"]) == ["n2"] * 3
    assert sorted(table["attempts"]) == [1, 1, 2] and runs(tmp_path) == 4


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_cancels_all_jobs(ours: Cluster, tmp_path: Path, sign: signal.Signals) -> None:
    file, out, before = waiting(tmp_path, xs=3), tmp_path / "out", len(ours.jobs())
    sweep = start(file, out, "--engine", "slurm")
    until(lambda: runs(tmp_path) == 2 and len(ours.jobs()) == before + 3, "two cells at work and one waiting", sweep)
    os.killpg(sweep.pid, sign) if sign == signal.SIGINT else sweep.send_signal(sign)
    assert sweep.wait(PATIENCE) == 130, out.with_suffix(".log").read_text()
    until(lambda: [state for state, _, _ in ours.jobs()[before:]] == ["CANCELLED"] * 3, "the jobs to be cancelled")
    until(lambda: not kernels(tmp_path), "the kernels to end")
    log = out.with_suffix(".log").read_text()
    assert "interrupted; all that was finished is kept" in log and "Traceback" not in log
    assert list(pd.read_parquet(out / "summary.parquet")["status"]) == ["not run"] * 3


def test_what_slurm_refuses_is_said_in_a_line(ours: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["sweep", str(counted(tmp_path)), "--out", str(tmp_path / "out"), "--engine", "slurm"]
    assert main([*command, "--sbatch=--partition=none"]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlcircuits: ")]
    assert len(told) == 1 and "Slurm refuses the job of a cell: invalid partition specified: none" in told[0]
    assert runs(tmp_path) == 0


# --- without a Slurm: commands that say what they are told to


@pytest.fixture
def pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands in place of Slurm's: `squeue` prints the file ``queue``, `sbatch` fails as long as
    ``refuse`` is there.
    """
    bodies = dict.fromkeys(slurm.COMMANDS, "exit 0")
    bodies["squeue"] = f"cat {tmp_path}/queue"
    bodies["sbatch"] = (
        f'[ -e {tmp_path}/refuse ] && {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}\n'
        f'for word in "$@"; do case $word in --job-name=*) echo "9|RUNNING|${{word#*=}}" >> {tmp_path}/queue;; esac; '
        "done"
    )
    (tmp_path / "bin").mkdir()
    for name, body in bodies.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "queue").touch()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ASK_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(slurm, "SETTLE_SECONDS", 0.0)
    return tmp_path


def order(folder: Path, name: str = "one") -> dict:
    return {
        "name": name, "key": "k", "parameters": {}, "folder": str(folder / "cells" / name), "source": "", "source_sha256": "",
        "cwd": "", "environment": {}, "timeout": None, "attempt": 1, "token": f"{name}5678901234567890",
    }  # fmt: skip


def engine(folder: Path) -> Slurm:
    made = Slurm(Settings(engine="slurm"))
    assert made.resume(folder, lambda order: True) == []
    return made


@pytest.mark.parametrize(
    ("state", "says", "passing"),
    [
        ("NODE_FAIL", "lost with its node", True),
        ("PREEMPTED", "preempted", True),
        ("TIMEOUT", "--time-per-cell", False),
        ("OUT_OF_MEMORY", "--memory-per-cell", False),
        ("CANCELLED", "cancelled", False),
        ("FAILED", "see log.txt", True),
        ("COMPLETED", "storage that all nodes share", True),
        (None, "no longer known", True),
    ],
)
def test_how_a_job_without_a_record_ended(pretended: Path, state: str | None, says: str, passing: bool) -> None:
    made = engine(pretended)
    made.start(order(pretended))
    assert made.ended(0.0) == []
    queue = (pretended / "queue").read_text()
    assert queue.startswith("9|RUNNING|one.")
    (pretended / "queue").write_text(queue.replace("RUNNING", state) if state else "")
    (_, end), *rest = until(lambda: made.ended(0.0), "the job to end")
    assert says in end.words and end.passing is passing and not rest and not made.running


def test_a_record_ends_a_cell_whatever_slurm_says(pretended: Path) -> None:
    made, given = engine(pretended), order(pretended)
    made.start(given)
    write_record(Path(given["folder"]), record_of({**given, "token": "of an earlier attempt"}, 1.0))
    assert made.ended(0.0) == []
    write_record(Path(given["folder"]), record_of(given, 1.0))
    assert made.ended(0.0) == [(given, None)]


def test_a_full_queue_is_waited_for(pretended: Path) -> None:
    """A refusal while other cells run may be the limit of jobs a user may submit; the cell is handed over when there is
    room.
    """
    made = engine(pretended)
    made.start(order(pretended, "one"))
    (pretended / "refuse").touch()
    made.start(order(pretended, "two"))
    assert made.ended(0.0) == [] and not made.room(2)
    (pretended / "refuse").unlink()
    assert made.ended(0.0) == [] and made.room(2)
    assert [line.split("|")[2].split(".")[0] for line in (pretended / "queue").read_text().splitlines()] == [
        "one",
        "two",
    ]


def test_only_jobs_that_are_wanted_are_taken_over(pretended: Path) -> None:
    first = engine(pretended)
    for name in ("one", "two"):
        first.start(order(pretended, name))
    taken = Slurm(Settings(engine="slurm")).resume(pretended, lambda order: order["name"] == "two")
    assert taken == [order(pretended, "two")]
    (pretended / "cells" / "two" / slurm.ORDER).write_text(json.dumps(order(pretended, "two") | {"token": "another"}))
    assert Slurm(Settings(engine="slurm")).resume(pretended, lambda order: True) == [order(pretended, "one")]
    assert Slurm(Settings(engine="slurm")).resume(pretended / "elsewhere", lambda order: True) == []


def test_without_slurm_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["sweep", str(counted(tmp_path)), "--out", str(tmp_path / "out"), "--engine"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*command, "slurm"]) == 2
    assert "there is no sbatch here" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*command, "local", "--time-per-cell", "5"]) == 2
    assert "--time-per-cell '5' is of Slurm" in capsys.readouterr().err
    for options in ("gpu", "--job-name=mine", "-p gpu"):
        assert main([*command, "slurm", f"--sbatch={options}"]) == 2
        assert "expected options such as --partition=gpu" in capsys.readouterr().err
