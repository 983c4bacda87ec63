"""Trained weights for sampling: a config as JSON and float16 tensors as safetensors, never code.

A weights folder holds `tokenizer/`, `transformer/` (each `config.json`, `weights.safetensors`) and `text.model`. A
training workdir has the same structure, so `--weights` takes either. Where a T5 reads the prompts, its encoder is in
`text/`. A LoRA is a file of its own, added to a transformer as it is loaded; those in `transformer/loras/` are added
for the tasks that they were trained for.
"""

import functools
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from tokvid.config import T5Config, TokenizerConfig, TransformerConfig, computed
from tokvid.errors import UserError, did_you_mean, reason
from tokvid.io.files import atomic, read_json, seal, to_json
from tokvid.io.settings import from_dict, to_dict
from tokvid.io.tensors import fingerprint, half
from tokvid.io.urls import local
from tokvid.io.worlds import WORLDS, weights_named
from tokvid.sharding import placed
from tokvid.tokenizer.cvivit import CViViT
from tokvid.transformer.lora_files import LORA_FILE, Scaled, loras_in, read_lora, updated
from tokvid.transformer.model import Transformer
from tokvid.transformer.t5 import T5

FORMAT = 2
UNSEALED = 1  # the format of earlier versions, which wrote no sha256
TEXT = "text"  # the T5 encoder of weights that have one
KINDS: dict[str, tuple[type, type]] = {
    "tokenizer": (TokenizerConfig, CViViT),
    "transformer": (TransformerConfig, Transformer),
    TEXT: (T5Config, T5),
}
TOKENIZER_FILES, TEXT_MODEL = ("tokenizer/config.json", "tokenizer/weights.safetensors"), "text.model"


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
    65504, if `folder` has LoRAs of other weights, or if reading back fails.
    """
    folder = Path(folder)
    tensors = {".".join(map(str, path)): half(leaf[...]) for path, leaf in nnx.to_flat_state(params)}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"{name} has values that float16 cannot hold, so nothing was written to {folder}")
    data = safetensors.numpy.save(dict(sorted(tensors.items())))
    mark = fingerprint(to_dict(config), data)
    for path in loras_in(folder):
        if read_lora(path)[0].get("base") not in (mark, about.get("base")):
            raise UserError(f"{path} is a LoRA of other weights than these; move it away, or choose another folder")
    values = {"format": FORMAT, "kind": kind, "fingerprint": mark, "config": to_dict(config), **about}
    if kind == "tokenizer":
        values["codes"] = _codes(to_dict(config), tensors)
    with atomic(folder / "config.json") as config_path, atomic(folder / "weights.safetensors") as weights_path:
        weights_path.write_bytes(data)
        config_path.write_text(to_json(values | {"sha256": seal(values)}), encoding="utf-8")
        try:
            _read(_described(config_path, kind), kind, config_path, weights_path)
        except UserError as error:
            raise UserError(f"nothing was written to {folder}, because reading it back failed: {error}") from error
    return mark


def find(name: str | Path) -> Path:
    """The folder of weights: one that comes with tokvid, by its name, a path, or a URL, which is fetched."""
    return local(weights_named(name))


def kind_of(folder: str | Path) -> str:
    """The kind of weights in `folder`, a key of KINDS; UserError if it has none."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"no weights in {folder}; name a folder that `tokvid train` wrote, such as runs/tokenizer")
    kind = read_json(path, "config").get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(did_you_mean(kind, KINDS, f"kind of weights in {path}"))
    return kind


def describe(folder: str | Path, kind: str) -> dict[str, Any]:
    """The config.json of the weights in `folder`, with its kind and format checked."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        if (folder / LORA_FILE).is_file():
            raise UserError(
                f"{folder} has a LoRA only; add it to the weights it started from: --lora {folder / LORA_FILE}"
            )
        raise UserError(
            f"no {kind} weights in {folder}; `tokvid train {kind}` makes them, or name others: {', '.join(WORLDS)}"
        )
    return _described(folder / "config.json", kind)


def _described(path: Path, kind: str) -> dict[str, Any]:
    about = read_json(path, f"{kind} config")
    if about.get("kind") != kind or about.get("format") not in (UNSEALED, FORMAT):
        actual = f"kind {about.get('kind')!r}, format {about.get('format')!r}"
        raise UserError(f"{path} has {actual}; this program reads kind {kind!r}, formats {UNSEALED} and {FORMAT}")
    sealed = about["format"] == FORMAT or "sha256" in about
    if sealed and about.get("sha256") != seal(about):
        raise UserError(
            f"{path} is damaged, or was changed after it was written; copy it again or, if you meant the change, take "
            f"out its sha256 and set its format to {UNSEALED}"
        )
    return about


def facts(about: dict[str, Any]) -> dict[str, Any]:
    """What `save` takes as `about`, of a config.json: all but what it finds out itself."""
    return {k: v for k, v in about.items() if k not in ("format", "kind", "fingerprint", "config", "codes", "sha256")}


def load(folder: str | Path, kind: str, loras: Sequence[Scaled] = ()) -> Loaded:
    """The model in `folder`, with the updates of LoRAs added, rounded as `save` rounds.

    UserError if a file is missing or damaged, a leaf (named) doesn't match the config, or a LoRA is of other weights.
    """
    folder = Path(folder)
    about, path = describe(folder, kind), folder / "weights.safetensors"
    config, tensors = _read(about, kind, folder / "config.json", path)
    if loras:
        tensors, about = updated(config, tensors, about, loras)
    graph, params = fill(kind, config, tensors, path)
    return Loaded(config, graph, placed(params), about)


def averaged(model: Loaded, other: Loaded, share: float) -> Loaded:
    """Both models' parameters averaged, with `share` of the other's: Wortsman et al. 2022, "Model soups".

    It helps where one was trained from the other, or both from the same weights. UserError if the share isn't between 0
    and 1, or if they have other configs, tokenizers or text models.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of weights to average with should be between 0 and 1, got {share:g}")
    mine, theirs = computed(model.config), computed(other.config)
    differs = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
    differs += [name for name in ("tokenizer", "text_model") if model.about.get(name) != other.about.get(name)]
    if differs:
        raise UserError(
            f"weights to average with have another {differs[0]} than --weights; average those that were trained from "
            "the same weights"
        )
    params = jax.tree.map(lambda mine, theirs: (1 - share) * mine + share * theirs, model.params, other.params)
    about = {name: value for name, value in model.about.items() if name not in ("base", "loras", "lora_tasks")}
    marks = [*about.get("averaged", []), [other.about["fingerprint"], share]]
    return model._replace(params=params, about=about | {"averaged": marks})


def _read(about: dict[str, Any], kind: str, config_path: Path, path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The config and its tensors by name. UserError as for `load`."""
    config: Any = from_dict(KINDS[kind][0], about.get("config", {}), str(config_path))
    try:
        data = path.read_bytes()
        tensors = safetensors.numpy.load(data)
    except OSError as error:
        raise UserError(f"cannot read {path}: {reason(error)}") from error
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); copy or train it again") from error
    # Of the config as written: a field added by a later version must not invalidate earlier weights.
    if fingerprint(about.get("config"), data) != about.get("fingerprint"):
        raise UserError(f"{path} doesn't belong to the config.json beside it (or is damaged); copy or train both again")
    tensors = {RENAMED.get(name, name): tensor for name, tensor in tensors.items()}
    _check(shapes(kind, config)[1], tensors, path)
    return config, tensors


# Earlier names of parameters → current names.
RENAMED = {
    "head": "head.kernel",
    "quantizer.codes": "quantizer.quantizer.codes",
    "quantizer.share": "quantizer.quantizer.share",
}


def fill(kind: str, config: Any, tensors: dict[str, np.ndarray], path: Path) -> tuple[nnx.GraphDef, nnx.State]:
    """A model's graph and its parameters, from tensors by name. UserError names one that doesn't match."""
    graph, leaves = shapes(kind, config)
    _check(leaves, tensors, path)
    return graph, nnx.from_flat_state(
        [(_path(name), leaf.replace(jnp.asarray(tensors[name], leaf.dtype))) for name, leaf in leaves.items()]
    )


def text_files(folder: Path) -> list[str]:
    """The names of a weights folder's files that read prompts."""
    of_t5 = [f"{TEXT}/config.json", f"{TEXT}/weights.safetensors"] if (folder / TEXT).is_dir() else []
    return [TEXT_MODEL, *of_t5]


def copy_files(folder: Path, out: Path, names: Iterable[str]) -> None:
    """Copies files of a weights folder to another."""
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"there is no {name} in {folder}; name another weights folder")
        with atomic(out / name) as temporary:
            shutil.copyfile(folder / name, temporary)


def _check(leaves: Mapping[str, Any], tensors: dict[str, np.ndarray], path: Path) -> None:
    for name, leaf in leaves.items():
        if name not in tensors or tensors[name].shape != leaf.shape:
            actual = f"shape {tensors[name].shape}" if name in tensors else "nothing"
            raise UserError(f"{path}: {name} should have shape {leaf.shape}, found {actual}")
        if not np.isfinite(tensors[name]).all():
            raise UserError(f"{path}: {name} has values that are not finite; train it again")


class _OneKey(nnx.Rngs):
    """The same key again and again: where only shapes matter, tracing the making of keys takes most of the time."""

    def params(self) -> jax.Array:
        return jax.random.key(0)


@functools.cache
def shapes(kind: str, config: Any) -> tuple[nnx.GraphDef, Mapping[str, Any]]:
    """A model's graph, and the shapes and types of its variables by name, without computing them."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: KINDS[kind][1](config, rngs=_OneKey(0))))
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
    without = ("size", "tile", "decoder", "recall_first", "dtype", "remat", "attention")
    # By later versions; these values keep older tokens valid.
    added = {"fold": 1, "groups": 1, "first_frame": "own", "hysteresis": 0.0, "later_codes": [0]}
    config = {
        name: value
        for name, value in config.items()
        if name not in without and not name.endswith("_weight") and added.get(name) != value
    }
    parts = ("embed_", "encoder", "to_latent", "to_token", "quantizer")
    encoder = {name: tensor for name, tensor in sorted(tensors.items()) if name.startswith(parts)}
    return fingerprint(config, safetensors.numpy.save(encoder))


def parameter_count(params: nnx.State) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
