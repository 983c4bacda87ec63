"""Every source of videos by name, behind one door: opened by split, with a fingerprint of its files.

To add one: a file that defines `SOURCE` (`source.Source`), and a line of `SOURCES` here. The module is imported when
the source is used, so PyAV or TensorFlow Datasets are needed only for the sources that read with them. No such module
imports this one.
"""

import dataclasses
import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokvid.config import DataConfig
from tokvid.errors import UserError, did_you_mean
from tokvid.input_pipeline.source import SPLITS, Source, all_files, part_of
from tokvid.io.urls import is_url, local
from tokvid.types import VideoSource

SOURCES: dict[str, str] = {
    "shapes": "tokvid.input_pipeline.shapes",  # procedural: Moving Shapes
    "mnist": "tokvid.input_pipeline.mnist",  # path: a file of digits
    "folder": "tokvid.input_pipeline.folder",  # path: a folder of clips with captions
    "webdataset": "tokvid.input_pipeline.webdataset",  # path: .tar shards: a folder, one, or a pattern
    "parquet": "tokvid.input_pipeline.parquet",  # path: tables, .parquet or .arrow, as Hugging Face's datasets are
    "hdf5": "tokvid.input_pipeline.hdf5",  # path: .hdf5 files of frames
    "npz": "tokvid.input_pipeline.npz",  # path: .npz files of frames
    "urls": "tokvid.input_pipeline.urls",  # path: lists of addresses, .csv or .jsonl
    "records": "tokvid.input_pipeline.records",  # path: a dataset written by records.RecordWriter
    "tfds": "tokvid.input_pipeline.builders",  # path: a dataset prepared by a builder
}

# What `tokvid data import` takes files for, by the end of their name.
SUFFIXES = {
    ".parquet": "parquet",
    ".arrow": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".npz": "npz",
    ".tar": "webdataset",
    ".csv": "urls",
    ".tsv": "urls",
    ".jsonl": "urls",
}

MARKED = 4096  # bytes at the beginning, the middle and the end of a file that enter its fingerprint
READERS = 16  # threads that read these


def source_of(config: DataConfig) -> Source:
    """The facts of `config.source`. UserError for an unknown one."""
    if config.source not in SOURCES:
        raise UserError(did_you_mean(config.source, SOURCES, "data source"))
    source: Source = importlib.import_module(SOURCES[config.source]).SOURCE
    return source


def source_for(path: Path) -> str:
    """The name of the source that reads a file, or the files in a folder, by their suffixes (SUFFIXES).

    UserError where there is none, or more than one. Lists count only where there is nothing else: they often tell of
    the other files.
    """
    files = path.rglob("*") if path.is_dir() else [path]
    names = {SUFFIXES[file.suffix.lower()] for file in files if file.suffix.lower() in SUFFIXES}
    names = names - {"urls"} or names
    if len(names) == 1:
        return names.pop()
    if names:
        raise UserError(f"{path} holds files of several kinds; choose one with --from: {', '.join(sorted(names))}")
    raise UserError(f"{path} is of no kind that can be imported ({', '.join(SUFFIXES)}); name it with --from")


def open_source(config: DataConfig, split: str = "train") -> VideoSource:
    """The videos of `config.source` in `split`, "train" or "held_out".

    UserError for an unknown source or split, and for an empty split.
    """
    source = source_of(config)
    if split not in SPLITS:
        raise UserError(did_you_mean(split, SPLITS, "split"))
    if is_url(config.path):
        config = dataclasses.replace(config, path=str(local(config.path)))
    if source.held_out is None:
        return part_of(source.open(config), config, "held_out" if split == "held_out" else "train")
    return source.held_out(config) if split == "held_out" else source.open(config)


def holds_out(config: DataConfig) -> bool:
    """Whether there are videos held out of training."""
    source = source_of(config)
    return config.held_out > 0 if source.held_out is None else source.holds_out(config)


def fingerprint(config: DataConfig) -> str:
    """16 hex digits that change with the data; "" where no files are read.

    They cover name and size of each file that the source lists and of each in `images_path`, and the beginning, the
    middle and the end of each file and of each of its parts.
    """
    files: list[tuple[Path, Path, Callable[[Path], Iterable[tuple[int, int]]]]] = []
    if config.path:
        path, source = local(config.path), source_of(config)
        files += [(path, file, source.parts) for file in sorted(source.files(path)) if not file.is_dir()]
    if config.images and config.images_path:
        path = Path(config.images_path)
        files += [(path, file, lambda file: ()) for file in sorted(all_files(path)) if not file.is_dir()]
    with ThreadPoolExecutor(READERS) as pool:
        marks = list(pool.map(lambda each: _mark(*each[1:]), files))
    rows = [[os.path.relpath(file, path), *mark] for (path, file, _), mark in zip(files, marks, strict=True)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] if config.path or rows else ""


def _mark(path: Path, parts: Callable[[Path], Iterable[tuple[int, int]]]) -> tuple[int, str]:
    """A file's size, and the SHA-256 of beginning, middle and end of it and its parts; -1 for an unreadable file."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for begin, length in ((0, size), *parts(path)):
                for start in (0, max(0, (length - MARKED) // 2), max(0, length - MARKED)):
                    file.seek(begin + start)
                    digest.update(file.read(min(MARKED, length)))
    except OSError:
        return -1, ""
    return size, digest.hexdigest()
