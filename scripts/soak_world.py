"""The small world of `scripts/soak.py`: its jobs, what opens its files, and the results of all when undisturbed."""

import contextlib
import faulthandler
import hashlib
import itertools
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from job import IMPORTED, begin, left, start
from kill_test import checkpoints, said

from tokvid.io.progress import progress

IMPORTED.extend(("tokvid.cli.main", "tokvid.input_pipeline.folder", "tokvid.input_pipeline.records"))
IMPORTED.extend(("tokvid.sampling.film", "tokvid.sampling.script", "tokvid.train.tokenize"))
IMPORTED.extend(("tokvid.train.transformer_step", "soak_world"))
SLOWEST = 300.0  # seconds that a job may take, beyond ten times its undisturbed time
RECIPE = """
from tokvid.config import DataConfig, Recipe, TokenizerConfig, TokensConfig, TrainConfig, TransformerConfig

size = (16, 16)
train = dict(batch=4, warmup=2, save_every=4, sample_every=0, log_every=4)
recipe = Recipe(
    data=DataConfig(source="records", path="data", size=size, frames=5, fps=(4.0,), threads=1),
    tokenizer=TokenizerConfig(patch=4, width=16, heads=2, mlp=32, encoder=("space",), decoder=("time",),
                              time_window=1, quantizer="fsq", levels=(5, 3, 2)),
    train_tokenizer=TrainConfig(steps=24, **train),
    tokens=TokensConfig(videos=24, latent_frames=3, text_samples=100),
    transformer=TransformerConfig(text_vocabulary=320, text_length=32, latent_frames=3, width=16, layers=1, heads=2,
                                  kv_heads=2, mlp=32, head_width=16, head_layers=1),
    train_transformer=TrainConfig(steps=24, **train),
)
"""
STORY = """
fps: 4
seed: 7
guidance: 2.5
segments:
  - {prompt: a red circle moves up, seconds: 1}
  - {prompt: a blue star, seconds: 1, seed: 3}
"""
SCRIPT = {
    "script.srt": "1\n00:00:00,000 --> 00:00:02,500\na red circle\n\n2\n00:00:03,000 --> 00:00:04,000\na <i>star</i>\n",
    "script.txt": "Scene 1\n\n[0:02] a red circle moves up.\n\n[4 s] a blue star,\nlarge\n",
    "script.fountain": "Title: Shapes\n\nEXT. PLAIN - DAY\n\nA red circle.\n\nSTAR\n(slowly)\nHello.\n\n> CUT TO:\n",
    "track.json": json.dumps({"fps": 8, "points": [[[0.2, 0.5], None], [[0.25, 0.5], [0.5, 1]]]}),
}


class Job(NamedTuple):
    """A command; the files that it reads, ours (which a fault may damage), the user's and others; its result, and which
    files of it count."""

    command: str
    reads: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    makes: str = "opened"
    judged: str = "*"
    others: tuple[str, ...] = ()

    @property
    def needs(self) -> tuple[str, ...]:
        return (*self.reads, *self.users, *self.others)


def training(kind: str, *reads: str) -> Job:
    """The training of a model."""
    command, makes = f"train {kind} recipe.py --workdir w", f"w/{kind}"
    return Job(command, reads, makes=makes, judged="weights.safetensors", others=("recipe.py",))


# `open` is no command of tokvid: it reads a file to its end, by OPENED.
JOBS = {
    "data": Job("data folder clips --out data --size 16 16 --fps 4", (), ("clips",), "data"),
    "curate": Job("data curate clips --out curated --keep frames>1", (), ("clips",), "curated"),
    "tokenizer": training("tokenizer", "data"),
    "tokenize": Job("tokenize recipe.py --workdir w", ("data", "w/tokenizer"), makes="w/tokens", others=("recipe.py",)),
    "transformer": training("transformer", "w/tokens", "w/tokenizer", "w/text.model"),
    "generate": Job("generate --weights w --prompt=a --seconds 1 --fps 4 --out g.mp4", ("w",), (), "g.mp4"),
    "story": Job("story story.yaml --weights w --out s.mp4", ("w", "story.yaml"), (), "s.mp4"),
    "reconstruct": Job("reconstruct clips/000.mp4 --weights w --out r.mp4", ("w",), ("clips/000.mp4",), "r.mp4"),
    "open records": Job("open records data", ("data",)),
    "open tokens": Job("open tokens w", ("w/tokens", "w/text.model", "w/tokenizer/config.json"), others=("recipe.py",)),
    "open weights": Job("open weights w", ("w/tokenizer", "w/transformer", "w/text.model")),
    "open checkpoints": Job("open checkpoints w", ("w/tokenizer/checkpoints",), others=("data", "recipe.py")),
    "open story": Job("open story story.yaml", (), ("story.yaml",)),
    "open srt": Job("open script script.srt", (), ("script.srt",)),
    "open text": Job("open script script.txt", (), ("script.txt",)),
    "open screenplay": Job("open script script.fountain", (), ("script.fountain",)),
    "open track": Job("open track track.json", (), ("track.json",)),
    "open mask": Job("open picture mask.png", (), ("mask.png",)),
    "open clip": Job("open clip clips/000.mp4", (), ("clips/000.mp4",)),
}


def records(path: Path) -> Iterator[Any]:
    from tokvid.input_pipeline.records import RecordSource

    source = RecordSource(path)
    yield source.kind, source.metadata, source.counts
    for record in map(source.__getitem__, range(len(source))):
        yield record.key, record.seconds, record.captions, record.fps, record.video, record.frames, record.tokens
        yield from record.conditions.items()


def tokens(workdir: Path) -> Iterator[Any]:
    from tokvid.train.recipe import open_recipe
    from tokvid.train.token_cache import open_token_cache

    cache = open_token_cache(workdir, open_recipe(Path("recipe.py"), []))
    yield cache.text.fingerprint
    yield from records(cache.source.path)


def trained(folder: Path) -> Iterator[Any]:
    import jax

    from tokvid.sampling.models import load_models

    models = load_models(folder)
    yield models.text.fingerprint
    for each in (models.tokenizer, models.transformer):
        yield each.config
        yield from jax.tree.leaves(each.params)


def saved(workdir: Path) -> Iterator[Any]:
    import jax

    from tokvid.sharding import make_mesh
    from tokvid.train.checkpoints import Checkpoints
    from tokvid.train.loop import agreement
    from tokvid.train.recipe import open_recipe
    from tokvid.train.state import abstract_state
    from tokvid.train.tokenizer_step import TokenizerTraining

    recipe = open_recipe(Path("recipe.py"), [])
    training, config = TokenizerTraining(recipe), recipe.train_tokenizer
    with Checkpoints(workdir / "tokenizer" / "checkpoints", config.keep, agreement(training, config)) as kept:
        restored = kept.restore(abstract_state(training, config, make_mesh(config.mesh))[0])
    assert restored is not None, "no checkpoint"
    step, state, data = restored
    yield step, data
    yield from jax.tree.leaves(state)


def story(path: Path) -> Iterator[Any]:
    from tokvid.sampling.story import load_story

    yield load_story(path)


def script(path: Path) -> Iterator[Any]:
    from tokvid.sampling.script import read_script, story_file

    yield story_file(read_script(path), path.name)


def track(path: Path) -> Iterator[Any]:
    from tokvid.input_pipeline.tracks import load_track

    yield load_track(path, 4.0)


def picture(path: Path) -> Iterator[Any]:
    from tokvid.api.inputs import read_picture

    yield read_picture(path, (16, 16))


def clip(path: Path) -> Iterator[Any]:
    from tokvid.input_pipeline.clips import stream_frames

    yield from stream_frames(path, fps=4.0, size=(16, 16))


OPENED: dict[str, Callable[[Path], Iterator[Any]]] = {
    "records": records,
    "tokens": tokens,
    "weights": trained,
    "checkpoints": saved,
    "story": story,
    "script": script,
    "track": track,
    "picture": picture,
    "clip": clip,
}


def read(kind: str, path: str) -> None:
    """Writes a hash of all that is in a file or folder to the file `opened`."""
    import logging

    import numpy as np

    from tokvid.cli.main import _fail
    from tokvid.errors import UserError

    logging.basicConfig(level=logging.WARNING, format="tokvid: %(message)s")

    def content(value: Any) -> bytes:
        if isinstance(value, tuple):
            return b"".join(map(content, value))
        if isinstance(value, bytes):
            return value
        return (
            np.asarray(value).tobytes()
            if hasattr(value, "__array__")
            else repr(value).encode(errors="backslashreplace")
        )

    total = hashlib.sha256()
    try:
        for value in OPENED[kind](Path(path)):
            total.update(content(value) + b"\0")
    except UserError as error:
        _fail(str(error), 2)
    Path("opened").write_text(total.hexdigest())


def poison(steps: frozenset[int]) -> None:
    """Makes the batches of these steps, counted from the start of the process, not finite."""
    from tokvid.train.transformer_step import TransformerTraining

    prepare, done = TransformerTraining.prepare, 0

    def prepare_poisoned(self: Any, batch: Any, *rest: Any) -> Any:
        nonlocal done
        done += 1
        return prepare(self, batch._replace(fps=batch.fps * float("nan")) if done in steps else batch, *rest)

    TransformerTraining.prepare = prepare_poisoned  # type: ignore[method-assign]


class Trouble(NamedTuple):
    """What goes wrong inside a process: batches of these steps, counted from its start, are not finite; the wall clock
    jumps, by a seed."""

    steps: frozenset[int] = frozenset()
    clock: int = 0

    def begin(self) -> None:
        if self.steps:
            poison(self.steps)
        if self.clock:
            time.time = unsteady(self.clock)


UNTROUBLED = Trouble()
JUMPED = "the clock jumps"  # what a process says of it


def unsteady(seed: int) -> Callable[[], float]:
    """A wall clock that jumps by up to four months, once, after up to 300 times that it is read; it says so."""
    draw, now = random.Random(seed), time.time
    before, shift, reads = draw.randrange(300), draw.uniform(-1e7, 1e7), itertools.count()

    def read() -> float:
        if (number := next(reads)) == before:
            os.write(2, f"{JUMPED} by {shift:.0f} s\n".encode())
        return now() + shift * (number >= before)

    return read


def work(rank: int, address: str, folder: Path, log: Path, command: str, trouble: Trouble) -> None:
    """A command, in a process of its own."""
    begin(log)
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    faulthandler.dump_traceback_later(SLOWEST / 2)  # the report tells where a job that hangs is
    words = command.split()
    if words[0] == "open":
        read(*words[1:])
        return
    from tokvid.cli.main import main as tokvid

    trouble.begin()
    os.environ["GLIBC_TUNABLES"] = ""  # it would start itself again
    sys.argv = ["tokvid", *words]
    tokvid()


class Run:
    """A command that was started; what it says is in a file beside the folder that it works in."""

    def __init__(self, folder: Path, command: str, trouble: Trouble = UNTROUBLED):
        self.log = Path(tempfile.mkstemp(prefix="soak.", suffix=".log")[1])
        self.process: BaseProcess = start(1, work, folder, self.log, command, trouble)[0]
        self.began = time.monotonic()

    def end(self, limit: float) -> "Ended":
        """Waits for it; after `limit` seconds it is killed."""
        self.process.join(limit)
        code, seconds = self.process.exitcode, time.monotonic() - self.began
        self.process.kill()
        self.process.join()
        lines = said(self.log)
        self.log.unlink()
        return Ended(code, lines + ("soak: something lives on\n" if left(self.process) else ""), seconds)


class Ended(NamedTuple):
    """How a command ended: its exit code (None: it hung), what it said, and the seconds it took."""

    code: int | None
    said: str
    seconds: float


def digest(folder: Path, job: Job) -> str:
    """A hash of a job's result."""
    place, total = folder / job.makes, hashlib.sha256()
    paths = [path for path in below(place) if place.is_file() or path.match(job.judged)]
    for path in paths:
        total.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return total.hexdigest() if paths else ""


def contents(folder: Path) -> dict[str, str]:
    """A hash of each file below a folder."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in below(folder)}


def below(place: Path) -> list[Path]:
    """The files of a folder, or the file itself."""
    return [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())


class World:
    """A folder in which all jobs have run undisturbed; each case works on a copy of the part that it needs."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.seconds: dict[str, float] = {}
        self.truth: dict[str, list[str]] = {}  # of each job; further ones are those of older checkpoints

    def prepare(self, names: Iterable[str]) -> None:
        """Makes the user's files and runs these jobs and those that make their files, unless an earlier soak did."""
        about = self.folder / "about.json"
        if about.exists():
            self.seconds, self.truth = json.loads(about.read_text())
        else:
            self.folder.mkdir(parents=True)
            self._write_files()
        wanted: set[str] = set()
        for name in reversed(JOBS):  # what a job reads is made by those above it
            made, read = JOBS[name].makes, [part for each in wanted for part in JOBS[each].needs]
            if name in names or any(made.startswith(part) or part.startswith(f"{made}/") for part in read):
                wanted.add(name)
        wanted = {name for name in wanted if name not in self.truth}
        with progress("undisturbed", len(wanted), "jobs") as advance:
            for name in filter(wanted.__contains__, JOBS):
                self._run(name)
                about.write_text(json.dumps([self.seconds, self.truth]))
                advance(1, job=name)

    def _write_files(self) -> None:
        from tokvid.io.media import write_image, write_video
        from tokvid.shapes.drawing import ShapesDataset

        clips, lines = self.folder / "clips", []
        clips.mkdir()
        for number, video in enumerate(ShapesDataset(24, 0, False)):
            lines.append(json.dumps({"file": f"{number:03d}.mp4", "caption": video.captions[0].text}))
            write_video(clips / f"{number:03d}.mp4", frames := video.read(0.0, 8.0, 12, (32, 32)), 8)
        write_image(self.folder / "mask.png", frames[0])
        (clips / "captions.jsonl").write_text("\n".join(lines) + "\n")
        for name, text in {"recipe.py": RECIPE, "story.yaml": STORY, **SCRIPT}.items():
            (self.folder / name).write_text(text)

    def _run(self, name: str) -> None:
        ended = Run(self.folder, JOBS[name].command).end(4 * SLOWEST)
        if ended.code != 0:
            sys.exit(f"{name} fails undisturbed, with exit code {ended.code}: {ended.said}")
        self.seconds[name], self.truth[name] = ended.seconds, [digest(self.folder, JOBS[name])]
        if name == "open checkpoints":
            self.truth[name] += self._older()

    def _older(self) -> list[str]:
        """What is in each checkpoint but the newest."""
        job, results = JOBS["open checkpoints"], []
        with self.copy("open checkpoints", self.folder.parent) as folder:
            for step in reversed(checkpoints(folder / "w" / "tokenizer")[0][1:]):
                shutil.rmtree(folder / "w" / "tokenizer" / "checkpoints" / str(step))
                ended = Run(folder, job.command).end(SLOWEST)
                results.append(digest(folder, job))
                if ended.code != 0:
                    sys.exit(f"an older checkpoint cannot be read: {ended.said}")
            shutil.rmtree(folder)
        return results

    @contextlib.contextmanager
    def copy(self, name: str, within: Path) -> Iterator[Path]:
        """A folder with all that a job reads."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name.replace(' ', '-')}.", dir=within))
        for part in JOBS[name].needs:
            source, place = self.folder / part, folder / part
            place.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                left_out = None if part.endswith("checkpoints") else shutil.ignore_patterns("checkpoints")
                shutil.copytree(source, place, ignore=left_out, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, place)
        yield folder
