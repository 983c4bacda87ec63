"""The loop, with a training that takes no time: stopping, going on, numbers that aren't finite, metrics, weights."""

import dataclasses
import errno
import json
import os
import signal
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh

from tokvid import weights
from tokvid.config import TrainConfig
from tokvid.errors import UserError
from tokvid.nn.blocks import Linear
from tokvid.sharding import AXES, make_mesh
from tokvid.train import loop
from tokvid.train.checkpoints import Checkpoints
from tokvid.train.loop import agreement, train
from tokvid.train.metrics_log import RATES
from tokvid.train.optimizer import learning_rate
from tokvid.train.state import abstract_state, sheet

TERM, INT = signal.SIGTERM, signal.SIGINT
# Every step is saved and logged, so that a test can look at each.
CONFIG = TrainConfig(
    steps=4, batch=2, learning_rate=1e-2, warmup=1, ema=0.5, log_every=1, save_every=1, sample_every=0, keep=9
)


class Toy:
    """A linear map learns to double. `at` says what happens at a place: a signal, an exception or "nan".

    Places are the index of a batch (0 makes step 1), "model" and "loss" (while they are compiled), "save", "samples".
    """

    name, together = "toy", 1

    def __init__(self, at=None, width=4, alarm=""):
        self.at, self.width, self.message = at or {}, width, alarm
        self.given, self.sampled, self.heard, self.closed, self.finished = [], [], [], False, None

    def event(self, place):
        event = self.at.get(place)
        if isinstance(event, signal.Signals):
            os.kill(os.getpid(), event)
        elif isinstance(event, BaseException):
            raise event
        return event

    def make_model(self, rngs):
        self.event("model")
        return Linear(self.width, self.width, ("embed", None), rngs=rngs)

    def loss(self, model, batch, key):
        self.event("loss")
        noise = 0.01 * jax.random.normal(key, batch.shape)
        return jnp.mean(jnp.square(model(batch) - 2 * batch + noise)), {"size": jnp.mean(jnp.abs(batch))}

    def flops(self):
        return 1e6

    def batches(self, block=(0, 1)):
        return Batches(self)

    def prepare(self, batch, state, mesh):
        return batch

    def alarm(self, metrics):
        self.heard.append(metrics)
        return self.message

    def samples(self, model, directory, step):
        self.event("samples")
        self.sampled.append(step)
        directory.mkdir(exist_ok=True)
        sheet(directory, step).touch()

    def finish(self, params, directory, step):
        self.finished = step, jax.tree.map(np.array, params)

    def describe(self):
        return {"toy": {"width": self.width}}


class Batches:
    """Batch i is a function of i alone."""

    def __init__(self, training):
        self.training, self.next = training, 0

    def __next__(self):
        i, self.next = self.next, self.next + 1
        event = self.training.event(i)
        self.training.given.append(i)
        batch = np.random.default_rng(i).normal(size=(2, self.training.width)).astype(np.float32)
        return np.full_like(batch, np.nan) if event == "nan" else batch

    def get_state(self):
        self.training.event("save")
        return {"next": self.next}

    def set_state(self, state):
        self.next = state["next"]

    def close(self):
        self.training.closed = True


class Lab:
    """One training folder of the toy, and what is in it."""

    def __init__(self, folder):
        self.folder = folder

    def train(self, at=None, training=None, **changes):
        """Trains, and returns the training, which remembers what it was asked for."""
        training = training or Toy(at)
        train(training, dataclasses.replace(CONFIG, **changes), self.folder)
        return training

    def state(self, step):
        """The state that was committed at `step`, in NumPy."""
        training = Toy()
        like, _ = abstract_state(training, CONFIG, make_mesh(CONFIG.mesh))
        with Checkpoints(self.folder / "checkpoints", 9, agreement(training, CONFIG)) as checkpoints:
            checkpoints._steps = lambda: [step]
            return jax.tree.map(np.array, checkpoints.restore(like)[1])

    @property
    def saved(self):
        """The steps that are committed."""
        return sorted(int(path.parent.name) for path in (self.folder / "checkpoints").glob("[0-9]*/commit.json"))

    @property
    def lines(self):
        """metrics.jsonl without rates."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in line.items() if name not in RATES} for line in lines]


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path / "toy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training of 4 steps that nothing disturbed: look, don't touch."""
    lab = Lab(tmp_path_factory.mktemp("whole") / "toy")
    lab.training = lab.train()
    return lab


def assert_same(one, other):
    """Every array equal, bit for bit."""
    ones, others = jax.tree.leaves_with_path(one), jax.tree.leaves_with_path(other)
    assert [path for path, _ in ones] == [path for path, _ in others]
    for (path, x), (_, y) in zip(ones, others, strict=True):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), f"{jax.tree_util.keystr(path)} differs"


def assert_equal_ends(lab, whole, step=4):
    assert_same(lab.state(step), whole.state(step))
    assert lab.lines == whole.lines


def test_it_learns_and_says_so(whole):
    assert whole.saved == [1, 2, 3, 4] and whole.training.given == [0, 1, 2, 3] and whole.training.closed
    assert [line["step"] for line in whole.lines] == [1, 2, 3, 4]
    first, last = (np.abs(whole.state(step).params["kernel"] - 2 * np.eye(4)).mean() for step in (1, 4))
    assert last < first
    assert set(whole.lines[0]) == {"step", "loss", "size", "gradient_norm", "learning_rate", "skipped"}


def test_a_line_says_how_fast_and_what_share_of_the_chips_that_is(lab, monkeypatch):
    peak = 1e8
    monkeypatch.setattr("tokvid.train.metrics_log.chip_of", lambda kind: SimpleNamespace(flops=peak))
    lab.train()
    *_, last = [json.loads(line) for line in (lab.folder / "metrics.jsonl").read_text().splitlines()]
    assert last["flops_per_second"] == pytest.approx(1e6 * last["clips_per_second"]) and last["clips_per_second"] > 0
    assert last["mfu"] == pytest.approx(last["flops_per_second"] / (peak * jax.device_count()))
    monkeypatch.setattr("tokvid.train.metrics_log.jax.device_count", lambda: 8)
    lab.train(steps=8)
    *_, last = [json.loads(line) for line in (lab.folder / "metrics.jsonl").read_text().splitlines()]
    assert last["mfu"] == pytest.approx(last["flops_per_second"] / (8 * peak))


# What comes at a place, and the step that is saved then.
STOPS = {
    "before the first step": ({"model": TERM}, 0),
    "during compilation": ({"loss": TERM}, 1),
    "between steps": ({1: TERM}, 2),
    "Ctrl-C": ({1: INT}, 2),
    "a terminal that closes": ({1: signal.SIGHUP}, 2),
    "during a save": ({"save": TERM}, 1),
    "during sampling": ({"samples": TERM}, 3),
}


@pytest.mark.parametrize("place", STOPS)
def test_a_signal_saves_and_stops_and_training_goes_on(lab, whole, place, capsys):
    at, step = STOPS[place]
    before = [signal.getsignal(number) for number in (TERM, INT, signal.SIGHUP)]
    training = lab.train(at, sample_every=3)
    assert [signal.getsignal(number) for number in (TERM, INT, signal.SIGHUP)] == before
    assert lab.saved[-1] == step and training.finished[0] == step and training.closed
    said = capsys.readouterr().err
    assert f"toy: stopped at step {step} of 4 and saved; run the same command again to resume" in said
    assert [line["step"] for line in lab.lines] == list(range(1, step + 1))
    rest = lab.train(sample_every=3)
    assert training.given + rest.given == [0, 1, 2, 3]
    assert training.sampled + rest.sampled == [3, 4]  # and always what the end looks like
    assert_equal_ends(lab, whole)
    assert_same(rest.finished, whole.training.finished)


def test_a_job_that_ended_while_it_sampled_samples_when_it_goes_on(lab):
    for step in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            lab.train({"samples": KeyboardInterrupt()}, steps=step, sample_every=2)
        assert lab.saved[-1] == step
        assert lab.train(steps=step, sample_every=2).sampled == [step]
        assert lab.train(steps=step, sample_every=2).sampled == []


def test_a_terminal_that_is_gone_saves_and_stops(lab, monkeypatch):
    """Nothing can be written to it."""
    write = os.write

    def refused(file, data):
        if file == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(file, data)

    monkeypatch.setattr(os, "write", refused)
    lab.train({1: signal.SIGHUP}, save_every=9)
    assert lab.saved == [2]


def test_a_second_ctrl_c_stops_at_once(lab, whole):
    with pytest.raises(KeyboardInterrupt):
        lab.train({1: INT, "save": INT}, save_every=2)
    assert lab.saved == []
    with pytest.raises(KeyboardInterrupt):
        lab.train({3: KeyboardInterrupt()})
    assert lab.saved == [1, 2, 3]
    lab.train()
    assert_equal_ends(lab, whole)


def test_an_unfinished_line_is_finished_after_resuming(lab, tmp_path):
    """A line is the mean of 3 steps, also where training stopped in between; the last one is of those left."""
    other = Lab(tmp_path / "other")
    other.train(log_every=3)
    lab.train({1: TERM}, log_every=3)
    assert lab.lines == []
    lab.train(log_every=3)
    assert lab.lines == other.lines and [line["step"] for line in lab.lines] == [3, 4]
    lab.train(log_every=3)  # trained already
    assert lab.lines == other.lines


def test_a_short_training_has_a_line_and_a_longer_one_its_own(lab, whole):
    lab.train(steps=2, log_every=3)
    (line,) = lab.lines
    assert line["step"] == 2 and line["loss"] == pytest.approx(np.mean([each["loss"] for each in whole.lines[:2]]))
    lab.train(log_every=3)
    first, _ = lab.lines
    assert first["step"] == 3 and first["loss"] == pytest.approx(np.mean([each["loss"] for each in whole.lines[:3]]))


def test_lines_beyond_the_restored_step_are_dropped(lab, whole):
    """A crash after step 4's line and before its checkpoint; the line after was cut off, and one is garbage."""
    lab.train({2: TERM})
    assert lab.saved == [1, 2, 3]
    with open(lab.folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 0.5}\n\x00\x00}\n[]\n{"step": 5, "lo')
    lab.train()
    assert_equal_ends(lab, whole)


def test_trained_already(lab, whole, capsys):
    """Nothing is trained, but the weights are written again."""
    first = lab.train()
    times = {path: path.stat().st_mtime_ns for path in (lab.folder / "checkpoints").rglob("*") if path.name != "lock"}
    for steps in (CONFIG.steps, 1):
        training = lab.train(steps=steps)
        said = capsys.readouterr().err
        assert training.given == [] and "is already trained to step 4; wrote its weights again" in said
        assert_same(training.finished, first.finished)
    after = {path: path.stat().st_mtime_ns for path in (lab.folder / "checkpoints").rglob("*") if path.name != "lock"}
    assert {path: time for path, time in after.items() if path.is_file()} == {
        path: time for path, time in times.items() if path.is_file()
    }
    assert_equal_ends(lab, whole)


def test_more_steps_go_on_from_the_end(lab):
    lab.train(steps=2)
    training = lab.train(steps=3, learning_rate=5e-3, clip_norm=0.5, log_every=1)
    assert training.given == [2] and lab.saved == [1, 2, 3]


@pytest.mark.parametrize(
    "training,changes,named",
    [
        (Toy(), {"seed": 1}, "training seed=0 (asked for: 1); resume"),
        (Toy(), {"seed": 1, "batch": 4}, "training batch=2 (asked for: 4), seed=0 (asked for: 1); resume"),
        (Toy(width=5), {}, "toy width=4 (asked for: 5); resume"),
    ],
)
def test_another_training_is_not_resumed(whole, training, changes, named):
    with pytest.raises(UserError, match="was trained with ") as caught:
        whole.train(training=training, **changes)
    assert named in str(caught.value)


def test_a_step_that_is_not_finite_changes_nothing(lab, caplog):
    """Parameters, Adam's moments and the averages stay as they were, bit for bit; the step is counted and told."""
    lab.train({1: "nan"})
    first, second, third = (lab.state(step) for step in (1, 2, 3))
    for kept in ("params", "opt_state", "ema"):
        assert_same(getattr(first, kept), getattr(second, kept))
    assert [int(state.skipped) for state in (first, second, third)] == [0, 1, 0]
    assert [int(state.step) for state in (first, second, third)] == [1, 2, 3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(third))
    assert not np.array_equal(third.params["kernel"], second.params["kernel"])
    assert lab.lines[1] == {"step": 2, "skipped": 1.0} and lab.lines[2]["skipped"] == 0
    rate = learning_rate(CONFIG)  # the skipped step was no step of the schedule
    assert [lab.lines[at]["learning_rate"] for at in (0, 2, 3)] == pytest.approx([float(rate(n)) for n in range(3)])
    assert "the loss of step 2 is not finite: the step changes nothing" in caplog.text


def test_a_line_counts_what_was_skipped(lab, whole):
    lab.train({2: "nan"}, log_every=4)
    (line,) = lab.lines
    others = [line["size"] for line in whole.lines if line["step"] != 3]
    assert line["skipped"] == 1 and line["size"] == pytest.approx(np.mean(others), rel=1e-6)


def test_too_many_steps_that_are_not_finite(lab):
    with pytest.raises(UserError, match=r"^the loss was not finite for 2 steps up to step 4; .* from checkpoint .*/3$"):
        lab.train({2: "nan", 3: "nan", 4: "nan"}, steps=6, max_non_finite=2)
    assert lab.saved == [1, 2, 3] and int(lab.state(3).skipped) == 1
    for step in lab.saved:
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(lab.state(step)))


def test_parameters_that_are_not_finite_are_not_saved(lab):
    with pytest.raises(UserError, match=r"params.*kernel.* is not finite at step 2, which was not saved.*run again"):
        lab.train(learning_rate=1e38, weight_decay=1e6)  # the first step of the warm-up changes nothing
    assert lab.saved == [1]


def test_finish_gets_the_averaged_weights(whole):
    """After step n (from 0): ema = d * ema + (1 - d) * params, with d = min(0.5, (1 + n) / (10 + n))."""
    step, weights = whole.training.finished
    ema = whole.state(1).ema
    for n in (1, 2, 3):
        decay, params = min(0.5, (1 + n) / (10 + n)), whole.state(n + 1).params
        ema = jax.tree.map(lambda old, new, d=decay: d * old + (1 - d) * new, ema, params)
    assert step == 4
    assert_same(weights, whole.state(4).ema)
    np.testing.assert_allclose(weights["kernel"], ema["kernel"], rtol=1e-6)
    assert not np.allclose(weights["kernel"], whole.state(4).params["kernel"], rtol=1e-4)


def test_an_alarm_is_told_once_and_after_warm_up(lab, caplog):
    training = lab.train(training=Toy(alarm="the codebook has collapsed"), warmup=2)
    assert caplog.text.count("the codebook has collapsed") == 1 and "step 3: the codebook" in caplog.text
    (heard,) = training.heard
    assert heard["loss"] == pytest.approx(lab.lines[2]["loss"])


def test_samples_are_made_on_the_trainings_mesh(lab):
    """Without one, a model with a kernel for TPUs can't be compiled for several."""
    meshes = []

    class Looking(Toy):
        def samples(self, model, directory, step):
            meshes.append(jax.sharding.get_mesh())

    lab.train(training=Looking(), sample_every=4)
    assert [mesh.axis_names for mesh in meshes] == [AXES]


def test_a_line_that_cannot_be_written(lab):
    class Clumsy(Toy):
        def samples(self, model, directory, step):
            (lab.folder / "metrics.jsonl").unlink()
            (lab.folder / "metrics.jsonl").mkdir()

    with pytest.raises(UserError, match=r"^cannot write .*metrics.jsonl: Is a directory; free some space or .*$"):
        lab.train(training=Clumsy(), sample_every=2)
    assert lab.saved == [1, 2]


def test_tensorboard_sees_the_same_numbers(lab, whole):
    """Its file is records of length (8 bytes), checksum (4), event, checksum (4)."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    lab.train({1: TERM})
    lab.train()
    events = []
    for path in sorted((lab.folder / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            events.append(event_pb2.Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    starts = [event.step for event in events if event.HasField("session_log")]
    losses = [(e.step, value.simple_value) for e in events for value in e.summary.value if value.tag == "loss"]
    # The second run hides what the first may have written from step 3 on. Both begin in the same second or not.
    assert starts[-1] == 3
    assert losses[-2:] == [(line["step"], pytest.approx(line["loss"])) for line in whole.lines[2:]]


def test_several_processes_ask_the_clock_of_the_first_every_few_seconds(monkeypatch):
    """Whatever `log_every` is: at the same steps in all, which take 4 seconds each here."""
    run, now, asked = object.__new__(loop._Run), [0.0], []
    run.config = dataclasses.replace(CONFIG, save_minutes=1.0, log_every=0)
    run.step, run._saved_at, run._asked, run._asks = 0, 0.0, (0.0, 0), 1
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop, "from_first", lambda value: asked.append(run.step) or value)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    late = []
    for run.step in range(1, 41):
        now[0] += 4.0
        if run.overdue():
            late.append(run.step)
            run._saved_at = now[0]
    assert asked == [1, *range(3, 41, 2)] and late == [17, 33]


def test_a_batch_that_cannot_be_split(lab, monkeypatch):
    monkeypatch.setattr("tokvid.train.loop.make_mesh", lambda shape: AbstractMesh((2, 2, 1, 1), AXES))
    with pytest.raises(UserError, match="batch 2 can't be split over 4 devices; use a multiple of 4"):
        lab.train()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "toy").write_text("")
    with pytest.raises(UserError, match=r"^cannot write to .*; free some space or choose another"):
        Lab(tmp_path / "toy").train()


def test_training_begins_with_given_weights_and_holds_some_still(tmp_path, monkeypatch):
    given = {"kernel": np.eye(4, dtype=np.float32), "bias": np.full(4, 0.5, np.float32)}
    variables = nnx.state(Linear(4, 4, ("embed", None), rngs=nnx.Rngs(0)))
    loaded = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(given[path[0].key]), variables)
    monkeypatch.setattr(weights, "load", lambda folder, kind: weights.Loaded(None, None, loaded, {}))
    training = Toy()
    train(training, dataclasses.replace(CONFIG, start="given", freeze=("bias",)), tmp_path)
    made = {path[0]: leaf.get_value() for path, leaf in nnx.to_flat_state(training.finished[1])}
    np.testing.assert_array_equal(made["bias"], given["bias"])
    assert 0 < np.abs(made["kernel"] - given["kernel"]).max() < 0.1

    training = Toy()
    train(training, dataclasses.replace(CONFIG, start="given", freeze=("bias",), freeze_steps=3), tmp_path / "thawed")
    thawed = {path[0]: leaf.get_value() for path, leaf in nnx.to_flat_state(training.finished[1])}
    assert 0 < np.abs(thawed["bias"] - given["bias"]).max() < 0.02, "it moves in the last of 4 steps only"

    training = Toy()
    train(training, dataclasses.replace(CONFIG, start="given", start_without=("bias",)), tmp_path / "without")
    begun = {path[0]: leaf.get_value() for path, leaf in nnx.to_flat_state(training.finished[1])}
    assert np.abs(begun["bias"]).max() < 0.1 and np.abs(begun["kernel"] - given["kernel"]).max() < 0.1
    with pytest.raises(UserError, match="unknown parameter 'bias2'"):
        train(Toy(), dataclasses.replace(CONFIG, start="given", start_without=("bias2",)), tmp_path / "slip")

    with pytest.raises(UserError, match=r"bias has shape \(4,\), the recipe wants \(3,\)"):
        train(Toy(width=3), dataclasses.replace(CONFIG, start="given"), tmp_path / "other")
    with pytest.raises(UserError, match=r"kernels.*kernel"):
        train(Toy(), dataclasses.replace(CONFIG, freeze=("kernels",)), tmp_path / "another")


def test_metrics_go_to_weights_and_biases_too(tmp_path, monkeypatch):
    """One run of a folder, which goes on where it was; without the package, one line says what to install."""
    runs = []

    class Run:
        def __init__(self, **about):
            self.about, self.lines, self.exit_code = about, [], None
            runs.append(self)

        def log(self, numbers, step):
            self.lines.append((step, numbers))

        def finish(self, exit_code):
            self.exit_code = exit_code

    wandb = SimpleNamespace(init=lambda **about: Run(**about), Settings=dict, Error=ConnectionError)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = dataclasses.replace(CONFIG, steps=4, log_every=2, wandb="mine")
    train(Toy(), config, tmp_path / "toy")
    train(Toy(), dataclasses.replace(config, steps=6), tmp_path / "toy")
    first, second = runs
    assert [step for run in runs for step, _ in run.lines] == [2, 4, 6]
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.about["project"] == "mine" and first.about["id"] == second.about["id"]
    logged = [json.loads(line) for line in (tmp_path / "toy" / "metrics.jsonl").read_text().splitlines()]
    assert [{"step": step, **numbers} for run in runs for step, numbers in run.lines] == logged
    train(Toy(), dataclasses.replace(config, steps=6), tmp_path / "toy")
    assert len(runs) == 2  # there is nothing to log
    with monkeypatch.context() as patch:
        patch.setattr(Toy, "loss", lambda *of: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train(Toy(), dataclasses.replace(config, steps=8), tmp_path / "toy")
    assert runs[2].exit_code == 1  # a failed run

    def no_login(**about):
        raise ConnectionError("No API key configured. Use `wandb login` to log in.")

    wandb.init = no_login
    with pytest.raises(
        UserError, match=r"^W&B: No API key configured\..* to log in; run `wandb login`, set WANDB_MODE"
    ):
        train(Toy(), config, tmp_path / "other")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'tokvid\[wandb\]'"):
        train(Toy(), config, tmp_path / "other")
