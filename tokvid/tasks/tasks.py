"""The tasks of the one trunk: what of a window is given, what is generated, and from what.

To add one: a row of `TASKS`, and of `CONDITIONS` where it reads a video that no other task does. Training draws windows
by it; the recipe's mixture (`layouts.tasks`) and `tokvid edit --task` know its name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tokvid.errors import UserError, did_you_mean
from tokvid.tasks.conditions import CONDITIONS, Condition

if TYPE_CHECKING:  # `tokvid --help` reads the tables, so functions import NumPy when they run
    import numpy as np

MOST_KNOWN = 3  # latent frames that a continuation starts from
Shape = tuple[int, int, int]  # latent frames, rows and columns of a window


@dataclasses.dataclass(frozen=True)
class Given:
    """Which tokens of a window are given.

    The first latent frames, from the least to the most of `first` in a window that begins the video, and of `later` in
    one from mid-video (None: there is no such window). With `mask`, those tokens that it draws instead: bool (T, H, W).
    """

    first: tuple[int, int] = (0, 0)
    later: tuple[int, int] | None = None
    mask: "Callable[[Shape, np.random.Generator], np.ndarray] | None" = None

    def placements(self, latent_frames: int, frames: int) -> list[tuple[int, int]]:
        """Every start of a window of `frames` in a video, with every number of leading latent frames that are given."""
        if self.mask is not None and frames < 2:
            return []
        pairs = []
        for start in range(latent_frames - frames + 1):
            if (bounds := self.later if start else self.first) is not None:
                pairs += [(start, known) for known in range(bounds[0], min(bounds[1], frames - 1) + 1)]
        return pairs

    def known(self, shape: Shape, leading: int, rng: "np.random.Generator") -> "np.ndarray":
        """A draw: bool (T, H, W), True where a token is given."""
        import numpy as np

        if self.mask is not None:
            return self.mask(shape, rng)
        return np.broadcast_to((np.arange(shape[0]) < leading)[:, None, None], shape)


def some_frames(shape: Shape, rng: "np.random.Generator") -> "np.ndarray":
    """Any latent frames, one at least; and one at least is left to generate."""
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
    """What is given, beside the text. `condition` is a key of CONDITIONS, or none.

    `at_switch` is the share of windows, of videos whose caption changes, whose given part ends right at a change.
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
    "interpolation": Task("twice as many frames", any_last_frames, condition="coarse"),
}


def check_mixture(tasks: Mapping[str, float]) -> None:
    """UserError where a name is no task's, a share is negative, or none is above 0."""
    for name, share in tasks.items():
        if name not in TASKS:
            raise UserError(did_you_mean(name, TASKS, "task"))
        if not share >= 0:
            raise UserError(f"the share of task {name} should be 0 or more, got {share}")
    if not sum(tasks.values()) > 0:
        raise UserError("the shares of layouts.tasks should be above 0 for one task at least")


def conditions_of(tasks: Mapping[str, float]) -> dict[str, Condition]:
    """The conditions that a mixture of tasks reads, by name, in the order of CONDITIONS."""
    read = {TASKS[name].condition for name, share in tasks.items() if share}
    return {name: condition for name, condition in CONDITIONS.items() if name in read}


def trained_tasks(about: Mapping[str, Any]) -> dict[str, float]:
    """The tasks that weights were trained for, and their shares, by what is saved beside them.

    Earlier versions saved a field for each task beside the other settings of layouts.
    """
    layouts = about.get("layouts", {})
    tasks = layouts.get("tasks", {name: layouts[name] for name in TASKS if name in layouts})
    return {name: share for name, share in tasks.items() if name in TASKS and share > 0}


def trained_refinement(about: Mapping[str, Any]) -> tuple[str, Condition] | None:
    """The name and condition of a task that weights were trained for which raises the frame rate, or None."""
    for name in trained_tasks(about):
        condition = CONDITIONS.get(TASKS[name].condition)
        if condition is None or condition.slower == 1:
            continue
        if about.get("coarse_factor", condition.slower) == condition.slower:  # said by earlier versions
            return TASKS[name].condition, condition
    return None
