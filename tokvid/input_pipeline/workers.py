"""Applies a function to many items: in threads of this machine, or on the machines of an Apache Beam runner."""

import base64
import contextlib
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokvid.errors import UserError
from tokvid.io.threads import map_in_threads, usable_cores

# As the builtin `map` of one function and one list: the results in order, each when it is asked for. The function
# returns mistakes of users; what it raises ends the work.
Map = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """A `Map` with a thread for each core, up to 16, for functions that only read: see `map_in_threads`."""
    return map_in_threads(function, items, min(16, usable_cores()))


class Beam:
    """A `Map` on a runner of Apache Beam (`pip install 'tokvid[beam]'`): "direct", on this machine, or another name.

    `options` are the runner's own, as "direct_num_workers=4". All workers see the same files under the same paths:
    results pass through files in a folder that is made in `folder`, and removed afterwards.

    Raises:
        UserError: no Beam, an unknown runner or option; when called, a pipeline that failed.
    """

    def __init__(self, runner: str, options: Sequence[str], folder: Path):
        self.runner, self.folder = "DirectRunner" if runner.lower() == "direct" else runner, folder
        self.options = [f"--{option.removeprefix('--')}" for option in options]
        self._pipeline()  # before any work

    def _pipeline(self) -> Any:
        try:
            import apache_beam
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError as error:
            raise UserError(f"a runner needs Apache Beam: pip install 'tokvid[beam]' ({error})") from error
        try:
            return apache_beam.Pipeline(runner=self.runner, options=PipelineOptions(self.options))
        except (Exception, SystemExit) as error:  # of any runner
            raise UserError(f"cannot set up the Beam runner {self.runner}: {_last_line(error)}") from error

    def __call__(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
        """The results in order; one is in memory at a time."""
        import apache_beam as beam

        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".beam.", dir=self.folder))
        try:
            pipeline = self._pipeline()
            lines = beam.coders.BytesCoder()
            with open(folder / "items", "wb") as file:  # a runner's job has no room for them
                file.writelines(_line(index, item) + b"\n" for index, item in enumerate(items))
            results = (
                pipeline
                | "items" >> beam.io.ReadFromText(str(folder / "items"), coder=lines)
                | "share out" >> beam.Reshuffle()
                | "work" >> beam.Map(_worked, function)
            )
            results | "results" >> beam.io.WriteToText(str(folder / "results"), coder=lines)
            try:
                pipeline.run().wait_until_finish()
            except Exception as error:  # of any runner
                raise UserError(f"the Beam pipeline failed: {_last_line(error)}; nothing was written") from error
            yield from _in_order(folder, len(items))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _line(index: int, value: Any) -> bytes:
    return b"%d %s" % (index, base64.b64encode(pickle.dumps(value)))


def _read(line: bytes) -> tuple[int, Any]:
    """What `_line` wrote. Files are pickled because only our own workers write to our own folder."""
    index, _, value = line.partition(b" ")
    return int(index), pickle.loads(base64.b64decode(value))


def _worked(line: bytes, function: Callable[[Any], Any]) -> bytes:
    index, item = _read(line)
    return _line(index, function(item))


def _in_order(folder: Path, count: int) -> Iterator[Any]:
    places: dict[int, tuple[Any, int]] = {}
    with contextlib.ExitStack() as stack:
        for path in sorted(folder.glob("results*")):
            file, place = stack.enter_context(open(path, "rb")), 0
            for line in file:
                places[int(line[: line.index(b" ")])] = (file, place)
                place += len(line)
        if len(places) != count:
            raise UserError(f"the Beam pipeline gave {len(places)} results for {count} items; nothing was written")
        for index in range(count):
            file, place = places[index]
            file.seek(place)
            yield _read(file.readline())[1]


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
