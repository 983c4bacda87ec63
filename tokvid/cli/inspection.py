"""What a file or a folder is: for `tokvid inspect`."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import safetensors

from tokvid import weights
from tokvid.errors import UserError
from tokvid.input_pipeline.clips import probe
from tokvid.input_pipeline.records import RecordSource
from tokvid.input_pipeline.text import TextModel
from tokvid.input_pipeline.webdataset import VIDEOS
from tokvid.io.files import read_json
from tokvid.portable import KEY
from tokvid.sampling import script
from tokvid.sampling.story import STORY_SUFFIXES, Story, load_story
from tokvid.transformer import lora_files

SIZES = ("size", "patch", "fold", "temporal_patch", "quantizer", "levels", "codes", "groups", "latent_frames", "grid")
CONFIG = (*SIZES, "subcodes", "width", "layers", "text_length", "conditions")  # what is shown of it unless all is
WORDS = 40  # of a text model that are shown
FOR_PROGRAMS = ("format", "sha256")


def what_is(path: Path, every: bool = False) -> dict[str, Any]:
    """Names and values that describe it, nested for a folder of several things; of models, `every` setting or some.

    UserError where it is nothing known.
    """
    if not path.exists():
        raise UserError(f"there is nothing at {path}; name weights, a workdir, a dataset, a story or a video")
    if path.is_file():
        return _file(path, every)
    if not path.is_dir():
        raise UserError(f"{path} is no file or folder, but a pipe or a device; name weights, a dataset or a video")
    if (path / "dataset.json").is_file():
        source = RecordSource(path)
        return {"kind": f"dataset of {source.kind}", "videos": len(source), **source.metadata}
    if (path / "dataset_info.json").is_file():
        return _prepared(path)
    if (path / "config.json").is_file():
        return _weights(path, every)
    if (path / "commit.json").is_file():
        return _checkpoint(path)
    if (path / lora_files.LORA_FILE).is_file():
        return _lora(path / lora_files.LORA_FILE)
    if (path / "checkpoints").is_dir():
        steps = sorted(int(p.parent.name) for p in path.glob("checkpoints/*/commit.json") if p.parent.name.isdigit())
        return {"kind": "training in progress, no weights yet", "checkpoints at steps": steps}
    parts = [part for name in ("tokenizer", "text", "transformer", "tokens") if (part := path / name).is_dir()]
    parts += [file.parent for file in path.glob("*/*/dataset_info.json")]
    if parts:
        facts = {f"{part.relative_to(path)}/": what_is(part, every) for part in parts}
        text = path / weights.TEXT_MODEL
        return facts | ({text.name: _text_model(text)} if text.is_file() else {})
    below = (file.relative_to(path) for file in path.rglob("*") if file.suffix.lower() in VIDEOS)
    if files := sum(not any(part.startswith(".") for part in file.parts) for file in below):
        return {"kind": "folder of videos and pictures; tokvid data folder makes a dataset of it", "files": files}
    raise UserError(
        f"{path} is no weights folder, workdir, checkpoint, token cache, dataset or folder of videos; name one"
    )


def _file(path: Path, every: bool) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _tensors(path, every)
    if suffix == ".model":
        return _text_model(path)
    if suffix in STORY_SUFFIXES:
        return _story("story file", load_story(path))
    if suffix in script.SUFFIXES:
        return _story("script", script.read_script(path).story)
    return _video(path)


def _story(kind: str, story: Story) -> dict[str, Any]:
    prompts = {f"from {start:g} s": each.prompt for start, each in zip(story.starts, story.segments, strict=False)}
    facts = {"seconds": story.seconds, "fps": story.fps, "frames": story.frames, "seed": story.seed}
    return {"kind": kind, **facts, "prompts": prompts}


def _video(path: Path) -> dict[str, Any]:
    info = dataclasses.asdict(probe(path))
    if not info["fps"]:
        return {"kind": "picture", "width": info["width"], "height": info["height"]}
    warnings = info.pop("warnings")
    return {"kind": "video file", **info} | ({"warnings": "; ".join(warnings)} if warnings else {})


def _tensors(path: Path, every: bool) -> dict[str, Any]:
    """A model's own file, one that `tokvid export` wrote, or a LoRA."""
    if path.name == "weights.safetensors" and (path.parent / "config.json").is_file():
        return _weights(path.parent, every)
    try:
        with safetensors.safe_open(path, "numpy") as file:
            exported, tensors = (file.metadata() or {}).get(KEY), len(file.keys())
        about = json.loads(exported) if exported else {}
    except (safetensors.SafetensorError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read as a .safetensors file ({error}); copy it again") from error
    if not exported:
        return _lora(path)
    if not isinstance(about, dict):
        raise UserError(f"{path} was not written by tokvid export; export it again")
    return {"kind": f"exported {about.pop('kind', 'model')}", "tensors": tensors, **_shown(about, every)}


def _lora(path: Path) -> dict[str, Any]:
    facts, factors = lora_files.read_lora(path)
    return {"kind": "LoRA", "parameters": sum(factor.size for factor in factors.values()), **facts}


def _text_model(path: Path) -> dict[str, Any]:
    text = TextModel.load(path)
    facts = {"kind": "text model", "vocabulary": text.vocabulary, "fingerprint": text.fingerprint}
    words = text.words(WORDS)
    return facts | ({"words, for example": ", ".join(words)} if words else {})


def _weights(path: Path, every: bool) -> dict[str, Any]:
    kind = weights.kind_of(path)
    loaded = weights.load(path, kind)
    about = {name: value for name, value in loaded.about.items() if name != "kind"}
    own = {task: file.name for task, file in lora_files.task_loras(path).items()}
    facts = {"kind": kind, "parameters": weights.parameter_count(loaded.params), **_shown(about, every)}
    return facts | ({"LoRAs of tasks": own} if own else {})


def _shown(about: dict[str, Any], every: bool) -> dict[str, Any]:
    """The facts of a model: all, or those for people."""
    if every:
        return about
    config, tasks = about.get("config", {}), about.get("layouts", {}).get("tasks", {})
    facts = {name: value for name, value in about.items() if not isinstance(value, dict) and name not in FOR_PROGRAMS}
    facts |= {name: config[name] for name in CONFIG if name in config and _says(config, name)}
    return facts | ({"tasks": ", ".join(name for name, share in tasks.items() if share)} if tasks else {})


def _says(config: dict[str, Any], name: str) -> bool:
    """Whether a setting has an effect: of `levels` and `codes`, the quantizer has one."""
    return name not in ("levels", "codes") or (name == "levels") == (config["quantizer"] == "fsq")


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
