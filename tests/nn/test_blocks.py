"""What a block refuses, and that 16-bit layers norm in float32. What it computes is shown by both models' tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.nn.blocks import BlockShape, RMSNorm, rematerialised


@pytest.mark.parametrize("width, heads, kv_heads", [(32, 5, 5), (32, 4, 3), (30, 2, 2), (32, 4, 0), (32, 2, 4)])
def test_sizes_that_do_not_divide_are_a_users_error(width, heads, kv_heads):
    with pytest.raises(UserError, match=f"width {width}, heads {heads}, kv_heads {kv_heads}"):
        BlockShape(width, heads, kv_heads, mlp=64, depth=1)


def test_an_unknown_remat_policy_is_a_users_error():
    with pytest.raises(UserError, match=r"'ful'.*did you mean 'full'"):
        rematerialised(lambda x: x, "ful")


def test_the_norm_is_taken_in_float32():
    # 300² overflows float16, and bfloat16 would lose the small channels beside it.
    x = np.float32([[300, 300, 0.01, -0.01]])
    wanted = x / np.sqrt(np.mean(np.square(x)) + 1e-6)
    for kind, rtol in ((jnp.float16, 1e-3), (jnp.bfloat16, 1e-2), (jnp.float32, 1e-6)):
        out = jax.jit(RMSNorm(4))(jnp.asarray(x, kind))
        assert out.dtype == kind
        np.testing.assert_allclose(np.asarray(out, np.float32), wanted, rtol=rtol)
