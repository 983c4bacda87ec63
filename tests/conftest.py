"""What tests share."""

import atexit
import dataclasses
import json
import os
import pickle
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pytest

# Matrices are small here, and threads of BLAS would mostly wait for one another. NumPy reads it when it is imported,
# which is why pyproject.toml leaves out a plugin that does so before this file.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jaxtyping
import numpy as np

# Tests compile much and compute little, so XLA needn't optimise: a quarter of the time. It reads this when JAX starts.
# To test what users run: XLA_FLAGS= scripts/test.sh
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if version("jaxlib").startswith("0.10."):  # later ones don't know it, and an unknown flag is fatal
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# While tests run, the annotations of these rooms are checked at every call (an int does for a float); production never
# checks them, nor do the tests' subprocesses.
CHECKED = ["nn", "tokenizer", "transformer", "metrics", "shapes"]
CHECKED += [f"sampling.{name}" for name in ("decode", "methods", "models", "codec", "prompts", "window")]
# The tests of the other files of `sampling` use stand-ins for models.
BEARTYPE = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
jaxtyping.install_import_hook([f"tokvid.{room}" for room in CHECKED], BEARTYPE)


def remove_cache(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child also comes here, when it exits
        shutil.rmtree(folder, ignore_errors=True)


# Commands keep compiled programs in the user's cache folder: here in one of the tests' own, shared by all of a run and
# its worker processes.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="tokvid-tests-")
    atexit.register(remove_cache, os.environ["XDG_CACHE_HOME"], os.getpid())

# Only the tests' subprocesses do, and the tests of training (tests/train/conftest.py): others hardly compile twice.
jax.config.update("jax_enable_compilation_cache", False)

# A shell starts what is to run in the background with Ctrl-C ignored, nohup with SIGHUP, and Python leaves that so.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


WAITING = ("test_kill.py", "test_processes.py", "test_sharding.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First the files whose tests mostly wait for other processes: at the end, nothing else would run beside them."""
    items.sort(key=lambda item: item.path.name not in WAITING)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `gpu` run where JAX finds one."""
    if item.get_closest_marker("gpu") and jax.default_backend() != "gpu":
        pytest.skip(f"needs an NVIDIA GPU, this is a {jax.default_backend()}")


@pytest.fixture
def unchecked_types() -> Iterator[None]:
    """As in production: wrong types reach the function, whose own error is to be tested."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def by_two(monkeypatch) -> Callable[[Callable], list]:
    """`by_two(evaluate)`: its results in two processes (threads here), which share the batches out."""
    from tokvid.evaluate import batches

    here, values, barrier = threading.local(), [b"", b""], threading.Barrier(2, timeout=200)

    def from_all(value):
        values[here.process] = pickle.dumps(value)
        barrier.wait()
        every = [pickle.loads(value) for value in values]
        barrier.wait()
        return every

    def run(evaluate, process):
        here.process = process
        try:
            return evaluate()
        except BaseException:
            barrier.abort()
            raise

    def both(evaluate):
        with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
            patch.setattr(jax, "process_index", lambda: getattr(here, "process", 0))
            patch.setattr(jax, "process_count", lambda: 2)
            patch.setattr(batches, "from_all", from_all)
            return list(pool.map(run, [evaluate, evaluate], (0, 1)))

    return both


@pytest.fixture(scope="session")
def dev_data() -> Path:
    """The folder of real and of broken files, which isn't part of the repository: without it tests skip."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    path = Path(os.environ.get("TOKVID_DEV_DATA", default)).resolve()
    if not path.is_dir():
        pytest.skip(f"needs the development data: there is no {path} (set TOKVID_DEV_DATA)")
    return path


@pytest.fixture(scope="session")
def random_model() -> Callable:
    """`random_model(CViViT, config)`: a model whose every parameter is random, biases and norms too: each counts.

    Filled by NumPy: initialising for real takes seconds of compiling.
    """
    import jax.numpy as jnp
    from flax import nnx

    def make(kind, config, seed=0):
        rng = np.random.default_rng(seed)
        graph, params = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))))

        def fill(path, leaf):
            name, noise = path[-1], rng.normal(size=leaf.shape).astype(np.float32)
            return leaf.replace(jnp.asarray(0.2 * noise + (name == "scale")))

        filled = [(path, fill(path, leaf)) for path, leaf in nnx.to_flat_state(params)]
        return nnx.merge(graph, nnx.from_flat_state(filled))

    return make


@pytest.fixture(scope="session")
def make_weights(tmp_path_factory, random_model) -> Callable[..., Path]:
    """`make_weights(patch, fold, groups)`: a weights folder such as training leaves, of random models.

    16×16 pixels, windows of 4 latent frames of 2×2 tokens. Where tokens have several sub-codes, they are of the kind
    for real video: still places keep their codes, and the head copies.
    """
    from flax import nnx

    from tokvid import weights
    from tokvid.config import DataConfig, TokenizerConfig, TransformerConfig
    from tokvid.input_pipeline.text import train_text_model
    from tokvid.io.settings import to_dict
    from tokvid.shapes.drawing import captions_corpus
    from tokvid.tokenizer.cvivit import CViViT
    from tokvid.tokenizer.quantizers import codes_of, silent_code
    from tokvid.transformer.model import Transformer

    size, fps, layers = (16, 16), (4.0, 8.0), ("space", "time")
    tokenizer = TokenizerConfig(
        size=size,
        width=32,
        heads=2,
        mlp=32,
        encoder=layers,
        decoder=layers,
        time_window=3,
        quantizer="fsq",
        levels=(5, 3, 2),
        dtype="float32",  # what is compared is often exact
    )
    transformer = TransformerConfig(
        vocabulary=30, text_vocabulary=320, text_length=32, latent_frames=4, grid=(2, 2), width=32, layers=2, heads=2,
        kv_heads=2, mlp=32, ticks_per_second=4.0, head_width=24, head_layers=1, dtype="float32",
    )  # fmt: skip

    def make(patch: int, fold: int, groups: int) -> Path:
        folder = tmp_path_factory.mktemp("weights")
        text = train_text_model(captions_corpus(300, seed=0), folder / "text.model", 320)
        encoding = dataclasses.replace(tokenizer, patch=patch, fold=fold, groups=groups)
        if fold > 1:
            encoding = dataclasses.replace(encoding, first_frame="still", hysteresis=0.25, later_codes=(2, 0))
        subcodes = codes_of(encoding).per_token
        few = {"generated": encoding.later_codes[0], "silent": silent_code(encoding)}
        trunk = dataclasses.replace(
            transformer, subcodes=subcodes, copies=subcodes > 1, copies_slower=subcodes > 1, **few
        )

        def save(kind, model, config, **about):
            params = nnx.split(random_model(model, config))[1]
            return weights.save(folder / kind, kind, config, params, steps=0, **about)

        data = DataConfig(size=size, fps=fps, frames=5, videos=100)
        mark = save("tokenizer", CViViT, encoding, data=to_dict(data))
        save("transformer", Transformer, trunk, tokenizer=mark, text_model=text.fingerprint, fps=fps, size=size)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_weights(make_weights) -> Path:
    """Those of tokens that are one code each."""
    return make_weights(patch=8, fold=1, groups=1)


@pytest.fixture(scope="session")
def editing_weights(tiny_weights, tmp_path_factory) -> Path:
    """`tiny_weights`, as if trained to edit videos."""
    tasks = ("text_to_video", "continuation", "infilling", "restyle", "inpaint", "outpaint", "upscale", "animate")
    tasks += ("variation", "interpolation")
    return _trained_for(tasks, (0,), tiny_weights, tmp_path_factory.mktemp("editing") / "editing")


@pytest.fixture
def trained_for(tiny_weights, tmp_path):
    """Makes a copy `w` of `tiny_weights`, as if trained for the tasks with these names and numbers of rows."""
    return lambda tasks, rows=(0,): _trained_for(tasks, rows, tiny_weights, tmp_path / "w")


def _trained_for(tasks, rows, source: Path, folder: Path) -> Path:
    from tokvid.io.files import seal

    shutil.copytree(source, folder)
    path = folder / "transformer" / "config.json"
    about = json.loads(path.read_text()) | {"layouts": {"tasks": dict.fromkeys(tasks, 1.0), "rows": list(rows)}}
    path.write_text(json.dumps(about | {"sha256": seal(about)}))
    return folder


@pytest.fixture(scope="session")
def tiny_models(tiny_weights):
    """What is in `tiny_weights`."""
    from tokvid.sampling.models import load_models

    return load_models(tiny_weights)


@pytest.fixture(scope="session", params=[pytest.param("one code", marks=pytest.mark.slow), "four sub-codes"])
def any_models(request, make_weights):
    """`tiny_models`, and the same with tokens of four sub-codes, those of four patches.

    Most other tests are of one code per token, so that here it is left to the slow ones.
    """
    from tokvid.sampling.models import load_models

    if request.param == "one code":
        return request.getfixturevalue("tiny_models")
    return load_models(make_weights(patch=4, fold=2, groups=1))


@pytest.fixture
def asked(monkeypatch):
    """What the model is asked for, and that it answers with ones."""
    from tokvid.sampling import window

    calls = []

    def generate(graph, params, request, *, sampling, guided):
        calls.append(request.batch)
        return np.where(request.batch.known[..., None], request.batch.tokens, 1)

    monkeypatch.setattr(window, "generate", generate)
    return calls
