"""What a file or a folder is: for `tokvid inspect`."""

import dataclasses
from pathlib import Path
from typing import Any

from tokvid import weights
from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe
from tokvid.input_pipeline.records import RecordSource
from tokvid.input_pipeline.text import TextModel
from tokvid.io.files import read_json


def what_is(path: Path) -> dict[str, Any]:
    """Names and values that describe it, nested for a folder of several things; UserError where it is nothing known."""
    if not path.exists():
        raise UserError(f"there is nothing at {path}")
    if path.is_file():
        of_a_file = {".model": _text_model, ".safetensors": _lora}.get(path.suffix, _video)
        return of_a_file(path)
    if (path / "dataset.json").is_file():
        source = RecordSource(path)
        return {"kind": f"dataset of {source.kind}", "videos": len(source), **source.metadata}
    if (path / "dataset_info.json").is_file():
        return _prepared(path)
    if (path / "config.json").is_file():
        return _weights(path)
    if (path / "commit.json").is_file():
        return _checkpoint(path)
    if (path / weights.LORA_FILE).is_file():
        return _lora(path / weights.LORA_FILE)
    if (path / "checkpoints").is_dir():
        steps = sorted(int(p.parent.name) for p in path.glob("checkpoints/*/commit.json") if p.parent.name.isdigit())
        return {"kind": "training in progress, no weights yet", "checkpoints at steps": steps}
    parts = [part for name in ("tokenizer", "text", "transformer", "tokens") if (part := path / name).is_dir()]
    parts += [file.parent for file in path.glob("*/*/dataset_info.json")]
    if not parts:
        raise UserError(f"{path} is no checkpoint, weights folder, workdir, token cache or dataset of tokvid")
    return {f"{part.relative_to(path)}/": what_is(part) for part in parts}


def _video(path: Path) -> dict[str, Any]:
    return {"kind": "video file", **dataclasses.asdict(probe(path))}


def _lora(path: Path) -> dict[str, Any]:
    facts, factors = weights.read_lora(path)
    return {"kind": "LoRA", "parameters": sum(factor.size for factor in factors.values()), **facts}


def _text_model(path: Path) -> dict[str, Any]:
    text = TextModel.load(path)
    return {"kind": "text model", "vocabulary": text.vocabulary, "fingerprint": text.fingerprint}


def _weights(path: Path) -> dict[str, Any]:
    kind = weights.kind_of(path)
    loaded = weights.load(path, kind)
    return {"kind": kind, "parameters": weights.parameter_count(loaded.params)} | loaded.about


def _prepared(path: Path) -> dict[str, Any]:
    from tokvid.input_pipeline.builders import open_prepared  # needs TFDS

    about = read_json(path / "dataset_info.json", "the description of a dataset")
    names = [str(split.get("name")) for split in about.get("splits", [])]
    counts = {f"videos in {name}": len(open_prepared(path, name)) for name in names}
    return {"kind": "dataset prepared with TFDS", "name": about.get("name"), **counts}


def _checkpoint(path: Path) -> dict[str, Any]:
    record = read_json(path / "commit.json", "commit record")
    files = len(record.get("files", {}))
    return {"kind": "checkpoint", "step": record.get("step"), "files": files, **record.get("agree", {})}
