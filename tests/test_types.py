"""Shapes and types are written on every public function of some rooms, and checked while tests run (conftest.py)."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import AbstractArray, TypeCheckError

PACKAGE = Path(__file__).parents[1] / "tokvid"
ROOMS = ["nn", "tokenizer", "transformer", "sampling", "metrics", "shapes"]
MODULES = sorted(
    f"tokvid.{path.parent.name}.{path.stem}"
    for room in ROOMS
    for path in (PACKAGE / room).glob("*.py")
    if path.stem != "__init__"
)
# Pallas hands references to memory to these.
UNTYPED = {"tokvid.nn.flash.Tiles.seen", "tokvid.nn.flash.Tiles.queries", "tokvid.nn.flash.Tiles.keys"}
TENSOR = re.compile(r"\w+_[A-Z0-9]+")  # video_BTHWC: the name of an array, by the house's convention


def public(scope, name=""):
    """The public functions, methods and classes of a module or class, with their names."""
    for key, value in vars(scope).items():
        full = f"{name or scope.__name__}.{key}"
        value = value.fget if isinstance(value, property) else value
        if getattr(value, "__module__", None) != inspect.getmodule(scope).__name__ or (
            key.startswith("_") and key not in ("__init__", "__call__")
        ):
            continue
        if inspect.isclass(value):
            yield full, value
            yield from public(value, full)
        elif callable(value):
            yield full, value


def leaves(hint):
    """tuple[Float[Array, "b l"], int | None] → Float[Array, "b l"], int, None."""
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return [hint]
    inside = [leaf for each in get_args(hint) for leaf in (each if isinstance(each, list) else [each])]
    return [leaf for each in inside for leaf in leaves(each)] or [hint]


def mistakes(name, value):
    """Arrays without a shape and arguments without a type, in a function's signature or a class's fields."""
    hints = get_type_hints(value) if inspect.get_annotations(value) else {}
    needed = [] if inspect.isclass(value) else [*inspect.signature(value).parameters, "return"]
    for what in [*needed, *(set(hints) - set(needed))]:
        if what == "self" or (what == "return" and name.endswith(".__init__")):
            continue
        if what not in hints:
            yield f"{name}: {what} has no type"
            continue
        types = leaves(hints[what])
        if any(leaf in (jax.Array, np.ndarray) for leaf in types):
            yield f"{name}: {what} is an array without a shape"
        shaped = [leaf for leaf in types if inspect.isclass(leaf) and issubclass(leaf, AbstractArray)]
        if TENSOR.fullmatch(what) and not shaped:
            yield f"{name}: {what} is no array by its type"


@pytest.mark.parametrize("module", MODULES)
def test_every_public_function_says_the_shapes_of_its_arrays(module):
    every = list(public(import_module(module)))
    assert every, f"{module} has nothing public"
    assert [line for name, value in every if name not in UNTYPED for line in mistakes(name, value)] == []


def test_a_function_without_shapes_is_noticed():
    def bare(video_BTHWC: jax.Array, text_BL: int, fps) -> tuple[np.ndarray, int]: ...

    assert list(mistakes("bare", bare)) == [
        "bare: video_BTHWC is an array without a shape",
        "bare: video_BTHWC is no array by its type",
        "bare: text_BL is no array by its type",
        "bare: fps has no type",
        "bare: return is an array without a shape",
    ]


def attention(keys, values, dtype=jnp.float32):
    from tokvid.nn.attention import attend

    query_BLNE, key_BSKE, value_BSKE = (jnp.ones((1, slots, 2, 8), dtype) for slots in (3, keys, values))
    return attend(query_BLNE, key_BSKE, value_BSKE)


def test_lengths_that_differ_within_a_call_are_refused():
    assert attention(5, 5).shape == (1, 3, 2, 8)
    with pytest.raises(TypeCheckError, match="value_BSKE"):
        attention(5, 4)
    with pytest.raises(TypeCheckError, match="value_BSKE"):  # while it is traced, too
        jax.eval_shape(lambda: attention(5, 4))


def test_another_type_of_number_is_refused():
    assert attention(5, 5, jnp.bfloat16).dtype == jnp.bfloat16
    with pytest.raises(TypeCheckError, match="query_BLNE"):
        attention(5, 5, jnp.int32)


def test_a_quantizer_refuses_latents_of_another_width():
    from tokvid.tokenizer.quantizers import FSQ

    quantizer = FSQ((5, 3, 2))
    assert quantizer.quantize(jnp.zeros((2, 4, 3))).ids.shape == (2, 4)
    with pytest.raises(TypeCheckError, match="'z'"):
        quantizer.quantize(jnp.zeros((2, 4, 6)))


def test_metrics_take_arrays_of_numpy_alone_and_videos_of_one_shape():
    from tokvid.metrics.video import detail, psnr

    video_THWC = np.zeros((2, 4, 4, 3), np.uint8)
    assert detail(video_THWC) == 0
    with pytest.raises(TypeCheckError, match="video_THWC"):
        detail(video_THWC[0])
    with pytest.raises(TypeCheckError, match="video_THWC"):
        detail(jnp.asarray(video_THWC))
    with pytest.raises(TypeCheckError, match="b_THWC"):
        psnr(video_THWC, video_THWC[:1])


def test_production_runs_unchecked(unchecked_types):
    from tokvid.metrics.video import psnr

    with pytest.raises(ValueError, match="two videos of one shape"):
        psnr(np.zeros((2, 4, 4, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8))
    assert [path for path in PACKAGE.rglob("*.py") if "beartype" in path.read_text()] == []
