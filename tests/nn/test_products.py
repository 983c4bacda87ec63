"""Products of activations with parameters: both passes beside JAX's own, and the type they are computed in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.nn import products
from tokvid.nn.products import FEW, compute_dtype, project


def parameters(rows: int, inner: int, widths: tuple[int, ...]) -> tuple[jax.Array, list[jax.Array]]:
    keys = jax.random.split(jax.random.key(0), 1 + len(widths))
    kernels = [jax.random.normal(key, (inner, F)) / inner**0.5 for key, F in zip(keys[1:], widths, strict=True)]
    return jax.random.normal(keys[0], (rows, inner)), kernels


@pytest.mark.parametrize("rows", [1, 7, FEW - 1, FEW, 640, 1023])
@pytest.mark.parametrize("widths", [(24,), (24, 8, 40)])
def test_narrow_products_and_their_gradients_are_those_of_rounded_operands(rows, widths):
    """All three products are of bfloat16 operands with a float32 result: nothing but the operands is rounded."""
    x, kernels = parameters(rows, 32, widths)
    pulls = [jax.random.normal(jax.random.key(i), (rows, F)) for i, F in enumerate(widths)]

    def pulled(x, kernels):
        made = project(x.astype(jnp.bfloat16), *kernels, out=jnp.float32)
        made = made if isinstance(made, list) else [made]
        return sum(jnp.vdot(each, pull) for each, pull in zip(made, pulls, strict=True)), made

    (_, made), (to_x, to_kernels) = jax.jit(jax.value_and_grad(pulled, argnums=(0, 1), has_aux=True))(x, kernels)

    def rounded(array):
        return np.asarray(array.astype(jnp.bfloat16).astype(jnp.float32), np.float64)

    for each, kernel in zip(made, kernels, strict=True):
        np.testing.assert_allclose(each, rounded(x) @ rounded(kernel), rtol=1e-5, atol=1e-5)
    for each, pull in zip(to_kernels, pulls, strict=True):
        assert each.dtype == jnp.float32
        np.testing.assert_allclose(each, rounded(x).T @ rounded(pull), rtol=1e-5, atol=1e-4)
    wanted = sum(rounded(pull) @ rounded(kernel).T for pull, kernel in zip(pulls, kernels, strict=True))
    np.testing.assert_allclose(to_x, wanted, rtol=1e-2, atol=2e-2)  # itself bfloat16


@pytest.mark.parametrize(
    ("axes", "to_x", "to_kernel"),
    [(1, "blnf,df->blnd", "blnd,blnf->df"), (2, "blf,ndf->blnd", "blnd,blf->ndf")],
)
def test_gpus_multiply_gradients_in_bfloat16(monkeypatch, axes, to_x, to_kernel):
    monkeypatch.setattr(products, "platform", lambda: "gpu")
    shapes = (2, 5, 4, 8), (4, 8, 6)[2 - axes :], (2, 5, 4, 6) if axes == 1 else (2, 5, 6)
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, pull = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))

    def slopes(x, kernel, pull):
        made, back = jax.vjp(lambda x, kernel: project(x, kernel, axes=axes, out=jnp.float32), x, kernel)
        assert made.dtype == jnp.float32
        return back(pull)

    x = x.astype(jnp.bfloat16)
    made = slopes(x, kernel, pull)
    rounded = [np.asarray(each.astype(jnp.bfloat16), np.float64) for each in (x, kernel, pull)]
    assert [each.dtype for each in made] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(
        made[0].astype(jnp.float32), np.einsum(to_x, rounded[2], rounded[1]), rtol=1e-2, atol=2e-2
    )
    np.testing.assert_allclose(made[1], np.einsum(to_kernel, rounded[0], rounded[2]), rtol=1e-5, atol=1e-5)
    lowered = jax.jit(slopes).lower(x, kernel, pull).as_text()
    multiplied = [
        line.partition(" : (")[2].partition(") ->")[0] for line in lowered.splitlines() if "dot_general" in line
    ]
    assert multiplied and not any("f32" in operands for operands in multiplied)


def test_joined_kernels_give_what_each_gives_alone():
    x, kernels = parameters(FEW, 16, (24, 8))
    shaped = [kernels[0].reshape(16, 4, 6), kernels[1].reshape(16, 2, 4)]
    joined = project(x.reshape(2, FEW // 2, 16), *shaped)
    for each, kernel in zip(joined, shaped, strict=True):
        alone = project(x.reshape(2, FEW // 2, 16), kernel)
        assert each.shape == alone.shape == (2, FEW // 2, *kernel.shape[1:])
        np.testing.assert_allclose(each, alone, rtol=1e-6, atol=1e-6)


def test_narrow_products_run_inside_loops():
    """XLA's CPU backend knows 16-bit operands with a float32 result only in some places."""
    x, (kernel,) = parameters(2, 32, (32,))

    def body(_, x):
        return project(x.astype(jnp.bfloat16), kernel, out=jnp.float32)

    looped = jax.jit(lambda x: jax.lax.fori_loop(0, 3, body, x))(x)
    scanned = jax.jit(lambda x: jax.lax.scan(lambda x, _: (body(0, x), None), x, None, 3)[0])(x)
    unrolled = body(0, body(0, body(0, x)))
    np.testing.assert_allclose(looped, unrolled, rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(scanned, unrolled, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("flags", "dtype"), [("fma avx2 avx512f", "float32"), ("avx512_bf16", "bfloat16"), ("amx_bf16", "bfloat16")]
)
def test_auto_is_what_the_processor_multiplies_fastest(tmp_path, monkeypatch, flags, dtype):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: fpu {flags} sse\n\nprocessor : 1\n")
    has_units = products._cpu_has_units.__wrapped__(tmp_path / "cpuinfo")
    monkeypatch.setattr(products, "_cpu_has_units", lambda: has_units)
    assert compute_dtype("auto") == dtype
    assert (compute_dtype("float32"), compute_dtype("bfloat16")) == ("float32", "bfloat16")


def test_no_list_of_flags_is_no_units(tmp_path):
    assert not products._cpu_has_units.__wrapped__(tmp_path / "missing")
