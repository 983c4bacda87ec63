"""Long stories as Phenaki continues them: each window begins with the last frames, encoded again.

python scripts/compare/reencoding.py --weights shapes --seconds 120 600 --json reencoding.json

The same figures as scripts/long_stories.py, whose ways carry tokens from window to window and never encode a frame
twice.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tokvid.sampling.codec import StreamDecoder, StreamEncoder, frames_of, latent_frames_for
from tokvid.sampling.levels import spans_of
from tokvid.sampling.models import Models
from tokvid.sampling.story import Story, first_frames, prompts_of
from tokvid.sampling.window import RollingWindow
from tokvid.tokenizer.quantizers import codes_of
from tokvid.weights import Loaded

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import long_stories


class ReencodingDecoder:
    """As `StreamDecoder`, but the frames of every call begin a clip of their own, behind `known_BTHWQ`.

    Those are the last frames of the previous call, encoded: Phenaki's tokens have no mid-video to go on from.
    """

    def __init__(self, tokenizer: Loaded, batch: int, rows: int, columns: int, keep: int):
        self._tokenizer, self._batch, self._keep = tokenizer, batch, keep
        self.known_BTHWQ = np.zeros((batch, 0, rows, columns, codes_of(tokenizer.config).per_token), np.int32)

    def feed(self, tokens_BTHWQ: np.ndarray) -> np.ndarray:
        """Tokens that stand behind `known_BTHWQ` → their frames, uint8 (B, T, H, W, 3)."""
        patch, (rows, columns) = self._tokenizer.config.temporal_patch, tokens_BTHWQ.shape[2:4]
        clip_BTHWQ = np.concatenate([self.known_BTHWQ, tokens_BTHWQ], axis=1)
        video = StreamDecoder(self._tokenizer, self._batch, rows, columns).feed(clip_BTHWQ)
        latent_frames = min(self._keep, clip_BTHWQ.shape[1])
        last = video[:, -frames_of(latent_frames, patch) :]
        before = frames_of(self.known_BTHWQ.shape[1], patch)
        self.known_BTHWQ = StreamEncoder(self._tokenizer, self._batch, last.shape[2:4]).feed(last)
        return video[:, before:]


class RestartedWindow(RollingWindow):
    """A rolling window whose known latent frames can be replaced by others, which begin a clip."""

    def restart(self, tokens_BTHWQ: np.ndarray) -> None:
        self._last, self._first = tokens_BTHWQ, 0


def reencoded(models: Models, story: Story) -> Iterator[np.ndarray]:
    """The frames of a story at one level, uint8 (T, H, W, 3), a window at a time."""
    _, rows, columns = models.transformer.config.latent
    latent_frames = latent_frames_for(story.frames, models.temporal_patch)
    prompts = prompts_of(story, models)

    def windows() -> Iterator[np.ndarray]:
        window = RestartedWindow(models, 1, story.fps, keep=story.keep, sampling=story.sampling)
        decoder = ReencodingDecoder(models.tokenizer, 1, rows, columns, story.keep)
        starts = [prompt.start for prompt in prompts]
        for span in spans_of(models, starts, story.fps, latent_frames, keep=story.keep):
            prompt = prompts[span.segment]
            guidance_BT = np.repeat(prompt.guidance_B[:, None], span.end - span.first, axis=1)
            yield decoder.feed(window.extend(prompt, guidance_BT))
            window.restart(decoder.known_BTHWQ)

    return first_frames(story.frames, windows())


if __name__ == "__main__":
    long_stories.main({"re-encoding": reencoded}, __doc__)
