"""The JSON that requests bring: its fields, and which values they may have."""

from typing import Annotated, Any, Literal

import pydantic

from tokvid.config import GUIDANCE
from tokvid.errors import did_you_mean
from tokvid.sampling.levels import MOST_DRAWS, MOST_TIMES

OWN = ("box", "canvas", "times", "strength", "first", "track", "factor", "draws")  # settings of single tasks
MOST_SCENES = 100  # of a story

Id = Annotated[str, pydantic.StringConstraints(pattern=r"^[0-9a-f]{16}$")]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Prompt = Annotated[str, pydantic.StringConstraints(max_length=2000)]


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError(f"should be 2, 4, 8, …, got {value}")
    return value


PowerOfTwo = pydantic.AfterValidator(_power_of_two)


class Body(pydantic.BaseModel):
    """JSON with these fields and no others."""

    model_config = pydantic.ConfigDict(extra="forbid")

    @pydantic.model_validator(mode="before")
    @classmethod
    def _known(cls, values: Any) -> Any:
        for name in values if isinstance(values, dict) else ():
            if name not in cls.model_fields:
                raise ValueError(did_you_mean(name, cls.model_fields, "field"))
        return values


Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]
Pixels = Annotated[int, pydantic.Field(ge=0, lt=2**15)]
Larger = Annotated[int, pydantic.Field(ge=1, le=4)]  # times the weights' size


class Scene(Body):
    """One prompt and its length."""

    prompt: Prompt
    seconds: Annotated[float, pydantic.Field(gt=0, le=60)] = 4.0
    guidance: Finite = GUIDANCE
    seed: Seed = 0


class Wish(Body):
    """A story to be made; with `until`, only to the end of that scene."""

    weights: str
    scenes: Annotated[list[Scene], pydantic.Field(min_length=1, max_length=MOST_SCENES)]
    fps: Finite = 8.0
    negative: Prompt = ""
    scheme: Literal["one-level", "hierarchical"] | None = None
    sampling: dict[str, bool | Annotated[int, pydantic.Field(ge=0, lt=2**31)] | Finite | None] = {}
    opening: Id | None = None
    larger: Larger = 1
    until: Annotated[int, pydantic.Field(ge=0, lt=MOST_SCENES)] | None = None


class Edit(Body):
    """An upload to be edited by a task, animated, interpolated or made to loop.

    The last fields are the settings of single tasks, as in `World.edit`, `animate` and `interpolate`.
    """

    weights: str
    task: Annotated[str, pydantic.StringConstraints(max_length=40)]
    source: Id
    prompt: Prompt = ""
    fps: Finite | None = None  # as the world's methods read a clip
    guidance: Finite | None = None  # the task's default
    seed: Seed = 0
    box: tuple[Pixels, Pixels, Pixels, Pixels] | None = None
    canvas: Annotated[str, pydantic.StringConstraints(pattern=r"^[1-9]\d{0,3}:[1-9]\d{0,3}$")] | None = None
    times: Annotated[int, pydantic.Field(ge=2, le=8), PowerOfTwo] | None = None
    strength: Annotated[float, pydantic.Field(gt=0, le=1)] | None = None
    first: Id | None = None
    track: dict[str, Any] | None = None
    factor: Annotated[int, pydantic.Field(ge=2, le=MOST_TIMES), PowerOfTwo] | None = None
    draws: Annotated[int, pydantic.Field(ge=1, le=MOST_DRAWS)] | None = None
    larger: Larger = 1


class Words(Body):
    """A prompt whose words are looked up."""

    weights: str
    prompt: Prompt
