"""Clips to edit, and how edited ones are compared with them: for Moving Shapes (tasks.py) and real clips (edits.py)."""

import abc
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from tokvid.evaluate.batches import Settings
from tokvid.metrics.video import psnr
from tokvid.sampling.codec import encode_clips, latent_frames_for
from tokvid.sampling.given import hidden, pasted, resized, restored
from tokvid.sampling.levels import Levels, videos
from tokvid.sampling.models import Models
from tokvid.sampling.prompts import Guidance, Prompt, make_prompt
from tokvid.sampling.window import Around, Source
from tokvid.tasks.conditions import CONDITIONS

BEST = 100.0  # dB, also of equal videos


@dataclasses.dataclass(frozen=True)
class Clips(abc.ABC):
    """Clips of one rate and length, and how videos are sampled from them."""

    models: Models
    fps: float
    frames: int
    seeds_B: np.ndarray
    settings: Settings

    @property
    @abc.abstractmethod
    def truth(self) -> np.ndarray:
        """The clips, uint8 (B, T, H, W, 3)."""

    @functools.cached_property
    def tokens(self) -> np.ndarray:
        """Their tokens, (B, T', H', W', Q)."""
        return encode_clips(self.models.tokenizer, self.truth)

    @property
    def levels(self) -> Levels:
        """Those of videos like them."""
        return self.settings.levels(self.models, [self.fps], self.frames)

    def prompts(self, texts: Sequence[str]) -> list[Prompt]:
        """A prompt for each clip, in force for all of it."""
        return [make_prompt(self.models, texts, self.seeds_B, Guidance(self.settings.guidance))]

    def seen(self, name: str) -> np.ndarray:
        """The condition `name` of the clips."""
        return np.stack([CONDITIONS[name].apply(video_THWC) for video_THWC in self.truth])

    def source(self, name: str, seen_BTHWC: np.ndarray) -> Source:
        """The condition `name`, which looks so."""
        return Source(name, self.fps / CONDITIONS[name].slower, iter([encode_clips(self.models.tokenizer, seen_BTHWC)]))

    def sampled(
        self,
        texts: Sequence[str],
        sources: Sequence[Source] = (),
        around: Around | None = None,
        first_BHWC: np.ndarray | None = None,
    ) -> np.ndarray:
        """Videos of these texts at one rate, made from conditions, some of their tokens, or their first frame."""
        opening = self.models.no_tokens(len(texts))
        if first_BHWC is not None:
            opening = encode_clips(self.models.tokenizer, first_BHWC[:, None])
        parts = videos(self.models, self.prompts(texts), self.levels, opening, sources=sources, around=around)
        if first_BHWC is not None:
            parts = restored(parts, iter([first_BHWC]))
        return np.concatenate(list(parts), axis=1)[:, : self.frames]

    def pixels(self, tokens_BTHW: np.ndarray) -> np.ndarray:
        """A mask of tokens as one of pixels, (B, T, H, W)."""
        side, patch = self.models.size[0] // tokens_BTHW.shape[2], self.models.temporal_patch
        latent_T = [latent_frames_for(1 + t, patch) - 1 for t in range(self.frames)]
        return tokens_BTHW[:, latent_T].repeat(side, axis=2).repeat(side, axis=3)


def agreeing(name: str, made_BTHWC: np.ndarray, seen_BTHWC: np.ndarray) -> np.ndarray:
    """Videos, put right so that their condition `name` is the given one, where it says how."""
    if (agree := CONDITIONS[name].agree) is None:
        return made_BTHWC
    return np.stack([agree(*each) for each in zip(made_BTHWC, seen_BTHWC, strict=True)])


def all_pasted(made_BTHWC: np.ndarray, given_BTHWC: np.ndarray, inside_BTHW: np.ndarray) -> np.ndarray:
    """Videos with given pixels inside of masks."""
    every = zip(made_BTHWC, given_BTHWC, inside_BTHW, strict=True)
    return np.stack([np.concatenate(list(pasted(iter([each]), *about))) for each, *about in every])


def all_hidden(video_BTHWC: np.ndarray, inside_BTHW: np.ndarray) -> np.ndarray:
    """Videos without what is outside of masks."""
    return np.stack([hidden(*each) for each in zip(video_BTHWC, inside_BTHW, strict=True)])


def blackened(mask_BTHW: np.ndarray, video_BTHWC: np.ndarray) -> np.ndarray:
    """Videos that are black outside of masks."""
    return np.where(mask_BTHW[..., None], video_BTHWC, np.uint8(0))


def psnrs(truth_BTHWC: np.ndarray, made_BTHWC: np.ndarray, where_BTHW: np.ndarray | None = None) -> list[float]:
    """The PSNR of each video, of all its pixels or of some of them."""
    pairs = zip(truth_BTHWC, made_BTHWC, strict=True)
    if where_BTHW is not None:
        pairs = (  # type: ignore[assignment]
            (true[some][None, :, None], new[some][None, :, None])
            for true, new, some in zip(truth_BTHWC, made_BTHWC, where_BTHW, strict=True)
        )
    return [min(BEST, psnr(true, new)) for true, new in pairs]


def bicubic(video_BTHWC: np.ndarray, times: int) -> np.ndarray:
    """Videos `times` as large."""
    _, _, height, width, _ = video_BTHWC.shape
    return np.stack([resized(video_THWC, (times * height, times * width)) for video_THWC in video_BTHWC])
