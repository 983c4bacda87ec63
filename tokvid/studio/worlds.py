"""The weights that the studio offers, and facts about them for the page, read from their configs alone."""

import dataclasses
from pathlib import Path
from typing import Any

from tokvid import weights
from tokvid.config import GUIDANCE
from tokvid.errors import UserError
from tokvid.sampling.story import Story, load_story

EXAMPLE, EXAMPLE_PICTURE = "demo/story.yaml", "demo/opening.png"


@dataclasses.dataclass(frozen=True)
class World:
    """Weights by the name that requests use."""

    name: str
    folder: Path
    shipped: bool = False

    def facts(self) -> dict[str, Any]:
        """Size, rates, an example story and its settings."""
        about = weights.describe(self.folder / "transformer", "transformer")
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
            "size": list(about.get("size") or (64, 64)),
            "rates": rates,
            "defaults": scene,
            "example": _scenes(example) if example is not None else [],
            "example_picture": self.picture is not None,
        }

    def example(self) -> Story | None:
        """The story that comes with them, if any."""
        path = self.folder / EXAMPLE
        return load_story(path) if path.is_file() else None

    @property
    def picture(self) -> Path | None:
        """The picture that the example begins with, if any."""
        path = self.folder / EXAMPLE_PICTURE
        return path if path.is_file() else None


def _scenes(story: Story) -> list[dict[str, Any]]:
    """Each scene with a guidance scale and a seed of its own, so that it keeps them when scenes move."""
    return [
        {
            "prompt": segment.prompt,
            "seconds": segment.seconds,
            "guidance": story.guidance if segment.guidance is None else segment.guidance,
            "seed": (story.seed + 7919 * number) % 2**32 if segment.seed is None else segment.seed,
        }
        for number, segment in enumerate(story.segments)
    ]


def offered(shipped: dict[str, Path], chosen: Path) -> dict[str, World]:
    """The shipped weights and the chosen ones, which come first. UserError where those have no transformer."""
    worlds = {}
    for name, folder in {**_named(shipped, chosen), **shipped}.items():
        world = World(name, folder, name in shipped)
        try:
            world.facts()
        except UserError:
            if folder == chosen:
                raise
            continue  # shipped without a transformer
        worlds[name] = world
    return worlds


def _named(shipped: dict[str, Path], chosen: Path) -> dict[str, Path]:
    for name, folder in shipped.items():
        if folder == chosen:
            return {name: folder}
    name = "".join(letter for letter in chosen.resolve().name if letter.isalnum() or letter in "-_")[:40] or "weights"
    return {f"{name}-2" if name in shipped else name: chosen}
