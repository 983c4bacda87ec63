"""Scripts: plain text, subtitles and screenplays become stories."""

import time

import pytest

from tokvid.config import Sampling
from tokvid.errors import UserError
from tokvid.sampling.script import Script, is_as_written, read_script, story_file
from tokvid.sampling.story import Segment, Story, load_story

PLAIN = """\
# The beginning
A small red circle
moves slowly to the left.

[2.5 s] The circle rests.
Scene 2: it goes on
(0:08 - 0:10): 一个圆
INT. KITCHEN - DAY
"""

SUBTITLES = """\
1
00:00:01,000 --> 00:00:03,500 X1:10
<i>A circle</i>
moves.

2
00:00:05,000 --> 00:00:06,000
{\\an8}It rests.

00:00:05,980 --> 00:00:08,000
It moves on.
"""

SCREENPLAY = """\
Title: The Circle
Author: A. Writer
    and another

INT. KITCHEN - DAY #1#

A *small* circle rolls
over the table. [[3 s]]

/* not this

nor this */

ANNA
(softly)
There it goes!

CUT TO:

.THE GARDEN

!ALL IS STILL
and green.

# Act two

= She remembers.

> a text in the middle <

EXT. THE STREET
"""


@pytest.fixture
def read(tmp_path):
    """`read(name, text)` gives the story as (prompt, seconds) pairs, and the headings."""

    def reading(name, text, seconds=4.0):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        story, headings = read_script(tmp_path / name, seconds)
        return [(segment.prompt, segment.seconds) for segment in story.segments], headings

    return reading


def test_plain_text(read):
    scenes, headings = read("a.txt", PLAIN)
    assert scenes == [
        ("A small red circle moves slowly to the left.", 4.0),
        ("The circle rests.", 4.0),  # until the next one begins
        ("一个圆", 2.0),
        ("INT. KITCHEN - DAY", 4.0),
    ]
    assert headings == (("The beginning",), (), ("Scene 2: it goes on",), ())
    assert read("d.txt", "one\n\n# The end")[0] == [("one", 4.0)]
    assert read("b.txt", "\ufeffone\r\n\r\n[0:02] two\r\n \r\nthree", 1.5)[0] == [
        ("one", 2),
        ("two", 1.5),
        ("three", 1.5),
    ]


@pytest.mark.parametrize(
    "text, scenes",
    [
        (
            "Scene 1: a circle\n\nScene 2 - it rests\nScene 3: [2 s] it goes",
            [("a circle", 4), ("it rests", 4), ("it goes", 2)],
        ),
        ("Scene 1: The kitchen\n\na circle", [("a circle", 4)]),
        ("Scene 1: The kitchen\nINT. KITCHEN - DAY\na circle", [("a circle", 4)]),
        ("第一幕：花园\n第一场：清晨\n一个圆", [("一个圆", 4)]),
        ("第一场：清晨\n第二场：夜晚", [("清晨", 4), ("夜晚", 4)]),
        *(
            (f"{heading}\na circle", [("a circle", 4)])
            for heading in (
                *("Scene 1", "Scene 1 KITCHEN", "Scene 2 (night)", "Scene 1 [4 s]", "Scene 3：厨房", "Scene 1 | x"),
                *("场景一", "场景一：厨房", "场景 2", "第一幕（夜）", "第一幕，夜", "第1场-厨房", "第一幕《花园》"),
            )
        ),
        ("Scene 10-12\n\nScene 3.5\na circle\n\nScene 4: [2 s]", [("a circle", 4)]),
        ("Scene 2 shows a circle\n\nScene 3\nit rests", [("Scene 2 shows a circle", 4), ("it rests", 4)]),
        ("第一幕 花园\n一个圆\n\n场景2：红色的圆", [("一个圆", 4), ("红色的圆", 4)]),
        ("场景很美，一个圆", [("场景很美，一个圆", 4)]),
        ("[0:05] a circle\n\nit rests", [("a circle", 9), ("it rests", 4)]),  # the first begins at 0
    ],
)
def test_what_a_heading_says_is_a_scene_where_nothing_is_below(read, text, scenes):
    assert read("a.txt", text)[0] == scenes


@pytest.mark.parametrize(
    "text, scenes",
    [
        ("/* a note */\nTitle: X\nDraft date: today\n\nA circle moves.", [("A circle moves.", 4)]),
        ("Red circle: it moves\n\nIt rests.", [("Red circle: it moves", 4), ("It rests.", 4)]),
        ("Titel: X\nAutor: Y\n\nIt rests.", [("It rests.", 4)]),
        ("Written by: me\n\nIt rests.", [("It rests.", 4)]),
    ],
)
def test_a_screenplay_may_have_a_title_page(read, text, scenes):
    assert read("a.fountain", text)[0] == scenes


def test_subtitles(read):
    for text in (SUBTITLES, SUBTITLES.replace("\n", "\r\n")):
        scenes, _ = read("a.SRT", text)
        assert scenes == [("A circle moves.", 5.0), ("It rests.", 0.98), ("It moves on.", 2.02)]


def test_a_screenplay(read):
    scenes, headings = read("a.fountain", SCREENPLAY)
    assert scenes == [
        ("A small circle rolls over the table.", 3.0),
        ("ALL IS STILL and green.", 4.0),
        ("a text in the middle", 4.0),
        ("EXT. THE STREET", 4.0),
    ]
    assert headings == (("INT. KITCHEN - DAY",), ("THE GARDEN",), (), ())


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("a.txt", "", "there is no scene in it"),
        ("a.srt", "\n \n", "there is no scene in it"),
        ("a.fountain", "Title: nothing else\n", "there is no scene in it"),
        ("a.txt", "# Only a heading\nScene 2\n", "there is no scene in it"),
        (
            "a.txt",
            "one\n\n[two seconds] two",
            r"line 3: '\[two seconds' begins with a bracket, but is no timing; write",
        ),
        ("a.txt", "[2 s one", r"line 1: '\[2 s one' begins with a bracket, but is no timing"),
        ("a.txt", b"\xff\xfe", "not UTF-8 text"),
        ("a.txt", "[4 s]\n\nafter it", r"line 1: the timing \[4 s\] has no text"),
        ("a.txt", "one\n\n[0:08-0:06] two", "line 3: the scene ends at 6 s, before it begins"),
        ("a.txt", "[3 s] one\n\n[0:02] two", "line 3: the scene begins at 2 s, before the one above ends, at 3 s"),
        ("a.txt", "[0:04] one\n\n[0:04] two\n\n[0:04] three", "line 5: the scene begins at 4 s, before"),
        (
            "a.srt",
            SUBTITLES.replace("05,980", "05,900"),
            "line 10: the scene begins at 5.9 s, before the one above ends",
        ),
        ("a.srt", "1\nhello\n", "line 1: '1' begins no subtitle; write 00:00:01,000 -->"),
        ("a.srt", "1\n00:00:01 -> 00:00:02\nhello\n", "line 1: '1' begins no subtitle"),
        ("a.srt", "00:00:00,000 --> 99:00:00,000\nlong", "seconds should be above 0 and at most"),
    ],
)
def test_what_is_wrong_with_a_script(read, name, text, said):
    with pytest.raises(UserError, match=rf"^script \S*{name}: [^\n]*{said}"):
        read(name, text)


def test_a_missing_script(tmp_path):
    with pytest.raises(UserError, match=r"cannot read script .*No such file"):
        read_script(tmp_path / "a.txt")


def test_a_story_file_reads_as_the_story(tmp_path):
    segments = (Segment("yes: \x07 # 'no'"), Segment("", 2.5, guidance=2.0), Segment("- 圆\u2028"))
    story = Story(segments, fps=4.0, seed=3, sampling=Sampling(rows=1))
    text = story_file(Script(story, (("one \x07\u2028", "two"), (), ("#",))), "my\n\u2028[script].txt")
    (tmp_path / "a.yaml").write_text(text)
    assert text.startswith("# From my[script].txt, ") and is_as_written(text)
    assert not any(map(is_as_written, (text + "#", text.replace("fps: 4.0", "fps: 8.0"), text.partition("\n")[2], "")))
    assert load_story(tmp_path / "a.yaml") == story
    assert "\n  # one \n  # two\n  - prompt: " in text and "guidance: 3" not in text


@pytest.mark.parametrize(
    "text, prompts",
    [
        ("第１幕：红色圆形\n第２幕：蓝色方形\n\n绿色", ["红色圆形", "绿色"]),
        ("Scene 1000: a dog\nScene 1001: a cat", ["a dog", "a cat"]),
        ("Scene ١: a dog\nScene ٢: a cat", ["a dog", "a cat"]),
        ("第两百幕：一只狗\n第廿一幕：一只猫", ["一只狗", "一只猫"]),
        ("第一場：一隻狗\n第二場：一隻貓", ["一隻狗", "一隻貓"]),
        ("a dog\n\u200b\na cat\n\n\ufeff", ["a dog", "a cat"]),
        ("第 1 幕\n一个红圆\n第 2 幕\n一个蓝方", ["一个红圆", "一个蓝方"]),
        ("第 1 幕：一个红圆\n第 2 幕：一个蓝方", ["一个红圆", "一个蓝方"]),
        ("[2.3333333333333335 s] a dog", ["a dog"]),
        ("Scene 1: (indoors)\n\na dog", ["a dog"]),
        ("Scene 1: (indoors) a dog\nScene 2: a cat", ["(indoors) a dog", "a cat"]),
    ],
)
def test_scenes_in_other_numerals(read, text, prompts):
    assert [prompt for prompt, _ in read("a.txt", text)[0]] == prompts


@pytest.mark.parametrize(
    "name, text",
    [
        ("a.fountain", "A dog.[[" + " " * 20_000 + "x"),
        ("a.fountain", "A dog. " + "[[" * 20_000),
        ("a.fountain", "A dog" + " *a" * 20_000),
        ("a.fountain", "INT. HOUSE " + " " * 20_000 + "x"),
        ("a.txt", "Scene 1: (" + ")" * 20_000 + "\n\nA dog"),
    ],
)
def test_long_scripts_are_read_at_once(read, name, text):
    before = time.thread_time()  # a machine that is busy is none that is slow
    read(name, text)
    assert time.thread_time() - before < 3  # it was 3 s to hours


def test_notes_with_brackets_and_long_emphasis_are_left_out(read):
    scenes, _ = read("a.fountain", f"A red ball [[later [wide] shot]] rolls, *{'very ' * 80}fast*.")
    assert scenes == [(f"A red ball rolls, {'very ' * 80}fast.", 4.0)]


@pytest.mark.parametrize(
    "name, text", [("a.txt", "[" + "9" * 400 + ":00] a dog"), ("a.srt", "0:" + "9" * 5000 + ":0 --> 0:0:9\na dog")]
)
def test_numbers_that_are_no_time(read, name, text):
    with pytest.raises(UserError, match=r"no timing|no subtitle"):
        read(name, text)
