"""Subtitles and sound beside the pictures of an .mp4."""

import wave

import av
import numpy as np
import pytest

from tokvid.errors import UserError
from tokvid.io.media import write_video
from tokvid.io.tracks import Cue, add_audio, add_subtitles, check_audio

FPS, FRAMES = 10, 25


@pytest.fixture
def movie(tmp_path):
    """2.5 seconds."""
    write_video(
        tmp_path / "a.mp4", np.random.default_rng(0).integers(256, size=(FRAMES, 32, 32, 3), dtype=np.uint8), FPS
    )
    return tmp_path / "a.mp4"


def write_tone(path, seconds, rate=8000):
    """A loud first tenth of a second, then silence."""
    time_T = np.arange(round(seconds * rate)) / rate
    samples = (20000 * np.sin(2 * np.pi * 440 * time_T) * (time_T < 0.1)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(rate)
        file.writeframes(samples.tobytes())


def heard(path):
    """The samples of the sound's left side, and their rate."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]), frames[0].sample_rate


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("seconds, times", [(9.0, 1), (1.0, 3), (0.5, 5)])
def test_sound_is_as_long_as_the_pictures(movie, tmp_path, seconds, times):
    """Cut off, or again from its beginning."""
    before = packets(movie)
    write_tone(tmp_path / "tone.wav", seconds)
    add_audio(movie, tmp_path / "tone.wav")
    assert packets(movie) == before
    with av.open(str(movie)) as container:
        length = {stream.type: float(stream.duration * stream.time_base) for stream in container.streams}
    assert length["video"] == 2.5 and length["audio"] == pytest.approx(2.5, abs=0.05)
    samples, rate = heard(movie)
    loud = np.abs(samples[: len(samples) // 100 * 100]).reshape(-1, 100).max(axis=1) > 0.1
    begins = np.flatnonzero(np.diff(loud.astype(int)) == 1) / (rate / 100) if len(loud) else []
    assert len(begins) + bool(loud[0]) == times
    np.testing.assert_allclose(np.diff([0.0, *begins][-times:]), [seconds] * (times - 1), atol=0.05)


def test_sound_and_subtitles_keep_each_other(movie, tmp_path):
    write_tone(tmp_path / "tone.wav", 1.0)
    before = packets(movie)
    add_subtitles(movie, [Cue(0.0, 1.0, "one"), Cue(1.0, 2.5, "two")])
    add_audio(movie, tmp_path / "tone.wav")
    add_subtitles(movie, [Cue(0.0, 2.0, "again")])
    with av.open(str(movie)) as container:
        assert [stream.type for stream in container.streams] == ["video", "subtitle", "audio", "subtitle"]
        texts = [bytes(packet)[2:].decode() for packet in container.demux(container.streams.subtitles[0])]
    assert [text for text in texts if text] == ["one", "two"] and packets(movie) == before


def test_subtitles_are_shown_from_their_beginning_to_their_end(movie):
    add_subtitles(movie, [Cue(0.25, 1.0, "one"), Cue(1.0, 2.5, "two")])
    with av.open(str(movie)) as container:
        (track,) = container.streams.subtitles
        shown = [(packet.pts, packet.duration, bytes(packet)[2:]) for packet in container.demux(track) if packet.size]
        unit = track.time_base
    times = [(float(begin * unit), float((begin + long) * unit)) for begin, long, text in shown if text]
    assert times == [(0.25, 1.0), (1.0, 2.5)]


def test_sound_may_come_from_a_video(movie, tmp_path):
    write_tone(tmp_path / "tone.wav", 1.0)
    write_video(tmp_path / "b.mp4", np.zeros((5, 16, 16, 3), np.uint8), FPS)
    add_audio(tmp_path / "b.mp4", tmp_path / "tone.wav")
    add_audio(movie, tmp_path / "b.mp4")
    assert np.abs(heard(movie)[0]).max() > 0.3


def test_what_has_no_sound(movie, tmp_path):
    (tmp_path / "text.wav").write_text("hello " * 100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\na.wav\n")
    write_tone(tmp_path / "empty.wav", 0.0)
    whole = movie.read_bytes()
    for name, said in [
        ("text.wav", "cannot read the sound"),
        ("list.m3u8", "cannot read the sound"),
        ("empty.wav", "is empty|cannot read the sound"),
        ("a.mp4", "has no sound"),
        ("none.wav", "is not there"),
        (".", "is not a file"),
    ]:
        for refuse in (check_audio, lambda path: add_audio(movie, path)):
            with pytest.raises(UserError, match=said) as error:
                refuse(tmp_path / name)
            assert "\n" not in str(error.value)
    assert movie.read_bytes() == whole and len(list(tmp_path.iterdir())) == 4
