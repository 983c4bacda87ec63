"""What tests share."""

import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

# Tests compile much and compute little, so XLA needn't optimise: a quarter of the time. It reads this when JAX starts.
# To test what users run: XLA_FLAGS= scripts/test.sh
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    if version("jaxlib").startswith("0.10."):  # later ones don't know it, and an unknown flag is fatal
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"


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
    """`random_model(CViViT, config)`: a model whose every parameter is random, biases and norms too, so that each counts.

    Filled by NumPy: initialising for real takes seconds of compiling.
    """
    import jax.numpy as jnp
    from flax import nnx

    def make(kind, config, seed=0):
        rng = np.random.default_rng(seed)
        graph, params, _ = nnx.split(nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0))), nnx.Param, ...)

        def fill(path, leaf):
            name, noise = path[-1], rng.normal(size=leaf.shape).astype(np.float32)
            return leaf.replace(jnp.asarray(0.2 * noise + (name == "scale")))

        filled = [(path, fill(path, leaf)) for path, leaf in nnx.to_flat_state(params)]
        return nnx.merge(graph, nnx.from_flat_state(filled))

    return make
