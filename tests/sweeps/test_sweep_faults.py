"""Sweeps survive: kills at random moments, full disks, damaged files, lost kernels, and each other.

``RLCIRCUITS_KILLS=50 python -m pytest tests/sweeps/test_sweep_faults.py -k kill_9 -s`` runs the whole campaign of
kills.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from multiprocessing import reduction
from pathlib import Path

import pandas as pd
import psutil
import pytest

from rlcircuits.cli.main import main
from rlcircuits.storage.store import Store
from rlcircuits.storage.store import _damage as damage
from tests.fixtures.sweeps import COUNTED, counted, let_through, runs, start, write_notebook, write_sweep
from tests.fixtures.waiting import PATIENCE, until

KILLS = int(os.environ.get("RLCIRCUITS_KILLS", "3"))
MARK = "RLCIRCUITS_TEST_SWEEP"
VICTIMS = ("sweep", "sweep", "worker", "kernel", "all")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, float]:
    """The table of `counted` when nothing happens, and the seconds that takes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    began = time.monotonic()
    assert start(counted(folder, xs=2), folder / "out", "--processes", "2").wait() == 0, (
        folder / "out.log"
    ).read_text()
    assert runs(folder) == 6
    return pd.read_parquet(folder / "out" / "summary.parquet"), time.monotonic() - began


def results(table: pd.DataFrame) -> pd.DataFrame:
    """What must not depend on what happened on the way."""
    return table.drop(columns=["seconds", "attempts", "store", "cell", "notebook"])


def family(mark: str) -> list[psutil.Process]:
    """All processes of a marked sweep that are alive: itself, its workers, their kernels."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def strike(victim: str, sweep: subprocess.Popen, mark: str, chance: random.Random) -> bool:
    """kill -9 of one process, or of all; returns whether there was one."""
    there = [p for p in family(mark) if p.pid != sweep.pid]
    kernels = [p for p in there if "ipykernel_launcher" in " ".join(_command(p))]
    workers = [p for p in there if any(k.ppid() == p.pid for k in kernels)]
    chosen = {"sweep": [], "worker": workers, "kernel": kernels, "all": there}[victim]
    chosen = chosen if victim == "all" else chosen and [chance.choice(chosen)]
    for process in chosen:
        with contextlib.suppress(psutil.Error):
            process.kill()
    if victim in ("sweep", "all"):
        sweep.kill()
        sweep.wait()
    return bool(chosen) or victim == "sweep"


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.kernel
def test_kill_9_at_random_moments(undisturbed, tmp_path: Path) -> None:
    expected, seconds = undisturbed
    chance, killed, rounds, repeated = random.Random(5), 0, 0, 0
    by_victim = dict.fromkeys(VICTIMS, 0)
    while killed < KILLS:
        rounds += 1
        folder = tmp_path / f"round{rounds}"
        file, mark, kills = counted(folder, xs=2), f"{tmp_path}/{rounds}", 0
        sweep = start(file, folder / "out", "--processes", "2", "--retries", "9", **{MARK: mark})
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                sweep.wait(chance.uniform(0.05, 0.5) * seconds)
            if sweep.poll() is None and killed + kills < KILLS:
                victim, struck = chance.choice(VICTIMS), False
                while sweep.poll() is None and not (struck := strike(victim, sweep, mark, chance)):
                    time.sleep(0.1)  # no kernel, no worker at this moment
                kills += struck
                by_victim[victim] += struck
            elif sweep.poll() is None:
                sweep.wait(PATIENCE)
            if sweep.poll() == 0:
                break
            if sweep.poll() is not None:
                assert sweep.returncode == -signal.SIGKILL, (folder / "out.log").read_text()
                sweep = start(file, folder / "out", "--processes", "2", "--retries", "9", **{MARK: mark})
        killed += kills
        repeated += runs(folder) - 6
        assert runs(folder) - 6 <= 2 * kills, "more was repeated than was at work when it was killed"
        table = pd.read_parquet(folder / "out" / "summary.parquet")
        pd.testing.assert_frame_equal(results(table), results(expected))
        for artefact in (folder / "store").glob("*/[0-9a-f]*"):
            assert damage(artefact) is None, artefact
        assert len(list((folder / "store").glob("*/[0-9a-f]*"))) == 3 + 6
        assert "DamagedArtefact" not in (folder / "out.log").read_text()
        until(lambda: not family(mark), "the processes of the sweep to end")
    print(f"\n{killed} kills ({by_victim}) over {rounds} sweeps of 6 cells; {repeated} runs of cells repeated")


@pytest.mark.kernel
def test_a_second_sweep_in_the_same_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    gate = tmp_path / "gate"
    file = counted(tmp_path, xs=2, groups="a", gate=gate)
    first = start(file, tmp_path / "out")
    until((tmp_path / "out" / ".sweep.json").is_file, "the first sweep at work", first)
    assert main(["sweep", str(file), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert "another sweep is at work" in told and f"process {first.pid}" in told and told.count("\n") == 1
    let_through(gate, 0, 1)
    assert first.wait(PATIENCE) == 0
    assert runs(tmp_path) == 2


@pytest.mark.kernel
def test_an_interrupted_sweep_ends_and_goes_on(tmp_path: Path) -> None:
    """A Ctrl-C, then what a batch system sends, each while a cell is at work that would not end; then undisturbed."""
    gate, out = tmp_path / "gate", tmp_path / "out"
    file = counted(tmp_path, xs=4, groups="a", gate=gate)
    for done, sign in enumerate((signal.SIGINT, signal.SIGTERM), 1):
        let_through(gate, done - 1)
        sweep = start(file, out, "--processes", "1", **{MARK: str(tmp_path)})
        until(lambda done=done: runs(tmp_path) == 2 * done, "a cell at work after a finished one", sweep)
        # A terminal sends Ctrl-C to all its processes.
        os.killpg(sweep.pid, sign) if sign == signal.SIGINT else sweep.send_signal(sign)
        assert sweep.wait(PATIENCE) == 130
        until(lambda: not family(str(tmp_path)), "the processes of the sweep to end")
        table = pd.read_parquet(out / "summary.parquet")
        assert sorted(table["status"]) == ["done"] * done + ["not run"] * (4 - done)
    log = (tmp_path / "out.log").read_text()
    assert log.count("interrupted; all that was finished is kept") == 2 and "Traceback" not in log
    let_through(gate, 2, 3)
    assert start(file, out).wait(PATIENCE) == 0
    assert runs(tmp_path) == 2 * 2 + 2  # nothing that finished runs again
    assert set(pd.read_parquet(out / "summary.parquet")["status"]) == {"done"}


@pytest.mark.kernel
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_a_process_is_started_is_put_off(
    tmp_path: Path, monkeypatch, capfd, sign: signal.Signals
) -> None:
    """Raised between the two halves of a start, it would end the fork server with a traceback and leave a process
    nobody knows.
    """
    hand_over, calls = reduction.sendfds, []

    def interrupted(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            os.kill(os.getpid(), sign)
        hand_over(*arguments)

    monkeypatch.setattr(reduction, "sendfds", interrupted)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    file = counted(tmp_path, xs=2, groups="a")
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--processes", "1"]) == 130
    assert len(calls) == 2
    assert list(pd.read_parquet(tmp_path / "out" / "summary.parquet")["status"]) == ["done", "not run"]
    told = capfd.readouterr().err
    assert "interrupted; all that was finished is kept" in told and "Traceback" not in told
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


@pytest.mark.kernel
def test_damaged_files_are_noticed_and_only_their_cells_run_again(tmp_path: Path) -> None:
    file = counted(tmp_path, xs=4, groups="a")
    out = tmp_path / "out"
    assert main(["sweep", str(file), "--out", str(out)]) == 0
    expected = pd.read_parquet(out / "summary.parquet")
    cells = [out / "cells" / name for name in expected["cell"]]
    (cells[0] / "record.json").write_bytes((cells[0] / "record.json").read_bytes()[:-40])
    (cells[1] / "notebook.ipynb").write_bytes((cells[1] / "notebook.ipynb").read_bytes()[:100])
    changed = json.loads((cells[2] / "record.json").read_text())
    changed["metrics"]["square"] = 17
    (cells[2] / "record.json").write_text(json.dumps(changed))
    artefact = next((tmp_path / "store" / "square").glob("[0-9a-f]*"))
    (artefact / "square.txt").write_text("")
    (out / "summary.parquet").write_bytes(b"PAR1")
    assert main(["sweep", str(file), "--out", str(out)]) == 0
    assert runs(tmp_path) == 4 + 3
    pd.testing.assert_frame_equal(results(pd.read_parquet(out / "summary.parquet")), results(expected))


FAULTY = [
    'fault = ""\nonce = ""',
    "import os\nfrom pathlib import Path\nfrom rlcircuits.lab.parameters import glue\n\n"
    "first = not Path(once).exists()\nPath(once).touch()",
    """if fault == "memory" and first:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    bytearray(2**33)
if fault == "killed" and first or fault == "always killed":
    os.kill(os.getpid(), 9)
if fault == "disk":
    import resource
    from rlcircuits.storage.store import Store
    def build(folder):
        (folder / "large.bin").write_bytes(bytes(200_000))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    Store(once + "-store").make("large", {}, build)
if fault == "connection" and first:
    raise ConnectionResetError("the storage went away")
if fault == "input":
    from rlcircuits.errors import InputError
    raise InputError("no problem is left: <b>both</b> models answered none")
if fault == "endless":
    import threading
    threading.Event().wait()
glue("value", 7 if fault != "nan" else float("nan"))""",
]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame, str]:
    """A sweep whose cells meet one fault each."""
    folder = tmp_path_factory.mktemp("faulty")
    write_notebook(folder / "faulty.ipynb", FAULTY)
    faults = ["", "memory", "killed", "always killed", "disk", "connection", "input", "nan"]
    cells = [{"fault": fault, "once": str(folder / f"once{i}")} for i, fault in enumerate(faults)]
    file = write_sweep(folder / "faulty.yaml", notebook="faulty.ipynb", cells=cells)
    assert start(file, folder / "out", "--processes", "3", "--retries", "1").wait() == 1
    table = pd.read_parquet(folder / "out" / "summary.parquet").set_index("fault")
    return folder / "out", table, (folder / "out.log").read_text()


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("fault", "status", "attempts", "words"),
    [
        ("", "done", 1, None),
        ("memory", "done", 2, None),
        ("killed", "done", 2, None),
        ("connection", "done", 2, None),
        ("nan", "done", 1, None),
        ("always killed", "failed", 2, "Kernel died"),
        ("disk", "failed", 1, "File too large"),
        ("input", "failed", 1, "no problem is left"),
    ],
)
def test_a_fault_stays_in_its_cell_and_the_summary_tells(faulty, fault, status, attempts, words) -> None:
    _, table, _ = faulty
    row = table.loc[fault]
    assert (row["status"], row["attempts"]) == (status, attempts), row["error"]
    assert pd.isna(row["error"]) if words is None else words in row["error"]
    assert (row["value"] == 7) == (status == "done" and fault != "nan")


@pytest.mark.kernel
def test_the_index_links_every_cell_that_ran_and_escapes_what_it_says(faulty) -> None:
    out, table, log = faulty
    page = (out / "index.html").read_text()
    assert page.count("<tr") == 1 + len(table)
    assert "&lt;b&gt;both&lt;/b&gt;" in page and "<b>both</b>" not in page
    assert "5 done, 3 failed" in log and "no problem is left" in log and "Traceback" not in log


@pytest.mark.kernel
def test_a_cell_beyond_its_timeout_is_stopped(tmp_path: Path) -> None:
    write_notebook(tmp_path / "faulty.ipynb", FAULTY)
    cells = [{"fault": "endless", "once": str(tmp_path / "once")}]
    file = write_sweep(tmp_path / "faulty.yaml", notebook="faulty.ipynb", cells=cells, timeout=1)
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--retries", "1"]) == 1
    (row,) = pd.read_parquet(tmp_path / "out" / "summary.parquet").itertuples()
    assert (row.status, row.attempts) == ("failed", 1) and "stopped after 1 s" in row.error


@pytest.fixture
def tiny_disk(tmp_path: Path):
    """A disk of two megabytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", disk], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("a small disk can only be mounted by root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.kernel
def test_a_really_full_disk_ends_in_one_message_and_goes_on_when_there_is_room(
    tiny_disk: Path, tmp_path: Path, capsys
) -> None:
    file = counted(tmp_path, xs=2, groups="a")
    out = tiny_disk / "out"
    assert main(["sweep", str(file), "--out", str(out)]) == 0
    expected = pd.read_parquet(out / "summary.parquet")
    for cell in out.glob("cells/*"):
        (cell / "record.json").unlink()
    ballast = tiny_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    capsys.readouterr()
    assert main(["sweep", str(file), "--out", str(out)]) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rlcircuits:")]
    assert len(told) == 1 and "No space left on device" in told[0]
    ballast.unlink()
    assert main(["sweep", str(file), "--out", str(out)]) == 0
    pd.testing.assert_frame_equal(results(pd.read_parquet(out / "summary.parquet")), results(expected))


@pytest.mark.kernel
def test_an_unreadable_copy_of_the_notebook_fails_its_cells_with_a_reason(tmp_path: Path) -> None:
    """Someone writes over the sweep's copy while it runs: what ran before stays, the rest says why it did not."""
    spoiling = [COUNTED[0], "from pathlib import Path\nPath(store, 'spoils.ipynb').write_text('{')"]
    write_notebook(tmp_path / "spoils.ipynb", spoiling)
    file = write_sweep(
        tmp_path / "spoils.yaml", notebook="spoils.ipynb", grid={"x": [1, 2]}, fixed={"store": str(tmp_path / "out")}
    )
    assert main(["sweep", str(file), "--out", str(tmp_path / "out"), "--processes", "1"]) == 1
    table = pd.read_parquet(tmp_path / "out" / "summary.parquet")
    assert list(table["status"]) == ["done", "failed"]
    assert "spoils.ipynb is damaged: run the sweep again" in table["error"][1]


def test_a_damaged_artefact_is_seen_as_one(tmp_path: Path) -> None:
    """The oracle above is able to fail: a truncated artefact is damaged."""
    store = Store(tmp_path)
    artefact = store.make("one", {}, lambda folder: (folder / "a.txt").write_text("hello") and None)
    assert damage(artefact) is None
    (artefact / "a.txt").write_text("hell")
    assert damage(artefact) is not None
