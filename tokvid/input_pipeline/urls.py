"""Lists of addresses with captions, .csv or .jsonl, as WebVid and Panda-70M are given out: all files are fetched first.

Lists are untrusted: only http and https are read, each file up to a limit, into the cache, where it stays. So an
interrupted run goes on with the files that are missing.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokvid.errors import UserError
from tokvid.input_pipeline.captions import BadLine, field_name, read_lines
from tokvid.input_pipeline.foreign import CAPTION_FIELDS, Choices, caption_of, encoded, files_in, foreign
from tokvid.input_pipeline.stored import MOST_BYTES, StoredVideo
from tokvid.input_pipeline.text import checked
from tokvid.io.download import download, download_all
from tokvid.io.progress import progress

SUFFIXES = (".csv", ".tsv", ".jsonl")
ADDRESS_FIELDS = ("url", "contenturl", "video_url", "video", "link")


class _Line(NamedTuple):
    """A line of a list."""

    where: str
    key: str
    url: str
    caption: str


class URLs(Sequence[StoredVideo]):
    """The videos of a list, or of all lists in a folder.

    UserError, with line numbers, for bad lines (see `captions.read_lines`); and for a file that cannot be fetched or
    read, with its line, when it is asked for.
    """

    kind = "video"

    def __init__(self, path: Path, choices: Choices):
        self.choices = choices
        self.lines = [line for file in files_in(path, SUFFIXES, choices.split) for line in _lines(path, file, choices)]
        self._problems: dict[int, str] = {}
        addresses = [line.url for line in self.lines]
        with progress("fetching", len(self.lines), "files") as advance:
            for index, problem in enumerate(download_all(addresses, MOST_BYTES)):
                if problem:
                    self._problems[index] = f"{self.lines[index].where}: {problem}"
                advance()

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        line = self.lines[index]
        if index in self._problems:
            raise UserError(self._problems[index])
        content = download(line.url, MOST_BYTES).read_bytes()
        return encoded(line.key, f"{line.where}, {line.url!r:.300},", content, line.caption, self.choices.fit)


def _lines(path: Path, file: Path, choices: Choices) -> list[_Line]:
    addresses = [field_name(choices.video)] if choices.video else ADDRESS_FIELDS
    captions = [field_name(choices.caption)] if choices.caption else (*CAPTION_FIELDS, "name")
    name = file.name if file == path else file.relative_to(path)

    def parse(number: int, row: Any) -> _Line:
        if not isinstance(row, dict):
            example = '{"url": "https://…/a.mp4", "caption": "a dog runs"}'
            raise BadLine(
                row if isinstance(row, str) else f"needs an object like {example}, found {type(row).__name__}"
            )
        url = next((row[field] for field in addresses if row.get(field)), None)
        caption = next((row[field] for field in captions if row.get(field) is not None), None)
        try:
            url = checked(url or "", "the address").strip()
            caption = caption_of("this video", caption, choices)
        except UserError as error:
            raise BadLine(str(error)) from error
        if not url.lower().startswith(("http://", "https://")):
            raise BadLine(f"{url!r:.200} is no address on the web, which begins with http:// or https://")
        return _Line(f"{file}, line {number}", f"{name}/{number}", url, caption)

    needed = [addresses] if choices.text is not None else [addresses, captions]
    return read_lines(file, needed, parse)


SOURCE = foreign(URLs)
