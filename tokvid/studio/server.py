"""The studio's server: the page and its API, where everything is addressed by ids."""

import asyncio
import importlib.resources
import mimetypes
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any, Literal

import fastapi
from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, Response
from starlette.exceptions import HTTPException

import tokvid
from tokvid.api.edited import check_box, check_larger, check_own
from tokvid.api.stories import IDLE_NEGATIVES, has_idle_negatives
from tokvid.errors import UserError, reason
from tokvid.input_pipeline.tracks import load_track
from tokvid.studio.bodies import MOST_SCENES, OWN, Edit, Id, Wish, Words
from tokvid.studio.guard import Guard, problem
from tokvid.studio.records import FILES, FRAMES, RUNNING, Upload
from tokvid.studio.state import Studio
from tokvid.studio.uploads import MOST_UPLOAD, receive
from tokvid.studio.worlds import VERBS

MOST_SECONDS = 600.0  # of a story
MOST_LISTED = 40
MOST_FRAME_BYTES = 1 << 22  # in one answer
router = fastapi.APIRouter(prefix="/api")


def _studio(request: Request) -> Studio:
    return request.app.state.studio


Here = Annotated[Studio, Depends(_studio)]


@router.get("/studio")
async def about(studio: Here) -> dict[str, Any]:
    """The weights that there are, and the limits."""
    limits = {"upload": MOST_UPLOAD, "seconds": MOST_SECONDS, "scenes": MOST_SCENES}
    return {"version": tokvid.__version__, "weights": studio.facts, "limits": limits}


@router.post("/words")
async def words(asked: Words, studio: Here) -> dict[str, list[str]]:
    """The words of a prompt that the weights hardly know."""
    return {"words": await asyncio.to_thread(studio.world(asked.weights).spelled, asked.prompt)}


@router.get("/takes")
async def takes(studio: Here, before: Annotated[int, fastapi.Query(ge=0, lt=2**31)] = 2**31 - 1) -> dict[str, Any]:
    """Some takes with numbers below `before`, newest first, and all that wait or are being generated."""
    # A video before the takes of its number that are only compared: no part of the list begins between them.
    takes = studio.records.takes.values()
    newest = sorted(takes, key=lambda take: (-take.number, take.until is not None, -take.created))
    listed = [take for take in newest if take.number < before][:MOST_LISTED]
    ids = {take.id for take in listed}
    shown = [take for take in newest if take.id in ids or take.status in ("waiting", *RUNNING)]
    return {"takes": [studio.summary(take) for take in shown], "more": bool(listed) and listed[-1] is not newest[-1]}


@router.post("/takes", status_code=201)
async def make(wish: Wish, studio: Here) -> dict[str, Any]:
    """Adds a story to the queue."""
    studio.world(wish.weights)
    if wish.opening is not None:
        studio.upload(wish.opening)
    elif wish.larger > 1:
        raise UserError("a larger story needs an opening whose detail it keeps; choose one, or a size of 1")
    if wish.until is not None and wish.until >= len(wish.scenes):
        raise UserError(f"until should be below {len(wish.scenes)}, the number of scenes")
    values: dict[str, Any] = {"fps": wish.fps, "sampling": wish.sampling}
    if wish.negative:
        values["negative"] = wish.negative
    if wish.scheme is not None:
        values["scheme"] = wish.scheme
    values["segments"] = [scene.model_dump() for scene in wish.scenes]
    story = tokvid.make_story(values)
    if has_idle_negatives(story):
        raise UserError(IDLE_NEGATIVES)
    if story.seconds > MOST_SECONDS:
        raise UserError(f"a story here has at most {MOST_SECONDS:g} seconds, got {story.seconds:g}")
    asked = {"weights": wish.weights, "story": values, "opening": wish.opening, "larger": wish.larger}
    return studio.summary(studio.enqueue(**asked, until=wish.until))


@router.post("/edits", status_code=201)
async def edit(wish: Edit, studio: Here) -> dict[str, Any]:
    """Adds an edit of an upload, or its animation, interpolation or loop, to the queue."""
    world, upload = studio.world(wish.weights), studio.upload(wish.source)
    own = {name: value for name in OWN if (value := getattr(wish, name)) is not None}
    if wish.task in VERBS:
        _check_verb(wish.task, upload, own)
    else:
        check_own(wish.task, own)
        if wish.box is not None:
            check_box(wish.box, (upload.height, upload.width))
    if wish.task not in world.tasks:
        others = f", only for {', '.join(world.tasks)}" if world.tasks else ""
        raise UserError(f"{wish.weights} was not trained for {wish.task}{others}; choose other weights")
    if wish.first is None:
        if wish.task not in VERBS or not VERBS[wish.task].larger:
            check_larger(wish.task, wish.larger)
    elif (first := studio.upload(wish.first)).kind != "picture":
        raise UserError(f"the first frame should be a picture, {first.name} is a clip; choose a picture")
    facts = world.facts()
    guidance = facts["tasks"][wish.task]["guidance"] if wish.guidance is None else wish.guidance
    fps = _rate(wish.task, upload, facts) if wish.fps is None else wish.fps
    values = {"fps": fps, "guidance": guidance, "seed": wish.seed, "segments": [{"prompt": wish.prompt}]}
    tokvid.make_story(values)  # refuses what is out of range
    asked = {"weights": wish.weights, "story": values, "opening": upload.id, "larger": wish.larger}
    return studio.summary(studio.enqueue(**asked, task=wish.task, own=own))


def _rate(task: str, upload: Upload, facts: dict[str, Any]) -> float:
    """The clip's own, within those that the weights were trained on where frames are only taken from it."""
    rates, own = facts["rates"], upload.fps or facts["defaults"]["fps"]
    return own if task == "interpolation" else min(max(own, rates[0]), rates[-1])


def _check_verb(task: str, upload: Upload, own: dict[str, Any]) -> None:
    """UserError where one of VERBS can't be done with this upload and these settings."""
    verb, needed = VERBS[task], "picture" if task == "animate" else "clip"
    if upload.kind != needed:
        raise UserError(f"{verb.method} needs a {needed}, {upload.name} is a {upload.kind}; choose a {needed}")
    for name in own:
        if name not in verb.settings:
            raise UserError(f"{name} is not for task {task}; leave it out")
    if task != "animate":
        return
    if not own:
        raise UserError('animate needs a track, as {"fps": 8, "points": [[[0.2, 0.5]], [[0.25, 0.5]]]}')
    if (seconds := len(load_track(own["track"], 1.0))) > MOST_SECONDS:
        raise UserError(f"a track here has at most {MOST_SECONDS:g} seconds, got {seconds}")


@router.get("/takes/{take_id}")
async def one_take(take_id: Id, studio: Here) -> dict[str, Any]:
    """One take."""
    return studio.summary(studio.take(take_id))


@router.post("/takes/{take_id}/stop")
async def stop(take_id: Id, studio: Here) -> dict[str, Any]:
    """Stops a take that waits or is being made."""
    take = studio.take(take_id)
    await studio.queue.stop(take)
    return studio.summary(take)


@router.post("/takes/{take_id}/resume")
async def resume(take_id: Id, studio: Here) -> dict[str, Any]:
    """Adds a stopped or failed take to the queue again; its windows are not generated again."""
    take = studio.take(take_id)
    if take.status in ("stopped", "failed"):
        take.status = "waiting"
        studio.records.save(take)
        studio.queue.wake()
    return studio.summary(take)


@router.delete("/takes/{take_id}", status_code=204)
async def delete(take_id: Id, studio: Here) -> Response:
    """Deletes a take and its files."""
    take = studio.take(take_id)
    await studio.queue.stop(take)
    studio.records.remove(take)
    return Response(status_code=204)


@router.get("/takes/{take_id}/frames", response_class=Response)
async def frames(
    take_id: Id,
    studio: Here,
    first: Annotated[int, fastapi.Query(ge=0, lt=2**31)] = 0,
    count: Annotated[int, fastapi.Query(ge=1, lt=2**31)] = 2**31 - 1,
) -> Response:
    """At most `count` frames from number `first` on, as many as there are and fit: uint8 RGB, row by row."""
    take = studio.take(take_id)
    height, width = take.size
    size = 3 * height * width
    count = min(count, take.done - first, max(1, MOST_FRAME_BYTES // size)) if size else 0
    if count <= 0:
        return Response(media_type="application/octet-stream")
    with open(studio.records.place(take) / FRAMES, "rb") as file:
        file.seek(first * size)
        content = await asyncio.to_thread(file.read, count * size)
    return Response(content, media_type="application/octet-stream")


@router.get("/takes/{take_id}/files/{kind}", response_class=FileResponse)
async def download(take_id: Id, kind: Literal["mp4", "gif", "sheet", "story", "track"], studio: Here) -> FileResponse:
    """A file of a take that is done."""
    take = studio.take(take_id)
    if kind not in take.files:
        raise HTTPException(404, "there is no such file of this video")
    name, media = FILES[kind]
    path = studio.records.place(take) / name
    return FileResponse(path, media_type=media, filename=f"tokvid-{take.number}{path.suffix}")


@router.post("/takes/{take_id}/upload", status_code=201)
async def reuse(take_id: Id, studio: Here) -> dict[str, Any]:
    """The video of a take that is done, as an upload: to edit it."""
    take = studio.take(take_id)
    if "mp4" not in take.files:
        raise HTTPException(404, "there is no such file of this video")

    async def content() -> AsyncIterator[bytes]:
        yield await asyncio.to_thread((studio.records.place(take) / FILES["mp4"][0]).read_bytes)

    async with studio.uploading:
        return vars(await receive(studio.records, f"tokvid-{take.number}.mp4", content()))


@router.post("/uploads", status_code=201)
async def upload(
    request: Request, studio: Here, name: Annotated[str, fastapi.Query(max_length=300)] = ""
) -> dict[str, Any]:
    """Takes a picture or a clip, the request's body, after the checks that every file has to pass."""
    async with studio.uploading:
        return vars(await receive(studio.records, name, request.stream()))


@router.post("/examples/{name}", status_code=201)
async def example(name: str, studio: Here) -> dict[str, Any]:
    """The picture that the example story of these weights begins with, as an upload."""
    world = studio.worlds.get(name)
    if world is None or (picture := world.picture) is None:
        raise HTTPException(404, "these weights have no example that begins with a picture")

    async def content() -> AsyncIterator[bytes]:
        yield picture.read_bytes()

    return vars(await receive(studio.records, picture.name, content()))


@router.get("/uploads/{upload_id}")
async def one_upload(upload_id: Id, studio: Here) -> dict[str, Any]:
    """One upload."""
    return vars(studio.upload(upload_id))


@router.get("/uploads/{upload_id}/picture", response_class=FileResponse)
async def picture(upload_id: Id, studio: Here) -> FileResponse:
    """Its first frame."""
    return FileResponse(studio.records.place(studio.upload(upload_id)) / "picture.png", media_type="image/png")


@router.get("/uploads/{upload_id}/file", response_class=FileResponse)
async def original(upload_id: Id, studio: Here) -> FileResponse:
    """The file as it was uploaded, never shown in the page."""
    found = studio.upload(upload_id)
    path = studio.records.place(found) / "file"
    return FileResponse(path, media_type="application/octet-stream", filename=f"opening{found.suffix}")


def application(studio: Studio, hosts: tuple[str, ...] | None, token: str | None = None) -> FastAPI:
    """The server; for `hosts` and `token` see `Guard`."""
    app = FastAPI(
        title="tokvid studio", version=tokvid.__version__, lifespan=studio.running, docs_url=None, redoc_url=None
    )
    app.state.studio = studio
    app.include_router(router)
    for path, content, media in _page():
        app.get(path, include_in_schema=False)(_constant(content, media))
    app.add_middleware(Guard, hosts=hosts, token=token, most_upload=MOST_UPLOAD)

    @app.exception_handler(UserError)
    async def user_error(request: Request, error: UserError) -> Response:
        return problem(400, getattr(error, "code", "wrong"), str(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, "missing" if error.status_code == 404 else "http", str(error.detail))

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    async def invalid(request: Request, error: fastapi.exceptions.RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return problem(422, "invalid", f"the request is no JSON: {first['ctx']['error']}")
        place, said = ".".join(str(part) for part in first["loc"][1:]), _said(first)
        return problem(422, "invalid", f"{place}: {said}" if place else said)

    @app.exception_handler(OSError)
    async def disk(request: Request, error: OSError) -> Response:
        return problem(507, "disk", f"cannot write or read the studio's folder: {reason(error)}")

    return app


def _said(error: Any) -> str:
    """What is wrong with a value of a request."""
    facts = error.get("ctx", {})
    if error["type"] == "too_long":  # a list
        return f"at most {facts['max_length']} are allowed, got {facts['actual_length']}"
    if error["type"] == "too_short":
        return f"at least {facts['min_length']} is needed, got {facts['actual_length']}"
    return error["msg"].removeprefix("Value error, ")


def _page() -> list[tuple[str, bytes, str]]:
    """The page's files: path, content, media type."""
    files = []
    for file in importlib.resources.files("tokvid.studio").joinpath("page").iterdir():
        media = {".js": "text/javascript"}.get(Path(file.name).suffix) or mimetypes.guess_type(file.name)[0]
        files.append(("/" if file.name == "index.html" else f"/{file.name}", file.read_bytes(), f"{media}"))
    return files


def _constant(content: bytes, media: str) -> Any:
    async def answer() -> Response:
        return Response(content, media_type=media, headers={"cache-control": "no-cache"})

    return answer
