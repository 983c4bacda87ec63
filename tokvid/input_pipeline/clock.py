"""The time of each frame of a video, even where its container's time stamps are missing or wrong.

AVI stores no time stamps; FFmpeg guesses them. A file converted from an AVI may have stamps in the order of decoding.
Joined recordings (`cat a.ts b.ts`) start anew in the middle. GIF and WebP round the length of a frame. A decoder,
however, gives frames in the order in which they are shown. So each packet is numbered, each frame is identified by its
packet's number, and `Clock` gives the frames increasing times on one line.
"""

import bisect
import itertools
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

B_FRAME = 3  # FFmpeg's number for the type
JUMP = 10.0  # seconds: a longer gap in a transport stream is a join of two recordings, as in FFmpeg
HIGHEST = 240  # frames a second, of rates that are considered
MOST_DRIFT = 0.11  # share of a frame's length that rounding takes: 3 hundredths stand for 3.33, but 2 for no 2.78
OF_A_KIND = 0.05  # share of the gaps between frames that may be shorter than the gap of the rate found


class Clock:
    """Gives each packet a stamp as it goes into the decoder, and each frame its stamp as it comes out.

    Stamps, in ticks, are the container's; where a new recording begins, they continue from the end of the one before.
    If frames come out in another order than the packets' stamps, though these never decrease, the stamps count packets
    in the order of decoding: then the n-th frame has the n-th stamp (`counted`).
    """

    def __init__(self, tick: float, usual: float, *, kind: str, depth: int, whole: bool):
        """`tick`: in seconds; `usual`: the gap between frames in ticks; `kind`: FFmpeg's container name; `depth`:
        the number of frames that the decoder holds back to order them; `whole`: each packet is one frame."""
        self.tick, self.usual, self.depth, self.whole = tick, max(1, round(usual)), depth, whole
        self.avi, self.even = kind == "avi", False
        self.drawn = kind in ("gif", "apng")  # no frame needs another to be decoded, so none is marked as a keyframe
        self.jump = JUMP / tick if kind == "mpegts" else float("inf")
        self.starts = array("q")  # the stamps of all frames shown
        self.end = 0  # the end of the last of them
        self.joins, self.sought = 0, False
        self.counted = self.reordered = self.leading = False
        self.entered = self.skipped = 0  # packets; of these, ones that refer to frames before the first keyframe
        self._offset = 0
        self._latest: int | None = None
        self._keyframe: int | None = None
        self._last: int | None = None
        self._waiting: dict[int, tuple[int, bool]] = {}  # number: stamp, and whether a frame must follow
        self._leads: set[int] = set()
        self._due: list[int] = []  # once `counted`: stamps without a frame so far

    def stamp(self, packet: Any) -> int:
        """The container's stamp of a packet; where there is none, the usual gap after the one before."""
        if self.even:
            return self.entered * self.usual
        pts, dts = (None if self.avi else packet.pts), packet.dts
        stamp = pts if pts is not None else dts
        return stamp if stamp is not None else (self._latest or 0) + self.usual

    def joins_at(self, packet: Any) -> bool:
        """Whether another recording begins at this packet: its stamp doesn't continue those before."""
        stamp, second = self.stamp(packet), 1 / self.tick
        if self._latest is None:
            return False
        if packet.is_keyframe:
            return stamp <= self._latest or stamp > self._latest + self.jump
        return stamp < self._latest - max(32 * self.usual, second)

    def enter(self, packet: Any) -> tuple[int, int]:
        """A packet's number and its stamp on the line."""
        stamp, number = self.stamp(packet), self.entered
        if self.joins_at(packet):
            self.joins += 1
            self._offset, self._latest, self._keyframe = self.end - stamp, None, None
        if self._latest is not None and stamp < self._latest:
            self.reordered = True
        self._latest = stamp if self._latest is None else max(self._latest, stamp)
        stamp += self._offset
        if packet.is_keyframe and self._keyframe is None:
            self._keyframe = stamp
        # After a cut or a seek, some frames refer to others before the first keyframe.
        self.leading = not self.drawn and (self._keyframe is None or stamp < self._keyframe)
        self.entered += 1
        if self.leading:
            self.skipped += 1
            self._leads.add(number)
        if not packet.is_discard:
            if packet.pts is not None or self.avi or not self.reordered:
                self._waiting[number] = stamp, self.whole and not self.leading
            if self.counted:
                bisect.insort(self._due, stamp)
            if not self.leading:
                self.starts.append(stamp)
                self.end = max(self.end, stamp + int(packet.duration or self.usual))
        return number, stamp

    def leave(self, frame: Any) -> tuple[int, int | None]:
        """The stamp of a frame, and that of an earlier one which never came out of the decoder, if there is one."""
        number, lost = frame.pts, None
        if number not in self._waiting:
            stamp = (self._last if self._last is not None else self.end) + self.usual
        else:
            stamp = self._waiting[number][0]
            # Only B-frames come out before frames that went in earlier; before another type, a frame was lost.
            if self.depth and frame.pict_type == B_FRAME and not (self.counted or self.reordered):
                self._due = sorted(waiting for waiting, _ in self._waiting.values())
                self.counted = stamp > self._due[0]
            stamp, lost = self._next(frame) if self.counted else self._own(stamp)
            self.skipped -= number in self._leads
            self._waiting.pop(number, None)
        if self._last is not None and stamp <= self._last:  # a duplicate stamp
            stamp = self._last + self.usual
        self._last = stamp
        return stamp, lost

    def _own(self, stamp: int) -> tuple[int, int | None]:
        before = [number for number, (other, _) in self._waiting.items() if other < stamp]
        lost = min((self._waiting[number][0] for number in before if self._waiting[number][1]), default=None)
        for number in before:
            del self._waiting[number]
        return stamp, lost if self._last is not None else None

    def _next(self, frame: Any) -> tuple[int, int | None]:
        lost = None
        if frame.pict_type != B_FRAME:  # the frames of all earlier packets come before it
            before = [number for number in self._waiting if number < frame.pts]
            cut = before == list(range(1, 1 + len(before)))  # they refer to frames before the file's first
            for number in before:
                stamp, whole = self._waiting.pop(number)
                if whole and cut:
                    self.skipped += 1
                elif whole:
                    lost = stamp
                elif stamp in self._due:  # an empty frame: the one before it stays
                    self._due.remove(stamp)
        return self._due.pop(0), lost

    def missing(self) -> int | None:
        """After the last frame: the stamp of a frame that never came, if there is one."""
        return min((stamp for stamp, whole in self._waiting.values() if whole), default=None)

    def due(self, number: int) -> int:
        """The stamp of a packet that is in the decoder, or of the next frame where frames are counted."""
        if self.counted:
            return self._due[0] if self._due else self.end
        return self._waiting[number][0] if number in self._waiting else self.end

    @property
    def seekable(self) -> bool:
        """After all packets: whether stamps identify frames, so that a frame in the middle can be found by its own."""
        orderly = not self.joins and len(set(self.starts)) == len(self.starts)
        return orderly and not (self.avi and self.depth)

    def line(self) -> list[int]:
        """After all packets: the stamps of all frames, in order, as `leave` gives them."""
        stamps: list[int] = []
        for stamp in sorted(self.starts):
            stamps.append(stamp if not stamps or stamp > stamps[-1] else stamps[-1] + self.usual)
        return stamps

    def again(self) -> None:
        """Resets the state: the file is read from another place on."""
        self.sought, self.leading, self.entered, self.skipped = True, False, 0, 0
        self._latest, self._keyframe, self._last = None, None, None
        self._waiting, self._due, self._leads = {}, [], set()


def steady_times(starts: Sequence[float], unit: float, fps: float) -> list[float] | None:
    """Starts of frames and the end of the last, at `fps`, before rounding to `unit` seconds; None for another rate.

    Either the starts were rounded, or the lengths: then each of 8 frames a second lasts 12 hundredths, and the starts
    drift. Equal frames may have been joined, and `fps` may be a fraction of the rate, or half of it where starts drift.
    """
    first = starts[0]
    for times in range(1, 5):
        step = 1 / (fps * times * unit)  # units
        if step < 2 and times > 1:
            break  # any start is near a frame of such a rate
        places = [(start - first) / unit for start in starts]
        frames = [round(place / step) for place in places]
        near = all(-1 < place - n * step <= 0.501 for place, n in zip(places, frames, strict=True))
        if near and all(a < b for a, b in itertools.pairwise(frames)):
            return [n / (fps * times) for n in frames]
        lengths = [b - a for a, b in itertools.pairwise(places)]
        counts = [max(1, round(length / step)) for length in lengths]
        least = min(counts)
        late = [(length - n * step) / n for length, n in zip(lengths, counts, strict=True)]  # of each frame
        if times <= 2 and all(-1 < units * least <= 0.501 and abs(units) <= MOST_DRIFT * step for units in late):
            return [n / (fps * times) for n in itertools.accumulate(counts, initial=0)]
    return None


def steady_rate(starts: Sequence[float], unit: float, mean: float, rounded: bool = False) -> float:
    """A rate, in frames a second, that shows all frames that start at these seconds, each at its time.

    The `mean` rate, a whole one, or one of television's, if its frames coincide with all starts (to within `unit`
    seconds). If there is none, a rate as high as the smallest gaps need, apart from a few. Where durations are
    `rounded`, so is the mean, and a whole rate near it is tried first.
    """
    places = np.asarray(starts) - starts[0]
    gaps = np.sort(np.diff(places))
    close = float(1 / max(gaps[int(OF_A_KIND * len(gaps))], 1 / HIGHEST))
    whole = [float(n) for n in range(1, 1 + round(min(2 * close, HIGHEST)))]
    near = [rate for rate in whole if abs(rate / mean - 1) < 0.015]
    likely = [*near, mean] if rounded else [mean]
    for rate in [*likely, *whole, *(rate * 1000 / 1001 for rate in whole)]:
        frames = np.rint(places * rate)
        if (np.abs(places - frames / rate) <= 1.001 * unit).all() and (np.diff(frames) > 0).all():
            return rate
    return close
