"""Methods that make a video: called, they give it whole; by `.stream`, its frames while they are made."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, overload

from tokvid.api.arguments import check_types, hints_of
from tokvid.api.video import Stream, Video
from tokvid.config import Sampling
from tokvid.errors import UserError, did_you_mean

P = ParamSpec("P")
SAMPLING = {field.name for field in dataclasses.fields(Sampling)}


class Verb(Generic[P]):
    """A verb of one world: `world.story(…)` gives a `Video`, `world.story.stream(…)` a `Stream`."""

    def __init__(self, make: Callable[P, Stream], quiet: bool):
        self._make, self._quiet = make, quiet

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Video:
        return self.stream(*args, **kwargs).video(self._quiet)

    def stream(self, *args: P.args, **kwargs: P.kwargs) -> Stream:
        """The frames while they are made, in memory that doesn't grow with their number."""
        names = list(hints_of(self._make))
        for name in kwargs:
            if name in SAMPLING and "sampling" in names:
                raise UserError(f"{name} is one of the settings of sampling; write sampling={{{name!r}: …}}")
            if name not in names:
                raise UserError(did_you_mean(name, names, "argument"))
        check_types(self._make, args, kwargs)
        return self._make(*args, **kwargs)


class verb(Generic[P]):
    """Turns a method that returns a `Stream` into a `Verb`. The object may be `quiet`."""

    def __init__(self, make: Callable[Concatenate[Any, P], Stream]):
        self.make = make
        functools.update_wrapper(self, make)  # type: ignore[arg-type]

    @overload
    def __get__(self, world: None, kind: Any = None) -> "verb[P]": ...
    @overload
    def __get__(self, world: Any, kind: Any = None) -> Verb[P]: ...
    def __get__(self, world: Any, kind: Any = None) -> "verb[P] | Verb[P]":
        if world is None:
            return self
        bound = Verb[P](functools.partial(self.make, world), world.quiet)
        functools.update_wrapper(bound, self.make)  # its signature and docstring, for help()
        return bound
