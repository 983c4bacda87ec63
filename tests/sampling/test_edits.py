"""Given videos: more frames between theirs, and a way back to their beginning."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from tokvid.config import Sampling
from tokvid.errors import UserError
from tokvid.sampling import codec, edits, prompts, window
from tokvid.sampling.edits import animate, animate_untrained, edit, inpaint, interpolate, loop, moved, vary
from tokvid.sampling.levels import interpolated, levels_between
from tokvid.sampling.story import Segment, Story, encode_opening, encode_picture, encode_video
from tokvid.tasks.conditions import CONDITIONS, Condition, draw_points, grey, with_luma
from tokvid.tasks.tasks import TASKS, Task, any_last_frames, keeps_pixels

STORY = Story((Segment("up"),), fps=4.0)
FEED = codec.StreamDecoder.feed


@pytest.fixture
def models(any_models):
    """As if trained to interpolate from half the rate, and to infill."""
    layouts = {"interpolation": 0.4, "infilling": 0.1, "rows": [0, 1, 2]}
    about = any_models.transformer.about | {"coarse_factor": 2, "layouts": layouts}
    return any_models._replace(transformer=any_models.transformer._replace(about=about))


@pytest.fixture
def asked(monkeypatch):
    """What the model is asked for, and that it answers with zeros."""
    calls = []

    def generate(graph, params, request, *, sampling, guided):
        batch = request.batch
        assert (batch.known.sum(axis=(1, 2, 3)) == request.known).all()
        calls.append((batch, batch.known[0].all(axis=(1, 2)).tolist(), int(request.tokens) // 4))
        return np.where(batch.known[..., None], batch.tokens, 0)

    monkeypatch.setattr(window, "generate", generate)
    return calls


def video(frames):
    return np.random.default_rng(0).integers(256, size=(frames, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize("frames", [2, 5, 8])
@pytest.mark.parametrize("factor", [2, 4])
def test_so_many_frames_come_of_one(models, asked, frames, factor):
    count, made = interpolate(models, STORY, iter(video(frames)), factor)
    made_THWC = np.concatenate(list(made))
    assert len(made_THWC) == count == 1 + (frames - 1) * factor
    np.testing.assert_array_equal(made_THWC[::factor], video(frames))
    rates = {float(batch.fps[0]): float(batch.conditions[0].fps[0]) for batch, *_ in asked}
    assert rates == ({8.0: 4.0, 16.0: 8.0} if factor == 4 else {8.0: 4.0})


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_what_is_uncertain_is_blended_at_temperature_0(models, temperature, monkeypatch):
    """Only in the frames of the last level; the tokens stay whole codes, which the next windows go on from."""
    fed = []
    monkeypatch.setattr(codec.StreamDecoder, "feed", lambda self, latents: fed.append(latents) or FEED(self, latents))
    story = dataclasses.replace(STORY, sampling=Sampling(temperature=temperature), guidance=1.0)
    made = np.concatenate(list(interpolate(models, story, iter(video(5)), 4)[1]))
    assert len(made) == 17
    codes_VC = np.asarray(models.tokenizer.model.latents_of_codes())
    first, *others = fed
    assert first.ndim == 5 and {part.ndim for part in others} == {5 if temperature else 6}
    if not temperature:
        parts_NC = np.concatenate([part.reshape(-1, codes_VC.shape[1]) for part in others])
        nearest_N = np.abs(parts_NC[:, None] - codes_VC).max(axis=-1).min(axis=1)
        assert (nearest_N > 1e-3).mean() > 0.4  # half of the sub-codes are silent in one of the models
        assert (np.abs(parts_NC) <= np.abs(codes_VC).max() + 1e-4).all()


def test_the_mean_of_several_draws_is_shown(models):
    """Drawn side by side, as each would be alone; the first has the video's own seed."""
    levels = levels_between(models, 4.0, 4, 3, 2, Sampling(temperature=1.0), 3)
    tokens_BTHWQ = np.stack([encode_opening(models, iter(video(9)[::step])) for step in (2, -2)])
    guidance = prompts.Guidance(1.0)
    prompt = prompts.make_prompt(models, ["up", "down"], np.array([7, 2**32 - 1], np.uint32), guidance)
    mean_BTHWC = np.concatenate(list(interpolated(models, prompt, levels, tokens_BTHWQ)), axis=1)
    alone = dataclasses.replace(levels, draws=1)

    def drawn(number):
        seeds_B = (prompt.seeds_B.astype(int) + 104_729 * number) % 2**32
        return np.concatenate(list(interpolated(models, prompt._replace(seeds_B=seeds_B), alone, tokens_BTHWQ)), axis=1)

    each_NBTHWC = np.stack([drawn(number) for number in range(3)]).astype(float)
    assert mean_BTHWC.shape == (2, 17, 16, 16, 3)
    assert np.abs(mean_BTHWC - each_NBTHWC.mean(axis=0)).max() < 1
    assert all(np.abs(mean_BTHWC - each_BTHWC).max() > 10 for each_BTHWC in each_NBTHWC)  # which none of them is


def test_draws_that_make_no_sense_are_refused(models):
    for draws in (0, -1, 65):
        with pytest.raises(UserError, match=rf"draws should be 1 to 64, got {draws}"):
            interpolate(models, STORY, iter(video(3)), 2, draws)
    for sampling in (Sampling(temperature=0.0), Sampling(temperature=1.0, later_temperature=0.0)):
        story = dataclasses.replace(STORY, sampling=sampling)
        with pytest.raises(UserError, match="at temperature 0, 2 draws are all the same; raise the temperature"):
            interpolate(models, story, iter(video(3)), 2, 2)


def test_a_single_frame_cannot_be_interpolated(models):
    with pytest.raises(UserError, match="a single frame has no others between"):
        interpolate(models, STORY, iter(video(1)), 2)


def test_every_window_sees_the_video_it_fills_in(models, asked):
    """And begins with its first frame."""
    tokens_THWQ = encode_opening(models, iter(video(9)))
    list(interpolate(models, STORY, iter(video(9)), 2)[1])
    for batch, *_ in asked:
        (coarse,) = batch.conditions
        there, first = coarse.tokens[0] >= 0, int(coarse.start[0])
        np.testing.assert_array_equal(coarse.tokens[0][there], tokens_THWQ[first : first + 3].ravel())
    first, known, _ = asked[0]
    assert known == [True, False, False, False] and first.start == 0
    np.testing.assert_array_equal(first.tokens[0, 0], tokens_THWQ[0])


def test_a_video_is_made_from_any_condition(models, asked, monkeypatch):
    """Window after window of the condition's tokens, whose name has an embedding; nothing else is known at first."""
    dark = Condition("a dark video", lambda video_THWC: video_THWC // 2)
    monkeypatch.setitem(CONDITIONS, "dark", dark)
    monkeypatch.setitem(TASKS, "brighten", Task("light", any_last_frames, conditions=("dark",)))
    about = models.transformer.about | {"layouts": {"tasks": {"brighten": 1.0}, "rows": [0]}}
    config = dataclasses.replace(models.transformer.config, conditions=("grey", "dark"))
    named = types.SimpleNamespace(**models.transformer._asdict() | {"about": about, "config": config})
    brighten = models._replace(transformer=named)
    count, videos = edit(brighten, STORY, "brighten", iter(video(8)))
    assert len(np.concatenate(list(videos))) == count == 8
    tokens_THWQ = encode_opening(models, iter(dark.apply(np.concatenate([video(8), video(8)[-1:]]))))
    for batch, *_ in asked:
        (clip,) = batch.conditions
        there, first = clip.tokens[0] >= 0, int(clip.start[0])
        np.testing.assert_array_equal(clip.tokens[0][there], tokens_THWQ[first : first + 5].ravel())
        assert clip.condition == 2 and clip.fps == STORY.fps
    assert asked[0][1] == [False] * 4
    with pytest.raises(UserError, match="not trained for brighten, only for interpolation;"):  # infilling edits nothing
        edit(models, STORY, "brighten", iter(video(8)))


@pytest.mark.parametrize("factor", [0, 1, 3, 6, 128, 10**400])
def test_factors_that_were_not_trained_are_refused(models, tiny_models, factor):
    with pytest.raises(UserError, match=rf"factor should be a power of 2 .*, got {factor}"):
        interpolate(models, STORY, iter(video(3)), factor)
    with pytest.raises(UserError, match=r"not trained to interpolate; train with the task interpolation"):
        interpolate(tiny_models, STORY, iter(video(3)), 2)


def test_a_loop_leads_from_the_end_to_the_beginning(models, asked):
    opening = encode_video(models, iter(video(9)))
    made_THWC, new = loop(models, STORY, opening)
    tokens_THWQ = opening.tokens_THWQ
    ((batch, known, count),) = asked
    assert known == [True, False, False, True] and count == 2 and new == 4
    np.testing.assert_array_equal(batch.tokens[0, 0], tokens_THWQ[-1])
    np.testing.assert_array_equal(batch.tokens[0, 3], tokens_THWQ[1])
    assert made_THWC.shape == (9 - 1 + 4, 16, 16, 3)
    np.testing.assert_array_equal(made_THWC[:8], video(9)[1:])


def test_a_loop_is_really_generated(models):
    opening = encode_video(models, iter(video(9)))
    one, other = (loop(models, Story((Segment(text),)), opening)[0] for text in ("up", "a red circle"))
    np.testing.assert_array_equal(one[:8], other[:8])
    assert (one[8:] != other[8:]).any()


def test_what_cannot_loop_is_refused(models, tiny_models):
    with pytest.raises(UserError, match=r"train with the task infilling in layouts\.tasks"):
        loop(tiny_models, STORY, encode_video(models, iter(video(9))))
    with pytest.raises(UserError, match=r"a loop needs 3 frames or more, got 1 at 4 fps; give a longer"):
        loop(models, STORY, encode_video(models, iter(video(2))))
    with pytest.raises(UserError, match=r"divide a latent frame"):
        loop(models, Story((Segment("a"),), sampling=Sampling(rows=9)), encode_video(models, iter(video(5))))


def trained_for(models, task):
    """As if trained for a task alone, with an embedding for each of its conditions."""
    about = models.transformer.about | {"layouts": {"tasks": {task: 1.0}, "rows": [0, 1]}}
    config = dataclasses.replace(models.transformer.config, conditions=TASKS[task].conditions)
    named = types.SimpleNamespace(**models.transformer._asdict() | {"about": about, "config": config})
    return models._replace(transformer=named)


def whole(made):
    count, videos = made
    video_THWC = np.concatenate(list(videos))
    assert len(video_THWC) == count
    return video_THWC


def test_what_no_mask_touches_is_kept_token_for_token_and_pixel_for_pixel(models, asked):
    """Right half new in frames 3 and 4, which are latent frame 2, in a video of 6 that the last frame fills up."""
    seen_THWC = video(6)
    seen_THWC[3:5, :, 8:] = seen_THWC[3:5, :, 7:8]  # the nearest pixels in place of those under the mask
    tokens_THWQ = encode_opening(models, iter(np.concatenate([seen_THWC, seen_THWC[-1:]])))
    masks = np.random.default_rng(1).integers(60, size=(6, 16, 16, 3), dtype=np.uint8)  # black, as files have it
    masks[3, :, 9] = 255
    made_THWC = whole(inpaint(trained_for(models, "inpaint"), STORY, iter(video(6)), iter(masks)))
    changed_THW = (made_THWC != video(6)).any(axis=-1)
    assert (
        changed_THW[3:5, :, 8:].mean() > 0.9 and not changed_THW[:, :, :8].any() and not changed_THW[[0, 1, 2, 5]].any()
    )
    (batch, known, _), *later = asked
    assert not later, "windows without new tokens are not generated" and known == [True, True, False, True]
    known_THW = np.ones((4, 2, 2), bool)
    known_THW[2, :, 1] = False
    np.testing.assert_array_equal(batch.known[0], known_THW)
    np.testing.assert_array_equal(batch.tokens[0][known_THW], tokens_THWQ[known_THW])
    assert not batch.tokens[0][~known_THW].any(), "what is to be new is not looked at"


@pytest.mark.parametrize(
    "masks, said",
    [(np.full((3, 16, 16, 3), 255), "mask has 3 frames, the video 6"), (np.zeros((6, 16, 16, 3)), "black in every")],
)
def test_masks_that_do_not_fit_are_refused(models, masks, said):
    with pytest.raises(UserError, match=said):
        inpaint(trained_for(models, "inpaint"), STORY, iter(video(6)), iter(masks.astype(np.uint8)))


@pytest.mark.parametrize("task", ["colourise", "inpaint"])
def test_larger_edits_keep_the_pixels_of_what_is_given(models, asked, task):
    """The weights see the video at their size; the luma, or what no mask touches, has its own."""
    small_THWC = np.random.default_rng(1).integers(100, 156, size=(6, 16, 16, 3), dtype=np.uint8)
    given_THWC = small_THWC.repeat(2, axis=1).repeat(2, axis=2)
    given_THWC[:, ::2, :14] += 20  # detail that their size doesn't show
    given_THWC[:, 1::2, :14] -= 20
    trained, made = trained_for(models, task), []
    for frames_THWC in (given_THWC, small_THWC):
        masks = np.zeros(frames_THWC.shape, np.uint8)
        masks[:, :, masks.shape[2] // 2 :] = 255
        if task == "inpaint":
            made.append(whole(inpaint(trained, STORY, iter(frames_THWC), iter(masks))))
        else:
            made.append(whole(edit(trained, STORY, task, iter(grey(frames_THWC)))))
    assert made[0].shape == given_THWC.shape and keeps_pixels(task)
    if task == "inpaint":
        np.testing.assert_array_equal(made[0][:, :, :16], given_THWC[:, :, :16])
        assert (made[0][:, :, 16:] != given_THWC[:, :, 16:]).mean() > 0.9
    else:
        away_THW = grey(made[0])[..., 0].astype(int) - grey(given_THWC)[..., 0]
        assert np.abs(away_THW).max() <= 1
    large, small = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    for (batch, *_), (wanted, *_) in zip(large, small, strict=True):
        jax.tree.map(np.testing.assert_array_equal, batch, wanted)


@pytest.mark.parametrize("task", ["colourise", "restyle"])
def test_an_edit_goes_on_from_the_first_frame_that_is_given(models, asked, task):
    """It is known to the weights and stays as it is, but for its luma where another is given."""
    first_HWC, given = np.full((32, 32, 3), (200, 120, 40), np.uint8), video(6)
    opening = encode_picture(models, first_HWC)
    large = given.repeat(2, axis=1).repeat(2, axis=2) if task == "colourise" else given
    made_THWC = whole(edit(trained_for(models, task), STORY, task, iter(large), opening))
    assert made_THWC.shape == (6, 32, 32, 3)
    (batch, known, _), *_ = asked
    assert known == [True, False, False, False]
    np.testing.assert_array_equal(batch.tokens[0, 0], opening.tokens_THWQ[0])
    kept_HWC = first_HWC if task == "restyle" else with_luma(first_HWC[None], grey(large[:1]))[0]
    np.testing.assert_array_equal(made_THWC[0], kept_HWC)


@pytest.mark.parametrize("task, kept", [("restyle", False), ("upscale", False), ("interpolation", True)])
def test_some_edits_keep_no_pixels(task, kept):
    assert keeps_pixels(task) == kept


def test_colours_have_the_luma_of_the_grey_video(models, asked):
    grey_THWC = grey(video(14))  # three windows
    made_THWC = whole(edit(trained_for(models, "colourise"), STORY, "colourise", iter(video(14))))
    away = np.abs(grey(made_THWC).astype(int) - grey_THWC)
    assert np.median(away, axis=(1, 2, 3)).max() <= 1 and not (made_THWC[..., 0] == made_THWC[..., 1]).all()


def test_a_variation_draws_a_share_of_all_tokens_again(models, asked):
    whole(vary(trained_for(models, "variation"), STORY, iter(video(7)), 0.25))
    assert [(~batch.known[0]).sum(axis=(1, 2)).tolist() for batch, *_ in asked] == [[1, 1, 1, 1]]
    with pytest.raises(UserError, match="strength should be above 0 and at most 1, got 0"):
        vary(trained_for(models, "variation"), STORY, iter(video(7)), 0.0)
    rows = dataclasses.replace(STORY, sampling=Sampling(rows=1))
    with pytest.raises(UserError, match="token by token; leave out --rows"):
        whole(vary(trained_for(models, "variation"), rows, iter(video(7)), 0.25))


@pytest.mark.parametrize("at_path", [False, True])
def test_an_animation_sees_the_picture_beside_every_window_of_the_track(models, asked, at_path):
    """At the first latent frame that is generated. It begins with the picture, unless the path stays where it is."""
    picture_HWC = np.zeros((16, 16, 3), np.uint8)
    picture_HWC[2:4, 10:12] = 255  # in the middle, (11/16, 3/16)
    points = [np.array([[0.25, 0.5 + number / 32]]) for number in range(13)]
    made_THWC = whole(animate(trained_for(models, "animate"), STORY, picture_HWC, iter(points), at_path))
    assert np.array_equal(made_THWC[0], picture_HWC) != at_path and len(made_THWC) == 13
    start_C = points[0][0] if at_path else np.array([11 / 16, 3 / 16])
    path_TNC = np.stack([start_C + np.array([0, number / 32]) for number in range(13)])[:, None]
    track_THWQ = codec.StreamEncoder(models.tokenizer, 1, (8, 8)).feed(draw_points(path_TNC, (8, 8))[None])[0]
    for batch, *_ in asked:
        picture, track = batch.conditions
        np.testing.assert_array_equal(picture.tokens[0], encode_opening(models, iter([picture_HWC])))
        seen_THWQ = track_THWQ[track.start[0] :][: track.tokens.shape[1]]
        np.testing.assert_array_equal(track.tokens[0, : len(seen_THWQ)], seen_THWQ)
        assert picture.condition == 1 and track.condition == 2
    first = 0 if at_path else 1
    assert [int(batch.conditions[0].start[0]) for batch, *_ in asked] == [first, 4, 6]


def test_a_path_is_moved_from_where_it_is_first_seen():
    nan = [np.nan, np.nan]
    points = np.array([[nan, [0.1, 0.1]], [[0.2, 0.9], nan], [[0.3, 0.8], [0.5, 0.5]]])
    path = np.stack(list(moved(iter(points), np.array([0.4, 0.2]))))
    np.testing.assert_allclose(path, [[nan, [0.1, 0.1]], [[0.4, 0.2], nan], [[0.5, 0.1], [0.7, 0.8]]])
    np.testing.assert_array_equal(np.stack(list(moved(iter(points), np.array(nan)))), points)


def test_a_picture_is_forced_on_weights_that_never_saw_one(models, monkeypatch):
    """Its tokens come first, at places that count as generated; the rest follows from them."""
    picture_HWC = video(1)[0]
    made_THWC = whole(animate_untrained(models, dataclasses.replace(STORY, fps=4.0), picture_HWC))
    np.testing.assert_array_equal(made_THWC[0], picture_HWC)
    monkeypatch.setattr(edits, "restored_alone", lambda made, given: made)
    picture_HWC = video(1)[0]
    tokens_THWQ = encode_opening(models, iter([picture_HWC]))
    made_THWC = whole(animate_untrained(models, dataclasses.replace(STORY, fps=4.0), picture_HWC))
    decoded = codec.StreamDecoder(models.tokenizer, 1, 2, 2).feed(tokens_THWQ[None])[0]
    np.testing.assert_array_equal(made_THWC[:1], decoded)
    assert len(made_THWC) == STORY.frames
