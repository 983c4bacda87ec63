"""The tasks of the one trunk: which tokens of a window are known, and which conditions are read.

To add one: a row of `TASKS`, and a row of `CONDITIONS` where it reads a new one. Training, the recipe's mixture
(`layouts.tasks`) and `tokvid edit --task` know it by its name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tokvid.errors import UserError, did_you_mean
from tokvid.tasks.conditions import CONDITIONS, Condition

if TYPE_CHECKING:  # `tokvid --help` reads the tables, so functions import NumPy when they run
    import numpy as np

# What makes the videos of tasks that aren't edits: a command of tokvid, or a method of a world.
OTHER_VERBS = {
    "text_to_video": "generate",
    "image_to_video": "generate",
    "continuation": "extend",
    "recall": "extend",
    "infilling": "loop",
    "animate": "animate",
}
MOST_KNOWN = 3  # known latent frames of a continuation
Shape = tuple[int, int, int]  # latent frames, rows and columns of a window


@dataclasses.dataclass(frozen=True)
class Given:
    """The known tokens of a window, as a draw.

    Either its first latent frames, their number between the bounds of `first` in a window that begins the video, and of
    `later` in one from mid-video (None: no such windows); and, with `mask`, the tokens that it draws: bool (T, H, W).
    """

    first: tuple[int, int] | None = (0, 0)
    later: tuple[int, int] | None = None
    mask: "Callable[[Shape, np.random.Generator], np.ndarray] | None" = None

    def placements(self, latent_frames: int, frames: int) -> list[tuple[int, int]]:
        """All pairs of a start of a window of `frames` in a video and a number of known leading latent frames."""
        if self.mask is not None and frames < 2:
            return []
        pairs = []
        for start in range(latent_frames - frames + 1):
            if (bounds := self.later if start else self.first) is not None:
                pairs += [(start, known) for known in range(bounds[0], min(bounds[1], frames - 1) + 1)]
        return pairs

    @property
    def always(self) -> int | None:
        """The number of known leading latent frames where it is the same in every window, else None."""
        same = self.first is not None and self.first[0] == self.first[1] and self.later is None and self.mask is None
        return self.first[0] if same and self.first is not None else None

    def known(self, shape: Shape, leading: int, rng: "np.random.Generator") -> "np.ndarray":
        """One draw: bool (T, H, W), True where a token is known."""
        import numpy as np

        known_THW = np.broadcast_to((np.arange(shape[0]) < leading)[:, None, None], shape)
        return known_THW if self.mask is None else known_THW | self.mask(shape, rng)


def some_frames(shape: Shape, rng: "np.random.Generator") -> "np.ndarray":
    """Any latent frames, but at least one, and not all."""
    import numpy as np

    known_T = rng.permutation(np.arange(shape[0]) < rng.integers(1, shape[0]))
    return np.broadcast_to(known_T[:, None, None], shape)


def outside_a_box(shape: Shape, rng: "np.random.Generator") -> "np.ndarray":
    """All but a box, a quarter to three quarters as high and as wide as the frame, which may move."""
    import numpy as np

    moves, inside_THW = rng.random() < 0.5, np.ones(shape, bool)
    for axis, size in ((1, shape[1]), (2, shape[2])):
        side = rng.integers(max(1, size // 4), max(1, 3 * size // 4) + 1)
        first, last = rng.integers(size - side + 1, size=2)
        start_T = np.rint(np.linspace(first, last if moves else first, shape[0]))[:, None]
        inside_TL = (np.arange(size) >= start_T) & (np.arange(size) < start_T + side)
        inside_THW &= np.expand_dims(inside_TL, 3 - axis)
    return ~inside_THW


def beside_an_edge(shape: Shape, rng: "np.random.Generator") -> "np.ndarray":
    """All but new rows or columns at one side of the frame, up to five eighths of it."""
    import numpy as np

    axis = int(rng.integers(1, 3))
    size = shape[axis]
    known_L = np.arange(size) >= rng.integers(1, max(1, 5 * size // 8) + 1)
    known_L = known_L[::-1] if rng.random() < 0.5 else known_L
    return np.broadcast_to(np.expand_dims(known_L, (0, 3 - axis)), shape)


def of_tiles_before(shape: Shape, rng: "np.random.Generator") -> "np.ndarray":
    """Maybe the first rows, maybe the first columns, up to a half: tiles share them with those above and before."""
    import numpy as np

    rows, columns = (int(rng.integers(size // 2 + 1)) * int(rng.random() < 0.5) for size in shape[1:])
    known_HW = (np.arange(shape[1])[:, None] < rows) | (np.arange(shape[2]) < columns)
    return np.broadcast_to(known_HW, shape)


def some_tokens(shape: Shape, rng: "np.random.Generator") -> "np.ndarray":
    """A random share of all tokens, but not the last of any latent frame."""
    import numpy as np

    known_THW: np.ndarray = rng.random(shape) < rng.random()
    known_THW[:, -1, -1] = False
    return known_THW


nothing = Given()
first_frame = Given(first=(1, 1))
last_frames = Given(first=(2, MOST_KNOWN), later=(1, MOST_KNOWN))
any_last_frames = Given(first=(0, MOST_KNOWN), later=(1, MOST_KNOWN))
in_mid_video = Given(first=None, later=(1, MOST_KNOWN))
any_frames = Given(first=(0, 0), later=(0, 0), mask=some_frames)


def windows_of(mask: "Callable[[Shape, np.random.Generator], np.ndarray]") -> Given:
    """The tokens that `mask` draws, and the latent frames that any window goes on from."""
    return dataclasses.replace(any_last_frames, mask=mask)


@dataclasses.dataclass(frozen=True)
class Task:
    """The inputs beside the text: known tokens, and conditions (keys of CONDITIONS).

    `at_switch`: of the windows of videos whose caption changes, the share whose known part ends right at a change.
    `text_dropout`: the least share of its windows without their text. A caption says how things move, as a track does,
    so a model that always has it learns to read that alone.
    `settings`: what users choose for it beside the prompt; flags of `tokvid edit`. `certain`: what is given leaves
    little to chance, so by default the likeliest tokens are drawn, without guidance. The likeliest colour of most
    things is grey, so colours aren't. `placed`: what is given shows where things are, so the guidance scale is low by
    default; a high one would draw them too early, above and left of there.
    """

    help: str
    given: Given = nothing
    conditions: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    at_switch: float = 0.0
    text_dropout: float = 0.0
    certain: bool = False
    placed: bool = False

    @property
    def edits(self) -> bool:
        """Whether it makes a video from another one, in `tokvid edit`."""
        given = [name for name in self.conditions if not CONDITIONS[name].own]
        return len(given) == 1 or bool(self.settings)


TASKS: dict[str, Task] = {
    "text_to_video": Task("a video of a text"),
    "image_to_video": Task("a video that begins with a picture", first_frame),
    "continuation": Task("a video goes on", last_frames, at_switch=0.25),
    "recall": Task("a video goes on, and its first frame is remembered", in_mid_video, ("opening",), at_switch=0.25),
    "infilling": Task("new frames between given ones", any_frames),
    "restyle": Task(
        "the same motion and outlines with another look", any_last_frames, ("edges",), ("first",), placed=True
    ),
    "reshape": Task("the same motion with other things", any_last_frames, ("rough",), ("first",)),
    "colourise": Task("colours for a grey video", any_last_frames, ("grey",), ("first",), placed=True),
    "inpaint": Task("a new part of a video", windows_of(outside_a_box), settings=("box", "mask")),
    "outpaint": Task("a wider or a higher video", windows_of(beside_an_edge), settings=("canvas",), placed=True),
    "upscale": Task("twice the width and height", windows_of(of_tiles_before), ("low",), ("times",), certain=True),
    "animate": Task(
        "what a picture shows moves along a track", any_last_frames, ("picture", "track"), text_dropout=0.75
    ),
    "variation": Task(
        "a video with a share of its tokens drawn again", windows_of(some_tokens), settings=("strength",)
    ),
    "interpolation": Task("twice as many frames", any_last_frames, ("coarse",), certain=True),
}


def keeps_pixels(task: str) -> bool:
    """Whether a task's videos have pixels of what is given, so that they can be larger than those of the weights."""
    conditions = [CONDITIONS[name] for name in TASKS[task].conditions]
    return task in ("inpaint", "outpaint") or any(each.slower > 1 or each.agree is not None for each in conditions)


def check_mixture(tasks: Mapping[str, float]) -> None:
    """UserError for an unknown task, a negative share, or no share above 0."""
    for name, share in tasks.items():
        if name not in TASKS:
            raise UserError(did_you_mean(name, TASKS, "task"))
        if not share >= 0:
            raise UserError(f"the share of task {name} should be 0 or more, got {share}")
    if not sum(tasks.values()) > 0:
        raise UserError("the shares of layouts.tasks should be above 0 for one task at least")


def conditions_of(tasks: Mapping[str, float]) -> dict[str, Condition]:
    """The conditions that a mixture of tasks reads, by name, in the order of CONDITIONS, but for `own` ones."""
    names = {condition for name, share in tasks.items() if share for condition in TASKS[name].conditions}
    return {name: condition for name, condition in CONDITIONS.items() if name in names and not condition.own}


def trained_tasks(about: Mapping[str, Any]) -> dict[str, float]:
    """The tasks that weights were trained for and their shares, read from the facts saved with them.

    Earlier versions saved one field for each task, beside the other settings of layouts.
    """
    layouts = about.get("layouts", {})
    tasks = layouts.get("tasks", {name: layouts[name] for name in TASKS if name in layouts})
    return {name: share for name, share in tasks.items() if name in TASKS and share > 0}


def trained_refinement(about: Mapping[str, Any]) -> tuple[str, Condition] | None:
    """The name and the condition of a trained task that raises the frame rate, or None."""
    for name in (condition for task in trained_tasks(about) for condition in TASKS[task].conditions):
        condition = CONDITIONS[name]
        # A field of earlier versions.
        if condition.slower > 1 and about.get("coarse_factor", condition.slower) == condition.slower:
            return name, condition
    return None
