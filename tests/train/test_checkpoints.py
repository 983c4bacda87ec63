"""Checkpoints count only when they are whole: damage, full disks, second jobs and donated memory."""

import json
import logging
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.train.checkpoints import Checkpoints

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
        with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(3: .*2: .*1: .*another --workdir"):
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


def test_a_state_of_other_parts_is_refused(folder):
    with open_at(folder) as checkpoints, pytest.raises(UserError, match="3 cannot be read by this version"):
        checkpoints.restore(state_of(0) | {"more": jnp.zeros(())})


def test_only_the_newest_are_kept(tmp_path):
    with open_at(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step), {"next": step})
            checkpoints.save(step, state_of(99), {"next": 99})  # it is there already
    assert committed(tmp_path) == [3, 4] and newest(tmp_path) == 4


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write checkpoints to .*file/job/checkpoints: Not a directory; free"):
        open_at(tmp_path / "file" / "job")


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
