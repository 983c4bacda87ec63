"""Two processes with two devices each train and tokenize as one with one device does; and faults on one of them."""

import dataclasses
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from tokvid import distributed, weights
from tokvid.cli.main import main
from tokvid.config import (
    DataConfig,
    Recipe,
    RewardConfig,
    TokenizerConfig,
    TokensConfig,
    TrainConfig,
    TransformerConfig,
)
from tokvid.distributed import joined, shard_of
from tokvid.errors import UserError
from tokvid.evaluate.rewards import REWARDS, judge_of
from tokvid.input_pipeline.text import TextModel
from tokvid.tokenizer.cvivit import CViViT
from tokvid.train import tokenize as tokenizing
from tokvid.train.loop import train
from tokvid.train.reward_step import RewardTraining
from tokvid.train.token_cache import open_token_cache
from tokvid.train.tokenizer_step import TokenizerTraining
from tokvid.transformer.model import Transformer

ROOT = Path(__file__).resolve().parents[2]
STEPS, HALF = 30, 15
PART = 64  # videos of a part of the token cache
SIZE = (16, 16)
RECIPE = Recipe(
    data=DataConfig(size=SIZE, frames=3, videos=50, threads=1),
    tokenizer=TokenizerConfig(
        size=SIZE, width=16, heads=2, mlp=32, encoder=("space",), decoder=("time",), time_window=1,
        quantizer="fsq", levels=(4, 4), dtype="float32",
    ),
    transformer=TransformerConfig(
        vocabulary=16, grid=(2, 2), text_vocabulary=330, text_length=8, latent_frames=2, width=16
    ),
    tokens=TokensConfig(videos=150, latent_frames=3, text_samples=30),
    train_tokenizer=TrainConfig(
        steps=STEPS, batch=4, learning_rate=1e-3, warmup=5, log_every=1, save_every=HALF, sample_every=STEPS
    ),
)  # fmt: skip
REWARDED = dataclasses.replace(
    RECIPE,
    transformer=TransformerConfig(
        vocabulary=16, grid=(2, 2), text_vocabulary=330, text_length=48, latent_frames=2, width=16, layers=1, heads=2,
        kv_heads=2, mlp=32, dtype="float32",
    ),
    tokens=TokensConfig(videos=12, latent_frames=3, text_samples=60, held_out=2),
    reward=RewardConfig("brightness", group=6, kept=4, kl=0.01, real=0.1),
    train_transformer=TrainConfig(
        steps=3, batch=16, learning_rate=1e-2, warmup=0, log_every=1, save_every=3, sample_every=0, val_every=0
    ),
)  # fmt: skip
SHARDED = dataclasses.replace(RECIPE.train_tokenizer, mesh=(1, 4, 1, 1))  # every parameter lies on both processes


def run(folder, config=RECIPE.train_tokenizer):
    train(TokenizerTraining(dataclasses.replace(RECIPE, train_tokenizer=config)), config, folder)


def work(one, other, address, process):
    """What each of the two processes does: a training from its beginning, then one that a single process began."""
    with joined(address, 2, int(process)):
        run(Path(one), SHARDED)
        run(Path(other), SHARDED)


def tokenize(folder, address, process):
    tokenizing.PART = PART
    with joined(address, 2, int(process)):
        tokenizing.write_token_cache(RECIPE, Path(folder))


def brightness(made):
    return float(made.video_THWC.mean()) / 255


def fine_tune(workdir, folder, mesh=RECIPE.train_transformer.mesh):
    """By a reward, with what `workdir` holds, into `folder`."""
    REWARDS["brightness"] = brightness
    config = dataclasses.replace(REWARDED.train_transformer, start=str(workdir / "start"), mesh=mesh)
    recipe = dataclasses.replace(REWARDED, train_transformer=config)
    cache = open_token_cache(workdir, recipe)
    train(RewardTraining(recipe, cache, judge_of("brightness", workdir, cache.text)), config, folder)


def reward(workdir, folder, address, process):
    with joined(address, 2, int(process)):
        fine_tune(Path(workdir), Path(folder), SHARDED.mesh)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    return [line["loss"] for line in lines]


def drop_the_second_half(folder):
    """As if it had been killed right after the checkpoint of step HALF."""
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    (folder / "weights.safetensors").unlink()


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def environment(devices):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def both(command, environ):
    """What each of two processes of a job said; they are given their number behind the command."""
    environ = environ | {"TOKVID_HEARTBEAT_SECONDS": "100"}  # a machine that is busy is silent for longer than 6 s
    processes = [subprocess.Popen([*command, str(i)], env=environ, stderr=subprocess.PIPE, text=True) for i in (0, 1)]
    try:
        said = [process.communicate(timeout=250)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(said)
    return said


def test_two_processes_train_as_one_does_and_go_on_from_each_others_checkpoints(tmp_path):
    alone, two, mixed, back = (tmp_path / name for name in ("alone", "two", "mixed", "back"))
    run(alone)
    shutil.copytree(alone, mixed)
    drop_the_second_half(mixed)
    address = free_address()
    command = [sys.executable, __file__, "work", str(two), str(mixed), address]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environ = environment(2) | cache  # the second training compiles nothing
    said = both(command, environ)
    assert f"trained to step {STEPS}" in said[0] and f"resumes from step {HALF}" in said[0]
    assert "trained" not in said[1] and "resumes" not in said[1], "only the first process speaks"
    assert [path.name for path in (two / "samples").iterdir()] == [f"{STEPS:07}.png"]
    shutil.copytree(two, back)
    drop_the_second_half(back)
    run(back)
    wanted = losses(alone)
    for folder in (two, mixed, back):
        assert losses(folder) == pytest.approx(wanted, rel=1e-5), folder.name
        assert (folder / "weights.safetensors").is_file()


def test_two_processes_make_the_token_cache_that_one_makes(tmp_path, random_model, monkeypatch):
    """Of three parts the first process makes two."""
    monkeypatch.setattr(tokenizing, "PART", PART)
    alone, two = tmp_path / "alone", tmp_path / "two"
    params = nnx.split(random_model(CViViT, RECIPE.tokenizer))[1]
    for folder in (alone, two):
        weights.save(folder / "tokenizer", "tokenizer", RECIPE.tokenizer, params)
    tokenizing.write_token_cache(RECIPE, alone)
    said = both([sys.executable, __file__, "tokenize", str(two), free_address()], environment(2))
    assert "videos" in said[0] and "videos" not in said[1], "only the first process speaks"
    for name in ("text.model", "tokens/dataset.json", *(f"tokens/{i:05d}.array_record" for i in range(3))):
        assert (two / name).read_bytes() == (alone / name).read_bytes(), name
    assert not (two / "tokens.parts").exists()


@pytest.mark.slow
def test_two_processes_train_by_a_reward_as_one_does(tmp_path, random_model, monkeypatch):
    """Every parameter lies on both; each generates and judges a part of the videos."""
    monkeypatch.setitem(REWARDS, "brightness", brightness)
    mark = weights.save(
        tmp_path / "tokenizer", "tokenizer", RECIPE.tokenizer, nnx.split(random_model(CViViT, RECIPE.tokenizer))[1]
    )
    tokenizing.write_token_cache(REWARDED, tmp_path)
    text = TextModel.load(tmp_path / "text.model").fingerprint
    params = nnx.split(random_model(Transformer, REWARDED.transformer))[1]
    about = {"tokenizer": mark, "text_model": text, "fps": [2.0], "size": SIZE, "layouts": {"tasks": {"infilling": 1}}}
    weights.save(tmp_path / "start/transformer", "transformer", REWARDED.transformer, params, steps=0, **about)
    fine_tune(tmp_path, tmp_path / "alone")
    both([sys.executable, __file__, "reward", str(tmp_path), str(tmp_path / "two"), free_address()], environment(2))
    alone, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "two")
    )
    assert [line["step"] for line in two] == [1, 2, 3] and alone[-1]["kl"] > 1e-4
    for name in ("reward", "loss", "kl"):
        wanted = [line[name] for line in alone]
        assert [line[name] for line in two] == pytest.approx(wanted, rel=1e-4, abs=1e-6), name


@pytest.fixture
def second_of_two(monkeypatch):
    """`second_of_two(seen)`: this process is the second, and the first has what `seen` makes of its own."""

    def with_first(seen):
        monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
        gathered = lambda mine: np.stack([seen(mine), mine])  # noqa: E731
        monkeypatch.setattr(distributed.multihost_utils, "process_allgather", gathered)
        monkeypatch.setattr(distributed.multihost_utils, "broadcast_one_to_all", lambda value: value)
        monkeypatch.setattr(distributed.multihost_utils, "sync_global_devices", lambda name: None)

    return with_first


def test_other_settings_and_other_programs_are_told_apart(second_of_two, monkeypatch):
    second_of_two(lambda mine: mine)
    distributed.check_same({"a": 1})
    second_of_two(lambda mine: mine + 1)
    with pytest.raises(UserError, match="process 1 of 2 was started with other versions or code of tokvid than"):
        distributed.check_same({"a": 1})
    own = distributed._program()
    alike = np.frombuffer(hashlib.sha256(json.dumps(own, sort_keys=True).encode()).digest(), np.uint32)
    second_of_two(lambda mine: mine if (mine == alike).all() else mine + 1)
    with pytest.raises(UserError, match="process 1 of 2 was started with other settings or data than process 0"):
        distributed.check_same({"a": 1})
    assert len(own) == 4 and own[1] == jax.__version__


def test_a_folder_that_is_not_shared_is_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "from_first", lambda value: value)
    monkeypatch.setattr(distributed, "together", lambda name: None)
    for other, said in (
        ((False, None), "of process 1 of 2 is not that of process 0"),
        ((True, "Read-only"), "Read-only"),
    ):
        monkeypatch.setattr(distributed, "from_all", lambda mine, other=other: [mine, other])
        with pytest.raises(UserError, match=said):
            distributed.check_shared(tmp_path / "new")
    monkeypatch.setattr(distributed, "from_all", lambda mine: [mine, mine])
    distributed.check_shared(tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    "faults, count", [(("killed", "stopped"), 2), pytest.param((), 8, marks=pytest.mark.slow)], ids=("two", "all")
)
def test_whatever_happens_to_one_process_the_other_ends_too(said_by_script, faults, count):
    """Without names, `scripts/fault_test.py` injects all faults."""
    said = said_by_script("fault_test.py", *faults, **environment(1))
    assert said.count("both gone after") == count, said


class Devices:
    """A sharding over a mesh of devices that aren't there: rows (start, stop) by process."""

    def __init__(self, *rows):
        self.rows = rows

    def devices_indices_map(self, shape):
        device = type("Device", (), {})
        made = {}
        for process, start, stop in self.rows:
            one = device()
            one.process_index = process
            made[one] = (slice(start, stop, None),)
        return made


@pytest.mark.parametrize(
    "rows, blocks",
    [
        ([(0, None, None)], [(0, 1)]),
        ([(0, 0, 2), (0, 2, 4), (1, 4, 6), (1, 6, 8)], [(0, 2), (1, 2)]),
        ([(0, 0, 4), (1, 0, 4), (2, 4, 8), (3, 4, 8)], [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two share their rows
        ([(0, None, None), (1, None, None)], [(0, 1), (0, 1)]),
        ([(1, 0, 4), (0, 4, 8)], [(1, 2), (0, 2)]),
    ],
)
def test_each_process_reads_the_rows_that_its_devices_hold(rows, blocks, monkeypatch):
    for process, block in enumerate(blocks):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert shard_of(Devices(*rows), 8) == block


@pytest.mark.parametrize("rows", [[(0, 0, 6), (1, 6, 8)], [(0, 0, 2), (1, 2, 4), (0, 4, 6), (1, 6, 8)]])
def test_rows_that_are_no_blocks_are_refused(rows):
    with pytest.raises(UserError, match="a batch of 8 can't be split evenly over 2 processes"):
        shard_of(Devices(*rows), 8)


@pytest.mark.parametrize(
    "given, said",
    [
        (["--processes", "2", "--process", "0"], "give the coordinator's address"),
        (["--coordinator", "localhost:1", "--processes", "2"], "process None of 2: give both"),
        (["--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "process 2 of 2: give both"),
    ],
)
def test_half_of_what_a_job_needs_is_a_clear_line(given, said, tmp_path, capsys):
    (tmp_path / "recipe.py").write_text("from tokvid.config import Recipe\nrecipe = Recipe()")
    with pytest.raises(SystemExit) as ended:
        main(["train", "tokenizer", str(tmp_path / "recipe.py"), "--workdir", str(tmp_path), *given])
    assert ended.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize("value, wanted", [(None, 6), ("30", 30), ("0", "1 or more, it is 0"), ("x", "a number")])
def test_the_heartbeat_may_be_longer(monkeypatch, value, wanted):
    asked = []

    def initialize(*where, heartbeat_timeout_seconds, **others):
        asked.append(heartbeat_timeout_seconds)
        raise RuntimeError("no network")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    if value is not None:
        monkeypatch.setenv("TOKVID_HEARTBEAT_SECONDS", value)
    said = wanted if isinstance(wanted, str) else "cannot connect: no network"
    with pytest.raises(UserError, match=said), joined("localhost:1", 2, 0):
        pass
    assert asked == ([] if isinstance(wanted, str) else [wanted])


@pytest.mark.parametrize(
    "environment, wanted",
    [
        ({}, False),
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "1"}, False),  # a batch script, before srun
        ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "node[1-8]"}, True),
        ({"SLURM_NTASKS": "1", "SLURM_STEP_NODELIST": "node1"}, False),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1"}, True),
        ({"MEGASCALE_NUM_SLICES": "2"}, True),
    ],
)
def test_the_environment_says_when_there_are_several(environment, wanted, monkeypatch):
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert distributed._one_of_several() == wanted


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "first")
    with pytest.raises(UserError, match="JAX_PROCESS_ID should be a number, it is 'first'"), joined():
        pass


if __name__ == "__main__":
    {"work": work, "tokenize": tokenize, "reward": reward}[sys.argv[1]](*sys.argv[2:])
