"""LoRAs as files of their own: written, read, averaged, found beside a transformer, and added to its tensors.

Those in `loras/` of a transformer's folder are added for the tasks that they were trained for.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Num

from tokvid.errors import UserError
from tokvid.io.files import atomic, seal
from tokvid.io.settings import to_dict
from tokvid.io.tensors import fingerprint, half
from tokvid.io.urls import local
from tokvid.tasks.tasks import trained_tasks
from tokvid.transformer.lora import product, product_shape

log = logging.getLogger(__name__)

Tensors = dict[str, Num[np.ndarray, "..."]]  # by name, of any shape

LORA_FORMAT = 1
LORA = "tokvid lora"  # the metadata key of a LoRA's facts
LORA_FILE = "lora.safetensors"  # in the folder of the training
LORAS = "loras"  # the folder in a transformer's for those of single tasks


class Scaled(NamedTuple):
    """A LoRA's file, and the factor of its updates."""

    path: str | os.PathLike[str]
    scale: float = 1.0


def save_lora(path: Path, factors: Iterable[tuple[Any, Any]], base: str, **about: Any) -> None:
    """Writes a LoRA's factors, by path, as one file; `base` is the fingerprint of the weights that it updates."""
    tensors = {".".join(map(str, name)): half(leaf[...]) for name, leaf in factors}
    if bad := [name for name, tensor in tensors.items() if not np.isfinite(tensor).all()]:
        raise UserError(f"{bad[0]} has values that float16 cannot hold, so {path} was not written")
    tensors = dict(sorted(tensors.items()))
    values = {"format": LORA_FORMAT, "base": base, **about}
    metadata = {LORA: json.dumps(values | {"sha256": _lora_seal(values, tensors)})}
    with atomic(path) as temporary:
        temporary.write_bytes(safetensors.numpy.save(tensors, metadata))
        read_lora(temporary)


def average_loras(path: Path, one: str | os.PathLike[str], other: str | os.PathLike[str], share: float) -> None:
    """Writes the average of two LoRAs' factors, with `share` of the other's, as the LoRA `path`.

    It helps where one was trained from the other, or both from the same LoRA; otherwise, the average of the factors
    means nothing. Its facts are the first one's. UserError where the share isn't between 0 and 1, or they don't match.
    """
    if not 0 < share < 1:
        raise UserError(f"the share of a LoRA to average with should be between 0 and 1, got {share:g}")
    (about, mine), (others, theirs) = read_lora(one), read_lora(other)
    alike = {name: factor.shape for name, factor in mine.items()} == {name: f.shape for name, f in theirs.items()}
    if not alike or about.get("base") != others.get("base"):
        raise UserError(f"{one} and {other} are of other weights or ranks; average those trained from the same LoRA")
    factors = {name: (1 - share) * factor.astype(np.float32) + share * theirs[name] for name, factor in mine.items()}
    facts = {name: value for name, value in about.items() if name not in ("format", "base", "sha256")}
    save_lora(path, ((name.split("."), factor) for name, factor in factors.items()), about["base"], **facts)


def read_lora(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Tensors]:
    """The facts of a LoRA's file, and its factors by name. UserError if it is none, or is damaged."""
    path = local(os.fspath(path))
    try:
        with safetensors.safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get(LORA, "null"))
            factors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; a training with --train_transformer.lora writes one") from error
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as a LoRA ({error}); copy or train it again") from error
    if not isinstance(about, dict) or about.get("format") != LORA_FORMAT:
        raise UserError(
            f"{path} is no LoRA of this version of tokvid; a training with --train_transformer.lora writes one"
        )
    intact = about.get("sha256") in (None, _lora_seal(about, factors))  # None: of an earlier version
    if not intact or not all(np.isfinite(factor).all() for factor in factors.values()):
        raise UserError(f"{path} is damaged, or was changed after it was written; copy or train it again")
    return about, factors


def _lora_seal(about: dict[str, Any], factors: Tensors) -> str:
    return hashlib.sha256(seal(about).encode() + safetensors.numpy.save(factors)).hexdigest()


def task_loras(folder: Path) -> dict[str, Path]:
    """The LoRAs that come with the transformer in `folder`, by the tasks that they were trained for.

    Of several for a task, that with the fewest others.
    """
    found = [(path, trained_tasks(read_lora(path)[0])) for path in loras_in(folder)]
    found.sort(key=lambda each: -len(each[1]))
    return {task: path for path, tasks in found for task in tasks}


def loras_in(folder: Path) -> list[Path]:
    """The files of LoRAs that come with the transformer in `folder`."""
    return sorted((folder / LORAS).glob("*.safetensors"))


def updated(
    config: Any, tensors: Tensors, about: dict[str, Any], loras: Sequence[Scaled]
) -> tuple[Tensors, dict[str, Any]]:
    """The tensors with all updates added, rounded once, and the config.json of these weights."""
    wide, marks = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}, list[list[Any]]()
    tasks = set(about.get("lora_tasks", ()))
    for path, scale in loras:
        claims, factors = read_lora(path)
        if claims.get("base") not in (about.get("fingerprint"), about.get("base")):
            raise UserError(
                f"{path} was trained on weights {claims.get('base')}, these are {about.get('fingerprint')}; "
                "use it with the weights it started from"
            )
        for name in sorted({factor.rpartition(".")[0] for factor in factors}):
            _add(wide, name, factors, scale, path)
        mark = fingerprint(claims, safetensors.numpy.save(factors))
        if mark in [own for own, _ in [*about.get("loras", []), *marks]]:
            log.warning("%s is part of these weights already, and counts twice now; leave it out, maybe", path)
        marks.append([mark, scale])
        tasks |= trained_tasks(claims).keys()
    tensors = {name: half(tensor) for name, tensor in wide.items()}
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise UserError(f"with these LoRAs {name} has values that float16 cannot hold; lower their scales")
    mark = fingerprint(to_dict(config), safetensors.numpy.save(dict(sorted(tensors.items()))))
    base = about.get("base", about["fingerprint"])
    earlier = about.get("loras", [])
    of_loras = {"base": base, "loras": [*earlier, *marks], "lora_tasks": sorted(tasks)}
    return tensors, about | {"fingerprint": mark, **of_loras}


def _add(
    tensors: Tensors,
    name: str,
    factors: Tensors,
    scale: float,
    path: str | os.PathLike[str],
) -> None:
    """Adds one matrix's update. UserError where the factors don't fit it."""
    try:
        a, b = (np.asarray(factors[f"{name}.{factor}"], np.float32) for factor in "ab")
        shape = product_shape(name, a, b)
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged at {name} ({error}); copy or train it again") from error
    if name not in tensors or tensors[name].shape != shape:  # before it is computed: it may be of any size
        raise UserError(f"{path} updates {name} of shape {shape}, which these weights lack")
    tensors[name] += scale * product(name, a, b)


def check_no_loras(folder: Path) -> None:
    """UserError where a training's weights could not be saved, because there are LoRAs of others in their folder."""
    if loras := loras_in(folder):
        raise UserError(
            f"{loras[0]} is a LoRA of other weights than this training's; move it away, or use another --workdir"
        )
