"""Prompts read by a frozen T5 encoder: its weights from the user's files, and its hidden states in place of ids.

A weights folder of such a transformer has the encoder in `text/`, as weights of their own, and the T5's sentencepiece
model as `text.model`.
"""

import functools
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax import nnx

from tokvid import weights
from tokvid.config import T5Config
from tokvid.errors import UserError
from tokvid.input_pipeline.text import PADDING, TextModel, read_model
from tokvid.io.files import atomic, read_json
from tokvid.io.settings import from_dict

MODELS, GATED = ("t5", "mt5"), {"relu": False, "gated-gelu": True}
PIECES = "spiece.model"
EPSILON = 1e-6  # of the norms


class T5Text(TextModel):
    """A T5's text model and its encoder: `encode` gives hidden states, float16 (length, D), padded with zeros."""

    KEPT = 1000  # hidden states are larger than ids

    def __init__(self, model: bytes, where: str, encoder: weights.Loaded):
        super().__init__(model, where)
        self._encoder, self._end, self.width = encoder, self._pieces.eos_id(), encoder.config.width
        if self._end < 0 or self.vocabulary > encoder.config.vocabulary:
            raise UserError(
                f"{where} has {self.vocabulary} ids and the end id {self._end}, the T5 {encoder.config.vocabulary} "
                f"ids; use the {PIECES} that came with the T5"
            )
        self.fingerprint = f"{self.fingerprint}-{encoder.about['fingerprint']}"

    def spelled(self, text: str) -> list[str]:
        """Nothing: the T5 learned its words elsewhere."""
        return []

    def _encode(self, text: str, length: int) -> tuple[np.ndarray, str]:
        ids_L, cut = super()._encode(text, length - 1)  # the end is an id, too
        count = int((ids_L != PADDING).sum())
        states_LD = np.zeros((length, self.width), np.float16)
        if count:
            ids_L = np.append(ids_L, PADDING).astype(np.int32)
            ids_L[count] = self._end
            states_BLD = _states(self._encoder.graph, self._encoder.params, ids_L[None])
            states_LD[:] = np.asarray(states_BLD)[0]
        return states_LD, cut


@functools.partial(jax.jit, static_argnames="graph")
def _states(graph: nnx.GraphDef, params: nnx.State, ids_BL: np.ndarray) -> jax.Array:
    return nnx.merge(graph, params)(ids_BL)


def load_text(folder: Path) -> TextModel:
    """The text model of a weights folder, with the T5 encoder if it has one."""
    path = folder / weights.TEXT_MODEL
    if not (folder / weights.TEXT).is_dir():
        return TextModel.load(path)
    return T5Text(read_model(path), f"text model {path}", weights.load(folder / weights.TEXT, weights.TEXT))


def take_t5(source: Path, folder: Path) -> None:
    """Writes the encoder of the T5 in `source` to a weights folder, in float16, and its sentencepiece model.

    `source` has config.json, spiece.model and one or several .safetensors files, as `save_pretrained` of transformers
    writes them. UserError for anything that is missing or doesn't fit.
    """
    config, tensors = read_t5(source)
    if not (source / PIECES).is_file():
        raise UserError(f"there is no {PIECES} in {source}; take it from where the T5's weights are")
    params = weights.fill(weights.TEXT, config, tensors, source)[1]
    weights.save(folder / weights.TEXT, weights.TEXT, config, params)
    with atomic(folder / weights.TEXT_MODEL) as temporary:
        shutil.copyfile(source / PIECES, temporary)
    load_text(folder)  # refuses what doesn't belong together


def drop_t5(folder: Path) -> None:
    """Removes the encoder that an earlier run wrote to a weights folder."""
    shutil.rmtree(folder / weights.TEXT, ignore_errors=True)


def t5_config(source: Path) -> T5Config:
    """The config of the T5 in a folder. UserError for other models."""
    path = source / "config.json"
    about = read_json(path, "the config of a T5")
    kind, mlp = about.get("model_type"), about.get("feed_forward_proj", "relu")
    if kind not in MODELS or str(mlp) not in GATED or about.get("layer_norm_epsilon", EPSILON) != EPSILON:
        raise UserError(
            f"{path} has model_type {kind!r:.40}, feed_forward_proj {mlp!r:.40}; only {' and '.join(MODELS)} with "
            f"{' or '.join(GATED)} can be read"
        )
    values = {
        "vocabulary": about.get("vocab_size"),
        "width": about.get("d_model"),
        "layers": about.get("num_layers"),
        "heads": about.get("num_heads"),
        "head_width": about.get("d_kv"),
        "mlp": about.get("d_ff"),
        "gated": GATED[mlp],
        "buckets": about.get("relative_attention_num_buckets", T5Config.buckets),
        "farthest": about.get("relative_attention_max_distance", T5Config.farthest),
    }
    return from_dict(T5Config, values, str(path))


def read_t5(source: Path) -> tuple[T5Config, dict[str, np.ndarray]]:
    """The config of the T5 in a folder and its encoder's tensors, by the names that ours have."""
    config, files = t5_config(source), sorted(source.glob("*.safetensors"))
    if not files:
        raise UserError(
            f"there is no .safetensors file in {source}; `save_pretrained` of transformers turns other formats into one"
        )
    theirs: dict[str, np.ndarray] = {}
    for path in files:
        try:
            with safetensors.safe_open(path, "flax") as file:  # NumPy has no bfloat16
                names = [name for name in file.keys() if name.startswith(("encoder.", "shared."))]  # noqa: SIM118
                theirs |= {name: np.asarray(file.get_tensor(name), np.float32) for name in names}
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read as a .safetensors file ({error}); copy it again") from error
    try:
        return config, _renamed(config, theirs)
    except KeyError as error:
        raise UserError(f"the .safetensors files in {source} lack {error}, which the encoder of a T5 has") from error
    except ValueError as error:
        raise UserError(f"the tensors in {source} don't fit its config.json ({error}); copy both again") from error


def _renamed(config: T5Config, theirs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our tensors, by name: theirs are (out, in), a layer each, with their heads flattened."""
    D, N, E = config.width, config.heads, config.head_width

    def stacked(name: str, *shape: int) -> np.ndarray:
        layers = [theirs[f"encoder.block.{number}.layer.{name}.weight"].T for number in range(config.layers)]
        return np.stack([layer.reshape(shape or layer.shape) for layer in layers])

    attention, mlp = "0.SelfAttention", "1.DenseReluDense"
    ours: dict[str, Any] = {
        "embedding": theirs["shared.weight"] if "shared.weight" in theirs else theirs["encoder.embed_tokens.weight"],
        "nearness": theirs[f"encoder.block.0.layer.{attention}.relative_attention_bias.weight"],
        "norm.scale": theirs["encoder.final_layer_norm.weight"],
        "blocks.attention_norm.scale": stacked("0.layer_norm"),
        "blocks.query": stacked(f"{attention}.q", D, N, E),
        "blocks.key": stacked(f"{attention}.k", D, N, E),
        "blocks.value": stacked(f"{attention}.v", D, N, E),
        "blocks.out": stacked(f"{attention}.o", N, E, D),
        "blocks.mlp_norm.scale": stacked("1.layer_norm"),
        "blocks.down": stacked(f"{mlp}.wo"),
    }
    if config.gated:
        ours |= {"blocks.gate": stacked(f"{mlp}.wi_0"), "blocks.up": stacked(f"{mlp}.wi_1")}
    else:
        ours["blocks.up"] = stacked(f"{mlp}.wi")
    return ours
