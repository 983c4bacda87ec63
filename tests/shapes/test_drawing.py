import dataclasses
import itertools

import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.shapes import drawing as shapes
from tokvid.shapes import words as vocabulary
from tokvid.shapes.words import ShapeAttributes


def every_attributes():
    for size, color, shape, direction in itertools.product(
        vocabulary.SIZES, vocabulary.COLORS, vocabulary.SHAPES, vocabulary.DIRECTIONS
    ):
        still = direction == vocabulary.STILL
        for speed in (vocabulary.NO_SPEED,) if still else vocabulary.SPEEDS:
            yield ShapeAttributes(size, color, shape, direction, speed)


def story_at(position, *attributes, seconds=2.0, seed=0):
    story = shapes.story_from(attributes, [seconds] * len(attributes), seed)
    return dataclasses.replace(story, position=position)


RIGHT = ShapeAttributes("large", "green", "star", "right", "slow")
UP = ShapeAttributes("large", "green", "star", "up", "quick")


def test_the_same_seed_shows_the_same_world_at_every_rate_and_start():
    story = shapes.sample_story(3, segments=(3, 3))
    fine = shapes.render(story, fps=24, frames=97)
    for fps, step in ((12, 2), (8, 3), (6, 4), (2, 12)):
        coarse = shapes.render(story, fps=fps, frames=96 // step + 1)
        np.testing.assert_array_equal(coarse, fine[::step])
    np.testing.assert_array_equal(shapes.render(story, start=1.5, fps=8, frames=5), fine[36:49:3])


def test_the_same_seed_shows_the_same_world_at_every_size():
    story = shapes.sample_story(4)
    fine_THWC = shapes.render(story, size=128).astype(np.float64)
    pooled_THWC = fine_THWC.reshape(9, 64, 2, 64, 2, 3).mean(axis=(2, 4))
    coarse_THWC = shapes.render(story, size=64).astype(np.float64)
    assert np.abs(pooled_THWC - coarse_THWC).mean() < 0.3
    assert np.abs(pooled_THWC - coarse_THWC).max() < 90  # only how sharp tips are softened differs


@pytest.mark.parametrize("shape", vocabulary.SHAPES)
def test_radius_is_that_of_the_disc_with_the_same_area(shape):
    story = story_at((20.3, 40.7), ShapeAttributes("large", "white", shape, "still", "none"))
    frame_HWC = shapes.render(story, frames=1)[0].astype(np.float64)
    cover_HW = (frame_HWC[..., 0] - story.background) / (vocabulary.rgb("white")[0] - story.background)
    assert np.sqrt(cover_HW.sum() / np.pi) == pytest.approx(story.radius, rel=0.01)
    # The outline's centre is its centre of mass.
    x_W, y_H = cover_HW.sum(axis=0) @ np.arange(64), cover_HW.sum(axis=1) @ np.arange(64)
    assert (x_W / cover_HW.sum() + 0.5, y_H / cover_HW.sum() + 0.5) == pytest.approx((20.3, 40.7), abs=0.1)


def test_a_shape_that_leaves_on_one_side_comes_in_on_the_other():
    inside = shapes.render(story_at((32.0, 32.0), RIGHT), frames=1)
    corner = shapes.render(story_at((0.0, 64.0), RIGHT), frames=1)
    np.testing.assert_array_equal(np.roll(inside, (32, 32), axis=(1, 2)), corner)
    # Eight seconds at 8 units a second go once around.
    around = shapes.render(story_at((50.0, 3.0), RIGHT), fps=1 / 8, frames=2)
    np.testing.assert_array_equal(around[0], around[1])


def test_motion_is_integrated_across_segments_and_goes_on_after_the_last():
    story = story_at((10.0, 50.0), RIGHT, UP, seconds=2.5)
    positions = shapes.positions(story, np.array([0.0, 1.0, 2.5, 3.5, 5.0, 6.0]))
    expected = [(10, 50), (18, 50), (30, 50), (30, 26), (30, -10), (30, -34)]
    np.testing.assert_allclose(positions, expected)


def test_the_color_changes_with_its_segment():
    story = story_at((32.0, 32.0), RIGHT, dataclasses.replace(UP, color="red"))
    red_T = [int(frame[..., 0].max()) > 200 for frame in shapes.render(story, fps=2, frames=6)]
    assert red_T == [False] * 4 + [True] * 2


def test_stories_keep_identity_and_change_motion():
    colors = changes = 0
    for seed in range(300):
        segments = shapes.sample_story(seed).segments
        assert len({(each.attributes.size, each.attributes.shape) for each in segments}) == 1
        assert segments[0].start == 0
        for before, after in itertools.pairwise(segments):
            assert after.start == before.start + before.seconds
            assert before.attributes.velocity != after.attributes.velocity
            assert before.caption != after.caption
            changes += 1
            colors += before.attributes.color != after.attributes.color
    assert 0.15 < colors / changes < 0.35


def test_training_never_shows_a_held_out_composition_and_a_held_out_story_only_those():
    for held_out in (False, True):
        dataset = shapes.ShapesDataset(3000, seed=1, held_out=held_out)
        shown = [
            segment.attributes for item in map(dataset.__getitem__, range(3000)) for segment in item.story.segments
        ]
        assert all(vocabulary.is_held_out(each) == held_out for each in shown)


def test_held_out_compositions_are_few_and_leave_every_pair_in_training():
    everything = list(every_attributes())
    compositions = {(each.size, each.color, each.shape, each.direction) for each in everything}
    assert compositions > vocabulary.HELD_OUT
    assert 0.07 < len(vocabulary.HELD_OUT) / len(compositions) < 0.09
    for first, second in itertools.combinations(range(4), 2):
        pairs = {(each[first], each[second]) for each in compositions}
        trained = {(each[first], each[second]) for each in compositions - vocabulary.HELD_OUT}
        assert trained == pairs
    for attribute in range(4):  # every value of every attribute is held out somewhere
        assert {each[attribute] for each in vocabulary.HELD_OUT} == {each[attribute] for each in compositions}


@pytest.mark.parametrize("language", shapes.LANGUAGES)
def test_captions_tell_every_attribute(language):
    """No two compositions share a caption, in any phrasing, so a caption determines its attributes."""
    everything = list(every_attributes())
    said = {}
    for attributes in everything:
        for index in range(shapes.PHRASINGS[language]):
            text = shapes.caption(attributes, index, language)
            assert "{" not in text and "  " not in text
            assert said.setdefault(text, attributes) == attributes
    assert len(said) == len(everything) * shapes.PHRASINGS[language]


def test_captions_use_few_words():
    words = {word for text in shapes.captions_corpus(2000, seed=0) if text.isascii() for word in text.split()}
    assert len(words) < 50


def test_captions_corpus_is_seeded_and_in_both_languages():
    corpus = shapes.captions_corpus(200, seed=0)
    assert len(corpus) == 200 and corpus == shapes.captions_corpus(200, seed=0)
    assert corpus != shapes.captions_corpus(200, seed=1)
    assert 0.6 < sum(text.isascii() for text in corpus) / 200 < 0.9
    assert all(item.caption.isascii() for item in shapes.sample_story(0, language="en").segments)


def test_an_item_depends_on_its_seed_and_stream_not_on_the_length():
    long, short = shapes.ShapesDataset(1000, seed=5), shapes.ShapesDataset(3, seed=5)
    assert long[2] == short[2]
    others = [shapes.ShapesDataset(3, seed=6)[2], shapes.ShapesDataset(3, seed=5, held_out=True)[2], long[3]]
    assert len({item.story.position for item in [long[2], *others]}) == 4
    assert len({item.key for item in [long[2], *others]}) == 4
    with pytest.raises(IndexError):
        short[3]


def test_an_item_reads_as_the_house_does():
    item = shapes.ShapesDataset(1, seed=0, segments=(2, 2), segment_seconds=(1.0, 1.0))[0]
    assert item.seconds == 2.0
    assert [each.start for each in item.captions] == [0.0, 1.0]
    video = item.read(0.5, 4.0, 5, (32, 32))
    assert video.shape == (5, 32, 32, 3) and video.dtype == np.uint8


@pytest.mark.parametrize(
    "mistake",
    [
        lambda: ShapeAttributes("small", "rad", "star", "up", "slow"),
        lambda: ShapeAttributes("small", "red", "star", "still", "slow"),
        lambda: ShapeAttributes("small", "red", "star", "up", "none"),
        lambda: shapes.sample_story(0, segments=(0, 2)),
        lambda: shapes.sample_story(0, segment_seconds=(3.0, 2.0)),
        lambda: shapes.sample_story(0, language="fr"),
        lambda: shapes.story_from([RIGHT], [1.0, 2.0], 0),
        lambda: shapes.story_from([RIGHT, dataclasses.replace(UP, size="small")], [1.0, 2.0], 0),
        lambda: shapes.render(shapes.sample_story(0), fps=0),
        lambda: shapes.render(shapes.sample_story(0), start=-1),
        lambda: shapes.ShapesDataset(0, seed=0),
        lambda: shapes.ShapesDataset(1, seed=0)[0].read(0, 8, 9, (32, 64)),
    ],
)
def test_mistakes_are_told(mistake):
    with pytest.raises(UserError):
        mistake()
