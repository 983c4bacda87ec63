"""tokvid: text to video the token way, in JAX.

    import tokvid

    world = tokvid.load("robots")
    video = world.story(["put the cup on the table", "open the drawer"], seconds=3, fps=4)
    video.save("story.mp4")

The names of `__all__` are imported when they are first used, so that `import tokvid` imports neither JAX nor NumPy.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokvid.api.highlights import highlights
    from tokvid.api.stories import Settings, make_story
    from tokvid.api.training import fit
    from tokvid.api.video import Stream, Video
    from tokvid.api.world import World, load
    from tokvid.config import Sampling
    from tokvid.errors import UserError
    from tokvid.sampling.story import Segment, Story

__version__ = "0.1.0"
__all__ = [
    "Sampling",
    "Segment",
    "Settings",
    "Story",
    "Stream",
    "UserError",
    "Video",
    "World",
    "fit",
    "highlights",
    "load",
    "make_story",
]

_MODULES = {
    "Sampling": "config",
    "Segment": "sampling.story",
    "Settings": "api.stories",
    "Story": "sampling.story",
    "Stream": "api.video",
    "UserError": "errors",
    "Video": "api.video",
    "World": "api.world",
    "load": "api.world",
    "make_story": "api.stories",
    "fit": "api.training",
    "highlights": "api.highlights",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
