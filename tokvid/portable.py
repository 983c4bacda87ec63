"""Exports weights to one .safetensors file with PyTorch's conventions, and imports it; docs/weights.md has the names.

Matrices are (out, in) as in torch.nn.Linear, heads are flattened, stacked layers are separate, and the config is in the
file's metadata. Nothing is rounded: a round trip preserves every byte.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from tokvid import weights
from tokvid.errors import UserError, did_you_mean
from tokvid.io.files import atomic
from tokvid.io.settings import from_dict

KEY = "tokvid"  # the metadata key of config.json


def export(folder: Path, out: Path) -> int:
    """Writes the model in `folder` to `out`; returns its number of tensors.

    UserError if there is no model, or if `out` is one of its files.
    """
    kind = weights.kind_of(folder)
    about = weights.describe(folder, kind)
    if any(path.samefile(out) for path in folder.iterdir() if out.exists()):
        raise UserError(f"{out} would replace a file of the model itself; name another file")
    weights.load(folder, kind)  # refuses damaged weights
    tensors = dict(
        pair
        for name, array in safetensors.numpy.load_file(folder / "weights.safetensors").items()
        for pair in _outward(name, array)
    )
    with atomic(out) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata={KEY: json.dumps(about)}))
        _read(temporary)  # refuses a file that couldn't be imported again
    return len(tensors)


def bring_in(path: Path, folder: Path) -> str:
    """Writes the model in the file `path` as weights to `folder`/tokenizer or /transformer; returns which one.

    UserError if the file is damaged or has no config, or if a tensor (named) is missing or has another shape.
    """
    about, kind, config, tensors = _read(path)
    params = weights.fill(kind, config, tensors, path)[1]
    weights.save(folder / kind, kind, config, params, **about)
    return kind


def _read(path: Path) -> tuple[dict[str, Any], str, Any, dict[str, np.ndarray]]:
    """The file's other metadata, the model's kind and config, and our variables by name."""
    try:
        with safetensors.safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata[KEY])
        kind, config = about.pop("kind"), about.pop("config")
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except KeyError as error:
        raise UserError(
            f"{path} lacks {error} in its metadata, which `tokvid export` writes; see docs/weights.md"
        ) from error
    except (safetensors.SafetensorError, ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a .safetensors file ({error}); export it again") from error
    if not isinstance(kind, str) or kind not in weights.KINDS:
        raise UserError(did_you_mean(kind, weights.KINDS, f"kind of model in {path}"))
    config = from_dict(weights.KINDS[kind][0], config, f"the config in {path}")
    inward: dict[str, np.ndarray] = {}
    for name, leaf in weights.shapes(kind, config)[1].items():
        numbers = np.arange(leaf.size).reshape(leaf.shape)  # the position of each of our elements in theirs
        flat = np.empty(leaf.size, np.float32)
        for their_name, their_numbers in _outward(name, numbers):
            tensor = tensors.get(their_name)
            if tensor is None or tensor.shape != their_numbers.shape:
                what = "nothing" if tensor is None else f"shape {tensor.shape}"
                raise UserError(f"{path}: {their_name} should have shape {their_numbers.shape}, found {what}")
            flat[their_numbers] = tensor
        inward[name] = flat.reshape(leaf.shape)
    return weights.facts(about), kind, config, inward


def _outward(name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The external names and arrays of one of our variables."""
    if name.startswith("blocks."):  # stacked for jax.lax.scan
        for number, layer in enumerate(array):
            yield from _outward(f"layers.{number}.{name.removeprefix('blocks.')}", layer)
        return
    name = name.replace("quantizer.quantizer.", "quantizer.")  # shared by all groups; older files have no groups
    stem, _, last = name.rpartition(".")
    if last == "scale":
        yield f"{stem}.weight", array
    elif last == "kernel":
        yield f"{stem}.weight", np.ascontiguousarray(array.T)
    elif last in ("gate", "up", "down", "head"):
        yield f"{name}.weight", np.ascontiguousarray(array.T)
    elif last in ("query", "key", "value"):
        yield f"{name}.weight", np.ascontiguousarray(array.reshape(len(array), -1).T)
    elif last == "out":
        yield f"{name}.weight", np.ascontiguousarray(array.reshape(-1, array.shape[-1]).T)
    elif last == "embedding":
        yield f"{name}.weight", array
    else:
        yield name, array
