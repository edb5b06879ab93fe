"""A sweep on a real Ray of two nodes, bound to 127.0.0.1: a worker is killed, then a node, and all cells come to
their end.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import psutil
import pytest

from rlcircuits.cli.main import main
from tests.fixtures.sweeps import counted, let_through, runs, start
from tests.fixtures.waiting import PATIENCE, until

T = TypeVar("T")
# Read when Ray is first imported: no report to anyone, and 127.0.0.1 stays what it is.
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
SMALL = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "node_ip_address": "127.0.0.1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rlcircuits[cluster]'")
    from ray.cluster_utils import Cluster

    made = Cluster()
    patiently(lambda: made.add_node(wait=False, **SMALL, include_dashboard=False))
    try:
        yield made
    finally:
        made.shutdown()


def patiently(begin: Callable[[], T]) -> T:
    """What `begin` gives, tried again where Ray gave up on a node.

    Ray gives a node 15 s to start, which a busy machine may need: where that is allowed, it comes before all others.
    """
    this = psutil.Process()
    for _ in range(10):
        before = set(this.children(recursive=True))
        try:
            prefer("self", -19)
            return begin()
        except (Exception, pytest.fail.Exception) as error:
            for left in set(this.children(recursive=True)) - before:
                with contextlib.suppress(psutil.Error):
                    left.kill()
            if "timed out during startup" not in str(error):
                raise
        finally:
            prefer("self", 0)
    pytest.fail("Ray did not start a node in 10 attempts")


def prefer(pid: int | str, nice: int) -> None:
    """Where this is Linux and root's, say how nice the processes of a session are to those of others."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(nice))


def tasks(cluster: Any) -> list[psutil.Process]:
    """Ray's workers that run a cell now: the parents of cells' own processes."""
    raylets = [node.all_processes["raylet"][0].process.pid for node in cluster.list_all_nodes()]
    cells = []
    for process in (p for raylet in raylets for p in psutil.Process(raylet).children(recursive=True)):
        try:
            if "rlcircuits.sweeps.worker" in process.cmdline():
                cells.append(process.parent())
        except psutil.Error:
            continue
    return [cell for cell in cells if cell is not None]


def listening(process: psutil.Process) -> set[str]:
    """The addresses that a process and its descendants listen at."""
    found: set[str] = set()
    for one in [process, *process.children(recursive=True)]:
        try:
            found |= {c.laddr.ip for c in one.net_connections("inet") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_killed_worker_and_a_lost_node_cost_only_their_cells(cluster: Any, tmp_path: Path) -> None:
    second = patiently(lambda: cluster.add_node(wait=False, **SMALL))
    cluster.wait_for_nodes(PATIENCE)
    gate, out = tmp_path / "gate", tmp_path / "out"
    file = counted(tmp_path, xs=3, groups="ab", gate=gate)
    sweep = start(file, out, "--engine", "ray", "--address", cluster.address, "--retries", "4")
    until(lambda: runs(tmp_path), "a cell that computes", sweep)
    until(lambda: tasks(cluster), "its worker", sweep)[0].kill()
    let_through(gate, 0)
    until(lambda: list(out.glob("cells/*/record.json")), "a finished cell", sweep)
    cluster.remove_node(second, allow_graceful=False)
    let_through(gate, 1, 2)
    assert sweep.wait(PATIENCE) == 0, (tmp_path / "out.log").read_text()
    table = pd.read_parquet(out / "summary.parquet")
    assert list(table["status"]) == ["done"] * 6
    assert list(table["square"]) == [0, 1, 4] * 2
    assert 1 <= (table["attempts"] > 1).sum() <= 2
    assert runs(tmp_path) <= 6 + 2
    again = start(file, out, "--engine", "ray", "--address", cluster.address)
    assert again.wait(PATIENCE) == 0 and runs(tmp_path) <= 6 + 2


@pytest.mark.slow
def test_a_ray_of_this_machine_alone_listens_to_nobody_else(tmp_path: Path) -> None:
    """What `--engine ray` starts without an address, while its cells run."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'rlcircuits[cluster]'")
    gate = tmp_path / "gate"
    file = counted(tmp_path, xs=1, groups="a", gate=gate)
    log = tmp_path / "out.log"

    def begun() -> subprocess.Popen:
        log.unlink(missing_ok=True)
        process = start(file, tmp_path / "out", "--engine", "ray", "--processes", "1")
        prefer(process.pid, -19)
        until(lambda: runs(tmp_path) or process.poll() is not None, "a cell that computes")
        return process if runs(tmp_path) else pytest.fail(log.read_text())

    sweep = patiently(begun)
    heard = listening(psutil.Process(sweep.pid))
    assert heard and heard <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    let_through(gate, 0)
    assert sweep.wait(PATIENCE) == 0
    assert list(pd.read_parquet(tmp_path / "out" / "summary.parquet")["status"]) == ["done"]


@pytest.mark.slow
def test_what_the_cluster_has_not_is_said(cluster: Any, tmp_path: Path) -> None:
    sweep = start(
        counted(tmp_path), tmp_path / "out", "--engine", "ray", "--address", cluster.address, "--gpus-per-cell", "2"
    )
    assert sweep.wait(PATIENCE) == 2
    assert "this cluster has 0 GPUs in all" in (tmp_path / "out.log").read_text()


def test_without_ray_the_way_to_install_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.split(".")[0] == "ray":
            raise ImportError("No module named 'ray'")
        return imported(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["sweep", str(counted(tmp_path)), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert "pip install 'rlcircuits[cluster]'" in capsys.readouterr().err
