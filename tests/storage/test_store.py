"""Artefacts survive what happens to disks and processes: real truncations, kills, races, full and forbidden disks."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from rlcircuits.errors import InputError
from rlcircuits.storage import store as module
from rlcircuits.storage.files import (
    DamagedArtefact,
    StoreError,
    load_scores,
    load_table,
    save_scores,
    save_table,
    written,
)
from rlcircuits.storage.keys import canonical_json, key_of
from rlcircuits.storage.store import Store
from tests.fixtures.waiting import PATIENCE

INPUTS = {"seed": 3, "models": ["a", "b"], "alpha": 0.3, "nested": {"x": None, "y": True}}
FORK = multiprocessing.get_context("fork")


def build(folder: Path) -> None:
    (folder / "first.txt").write_text("one")
    (folder / "deeper").mkdir()
    (folder / "deeper" / "second.bin").write_bytes(bytes(range(256)) * 40)


@pytest.fixture
def when_it_waits():
    """Calls a function whenever this process, or one forked from it, says that it waits for another."""
    handler = logging.Handler()
    logging.getLogger("rlcircuits").addHandler(handler)

    def call(action) -> None:
        handler.emit = lambda record: action() if "waiting for it" in record.getMessage() else None

    yield call
    logging.getLogger("rlcircuits").removeHandler(handler)


def never(folder: Path) -> None:
    pytest.fail("built again")


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(f.relative_to(folder)): f.read_bytes()
        for f in folder.rglob("*")
        if f.is_file() and f.name != module.MANIFEST
    }


def temporary(root: Path) -> list[str]:
    return [p.name for p in (root / "thing").iterdir() if module._TEMPORARY.fullmatch(p.name)]


@pytest.fixture
def expected(tmp_path_factory):
    folder = tmp_path_factory.mktemp("expected")
    build(folder)
    return content(folder)


# What is found again


def test_an_artefact_is_built_once_and_found_again(tmp_path, expected):
    store = Store(tmp_path / "runs")
    assert not store.has("thing", INPUTS) and not store.root.exists()
    folder = store.make("thing", INPUTS, build, note="for a reader")
    assert folder == store.path("thing", INPUTS) == tmp_path / "runs" / "thing" / folder.name
    assert content(folder) == expected
    assert store.make("thing", dict(reversed(INPUTS.items())), never) == folder
    assert Store(tmp_path / "runs").has("thing", INPUTS)
    assert store.make("thing", {**INPUTS, "seed": 4}, build) != folder
    assert temporary(store.root) == []


def test_the_manifest_records_what_made_it(tmp_path):
    import torch

    store = Store(tmp_path)
    manifest = store.manifest(store.make("thing", INPUTS, build, note="for a reader"))
    assert manifest["inputs"] == INPUTS and manifest["kind"] == "thing" and manifest["note"] == "for a reader"
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert manifest["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert manifest["seconds"] >= 0 and manifest["device"] and manifest["created"].endswith("+00:00")
    seen = subprocess.run(
        ["sha256sum", "deeper/second.bin"], cwd=store.path("thing", INPUTS), capture_output=True, text=True, check=True
    )
    assert manifest["files"]["deeper/second.bin"] == {"bytes": 10240, "sha256": seen.stdout.split()[0]}
    with pytest.raises(InputError, match="no manifest of an artefact"):
        store.manifest(tmp_path / "elsewhere")


# Keys


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def shuffled(value, rng):
    if isinstance(value, dict):
        items = [(name, shuffled(one, rng)) for name, one in value.items()]
        rng.shuffle(items)
        return dict(items)
    return tuple(shuffled(one, rng) for one in value) if isinstance(value, list) else value


@given(st.dictionaries(st.text(), values, max_size=5), st.randoms(use_true_random=False))
def test_a_key_does_not_depend_on_order_and_survives_json(inputs, rng):
    key = key_of("thing", inputs)
    assert key_of("thing", shuffled(inputs, rng)) == key == key_of("thing", json.loads(json.dumps(inputs)))
    assert len(key) == 16 and set(key) <= set("0123456789abcdef")


@given(values, values)
def test_different_inputs_have_different_texts(one, other):
    def typed(value):  # Python's == takes 1, 1.0 and True for one
        if isinstance(value, dict):
            return {name: typed(v) for name, v in value.items()}
        return [typed(v) for v in value] if isinstance(value, list) else (type(value), repr(value))

    assert (canonical_json(one) == canonical_json(other)) == (typed(one) == typed(other))


def test_a_key_is_the_same_in_another_process():
    code = f"from rlcircuits.storage.keys import key_of; print(key_of('thing', {INPUTS!r}))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == key_of("thing", INPUTS)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"a": [1, float("nan")]}, r"inputs\['inputs'\]\['a'\]\[1\] is nan"),
        ({"a": float("inf")}, "finite"),
        ({"a": object()}, "is a object"),
        ({"a": Path("x")}, "no stable hash"),
        ({"a": np.float64(1)}, "float64"),
        ({"a": {1: 2}}, "name 1 "),
        ({"a": {1, 2}}, "is a set"),
        ([1], "expected a dictionary"),
    ],
)
def test_what_cannot_be_hashed_stably_is_refused(inputs, says, tmp_path):
    with pytest.raises(InputError, match=says):
        Store(tmp_path).make("thing", inputs, never)


@pytest.mark.parametrize("kind", ["", "../up", "A b", ".hidden", 3])
def test_a_kind_is_a_plain_name(kind, tmp_path):
    with pytest.raises(InputError, match="plain name"):
        Store(tmp_path).path(kind, {})


# Damage


def truncate(folder):
    os.truncate(folder / "deeper" / "second.bin", 5000)


def change_a_byte(folder):
    with (folder / "deeper" / "second.bin").open("r+b") as stream:
        stream.seek(777)
        stream.write(b"\xff")


def delete_a_file(folder):
    (folder / "first.txt").unlink()


def delete_the_manifest(folder):
    (folder / module.MANIFEST).unlink()


def halve_the_manifest(folder):
    file = folder / module.MANIFEST
    os.truncate(file, file.stat().st_size // 2)


def edit_the_manifest(folder):
    file = folder / module.MANIFEST
    file.write_text(file.read_text().replace('"seed": 3', '"seed": 9'))


def file_becomes_folder(folder):
    (folder / "first.txt").unlink()
    (folder / "first.txt").mkdir()


def becomes_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("not a folder")


FAULTS = [
    truncate,
    change_a_byte,
    delete_a_file,
    delete_the_manifest,
    halve_the_manifest,
    edit_the_manifest,
    file_becomes_folder,
    becomes_a_file,
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_damage_is_noticed_and_repaired_with_one_warning(fault, tmp_path, expected):
    store = Store(tmp_path)
    folder = store.make("thing", INPUTS, build)
    fault(folder)
    assert not store.has("thing", INPUTS)
    with pytest.warns(DamagedArtefact, match="damaged .*making it again") as caught:
        assert store.make("thing", INPUTS, build) == folder
    assert len(caught) == 1 and caught[0].filename == __file__
    assert content(folder) == expected and temporary(tmp_path) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        store.make("thing", INPUTS, never)


def test_the_damaged_stays_until_the_new_is_complete(tmp_path):
    store = Store(tmp_path)
    folder = store.make("thing", INPUTS, build)
    truncate(folder)
    damaged = content(folder)

    def fails(new):
        (new / "half.txt").write_text("half")
        raise RuntimeError("no luck")

    with pytest.warns(DamagedArtefact), pytest.raises(RuntimeError, match="no luck"):
        store.make("thing", INPUTS, fails)
    assert content(folder) == damaged and temporary(tmp_path) == []


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    for file in folder.rglob("*"):
        os.utime(file, (then, then))


def test_unchanged_files_are_read_once_per_process_and_truncation_is_always_seen(tmp_path, monkeypatch):
    store = Store(tmp_path)
    folder = store.make("thing", INPUTS, build)
    age(folder, 60)
    store.make("thing", INPUTS, never)
    read = []
    digest = module.hashlib.file_digest
    monkeypatch.setattr(
        module.hashlib, "file_digest", lambda stream, kind: read.append(stream.name) or digest(stream, kind)
    )
    for _ in range(3):
        assert store.has("thing", INPUTS)
    assert read == []
    before = (folder / "first.txt").stat()
    (folder / "first.txt").write_text("two")  # as long as before, changed just now
    assert not store.has("thing", INPUTS) and len(read) == 1
    (folder / "first.txt").write_text("one")
    assert store.has("thing", INPUTS)
    truncate(folder)
    os.utime(folder / "deeper" / "second.bin", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not store.has("thing", INPUTS)


def test_a_change_within_the_clocks_resolution_is_seen(tmp_path):
    store = Store(tmp_path)
    file = store.make("thing", INPUTS, build) / "first.txt"
    before = file.stat()
    assert store.has("thing", INPUTS)
    file.write_text("two")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not store.has("thing", INPUTS)


# Builds that do not end


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_a_build_that_fails_leaves_nothing(error, tmp_path, expected):
    store = Store(tmp_path)

    def fails(folder):
        build(folder)
        raise error

    with pytest.raises(error):
        store.make("thing", INPUTS, fails)
    assert not store.has("thing", INPUTS) and temporary(tmp_path) == []
    assert content(store.make("thing", INPUTS, build)) == expected


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda f: None, "wrote no file"),
        (lambda f: (f / "manifest.json").write_text("{}"), "manifest.json"),
        (lambda f: (f / "link").symlink_to("/dev/null"), "link"),
    ],
)
def test_a_build_that_breaks_its_promise_is_refused(wrong, says, tmp_path):
    with pytest.raises(StoreError, match=says):
        Store(tmp_path).make("thing", INPUTS, wrong)
    assert temporary(tmp_path) == []


def forked(function) -> int:
    """Run `function` in a forked process; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.slow
@pytest.mark.parametrize("start", [None, truncate])
def test_killed_at_each_file_operation_it_leaves_the_old_or_the_new(start, tmp_path, expected):
    """A process is killed before its 1st, 2nd, 3rd … open, mkdir, rename or removal, until it gets through."""
    import filelock  # noqa: F401 - its import must not count as file operations

    survived = False
    outcomes = set()
    for moment in range(200):
        root = tmp_path / str(moment)
        store = Store(root)
        folder = store.path("thing", INPUTS)
        old = None
        if start is not None:
            start(store.make("thing", INPUTS, build))
            old = content(folder) if folder.is_dir() else folder.read_bytes()

        def doomed(moment=moment, store=store):
            left = [moment]

            def hook(event, _args):
                if event in ("open", "os.mkdir", "os.rename", "os.rmdir", "os.remove", "shutil.rmtree"):
                    left[0] -= 1
                    if left[0] < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                store.make("thing", INPUTS, build)

        status = forked(doomed)
        assert status in (0, -signal.SIGKILL)
        if folder.is_dir():
            state = "new" if store.has("thing", INPUTS) else "old"
            assert content(folder) == (expected if state == "new" else old)
        else:
            state = "old" if folder.exists() else "absent"
        outcomes.add(state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DamagedArtefact)
            assert content(store.make("thing", INPUTS, build)) == expected
        store.make("thing", {"seed": 99}, build)  # the next of its kind clears what was left
        assert temporary(root) == []
        shutil.rmtree(root)
        if status == 0:
            survived = True
            break
    assert survived and moment > 5
    assert outcomes >= {"new", "absent" if start is None else "old"}


def test_a_complete_build_that_was_only_not_renamed_is_not_lost(tmp_path, expected, monkeypatch):
    store = Store(tmp_path)

    def doomed():
        monkeypatch.setattr(module, "_put_in_place", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        store.make("thing", INPUTS, build)

    assert forked(doomed) == -signal.SIGKILL and len(temporary(tmp_path)) == 1
    assert content(store.make("thing", INPUTS, never)) == expected


def test_left_over_folders_of_dead_builders_are_cleared_and_of_living_ones_kept(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "thing").mkdir()
    dead = tmp_path / "thing" / f".building-{'0' * 16}-abc"
    dead.mkdir()
    (dead / "half.bin").write_bytes(b"half")
    seen = {}

    def inner(folder):
        build(folder)

    def outer(folder):  # alive while another key of its kind is made
        build(folder)
        store.make("thing", {"seed": 2}, inner)
        seen["mine"] = content(folder)

    folder = store.make("thing", {"seed": 1}, outer)
    assert not dead.exists()
    assert seen["mine"] == content(folder) and store.has("thing", {"seed": 1}) and store.has("thing", {"seed": 2})


# Two processes at once


def test_of_three_processes_one_builds_and_the_others_wait(tmp_path, expected, when_it_waits):
    log, waiting = tmp_path / "log", FORK.Semaphore(0)
    when_it_waits(waiting.release)

    def build_before_others(folder):
        with log.open("a") as stream:
            stream.write("built\n")
        for _ in range(2):
            assert waiting.acquire(timeout=PATIENCE)
        build(folder)

    all_three = [
        FORK.Process(target=Store(tmp_path / "runs").make, args=("thing", INPUTS, build_before_others))
        for _ in range(3)
    ]
    for one in all_three:
        one.start()
    for one in all_three:
        one.join()
    assert [one.exitcode for one in all_three] == [0, 0, 0]
    assert log.read_text() == "built\n"
    assert content(Store(tmp_path / "runs").make("thing", INPUTS, never)) == expected


def test_who_waits_builds_when_the_other_dies(tmp_path, expected, when_it_waits):
    store, started = Store(tmp_path), FORK.Event()

    def hangs(folder):
        build(folder)
        started.set()
        signal.pause()

    other = FORK.Process(target=store.make, args=("thing", INPUTS, hangs))
    other.start()
    assert started.wait(PATIENCE)
    assert not store.has("thing", INPUTS)
    when_it_waits(other.kill)
    assert content(store.make("thing", INPUTS, build)) == expected
    other.join()
    assert other.exitcode == -signal.SIGKILL and temporary(tmp_path) == []


# Disks


def device_full(folder):
    build(folder)
    with open("/dev/full", "w") as stream:
        stream.write("x" * 100_000)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_disk_is_explained_and_leaves_what_was_there(tmp_path, expected):
    store = Store(tmp_path)
    before = store.make("thing", INPUTS, build)
    with pytest.raises(StoreError, match=r"No space left .*MiB free.*Nothing already computed is lost"):
        store.make("thing", {"seed": 5}, device_full)
    assert content(before) == expected and store.has("thing", INPUTS) and temporary(tmp_path) == []


def small_file_limit(folder):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    build(folder)


def test_a_limit_of_the_system_is_explained(tmp_path):
    says = tmp_path / "says"

    def limited():
        try:
            Store(tmp_path / "runs").make("thing", INPUTS, small_file_limit)
        except StoreError as error:
            says.write_text(str(error))
            os._exit(7)

    assert forked(limited) == 7
    assert "File too large" in says.read_text() and str(tmp_path / "runs" / "thing") in says.read_text()


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        os.geteuid() == 0
        and shutil.which("mount")
        and subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False, capture_output=True
        ).returncode
        == 0
    )
    if not mounted:
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def write_plainly(folder, values):
    (folder / "plain.bin").write_bytes(values.tobytes())


def write_netcdf(folder, values):
    save_scores(xr.DataArray(values, dims=("x",)), folder / "scores.nc")


def write_parquet(folder, values):
    save_table(pd.DataFrame({"x": values}), folder / "table.parquet")


def write_safetensors(folder, values):
    from safetensors.numpy import save_file

    save_file({"x": values}, folder / "model.safetensors")


@pytest.mark.parametrize("write", [write_plainly, write_netcdf, write_parquet, write_safetensors])
def test_each_library_on_a_really_full_disk(write, tiny_disk):
    store = Store(tiny_disk / "runs")
    first = store.make("thing", INPUTS, build)
    values = np.random.default_rng(0).random(400_000)
    with pytest.raises(StoreError, match=r"cannot write .*Nothing already computed is lost"):
        store.make("thing", {"seed": 6}, lambda folder: write(folder, values))
    assert temporary(store.root) == [] and store.has("thing", INPUTS)
    assert store.make("thing", {"seed": 6}, lambda folder: write(folder, values[:100])) != first


@pytest.fixture
def forbidden():
    """A folder that the process may read, but not write: as another user where it runs as root."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    root = os.geteuid() == 0
    yield folder, (lambda: os.seteuid(65534)) if root else (lambda: None)
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_explained_and_still_read(forbidden):
    folder, become = forbidden
    store = Store(folder)
    made = store.make("thing", INPUTS, build)
    for path in (folder, folder / "thing"):
        path.chmod(0o555)
    become()
    try:
        assert store.make("thing", INPUTS, never) == made
        with pytest.raises(StoreError, match=r"Permission denied .*Nothing already computed is lost"):
            store.make("thing", {"seed": 7}, never)
        with pytest.raises(StoreError, match="Permission denied"):
            Store(folder / "new").make("thing", INPUTS, never)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        (folder / "thing").chmod(0o755)


def test_a_store_is_a_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="is a file"):
        Store(file)
    with pytest.raises(StoreError, match="cannot write"):
        Store(file / "below").make("thing", INPUTS, never)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "thing").write_text("x")
    with pytest.raises(StoreError, match="cannot write"):
        Store(tmp_path / "runs").make("thing", INPUTS, never)


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied", "/elsewhere"), FileNotFoundError(2, "no", "x")]
)
def test_what_goes_wrong_in_a_build_keeps_its_own_name(error, tmp_path):
    def fails(folder):
        raise error

    with pytest.raises(type(error)) as caught:
        Store(tmp_path).make("thing", INPUTS, fails)
    assert caught.value is error


# Files


def scores():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(3, 4, 5)).astype(np.float32)
    values[:, 2:, 1] = np.nan
    values[0, 0, 0] = -0.0
    return xr.DataArray(
        values,
        dims=("sample", "source", "destination"),
        coords={
            "sample": ["p/1", "ü 2", "p3"],
            "source": ["input", "a0", "m0", "a1"],
            "destination": ["a0", "m0", "a1", "m1", "logits"],
            "loss": ("sample", rng.random(3)),
            "tokens": ("sample", [3, 4, 5]),
        },
        name="score",
        attrs={"level": "block", "cut": 7, "versions": json.dumps({"torch": "2"}), "scale": 0.5},
    )


def test_scores_come_back_bit_by_bit(tmp_path):
    saved = scores()
    save_scores(saved, tmp_path / "scores.nc")
    loaded = load_scores(tmp_path / "scores.nc")
    xr.testing.assert_identical(saved, loaded)
    assert loaded.dtype == np.float32 and loaded.values.tobytes() == saved.values.tobytes()
    assert {name: type(value) for name, value in loaded.attrs.items()} == {
        "level": str, "cut": int, "versions": str, "scale": float,
    }  # fmt: skip
    assert list(loaded.sel(source="a0", sample="ü 2").coords) == list(saved.sel(source="a0", sample="ü 2").coords)
    save_scores(loaded, tmp_path / "scores.nc")  # its own file is closed


@settings(max_examples=25)
@given(st.lists(st.tuples(st.text(), st.floats(), st.booleans()), max_size=5))
def test_tables_come_back(rows):
    with tempfile.TemporaryDirectory() as folder:
        table = pd.DataFrame(rows, columns=["rule", "value", "kept"]).astype(
            {"rule": "str", "value": float, "kept": bool}
        )
        table = table.set_index("rule", append=True)
        save_table(table, Path(folder) / "table.parquet")
        pd.testing.assert_frame_equal(load_table(Path(folder) / "table.parquet"), table)


@pytest.mark.parametrize(("load", "what"), [(load_scores, "scores"), (load_table, "table")])
def test_what_cannot_be_loaded_is_explained(load, what, tmp_path):
    with pytest.raises(InputError, match=f"no {what} at"):
        load(tmp_path / "none")
    (tmp_path / "broken").write_bytes(b"\x89HDF and PAR1, but not really")
    with pytest.raises(InputError, match=f"holds no {what}"):
        load(tmp_path / "broken")


def test_a_file_keeps_its_old_content_when_writing_fails(tmp_path):
    file = tmp_path / "deeper" / "file.txt"
    with written(file) as temporary:
        temporary.write_text("old")
    with pytest.raises(KeyboardInterrupt), written(file) as temporary:
        temporary.write_text("new")
        raise KeyboardInterrupt
    assert file.read_text() == "old" and [p.name for p in file.parent.iterdir()] == ["file.txt"]


def test_importing_the_store_is_quick():
    code = "import sys, rlcircuits.storage.store; print([m for m in ('torch', 'pandas', 'xarray', 'numpy') if m in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
