"""What the tests of training share."""

import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def _compile_once(tmp_path_factory):
    """The same steps are trained again and again here: their programs are kept on disk."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[0], str(tmp_path_factory.mktemp("programs")))
    jax.config.update(names[1], 0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
