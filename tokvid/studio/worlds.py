"""The weights that the studio offers, and facts about them for the page, read from their configs alone."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokvid import weights
from tokvid.config import GUIDANCE
from tokvid.errors import UserError
from tokvid.input_pipeline.text import TextModel
from tokvid.sampling.story import Story, defaults_of, load_story
from tokvid.tasks.tasks import TASKS, keeps_pixels, trained_tasks
from tokvid.transformer import lora_files

MOST_WORDS = 120  # that are listed
EXAMPLE, EXAMPLE_PICTURE = "demo/story.yaml", "demo/opening.png"


class Verb(NamedTuple):
    """A method of a world other than `edit`, its own settings, and whether its videos may be larger."""

    method: str
    settings: tuple[str, ...] = ()
    larger: bool = True


# The tasks that the page offers beside edits, or does otherwise.
VERBS = {
    "animate": Verb("animate", ("track",), larger=False),
    "interpolation": Verb("interpolate", ("factor", "draws")),
    "infilling": Verb("loop"),
}


def method_of(task: str) -> str:
    """The method of a world that does a task; "" is a story."""
    return VERBS[task].method if task in VERBS else "edit" if task else "story"


@dataclasses.dataclass(frozen=True)
class World:
    """Weights by the name that requests use."""

    name: str
    folder: Path
    shipped: bool = False
    loras: tuple[tuple[Path, float], ...] = ()  # files, and the factors of their updates
    base: str = ""  # the name by which commands know the weights; "": none

    def facts(self) -> dict[str, Any]:
        """Size, rates, an example story and its settings."""
        about = self._about
        rates = sorted(about.get("fps") or [8.0])
        example = self.example()
        scene = {"fps": rates[len(rates) // 2], "guidance": GUIDANCE, "scheme": None, "sampling": {}}
        if example is not None:
            scene = {
                "fps": example.fps,
                "guidance": example.guidance,
                "scheme": example.scheme,
                "sampling": dataclasses.asdict(example.sampling),
            }
        return {
            "name": self.name,
            "shipped": self.shipped,
            "base": self.base,
            "loras": [[path.name, scale] for path, scale in self.loras],
            "tasks": {
                name: {
                    "help": TASKS[name].help,
                    "settings": VERBS[name].settings if name in VERBS else TASKS[name].settings,
                    "larger": VERBS[name].larger if name in VERBS else keeps_pixels(name),
                    "guidance": scene["guidance"] if defaults_of(name)[0] == GUIDANCE else defaults_of(name)[0],
                }
                for name in self.tasks
            },
            "size": list(about.get("size") or (64, 64)),
            "rates": rates,
            "defaults": scene,
            "example": _scenes(example) if example is not None else [],
            "example_picture": self.picture is not None,
            "words": self.words(),
        }

    @property
    def tasks(self) -> list[str]:
        """The tasks of `tokvid edit`, and of VERBS, that they were trained for."""
        known = trained_tasks(self._about)
        return [name for name, task in TASKS.items() if (task.edits or name in VERBS) and name in known]

    @property
    def _about(self) -> dict[str, Any]:
        return weights.describe(self.folder / "transformer", "transformer")

    def spelled(self, prompt: str) -> list[str]:
        """The words of a prompt that they hardly know, by their text model alone."""
        if (self.folder / weights.TEXT).is_dir():
            return []  # a T5, which learned its words elsewhere, and needn't be loaded
        return _text_model(self.folder / weights.TEXT_MODEL).spelled(prompt)

    def words(self) -> list[str]:
        """The commonest words of their captions; none where a T5 reads prompts, which learned its words elsewhere."""
        if (self.folder / weights.TEXT).is_dir():
            return []
        words = _text_model(self.folder / weights.TEXT_MODEL).words(2 * MOST_WORDS)
        return list({word.lower(): word for word in reversed(words)}.values())[::-1][:MOST_WORDS]  # "Put" or "put"

    def example(self) -> Story | None:
        """The story that comes with them, if any."""
        path = self.folder / EXAMPLE
        return load_story(path) if path.is_file() else None

    @property
    def picture(self) -> Path | None:
        """The picture that the example begins with, if any."""
        path = self.folder / EXAMPLE_PICTURE
        return path if path.is_file() else None


@functools.lru_cache(maxsize=16)
def _text_model(path: Path) -> TextModel:
    return TextModel.load(path)


def _scenes(story: Story) -> list[dict[str, Any]]:
    """Each scene with a guidance scale and a seed of its own, so that it keeps them when scenes move."""
    return [
        {
            "prompt": segment.prompt,
            "seconds": segment.seconds,
            "guidance": story.guidance if segment.guidance is None else segment.guidance,
            "seed": story.seed_of(number),
        }
        for number, segment in enumerate(story.segments)
    ]


def offered(shipped: dict[str, Path], chosen: Path, loras: Sequence[tuple[Path, float]] = ()) -> dict[str, World]:
    """The shipped weights and the chosen ones, which come first, then these with each LoRA.

    UserError where the chosen ones have no transformer, or for a file that is no LoRA.
    """
    worlds = {}
    for name, folder in {**_named(shipped, chosen), **shipped}.items():
        world = World(name, folder, name in shipped, base=name if name in shipped else "")
        try:
            world.facts()
        except UserError:
            if folder == chosen:
                raise
            continue  # shipped without a transformer
        worlds[name] = world
    first = next(iter(worlds.values()))
    for path, scale in loras:
        lora_files.read_lora(path)
        stem = path.stem if path.name != lora_files.LORA_FILE else path.absolute().parent.parent.name  # of its training
        plain = f"{first.name}+{_plain(stem)}" + (f"-{scale:g}" if scale != 1 else "")
        numbered = (f"{plain}-{number}" for number in itertools.count(2))
        name = next(name for name in itertools.chain([plain], numbered) if name not in worlds)
        worlds[name] = dataclasses.replace(first, name=name, shipped=False, loras=((path, scale),))
    return worlds


def _plain(name: str) -> str:
    """A name in letters, digits, - and _."""
    return "".join(letter for letter in name if letter.isalnum() or letter in "-_")[:40] or "weights"


def _named(shipped: dict[str, Path], chosen: Path) -> dict[str, Path]:
    for name, folder in shipped.items():
        if folder == chosen:
            return {name: folder}
    name = _plain(chosen.resolve().name)
    return {f"{name}-2" if name in shipped else name: chosen}
