"""The tasks of the one trunk: which tokens of a window are known, and which condition is read.

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

MOST_KNOWN = 3  # known latent frames of a continuation
Shape = tuple[int, int, int]  # latent frames, rows and columns of a window


@dataclasses.dataclass(frozen=True)
class Given:
    """The known tokens of a window, as a draw.

    Either its first latent frames, their number between the bounds of `first` in a window that begins the video, and of
    `later` in one from mid-video (None: no such windows); or, with `mask`, the tokens that it draws: bool (T, H, W).
    """

    first: tuple[int, int] = (0, 0)
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

    def known(self, shape: Shape, leading: int, rng: "np.random.Generator") -> "np.ndarray":
        """One draw: bool (T, H, W), True where a token is known."""
        import numpy as np

        if self.mask is not None:
            return self.mask(shape, rng)
        return np.broadcast_to((np.arange(shape[0]) < leading)[:, None, None], shape)


def some_frames(shape: Shape, rng: "np.random.Generator") -> "np.ndarray":
    """Any latent frames, but at least one, and not all."""
    import numpy as np

    known_T = rng.permutation(np.arange(shape[0]) < rng.integers(1, shape[0]))
    return np.broadcast_to(known_T[:, None, None], shape)


nothing = Given()
first_frame = Given(first=(1, 1))
last_frames = Given(first=(2, MOST_KNOWN), later=(1, MOST_KNOWN))
any_last_frames = Given(first=(0, MOST_KNOWN), later=(1, MOST_KNOWN))
any_frames = Given(first=(0, 0), later=(0, 0), mask=some_frames)


@dataclasses.dataclass(frozen=True)
class Task:
    """The inputs beside the text: known tokens, and a condition (a key of CONDITIONS, or none).

    `at_switch`: of the windows of videos whose caption changes, the share whose known part ends right at a change.
    """

    help: str
    given: Given = nothing
    condition: str = ""
    at_switch: float = 0.0


TASKS: dict[str, Task] = {
    "text_to_video": Task("a video of a text"),
    "image_to_video": Task("a video that begins with a picture", first_frame),
    "continuation": Task("a video goes on", last_frames, at_switch=0.25),
    "infilling": Task("new frames between given ones", any_frames),
    "restyle": Task("the same motion and outlines with another look", any_last_frames, condition="edges"),
    "reshape": Task("the same motion with other things", any_last_frames, condition="rough"),
    "colourise": Task("colours for a grey video", any_last_frames, condition="grey"),
    "upscale": Task("twice the width and height", any_last_frames, condition="low"),
    "animate": Task("a picture moves along a track", any_last_frames, condition="track"),
    "interpolation": Task("twice as many frames", any_last_frames, condition="coarse"),
}


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
    """The conditions that a mixture of tasks reads, by name, in the order of CONDITIONS."""
    names = {TASKS[name].condition for name, share in tasks.items() if share}
    return {name: condition for name, condition in CONDITIONS.items() if name in names}


def trained_tasks(about: Mapping[str, Any]) -> dict[str, float]:
    """The tasks that weights were trained for and their shares, read from the facts saved with them.

    Earlier versions saved one field for each task, beside the other settings of layouts.
    """
    layouts = about.get("layouts", {})
    tasks = layouts.get("tasks", {name: layouts[name] for name in TASKS if name in layouts})
    return {name: share for name, share in tasks.items() if name in TASKS and share > 0}


def trained_refinement(about: Mapping[str, Any]) -> tuple[str, Condition] | None:
    """The name and the condition of a trained task that raises the frame rate, or None."""
    for name in trained_tasks(about):
        condition = CONDITIONS.get(TASKS[name].condition)
        if condition is None or condition.slower == 1:
            continue
        if about.get("coarse_factor", condition.slower) == condition.slower:  # a field of earlier versions
            return TASKS[name].condition, condition
    return None
