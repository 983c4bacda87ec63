"""Trained weights for sampling: a config as JSON and float16 tensors as safetensors, never code.

A weights folder holds `tokenizer/`, `transformer/` (each `config.json`, `weights.safetensors`) and `text.model`. A
training workdir has the same structure, so `--weights` takes either.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from tokvid.config import TokenizerConfig, TransformerConfig, from_dict, to_dict
from tokvid.errors import UserError, did_you_mean
from tokvid.io.files import atomic, read_json, to_json
from tokvid.sharding import placed
from tokvid.tokenizer.cvivit import CViViT
from tokvid.transformer.model import Transformer

FORMAT = 1
KINDS: dict[str, tuple[type, type]] = {
    "tokenizer": (TokenizerConfig, CViViT),
    "transformer": (TransformerConfig, Transformer),
}


class Loaded(NamedTuple):
    """A model: its config, graph definition, parameters and config.json."""

    config: Any
    graph: nnx.GraphDef
    params: nnx.State
    about: dict[str, Any]

    @property
    def model(self) -> Any:
        return nnx.merge(self.graph, self.params)


def save(folder: str | Path, kind: str, config: Any, params: nnx.State, **about: Any) -> str:
    """Writes weights and config; returns their fingerprint: 16 hex digits of a hash of both.

    They are read back before they replace existing files. UserError, with nothing written, for values beyond float16's
    65504, or if reading back fails.
    """
    folder = Path(folder)
    tensors = {".".join(map(str, path)): _half(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"{name} has values that float16 cannot hold, so nothing was written to {folder}")
    data = safetensors.numpy.save(dict(sorted(tensors.items())))
    mark = _fingerprint(to_dict(config), data)
    values = {"format": FORMAT, "kind": kind, "fingerprint": mark, "config": to_dict(config), **about}
    if kind == "tokenizer":
        values["codes"] = _codes(to_dict(config), tensors)
    with atomic(folder / "config.json") as config_path, atomic(folder / "weights.safetensors") as weights_path:
        weights_path.write_bytes(data)
        config_path.write_text(to_json(values), encoding="utf-8")
        try:
            _read(_described(config_path, kind), kind, config_path, weights_path)
        except UserError as error:
            raise UserError(f"nothing was written to {folder}, because reading it back failed: {error}") from error
    return mark


def kind_of(folder: str | Path) -> str:
    """The kind of weights in `folder`, "tokenizer" or "transformer"; UserError if it is neither."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"no weights in {folder}; name a folder that `tokvid train` wrote, such as runs/tokenizer")
    kind = read_json(path, "config").get("kind")
    if kind not in KINDS:
        raise UserError(did_you_mean(kind, KINDS, f"kind of weights in {path}"))
    return str(kind)


def describe(folder: str | Path, kind: str) -> dict[str, Any]:
    """The config.json of the weights in `folder`, with its kind and format checked."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"no {kind} weights in {folder}; `tokvid train {kind}` makes them, or name another --weights")
    return _described(folder / "config.json", kind)


def _described(path: Path, kind: str) -> dict[str, Any]:
    about = read_json(path, f"{kind} config")
    if about.get("kind") != kind or about.get("format") != FORMAT:
        actual = f"kind {about.get('kind')!r}, format {about.get('format')!r}"
        raise UserError(f"{path} has {actual}; this program reads kind {kind!r}, format {FORMAT}")
    return about


def load(folder: str | Path, kind: str) -> Loaded:
    """The model in `folder`. UserError if a file is missing or damaged, or a leaf (named) doesn't match the config."""
    folder = Path(folder)
    about, path = describe(folder, kind), folder / "weights.safetensors"
    config, tensors = _read(about, kind, folder / "config.json", path)
    graph, params = fill(kind, config, tensors, path)
    return Loaded(config, graph, placed(params), about)


def _read(about: dict[str, Any], kind: str, config_path: Path, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The config and its tensors by name. UserError as for `load`."""
    config: Any = from_dict(KINDS[kind][0], about.get("config", {}), str(config_path))
    try:
        data = path.read_bytes()
        tensors = safetensors.numpy.load(data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); copy or train it again") from error
    # Of the config as written: a field added by a later version must not invalidate earlier weights.
    if _fingerprint(about.get("config"), data) != about.get("fingerprint"):
        raise UserError(f"{path} doesn't belong to the config.json beside it (or is damaged); copy or train both again")
    tensors = _renamed(tensors)
    _check(shapes(kind, config)[1], tensors, path)
    return config, tensors


# Earlier names of parameters → current names.
RENAMED = {
    "head": "head.kernel",
    "quantizer.codes": "quantizer.quantizer.codes",
    "quantizer.share": "quantizer.quantizer.share",
}


def _renamed(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {RENAMED.get(name, name): tensor for name, tensor in tensors.items()}


def fill(kind: str, config: Any, tensors: dict[str, np.ndarray], path: Path) -> tuple[nnx.GraphDef, nnx.State]:
    """A model's graph and its parameters, from tensors by name. UserError names one that doesn't match."""
    graph, leaves = shapes(kind, config)
    tensors = _renamed(tensors)
    _check(leaves, tensors, path)
    return graph, nnx.from_flat_state(
        [(_path(name), leaf.replace(jnp.asarray(tensors[name], leaf.dtype))) for name, leaf in leaves.items()]
    )


def _check(leaves: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> None:
    for name, leaf in leaves.items():
        if name not in tensors or tensors[name].shape != leaf.shape:
            actual = f"shape {tensors[name].shape}" if name in tensors else "nothing"
            raise UserError(f"{path}: {name} should have shape {leaf.shape}, found {actual}")
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} has values that are not finite; train it again")


def shapes(kind: str, config: Any) -> tuple[nnx.GraphDef, dict[str, Any]]:
    """A model's graph, and the shapes and types of its variables by name, without computing them."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: KINDS[kind][1](config, rngs=nnx.Rngs(0))))
    return graph, {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(abstract)}


def _path(name: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in name.split("."))


def check_pair(tokenizer: Loaded, transformer: Loaded) -> None:
    """UserError for a transformer trained on another tokenizer's codes, which would generate noise."""
    wanted = transformer.about.get("tokenizer")
    if not same_codes(wanted, tokenizer.about):
        raise UserError(
            f"the transformer was trained on tokenizer {wanted}, but the tokenizer here is "
            f"{tokenizer.about.get('codes') or tokenizer.about.get('fingerprint')}; "
            "use the tokenizer it was trained with, or tokenize and train the transformer again"
        )


def same_codes(mark: str | None, tokenizer: dict[str, Any]) -> bool:
    """Whether `mark`, stored with tokens, is that of a tokenizer with the same encoder as this one (its config.json).

    Marks cover only the encoder, so that the decoder may be fine-tuned; those of old tokens cover the whole tokenizer.
    """
    return mark is not None and mark in (tokenizer.get("codes"), tokenizer.get("fingerprint"))


def _codes(config: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """16 hex digits of everything that determines a video's codes."""
    without = ("size", "tile", "decoder", "dtype", "remat", "attention")
    added = {"fold": 1, "groups": 1}  # by later versions; these values keep older tokens valid
    config = {
        name: value
        for name, value in config.items()
        if name not in without and not name.endswith("_weight") and added.get(name) != value
    }
    parts = ("embed_", "encoder", "to_latent", "quantizer")
    encoder = {name: tensor for name, tensor in sorted(tensors.items()) if name.startswith(parts)}
    return _fingerprint(config, safetensors.numpy.save(encoder))


def _half(array: jax.Array) -> np.ndarray:
    with np.errstate(over="ignore"):  # `save` reports it by name
        return np.asarray(array).astype(np.float16)


def _fingerprint(config: Any, data: bytes) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode() + data).hexdigest()[:16]


def parameter_count(params: nnx.State) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
