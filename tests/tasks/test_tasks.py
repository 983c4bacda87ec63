"""The registries of tasks and conditions: every entry, without a line for a new one."""

import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.tasks.conditions import CONDITIONS, Condition
from tokvid.tasks.tasks import (
    TASKS,
    beside_an_edge,
    check_mixture,
    conditions_of,
    outside_a_box,
    trained_refinement,
    trained_tasks,
)

SHAPE = (6, 4, 5)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_leaves_something_to_generate(name):
    task, rng = TASKS[name], np.random.default_rng(0)
    assert task.help and set(task.conditions) <= CONDITIONS.keys() and 0 <= task.at_switch <= 1
    pairs = task.given.placements(9, SHAPE[0])
    assert pairs and all(0 <= start <= 3 and 0 <= leading < SHAPE[0] for start, leading in pairs)
    assert not task.given.placements(SHAPE[0] - 1, SHAPE[0]), "a video shorter than the window"
    assert all(leading < 2 for _, leading in task.given.placements(9, 2)), "a window shorter than what may be known"
    for start, leading in pairs:
        known_THW = task.given.known(SHAPE, leading, rng)
        assert known_THW.shape == SHAPE and known_THW.dtype == bool and not known_THW.all()
        assert task.given.mask is not None or known_THW.sum() == leading * 20
        assert start == 0 or leading or task.given.mask is not None, "a window of mid-video goes on from something"


def test_a_box_is_whole_in_every_frame():
    """A quarter to three quarters as high and as wide as the frame; some move."""
    rng, moved = np.random.default_rng(0), set()
    for _ in range(200):
        new_THW = ~outside_a_box((4, 8, 12), rng)
        rows, columns = {(frame.any(1).sum(), frame.any(0).sum()) for frame in new_THW}.pop()
        assert (new_THW.sum(axis=(1, 2)) == rows * columns).all() and 2 <= rows <= 6 and 3 <= columns <= 9
        moved.add(bool((new_THW != new_THW[0]).any()))
    assert moved == {False, True}


def test_what_is_new_beside_an_edge_is_at_any_of_the_four():
    rng = np.random.default_rng(0)
    new = [~beside_an_edge((1, 8, 8), rng)[0] for _ in range(50)]
    sides = {tuple(bool(side.all()) for side in (each[0], each[-1], each[:, 0], each[:, -1])) for each in new}
    assert sides == {tuple(side == other for other in range(4)) for side in range(4)}


@pytest.mark.parametrize("name", CONDITIONS)
def test_a_condition_is_made_frame_by_frame(name):
    condition = CONDITIONS[name]
    video = np.random.default_rng(0).integers(256, size=(9, 16, 24, 3), dtype=np.uint8)
    whole = condition.apply(video)
    frames, first = (1, 4) if condition.still else (1 + 8 // condition.slower, 0)
    assert whole.shape == (frames, 16 // condition.smaller, 24 // condition.smaller, 3) and whole.dtype == np.uint8
    assert condition.help
    for number in range(frames):
        at = first + number * condition.slower
        np.testing.assert_array_equal(condition.apply(video[at : at + 1])[0], whole[number])
    if condition.still:
        for when, at in ((0.0, 0), (0.34, 3), (0.99, 8)):
            np.testing.assert_array_equal(condition.apply(video, when), condition.apply(video[at : at + 1]))


def test_the_layout_tells_conditions_without_an_embedding_apart():
    layouts = [(each.slower, each.smaller) for each in CONDITIONS.values() if not each.named and not each.own]
    assert len(set(layouts)) == len(layouts) and (1, 1) not in layouts
    # A video's own first frame, which alone stands at 0 seconds.
    assert [name for name, each in CONDITIONS.items() if each.own] == ["opening"] and not CONDITIONS["opening"].named


@pytest.mark.parametrize("first, frames, seen", [(4, 4, (1, 3)), (5, 4, (2, 3)), (0, 4, (0, 3)), (1, 4, (0, 3))])
def test_a_window_sees_the_condition_up_to_its_end(first, frames, seen):
    """Of one at half the rate: what shows its own frames, and the one before that."""
    assert Condition("", slower=2).span(first, frames) == seen


def test_what_a_video_recalls_of_itself_is_no_input():
    assert not TASKS["recall"].edits and TASKS["interpolation"].edits and not conditions_of({"recall": 1})


def test_a_smaller_condition_holds_the_means_of_its_pixels():
    video = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    small = Condition("", smaller=2).apply(video)
    assert small.shape == (2, 2, 2, 3)
    np.testing.assert_array_equal(small[0, 0, 0], np.rint(video[0, :2, :2].mean(axis=(0, 1))))


def test_mixtures():
    check_mixture({"text_to_video": 1, "interpolation": 0})
    assert not conditions_of({"text_to_video": 1, "interpolation": 0})
    assert set(conditions_of({"interpolation": 0.1})) == {"coarse"}
    for tasks, said in (({}, "above 0"), ({"colorise": 1}, "unknown task"), ({"continuation": -0.1}, "0 or more")):
        with pytest.raises(UserError, match=said):
            check_mixture(tasks)


def test_what_weights_were_trained_for():
    """By this version, and by earlier ones, which saved a field for each task."""
    now = {"layouts": {"tasks": {"text_to_video": 0.5, "interpolation": 0.5, "gone": 1.0}, "rows": [0]}}
    earlier = {"layouts": {"text_to_video": 0.5, "interpolation": 0.5, "infilling": 0.0, "rows": [0]}}
    for about in (now, earlier, earlier | {"coarse_factor": 2}):
        assert trained_tasks(about) == {"text_to_video": 0.5, "interpolation": 0.5}
        assert trained_refinement(about) == ("coarse", CONDITIONS["coarse"])
    assert trained_refinement(earlier | {"coarse_factor": 3}) is None, "another rate than the condition has now"
    assert trained_tasks({}) == {} and trained_refinement({}) is None
