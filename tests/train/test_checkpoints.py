"""Checkpoints count only when they are whole: damage, full disks, second jobs and donated memory."""

import asyncio
import contextlib
import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tokvid.errors import UserError
from tokvid.io.files import seal, to_json
from tokvid.train.checkpoints import Checkpoints, _leaves, _read_back

AGREE = {"model": {"width": 4, "levels": (8, 5)}, "data": {"source": "shapes"}}


def state_of(step):
    return {"step": jnp.asarray(step), "kernel": jnp.full((4, 4), step + 0.5), "bias": jnp.arange(4.0)}


def open_at(folder, agree=AGREE, keep=9):
    return Checkpoints(folder / "checkpoints", keep, agree)


def newest(folder):
    """What is restored from `folder`: the step, or None. Its arrays must be those that were saved."""
    with open_at(folder) as checkpoints:
        restored = checkpoints.restore(state_of(0))
    if restored is None:
        return None
    step, state, data = restored
    for name, array in state_of(step).items():
        np.testing.assert_array_equal(state[name], array)
    assert data == {"next": step}
    return step


def committed(folder):
    return sorted(int(path.parent.name) for path in (folder / "checkpoints").glob("[0-9]*/commit.json"))


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    with open_at(folder) as checkpoints:
        assert checkpoints.restore(state_of(0)) is None
        for step in (1, 2, 3):
            checkpoints.save(step, state_of(step), {"next": step})
    return folder


@pytest.fixture
def folder(three, tmp_path):
    """A training folder with the checkpoints 1, 2 and 3."""
    shutil.copytree(three, tmp_path / "job")
    return tmp_path / "job"


def largest(step_folder):
    return max(step_folder.glob("state/**/d/*"), key=lambda path: path.stat().st_size)


def flip(step_folder):
    path = largest(step_folder)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(step_folder):
    path = largest(step_folder)
    path.write_bytes(path.read_bytes()[:-1])


def remove_a_file(step_folder):
    (step_folder / "state" / "_METADATA").unlink()


def spoil_the_record(step_folder):
    (step_folder / "commit.json").write_text('{"format": 3, "files": [')


def spoil_the_record_as_json(step_folder):
    (step_folder / "commit.json").write_text('{"format": 3, "files": {}, "agree": 3}')


ODD = ["run[1]", "[!a]", "a*b", "**", "?", "back\\slash", "{a,b}", "gs:", "~", "%41", "line\nend", "圆 🦊", "a\udcff"]


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_folder_may_have_any_name(tmp_path, name):
    """Other programs take such names for patterns, URLs or not at all; siblings that a pattern means stay apart."""
    (tmp_path / "axb").mkdir()
    with open_at(tmp_path / name) as checkpoints:
        checkpoints.save(1, state_of(1), {"next": 1})
    assert newest(tmp_path / name) == 1
    (tmp_path / name).rename(tmp_path / "moved")
    assert newest(tmp_path / "moved") == 1 and not any((tmp_path / "axb").iterdir())


def test_a_folder_is_refused_where_no_path_to_it_is_literal(tmp_path, monkeypatch):
    (tmp_path / "tmp[1]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp[1]"))
    for _ in range(2):  # and the lock went with the first
        with pytest.raises(UserError, match=r"^checkpoints can be kept neither in .*run\[1\].* use another --workdir$"):
            open_at(tmp_path / "run[1]")


@pytest.mark.parametrize(
    "lost, said",
    [
        ("state/manifest.ocdbt", "does not exist"),
        ("state/_METADATA", "_METADATA"),
        ("state/**/d/*", "."),
        ("data/metadata", "metadata"),
    ],
)
def test_only_what_can_be_restored_is_committed(tmp_path, monkeypatch, lost, said):
    """Whatever a save leaves out without an error, it is noticed before the step counts."""
    with open_at(tmp_path) as checkpoints:
        done = checkpoints._manager.wait_until_finished

        def loses_a_file():
            done()
            for path in (tmp_path / "checkpoints" / "1").glob(lost):
                path.unlink()

        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", loses_a_file)
        checkpoints.save(1, state_of(1), {"next": 1})
        with pytest.raises(UserError, match=f"^saving a checkpoint to .* failed: .*{said}.*; free some space"):
            checkpoints.wait()
    assert committed(tmp_path) == [] and newest(tmp_path) is None


def test_a_commit_says_what_was_saved(tmp_path):
    leaves, step = _leaves(state_of(1)), tmp_path / "checkpoints" / "1"
    with open_at(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {"next": 1})
    for values in (False, True):
        _read_back(step, leaves, {"next": 1}, values)
    for other, data, said in (
        (leaves | {"kernel": ["bfloat16", [4, 4]]}, {"next": 1}, r"kernel .*float32\[4, 4\], not bfloat16\[4, 4\]"),
        (leaves | {"more": ["int32", []]}, {"next": 1}, r"more reads back as missing, not int32"),
        (leaves, {"next": 2}, "the position in the data reads back differently"),
    ):
        with pytest.raises(ValueError, match=said):
            _read_back(step, other, data, values=False)


def test_values_are_read_back_some_at_a_time(tmp_path, monkeypatch):
    """A state needn't fit into memory once more, and all of its values are read."""
    with open_at(tmp_path) as checkpoints:
        checkpoints.save(1, state_of(1), {"next": 1})
    read, restore = [], ocp.PyTreeCheckpointHandler.restore

    def seen(self, step, args):
        found = restore(self, step, args=args)
        read.append([leaf.shape for leaf in jax.tree.leaves(found) if leaf is not ...])
        return found

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", seen)
    monkeypatch.setattr("tokvid.train.checkpoints.READ_BACK", 40)
    _read_back(tmp_path / "checkpoints" / "1", _leaves(state_of(1)), {"next": 1}, values=True)
    assert len(read) > 1 and sorted(shape for shapes in read for shape in shapes) == [(), (4,), (4, 4)]


@pytest.mark.parametrize("damage", [flip, truncate, remove_a_file, spoil_the_record, spoil_the_record_as_json])
def test_a_damaged_checkpoint_is_set_aside_and_named(folder, damage, caplog):
    damage(folder / "checkpoints" / "3")
    assert newest(folder) == 2
    assert "checkpoint 3 is damaged" in caplog.text and "going back to 2" in caplog.text
    assert (folder / "checkpoints" / "damaged-3").is_dir() and committed(folder) == [1, 2]
    with open_at(folder) as checkpoints:  # and training reaches that step once more
        checkpoints.restore(state_of(0))
        checkpoints.save(3, state_of(3), {"next": 3})
    assert newest(folder) == 3


def test_several_are_damaged(folder, caplog):
    flip(folder / "checkpoints" / "3")
    truncate(folder / "checkpoints" / "2")
    assert newest(folder) == 1
    assert "checkpoint 3 is damaged" in caplog.text and "checkpoint 2 is damaged" in caplog.text


def test_all_are_damaged(folder):
    """Training doesn't start anew unasked, and nothing is moved."""
    for step in "123":
        flip(folder / "checkpoints" / step)
    for _ in range(2):
        with pytest.raises(UserError, match=r"no checkpoint in .* is intact \(3: .*2: .*1: .*another --workdir"):
            newest(folder)
    assert committed(folder) == [1, 2, 3]


@pytest.mark.parametrize("unfinished", ["no record", "empty", "orbax's temporary"])
def test_what_a_killed_job_left_unfinished_never_counts(folder, unfinished, caplog):
    place = folder / "checkpoints"
    if unfinished == "no record":
        (place / "3" / "commit.json").unlink()
    elif unfinished == "empty":
        (place / "4").mkdir()
    else:
        shutil.copytree(place / "3", place / "4.orbax-checkpoint-tmp")
    assert newest(folder) == (2 if unfinished == "no record" else 3)
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == [str(step) for step in committed(folder)]
    assert unfinished.startswith("orbax") or "was never finished: removed" in caplog.text


def test_a_second_job_is_refused(folder):
    with open_at(folder), pytest.raises(UserError, match=r"^another job is training in .*job; .* --workdir$"):
        open_at(folder)
    assert newest(folder) == 3  # the lock went with the first


def test_another_config_is_refused_field_by_field(folder):
    other = {"model": {"width": 8, "levels": [8, 5]}, "data": {"source": "shapes"}}
    with (
        open_at(folder, other) as checkpoints,
        pytest.raises(UserError, match=r"was trained with model width=4 \(asked for: 8\); resume with the same config"),
    ):
        checkpoints.restore(state_of(0))
    assert newest(folder) == 3


def test_another_format_is_refused(folder):
    for step in "123":
        path = folder / "checkpoints" / step / "commit.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps({"format": 2} | {name: record[name] for name in ("step", "agree", "files")}))
    with pytest.raises(UserError, match="has format 2, this version of tokvid reads 3"):
        newest(folder)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"more": np.zeros(2, np.float32)}, r"more is missing there, float32\[2\] here"),
        ({"bias": None}, r"bias is float32\[4\] there, missing here"),
        ({"kernel": np.zeros((4, 4), jnp.bfloat16)}, r"kernel is float32\[4, 4\] there, bfloat16\[4, 4\] here"),
        ({"kernel": np.zeros((4, 5), np.float32)}, r"kernel is float32\[4, 4\] there, float32\[4, 5\] here"),
    ],
)
def test_a_state_of_other_leaves_is_refused_by_name(folder, change, said):
    """orbax would cast another type without a word."""
    like = {name: leaf for name, leaf in (state_of(0) | change).items() if leaf is not None}
    with (
        open_at(folder) as checkpoints,
        pytest.raises(UserError, match=f"checkpoints/3 doesn't fit .*: {said}; resume"),
    ):
        checkpoints.restore(like)
    assert newest(folder) == 3


def test_no_bit_of_a_checkpoint_flips_unnoticed(folder):
    """100 single bits of any of its files, 200 of the commit record."""
    rng, step = np.random.default_rng(0), folder / "checkpoints" / "3"
    files = sorted(path for path in step.rglob("*") if path.is_file() and path.stat().st_size)
    assert len(files) > 8
    with open_at(folder) as checkpoints:
        assert not checkpoints._damage(3)
        for path in [files[i % len(files)] for i in range(100)] + [step / "commit.json"] * 200:
            whole = path.read_bytes()
            bit = int(rng.integers(8 * len(whole)))
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            path.write_bytes(flipped)
            assert checkpoints._damage(3), f"bit {bit} of {path}"
            path.write_bytes(whole)
        assert not checkpoints._damage(3)


def test_a_commit_that_is_not_finite_is_not_restored(folder):
    path = folder / "checkpoints" / "3" / "commit.json"
    record = json.loads(path.read_text()) | {"finite": False}
    path.write_text(to_json(record | {"sha256": seal(record)}))
    assert newest(folder) == 2


def test_what_is_not_finite_is_not_saved(folder):
    said = r"^bias is not finite at step 4, which was not saved.* checkpoint .*/3$"
    with open_at(folder) as checkpoints, pytest.raises(UserError, match=said):
        checkpoints.save(4, state_of(4) | {"bias": jnp.array([0, jnp.nan, 0, 0])}, {"next": 4})
    assert newest(folder) == 3


def test_only_the_newest_are_kept(tmp_path):
    with open_at(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step), {"next": step})
            checkpoints.save(step, state_of(99), {"next": 99})  # it is there already
    assert committed(tmp_path) == [3, 4] and newest(tmp_path) == 4


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write to .*file/job/checkpoints: Not a directory; free"):
        open_at(tmp_path / "file" / "job")


@contextlib.contextmanager
def without_rights():
    """Whoever may write everywhere gives that up meanwhile."""
    root = os.geteuid() == 0
    os.seteuid(65534 if root else os.geteuid())
    try:
        yield
    finally:
        os.seteuid(0 if root else os.geteuid())


def test_a_folder_that_may_only_be_read():
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders may not be entered by others
        folder = Path(name)
        with open_at(folder) as checkpoints:
            checkpoints.save(1, state_of(1), {"next": 1})
        folder.chmod(0o755)
        (folder / "checkpoints").chmod(0o555)
        (folder / "checkpoints" / "lock").unlink()
        with (
            without_rights(),
            pytest.raises(UserError, match=r"^cannot write to .*: Permission denied; fr"),
        ):
            open_at(folder)
        assert newest(folder) == 1


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs a disk of its own")
def test_a_disk_that_is_really_full(tmp_path):
    """A file system of 300 kB: the first checkpoint fits, the second doesn't."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "fill.py").write_text(
        f"""
import sys, numpy as np
from pathlib import Path
from tokvid.train.checkpoints import Checkpoints
from tokvid.errors import UserError
def open_at(): return Checkpoints(Path("{tmp_path}/disk/job/checkpoints"), 2, {{}})
small, big = np.ones((4, 4)), np.random.default_rng(0).normal(size=(256, 256))
with open_at() as checkpoints:
    checkpoints.save(1, {{"kernel": small}}, {{}})
try:
    with open_at() as checkpoints:
        checkpoints.save(2, {{"kernel": big}}, {{}})
except UserError as error:
    print(error)
with open_at() as checkpoints:
    print("restored", checkpoints.restore({{"kernel": small}})[0])
"""
    )
    mount = f"mount -t tmpfs -o size=300k tmpfs {tmp_path}/disk && exec {sys.executable} {tmp_path}/fill.py"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, text=True, timeout=250)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"needs a disk of its own: {done.stderr.strip()}")
    assert "No space left on device; free some space or choose another --workdir" in done.stdout, (
        done.stdout + done.stderr
    )
    assert done.stdout.endswith("restored 1\n")


@pytest.mark.parametrize("most", [50, 2000])
def test_a_full_disk(folder, most, caplog):
    """Files end at `most` bytes: an error of one line on the next call, and the older checkpoints stay whole."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints, big = open_at(folder), {"kernel": np.random.default_rng(0).normal(size=(64, 64))}
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with (
            pytest.raises(UserError, match=r"^saving a checkpoint to .* failed: .*File too large; free some space.*$"),
            checkpoints,
        ):
            checkpoints.save(4, big, {"next": 4})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not caplog.records  # of all that orbax has to say
    assert newest(folder) == 3 and committed(folder) == [1, 2, 3]


def test_threads_of_a_failed_save_are_not_heard(folder, monkeypatch):
    """They find their event loop closed; all else that is dropped is shown as before."""
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    for _ in range(2):
        open_at(folder).__exit__(None, None, None)
    (loop := asyncio.new_event_loop()).close()
    with pytest.raises(RuntimeError) as closed:
        loop.call_soon_threadsafe(print)
    for error in (closed.value, RuntimeError("another")):
        sys.unraisablehook(types.SimpleNamespace(exc_value=error))
    assert [str(what.exc_value) for what in shown] == ["another"]


def test_the_first_error_comes_first(folder, monkeypatch, caplog):
    """A save that fails beside another error is only told in the log."""

    def fails(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokvid.train.checkpoints._hashes", fails)
    with pytest.raises(KeyboardInterrupt), open_at(folder) as checkpoints:
        checkpoints.save(4, state_of(4), {"next": 4})
        raise KeyboardInterrupt
    assert "failed: [Errno 28] No space left on device; free some space" in caplog.text
    monkeypatch.undo()
    caplog.set_level(logging.WARNING)
    assert newest(folder) == 3


def test_the_state_may_be_donated_at_once(tmp_path):
    """What is saved is the state at the call, not what the steps after it make of the same memory."""
    step = jax.jit(lambda state: jax.tree.map(lambda x: x * 1.001 + 1, state), donate_argnums=0)
    state = step({f"{i}": jnp.full((256, 1024), float(i)) for i in range(8)})
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    for trial in range(3):
        wanted = jax.tree.map(np.array, state)
        with Checkpoints(tmp_path / str(trial), 2, AGREE) as checkpoints:
            checkpoints.save(1, state, {})
            for _ in range(20):
                state = step(state)
            jax.block_until_ready(state)
            checkpoints.wait()
            _, state, _ = checkpoints.restore(like)
        for name, array in wanted.items():
            np.testing.assert_array_equal(state[name], array)
        state = step(state)  # restored arrays are donated as well
