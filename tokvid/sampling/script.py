"""Scripts as stories: plain text, SubRip subtitles (.srt) and Fountain screenplays, read into scenes.

A scene is a paragraph: one prompt. Headings become comments of the story file. What a heading says behind its number,
"Scene 2: …", is a prompt itself where the next such heading follows at once, and so is a place at the end.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from tokvid.errors import UserError
from tokvid.input_pipeline.captions import is_blank
from tokvid.sampling.story import Segment, Story, read_text, story_values

SUFFIXES = (".txt", ".srt", ".fountain")
LATE = 0.05  # seconds by which a subtitle may overlap the next, as programs round

CLOCK = r"(?:(\d{1,9}):)?(\d{1,9}):(\d{1,9}(?:[.,]\d{1,30})?)"  # 1:02:03.5 or 02:03
TIMING = re.compile(
    r"[\[(]\s*(?:(?P<seconds>\d{1,9}(?:\.\d{1,30})?)\s*(?:s|sec|seconds|秒)|"
    rf"(?P<begin>{CLOCK})\s*(?:(?:-->|[-–—])\s*(?P<end>{CLOCK})\s*)?)"
    r"\s*[\])]\s*:?\s*"
)
SUBTITLE = re.compile(rf"\s*(?P<begin>{CLOCK})\s*-->\s*(?P<end>{CLOCK})(?:\s.*)?")
TAGS = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")  # <i>, {\an8}

PLACE = re.compile(r"\.(?=[^.\s])|(?:INT|EXT|EST|INT\.?/EXT|I/E)(?:\.|\s)", re.IGNORECASE)  # a screenplay's heading
# Of plain text, beside PLACE; "scene 2 shows a circle" is none.
NUMERALS = r"\d〇零一二两兩三四五六七八九十百千廿卅"
HEADING = re.compile(
    rf"#+\s|(?i:scene)\s+\d+\b(?!\s+[a-z])|第(?:\s*[{NUMERALS}]{{1,6}}\s*|.{{1,3}})[幕场場]|[场場]景(?=\s*(?:[{NUMERALS}]|[^\w\s]|$)|\s)"
)
# What a numbered heading says, which may be a title, or, with nothing below, all of its scene.
NUMBERED = re.compile(
    rf"(?P<kind>(?i:scene)|第|[场場]景)\s*[{NUMERALS}]{{1,6}}(?:\s*(?P<part>[幕场場]))?(?:\s*[:：]|\s+[-–—]+\s)\s*(?P<words>\S.*)"
)


class Scene(NamedTuple):
    """A prompt, the headings above it, and its seconds, as far as the script says them."""

    prompt: str
    headings: tuple[str, ...] = ()
    seconds: float | None = None
    begin: float | None = None
    end: float | None = None
    line: int = 0


class Part(NamedTuple):
    """A paragraph's text or a heading, which may name a place, and its line; `words` are what a `numbered` one says."""

    line: int
    text: str
    kind: Literal["text", "heading", "place"] = "text"
    words: str = ""
    numbered: str = ""  # as what: "scene", "第幕", …


class Script(NamedTuple):
    """A story, and the headings above each of its segments."""

    story: Story
    headings: tuple[tuple[str, ...], ...]


def read_script(path: str | Path, seconds: float = 4.0) -> Script:
    """A script as a story; scenes without a timing last `seconds`.

    UserError for a file that cannot be read, holds no scene, or whose times overlap.
    """
    text = read_text(path, "script").replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff")
    try:
        read = {".srt": _subtitles, ".fountain": _screenplay}.get(Path(path).suffix.lower(), _plain)
        scenes = list(read(text.split("\n")))
        if not scenes:
            raise UserError("there is no scene in it; write a paragraph for each")
        lengths = _lengths(scenes, seconds)
        segments = [Segment(scene.prompt, length) for scene, length in zip(scenes, lengths, strict=True)]
        return Script(Story(tuple(segments)), tuple(scene.headings for scene in scenes))
    except UserError as error:
        raise UserError(f"script {path}: {error}") from error


def story_file(script: Script, source: str) -> str:
    """The text of a story file that `load_story` reads as the script's story, with its headings as comments.

    The first line names the `source`, and has a mark of the others, by which `is_as_written` knows if it was edited.
    """
    story, headings = script
    settings = story_values(story)
    segments = settings.pop("segments")
    lines = [*_yaml({"fps": story.fps, **settings}), "segments:"]
    for segment, above in zip(segments, headings, strict=True):
        lines += [f"  # {_printable(heading)}" for heading in above]
        lines += [f"  {line}" for line in _yaml([segment])]
    text = "\n".join(lines) + "\n"
    return f"# From {_printable(source)}, and written anew with it unless it is edited [{_mark(text)}]\n{text}"


def is_as_written(text: str) -> bool:
    """Whether this is what `story_file` gave."""
    first = re.match(r"# From .*\[(\w+)\]\n", text)
    return first is not None and first[1] == _mark(text[first.end() :])


def _mark(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))


def _yaml(value: Any) -> list[str]:
    return yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=1 << 20).rstrip("\n").split("\n")


def _lengths(scenes: list[Scene], seconds: float) -> list[float]:
    """The seconds of each scene. A scene goes on until the next one begins; the first begins at 0."""
    starts, now = [0.0], 0.0
    for scene, after in zip(scenes, [*scenes[1:], None], strict=True):
        begun = now if scene.begin is None else scene.begin  # later than `now` for the first one only
        end = scene.end if scene.end is not None else begun + (seconds if scene.seconds is None else scene.seconds)
        if scene.begin is not None and scene.end is not None and scene.end <= scene.begin:
            raise UserError(f"line {scene.line}: the scene ends at {scene.end:g} s, before it begins; mend its times")
        begin = None if after is None else after.begin
        if after is not None and begin is not None:
            open_end = scene.end is None and scene.seconds is None
            if begin <= starts[-1] or (not open_end and begin < end - LATE):
                raise UserError(
                    f"line {after.line}: the scene begins at {begin:g} s, before the one above ends, at "
                    f"{starts[-1] if open_end else end:g} s; scenes can't overlap, mend their times"
                )
            end = begin
        now = end
        starts.append(now)
    return [round(end - begin, 3) for begin, end in itertools.pairwise(starts)]


def _seconds(clock: str) -> float:
    hours, minutes, seconds = re.fullmatch(CLOCK, clock).groups()  # type: ignore[union-attr]
    return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))


def _paragraphs(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines that aren't blank, each with the number of its first line."""
    run: list[str] = []
    number = 0
    for number, line in enumerate(lines, 1):
        if not is_blank(line):
            run.append(line.strip())
        elif run:
            yield number - len(run), run
            run = []
    if run:
        yield number + 1 - len(run), run


def _plain(lines: list[str]) -> Iterator[Scene]:
    """Paragraphs and headings; a paragraph may begin with [4 s], [0:08] or [0:08 - 0:12]."""

    def parts() -> Iterator[Part]:
        for number, paragraph in _paragraphs(lines):
            text: list[str] = []
            for index, line in enumerate(paragraph):
                place = PLACE.match(line)
                if place or HEADING.match(line):
                    if text:
                        yield Part(number + index - len(text), " ".join(text))
                    yield _heading(number + index, line, "place" if place else "heading")
                    text = []
                else:
                    text.append(line)
            if text:
                yield Part(number + len(paragraph) - len(text), " ".join(text))

    return _under_headings(parts())


def _heading(number: int, line: str, kind: Literal["heading", "place"]) -> Part:
    part, said = Part(number, line.lstrip("#. "), kind), NUMBERED.match(line)
    if said is None or kind == "place" or not _says(said["words"]):
        return part
    return part._replace(words=said["words"], numbered=said["kind"].lower() + (said["part"] or ""))


def _says(words: str) -> bool:
    """Whether there is anything but a bracket."""
    if words[0] not in "[(":
        return True
    end = min((at for mark in "])" if (at := words.find(mark)) > 0), default=len(words))
    return any(map(str.isalnum, words[end:]))


def _under_headings(parts: Iterable[Part]) -> Iterator[Scene]:
    """Scenes from texts and the headings above them.

    What a numbered heading says is a scene itself where the next one of its kind, or the end, follows at once, and so
    is a place at the end.
    """
    headings: list[str] = []
    last = Part(0, "")
    for part in parts:
        if part.kind == "text":
            yield _scene(part.line, part.text, headings)
            headings = []
        else:
            if last.words and part.numbered == last.numbered:
                yield _scene(last.line, last.words, headings[:-1])
                headings = []
            headings.append(part.text)
        last = part
    if last.words or last.kind == "place":
        yield _scene(last.line, last.words or last.text, headings[:-1])


def _scene(line: int, text: str, headings: list[str]) -> Scene:
    """A scene whose text may begin with its timing."""
    timing = TIMING.match(text)
    if text.startswith("[") and not timing:
        raise UserError(
            f"line {line}: {text.partition(']')[0]!r:.40} begins with a bracket, but is no timing; write [4 s], "
            "[0:08] or [0:08 - 0:12], or leave out the bracket"
        )
    times = timing.groupdict() if timing else {}
    prompt = text[timing.end() :] if timing else text
    if is_blank(prompt):
        raise UserError(f"line {line}: the timing {text} has no text; write behind it what is seen")
    return Scene(
        prompt.strip(),
        tuple(headings),
        float(times["seconds"]) if times.get("seconds") else None,
        _seconds(times["begin"]) if times.get("begin") else None,
        _seconds(times["end"]) if times.get("end") else None,
        line,
    )


def _subtitles(lines: list[str]) -> Iterator[Scene]:
    """SubRip: a number, begin --> end, and the text, for each subtitle. Numbers aren't needed and tags are left out."""
    for number, paragraph in _paragraphs(lines):
        place = next((i for i, line in enumerate(paragraph[:2]) if "-->" in line), None)
        times = None if place is None else SUBTITLE.fullmatch(paragraph[place])
        if times is None or place is None:
            raise UserError(
                f"line {number}: {paragraph[0]!r:.60} begins no subtitle; write 00:00:01,000 --> 00:00:04,000 and the "
                "text below it"
            )
        text = " ".join(" ".join(TAGS.sub("", line) for line in paragraph[place + 1 :]).split())
        if text:
            begin, end = (_seconds(times[name]) for name in ("begin", "end"))
            yield Scene(text, (), None, begin, end, number + place)


# Of a Fountain screenplay
HIDDEN = re.compile(r"/\*.*?\*/", re.DOTALL)  # what its writer has set aside
NOTE = re.compile(r"\[\[((?:(?!\[\[|\]\]).)*)\]\]", re.DOTALL)
TITLE = re.compile(
    r"(?:title|credit|authors?|written by|source|notes?|(?:draft )?date|contact|copyright|revision|format|episode|"
    r"series|language|genre|logline)\s*:",
    re.IGNORECASE,
)
ENTRY = re.compile(r"[^\W\d_][\w ]*:")  # of a title page, which may have any names
EMPHASIS = re.compile(r"(?<!\\)(\*{1,3}|_)(?=\S)(.{1,1000}?)(?<=\S)\1")


def _screenplay(lines: list[str]) -> Iterator[Scene]:
    """Fountain: what is seen are its action paragraphs. A note [[4 s]] in one says its length."""
    text = HIDDEN.sub(lambda match: "\n" * match[0].count("\n"), "\n".join(lines))
    paragraphs = list(_paragraphs(text.split("\n")))
    first = paragraphs[0][1] if paragraphs else []
    if any(map(TITLE.match, first[:1])) or sum(bool(ENTRY.match(line)) for line in first) > 1:
        paragraphs = paragraphs[1:]  # the title page
    return _under_headings(part for number, paragraph in paragraphs for part in _seen(number, paragraph))


def _seen(number: int, paragraph: list[str]) -> Iterator[Part]:
    """A Fountain paragraph as `_under_headings` takes it; nothing of dialogue, transitions, sections and the like."""
    first = paragraph[0]
    if PLACE.match(first):
        yield Part(number, re.sub(r"#[^#]*#$", "", first.removeprefix(".")).rstrip(), "place")
        if len(paragraph) > 1:
            yield from _seen(number + 1, paragraph[1:])
        return
    forced = first.startswith("!")
    speaks = first.startswith("@") or (len(paragraph) > 1 and first.upper() == first and first.lower() != first)
    centred = first.startswith(">") and first.endswith("<")
    moves_on = len(paragraph) == 1 and first.upper() == first and first.endswith("TO:")
    unseen = first.startswith(("#", "~", "===")) or (first.startswith("=") and len(paragraph) == 1)
    if not forced and (speaks or moves_on or unseen or (first.startswith(">") and not centred)):
        return
    text = " ".join(line.strip("><! ") if centred else line.removeprefix("!") for line in paragraph)
    notes = (note.strip() for note in NOTE.findall(text))
    timing = next((f"[{note}] " for note in notes if TIMING.fullmatch(f"[{note}]")), "")
    text = " ".join(EMPHASIS.sub(r"\2", NOTE.sub("", text)).split())
    if text:
        yield Part(number, timing + text)
