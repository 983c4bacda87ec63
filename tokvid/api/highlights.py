"""The best clips of a long video."""

import os
from pathlib import Path
from typing import Any

from tokvid.api.arguments import typed
from tokvid.evaluate.highlights import cut_out
from tokvid.io.urls import local, text_of


@typed
def highlights(
    video: str | os.PathLike[str], folder: str | os.PathLike[str], *, seconds: float = 4.0, count: int = 5
) -> list[dict[str, Any]]:
    """Cuts the best short clips out of a long video, into a folder: 01.mp4, … in order of time, a contact
    sheet.png, and highlights.jsonl.

    `video` is a path or a URL. A clip counts the more, the more the motion changes in it, the more moves and the
    sharper it is; a cut is where one begins or ends. The clips have the video's rate and size, and no sound; they don't
    overlap, and are fewer than `count` where the video is too short. Returns the rows of highlights.jsonl: file, start,
    score, … UserError for a video that cannot be read, or is shorter than a clip.
    """
    return cut_out(local(text_of(video)), Path(text_of(folder)), seconds, count)
