"""The studio's server: stories by way of HTTP, from a generating process that is shared by the tests of this file."""

import asyncio
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import tokvid

pytest.importorskip("fastapi", reason="needs fastapi, of the extra studio")
pytest.importorskip("httpx", reason="needs httpx, of the group dev")

from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect

from tokvid import weights
from tokvid.cli.main import main
from tokvid.config import GUIDANCE
from tokvid.errors import UserError
from tokvid.input_pipeline.text import train_text_model
from tokvid.io.media import write_image, write_video
from tokvid.io.worlds import WORLDS
from tokvid.sampling.story import defaults_of, load_story
from tokvid.shapes.drawing import captions_corpus
from tokvid.studio import jobs, maker, state, uploads
from tokvid.studio import server as server_module
from tokvid.studio.guard import LOOPBACK
from tokvid.studio.jobs import Queue
from tokvid.studio.records import ENDED, Records, Take
from tokvid.studio.server import application
from tokvid.studio.state import Studio
from tokvid.studio.worlds import World, offered
from tokvid.transformer import lora_files

RNG = np.random.default_rng(0)
PATIENCE = 120  # seconds


def scene(prompt, seed, seconds=1.0):
    return {"prompt": prompt, "seconds": seconds, "guidance": 1.5, "seed": seed}


SCENES = [scene("a small red circle moves up", 1), scene("一个圆", 2)]


@pytest.fixture(scope="module")
def lora(tiny_weights, tmp_path_factory):
    """The file of a random LoRA."""
    path = tmp_path_factory.mktemp("pink") / "transformer" / lora_files.LORA_FILE
    path.parent.mkdir()
    factors = {"a": RNG.normal(size=(2, 32, 3)), "b": RNG.normal(size=(2, 3, 32))}  # of layers of width 32
    mark = weights.describe(tiny_weights / "transformer", "transformer")["fingerprint"]
    lora_files.save_lora(path, [(("blocks", "mlp", "up", name), factor) for name, factor in factors.items()], mark)
    return path


@pytest.fixture(scope="module")
def studio(tiny_weights, editing_weights, lora, tmp_path_factory):
    worlds = offered({"tiny": tiny_weights, "editing": editing_weights}, tiny_weights, [(lora, 0.5)])
    return Studio(tmp_path_factory.mktemp("studio"), worlds)


@pytest.fixture(scope="module")
def client(studio):
    with TestClient(application(studio, LOOPBACK), base_url="http://127.0.0.1") as client:
        yield client


def ask(client, scenes=SCENES, **more):
    answer = client.post("/api/takes", json={"weights": "tiny", "scenes": scenes, "fps": 8, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()["id"]


def wait(client, take_id, *statuses):
    until = time.monotonic() + PATIENCE
    while (take := client.get(f"/api/takes/{take_id}").json())["status"] not in statuses:
        assert time.monotonic() < until and take["status"] not in ENDED, (take["status"], take["error"])
        time.sleep(0.05)
    return take


def wait_until_running(client, take_id):
    """Any moment of it may be missed, and these weights make a video within a tenth of a second."""
    return wait(client, take_id, "making", "saving")


def idle_maker(client, studio):
    """The generating process, which waits for orders; it is started where another test has ended it."""
    wait(client, ask(client, [scene("a circle", 15)]), "done")
    return studio.queue._maker


def frames(client, take):
    content = client.get(f"/api/takes/{take['id']}/frames").content
    return np.frombuffer(content, np.uint8).reshape(-1, *take["size"], 3)


@pytest.fixture(scope="module")
def take(client):
    """A story that is done."""
    return wait(client, ask(client), "done")


def upload(client, name, content):
    return client.post("/api/uploads", params={"name": name}, content=content)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of a picture and of a clip."""
    folder = tmp_path_factory.mktemp("files")
    write_image(folder / "a.png", RNG.integers(256, size=(20, 30, 3), dtype=np.uint8))
    write_video(folder / "a.mp4", RNG.integers(256, size=(10, 20, 30, 3), dtype=np.uint8), 8)
    return {path.suffix: path.read_bytes() for path in folder.iterdir()}


def test_a_story_is_generated(client, take):
    assert take["done"] == take["total"] == 16 and take["spans"] == [[0, 8], [8, 16]] and take["error"] == ""
    assert sorted(take["files"]) == ["gif", "mp4", "sheet", "story"]
    video = frames(client, take)
    assert video.shape == (16, 16, 16, 3)
    part = client.get(f"/api/takes/{take['id']}/frames", params={"first": 3, "count": 2}).content
    assert part == video[3:5].tobytes()
    assert client.get(f"/api/takes/{take['id']}/frames", params={"first": 16}).content == b""


def test_the_command_line_and_python_generate_the_same_bytes(client, take, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, name in (("story", "story.yaml"), ("mp4", "page.mp4")):
        answer = client.get(f"/api/takes/{take['id']}/files/{kind}")
        assert f"tokvid-{take['number']}." in answer.headers["content-disposition"]
        (tmp_path / name).write_bytes(answer.content)
    main(["story", "story.yaml", "--weights", str(tiny_weights), "--out", "own.mp4"])
    tokvid.load(tiny_weights, quiet=True).story("story.yaml").save("python.mp4")
    for name in ("own.mp4", "python.mp4"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "page.mp4").read_bytes()


@pytest.mark.parametrize(
    "number, code, said",
    [(signal.SIGINT, 0, "stopped; unfinished videos are finished when it is started again"), (signal.SIGTERM, 143, "")],
)
def test_ctrl_c_is_how_it_is_stopped(tmp_path, number, code, said):
    command = [sys.executable, "-m", "tokvid", "studio", "--port", "0", "--folder", str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    address = re.search(r"http://(127\.0\.0\.1:\d+)", server.stdout.readline())[1]
    asked = http.client.HTTPConnection(address, timeout=PATIENCE)
    asked.request("GET", "/")
    assert asked.getresponse().status == 200  # so uvicorn has set its handlers
    asked.close()
    server.send_signal(number)
    out, err = server.communicate(timeout=PATIENCE)
    assert (server.returncode, said in out, "Traceback" in err) == (code, True, False), (out, err)


def test_a_scene_needs_only_a_prompt(client):
    take = client.post(f"/api/takes/{ask(client, scenes=[{'prompt': 'up'}])}/stop").json()
    assert take["story"]["segments"] == [{"prompt": "up", "seconds": 4.0, "guidance": GUIDANCE, "seed": 0}]


def test_every_request_of_the_interface_is_documented(client):
    """In docs/studio.md, which leaves out what only the page asks for."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "studio.md").read_text(encoding="utf-8")
    paths = {path.removeprefix("/api") for path in client.get("/openapi.json").json()["paths"]}
    for_the_page = {"/words", "/examples/{name}", *(path for path in paths if path.startswith("/uploads/"))}
    for path in paths - for_the_page:
        request = re.sub(r"/\{kind\}", "", path).replace("{take_id}", "ID")
        assert request in text or f"…/{request.rpartition('/')[2]}" in text, path


def test_each_task_has_its_own_guidance():
    """Twice the size leaves little to chance, a new look leaves a lot, but not where things are."""
    tasks = World("shapes", WORLDS["shapes"]).facts()["tasks"]
    assert {name: tasks[name]["guidance"] for name in ("upscale", "restyle", "inpaint")} == {
        "upscale": 1.0, "restyle": 1.5, "inpaint": 3.0
    }  # fmt: skip


def test_the_words_that_weights_know_best_are_listed(tmp_path):
    facts = World("shapes", WORLDS["shapes"]).facts()
    assert {"circle", "slowly", "yellow"} <= set(facts["words"]) and len(facts["words"]) <= 120
    robots = World("robots", WORLDS["robots"]).facts()["words"]
    assert len({word.lower() for word in robots}) == len(robots) == 120
    shutil.copytree(WORLDS["shapes"] / "transformer", tmp_path / "transformer")
    (tmp_path / "text").mkdir()  # a T5's, which is not read for this
    assert World("own", tmp_path).facts()["words"] == []


def test_weights_with_a_lora(client, lora, take, tiny_weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = client.get("/api/studio").json()["weights"]
    name = facts[2]["name"]
    assert (
        len(facts) == 3
        and name == f"tiny+{lora.parents[1].name}-0.5"
        and facts[2]["loras"] == [["lora.safetensors", 0.5]]
    )
    other = wait(client, ask(client, weights=name), "done")
    assert (frames(client, other) != frames(client, take)).any()
    (tmp_path / "story.yaml").write_bytes(client.get(f"/api/takes/{other['id']}/files/story").content)
    main(["story", "story.yaml", "--weights", str(tiny_weights), "--lora", f"{lora}:0.5", "--out", "own.mp4"])
    assert (tmp_path / "own.mp4").read_bytes() == client.get(f"/api/takes/{other['id']}/files/mp4").content
    with pytest.raises(UserError, match="no LoRA"):
        offered({}, tiny_weights, [(tiny_weights / "transformer" / "weights.safetensors", 1.0)])


def test_loras_of_one_name_are_all_offered(tiny_weights, lora, tmp_path):
    files = [(tmp_path / version / "style.safetensors", 1.0) for version in "abc"]
    for file, _ in files:
        file.parent.mkdir()
        shutil.copyfile(lora, file)
    worlds = offered({"tiny": tiny_weights}, tiny_weights, files)
    assert list(worlds) == ["tiny", "tiny+style", "tiny+style-2", "tiny+style-3"]
    assert [world.loras[0][0] for world in worlds.values() if world.loras] == [file for file, _ in files]


@pytest.mark.parametrize(
    "task, own, size",
    [
        ("inpaint", {"box": [60, 40, 120, 150], "larger": 2}, (32, 32)),
        ("upscale", {"times": 2}, (16, 16)),
        ("restyle", {"first": "a.png", "larger": 2}, (32, 32)),
    ],
)
def test_a_video_is_edited(client, take, files, editing_weights, tmp_path, monkeypatch, task, own, size):
    """One that was generated, after which the command line gives the same bytes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(files[".png"])
    source = client.post(f"/api/takes/{take['id']}/upload").json()
    assert source["name"] == f"tokvid-{take['number']}.mp4" and source["kind"] == "clip"
    wish = {
        "weights": "editing",
        "task": task,
        "source": source["id"],
        "prompt": "it's a blue star",
        "fps": 4,
        "seed": 3,
    }
    wish |= own
    if "first" in own:
        wish["first"] = upload(client, "a.png", files[".png"]).json()["id"]
    answer = client.post("/api/edits", json=wish)
    assert answer.status_code == 201, answer.text
    edited = wait(client, answer.json()["id"], "done")
    assert edited["done"] == edited["total"] == 8 and tuple(edited["size"]) == size
    assert edited["spans"] == [[0, 8]] and sorted(edited["files"]) == ["gif", "mp4", "sheet"]
    (tmp_path / "in.mp4").write_bytes(client.get(f"/api/uploads/{source['id']}/file").content)
    assert (tmp_path / "in.mp4").read_bytes() == client.get(f"/api/takes/{take['id']}/files/mp4").content
    words = [
        "edit",
        "in.mp4",
        "--task",
        task,
        "--prompt",
        wish["prompt"],
        "--fps",
        "4",
        "--seed",
        "3",
    ]
    for name, value in own.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    main([*words, "--weights", str(editing_weights), "--out", "own.mp4"])
    assert (tmp_path / "own.mp4").read_bytes() == client.get(f"/api/takes/{edited['id']}/files/mp4").content


def test_a_picture_moves_along_a_track(client, files, editing_weights, tmp_path, monkeypatch):
    """The command line and Python give the same bytes, with the track of **Download**."""
    monkeypatch.chdir(tmp_path)
    source = upload(client, "a.png", files[".png"]).json()["id"]
    track = {"fps": 4, "points": [[[0.25, 0.5]], [[0.5, 0.5]], [[0.75, 0.5]]]}
    wish = {"weights": "editing", "task": "animate", "source": source, "prompt": "a star", "fps": 4, "seed": 3}
    answer = client.post("/api/edits", json=wish | {"track": track})
    assert answer.status_code == 201, answer.text
    moved = wait(client, answer.json()["id"], "done")
    assert moved["done"] == 3 and sorted(moved["files"]) == ["gif", "mp4", "sheet", "track"]
    (tmp_path / "a.png").write_bytes(client.get(f"/api/uploads/{source}/file").content)
    (tmp_path / "t.json").write_bytes(client.get(f"/api/takes/{moved['id']}/files/track").content)
    words = ["animate", "a.png", "--track", "t.json", "--prompt", "a star", "--fps", "4", "--seed", "3"]
    main([*words, "--weights", str(editing_weights), "--out", "own.mp4"])
    tokvid.load(editing_weights).animate("a.png", "a star", track=track, fps=4, seed=3).save("python.mp4")
    for name in ("own.mp4", "python.mp4"):
        assert (tmp_path / name).read_bytes() == client.get(f"/api/takes/{moved['id']}/files/mp4").content, name


@pytest.mark.parametrize(
    "task, own, verb, frames, fps",
    [
        ("interpolation", {"factor": 4, "draws": 2}, "interpolate", 37, 32),
        ("interpolation", {}, "interpolate", 19, 16),
        ("infilling", {}, "loop", None, 8),
    ],
)
def test_a_clip_gets_more_frames_or_loops(
    client, files, editing_weights, tmp_path, monkeypatch, task, own, verb, frames, fps
):
    """The command line and Python give the same bytes."""
    monkeypatch.chdir(tmp_path)
    source = upload(client, "a.mp4", files[".mp4"]).json()["id"]
    wish = {"weights": "editing", "task": task, "source": source, "prompt": "a star", "fps": 8, "seed": 3, "larger": 2}
    answer = client.post("/api/edits", json=wish | own)
    assert answer.status_code == 201, answer.text
    take = wait(client, answer.json()["id"], "done")
    assert take["fps"] == fps and take["size"] == [32, 32] and take["done"] == (frames or take["total"])
    (tmp_path / "a.mp4").write_bytes(client.get(f"/api/uploads/{source}/file").content)
    options = {**own, "fps": 8, "seed": 3, "larger": 2, "guidance": take["story"]["guidance"]}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    main([verb, "a.mp4", "--prompt", "a star", *words, "--weights", str(editing_weights), "--out", "own.mp4"])
    getattr(tokvid.load(editing_weights), verb)("a.mp4", prompt="a star", **options).save("python.mp4")
    for name in ("own.mp4", "python.mp4"):
        assert (tmp_path / name).read_bytes() == client.get(f"/api/takes/{take['id']}/files/mp4").content, name


def test_pictures_are_neither_interpolated_nor_looped(client, files):
    source = upload(client, "a.png", files[".png"]).json()["id"]
    for task, verb in (("interpolation", "interpolate"), ("infilling", "loop")):
        answer = client.post("/api/edits", json={"weights": "editing", "task": task, "source": source})
        assert f"{verb} needs a clip, a.png is a picture; choose a clip" in answer.json()["error"]["message"]


def test_an_edit_without_a_guidance_scale_has_that_of_its_task(client, files):
    source = upload(client, "a.png", files[".png"]).json()["id"]
    for task in ("restyle", "inpaint"):
        wish = {"weights": "editing", "task": task, "source": source}
        if task == "inpaint":
            wish["box"] = [0, 0, 9, 9]
        answer = client.post("/api/edits", json=wish)
        assert answer.status_code == 201, answer.text
        edit = answer.json()
        client.delete(f"/api/takes/{edit['id']}")
        assert edit["story"]["guidance"] == defaults_of(task)[0], task


def test_a_first_frame_is_a_picture_and_is_kept(client, studio, files, monkeypatch):
    source, picture = (upload(client, f"a{kind}", files[kind]).json()["id"] for kind in (".mp4", ".png"))
    wish = {"weights": "editing", "task": "restyle", "source": source, "prompt": "a star"}
    refused = client.post("/api/edits", json=wish | {"first": source})
    assert refused.status_code == 400 and "should be a picture, a.mp4 is a clip" in refused.json()["error"]["message"]
    assert "first is not for task" in client.post("/api/edits", json=wish | {"task": "inpaint", "first": picture}).text
    edited = wait(client, client.post("/api/edits", json=wish | {"first": picture}).json()["id"], "done")
    assert edited["own"] == {"first": picture}
    monkeypatch.setattr(uploads, "MOST_UPLOADS", 0)
    upload(client, "b.png", files[".png"])
    assert {source, picture} <= studio.records.uploads.keys()
    assert client.delete(f"/api/takes/{edited['id']}").status_code == 204
    upload(client, "c.png", files[".png"])
    assert not {source, picture} & studio.records.uploads.keys()


@pytest.mark.parametrize(
    "change, says",
    [
        ({"task": "inpeint"}, "inpaint"),
        ({"task": "restyle"}, "box is not for task restyle"),
        ({"task": "colourise", "box": None}, "was not trained for colourise"),
        ({"weights": "tiny"}, "was not trained for inpaint"),
        ({"source": "0" * 16}, "no such upload"),
        ({"box": None}, "inpaint needs either a box"),
        ({"boks": [0, 0, 5, 5]}, "unknown field 'boks'; allowed: weights, task, source"),
        ({"box": [0, 0, 5]}, "box"),
        ({"box": [0, 0, -5, 5]}, "box"),
        ({"fps": 0}, "fps"),
        ({"guidance": 101}, "guidance should be 0 to 100"),
        ({"task": "upscale", "box": None, "larger": 2}, "upscale keeps no pixels of its video"),
        ({"larger": 5}, "larger"),
        ({"path": "/etc/passwd"}, "path"),
        ({"track": {"fps": 8, "points": [[[0, 0]]]}}, "track is not for task inpaint"),
        ({"factor": 2}, "factor is not for task inpaint"),
        ({"task": "infilling"}, "loop needs a clip"),
        ({"task": "interpolation", "box": None, "factor": 65}, "factor"),
        ({"task": "interpolation", "box": None, "draws": 0}, "draws"),
        ({"task": "animate"}, "box is not for task animate"),
        ({"task": "animate", "box": None}, "animate needs a track"),
        ({"task": "animate", "box": None, "track": [0, 0]}, "track"),
        ({"task": "animate", "box": None, "track": {"fps": 1e-9, "points": [[[0, 0]]]}}, "fps should be 0.1 to 240"),
        ({"task": "animate", "box": None, "track": {"fps": 0.1, "points": [[[0, 0]]] * 61}}, "at most 600 seconds"),
        ({"task": "animate", "box": None, "larger": 2, "track": {"fps": 8, "points": [[[0, 0]]]}}, "larger"),
    ],
)
def test_wrong_edits_are_refused_in_one_line(client, files, change, says):
    source = upload(client, "a.png", files[".png"]).json()["id"]
    wish = {"weights": "editing", "task": "inpaint", "source": source, "box": [0, 0, 5, 5]}
    answer = client.post("/api/edits", json=wish | change)
    assert answer.status_code in (400, 404, 422), answer.text
    message = answer.json()["error"]["message"]
    assert says in message and "\n" not in message


def test_a_scene_is_generated_again_and_the_others_stay(client, take):
    before = frames(client, take)
    single = wait(client, ask(client, [SCENES[0], scene("一个圆", 77)], until=1), "done")
    whole = wait(client, ask(client, [SCENES[0], scene("一个圆", 77)]), "done")
    assert single["files"] == [] and len(whole["files"]) == 4
    assert whole["number"] == single["number"] + 1  # those that are only compared take no numbers
    np.testing.assert_array_equal(frames(client, single), frames(client, whole))
    np.testing.assert_array_equal(frames(client, whole)[:8], before[:8])
    assert (frames(client, whole)[8:] != before[8:]).any()
    first = wait(client, ask(client, [scene("a small red circle moves up", 78), SCENES[1]], until=0), "done")
    assert first["done"] == first["total"] == 8


def test_stopping_waiting_going_on_and_deleting(client, studio):
    long, next_one = ask(client, [scene("a circle", 5, 60.0)] * 9), ask(client, [scene("a star", 6)])
    wait_until_running(client, long)
    assert client.get(f"/api/takes/{next_one}").json()["status"] == "waiting"
    stopped = client.post(f"/api/takes/{long}/stop").json()
    assert stopped["status"] == "stopped" and stopped["files"] == []
    wait(client, next_one, "done")
    assert client.post(f"/api/takes/{next_one}/stop").json()["status"] == "done"
    assert client.post(f"/api/takes/{long}/resume").json()["status"] in ("waiting", "loading", "making")
    wait_until_running(client, long)
    assert client.delete(f"/api/takes/{long}").status_code == 204
    assert client.get(f"/api/takes/{long}").status_code == 404
    assert not (studio.records.folder / "takes" / long).exists()
    assert client.post(f"/api/takes/{long}/resume").json()["error"]["code"] == "missing"


def test_a_take_that_is_resumed_as_soon_as_it_was_stopped_is_made(client, studio, monkeypatch):
    """Before the generating process has heard of the stop."""
    send = studio.queue._order

    async def send_all_but_stops(order):
        return "stop" not in order and await send(order)

    monkeypatch.setattr(studio.queue, "_order", send_all_but_stops)
    monkeypatch.setattr(jobs, "PATIENCE", PATIENCE)  # it goes on with what was stopped, and is not ended
    made_by = idle_maker(client, studio)
    made_by.send_signal(signal.SIGSTOP)  # so that nothing is done before it is stopped
    long = ask(client, [scene("a circle", 8, 20.0)])
    wait(client, long, "loading")
    assert client.post(f"/api/takes/{long}/stop").json()["status"] == "stopped" and studio.queue.current.id == long
    assert client.post(f"/api/takes/{long}/resume").json()["status"] == "waiting"
    made_by.send_signal(signal.SIGCONT)
    assert wait(client, long, "done")["done"] == 160 and studio.queue._maker is made_by


def test_what_does_not_stop_is_ended(client, studio, monkeypatch):
    send = studio.queue._order

    async def send_all_but_stops(order):
        return "stop" not in order and await send(order)

    monkeypatch.setattr(studio.queue, "_order", send_all_but_stops)
    monkeypatch.setattr(jobs, "PATIENCE", 0.01)
    long = ask(client, [scene("a circle", 11, 60.0)] * 9)
    wait_until_running(client, long)
    hung = studio.queue._maker
    hung.send_signal(signal.SIGSTOP)  # it says nothing from now on
    client.post(f"/api/takes/{long}/stop")
    wait(client, ask(client, [scene("a circle", 12)]), "done")
    assert hung.returncode == -signal.SIGKILL
    client.delete(f"/api/takes/{long}")


def test_a_stop_while_the_generating_process_starts_reaches_it(client, studio, monkeypatch):
    start, started, stopped = studio.queue._start, [], []

    async def start_and_be_stopped():
        if not started:
            stopped.append(asyncio.create_task(studio.queue.stop(studio.queue.current)))
        started.append(await start())
        return started[-1]

    monkeypatch.setattr(studio.queue, "_start", start_and_be_stopped)
    monkeypatch.setattr(jobs, "PATIENCE", PATIENCE)  # or it would be ended where it starts slowly
    studio.queue._maker.kill()
    while studio.queue._maker.returncode is None:
        time.sleep(0.05)
    long = ask(client, [scene("a circle", 13, 60.0)] * 9)
    wait(client, long, "stopped")
    wait(client, ask(client, [scene("a circle", 14)]), "done")
    assert len(started) == 1
    client.delete(f"/api/takes/{long}")


def test_a_deleted_take_leaves_nothing_even_if_it_was_being_saved(client, studio, monkeypatch):
    long = ask(client, [scene("a circle", 10, 60.0)] * 9)
    wait_until_running(client, long)
    place, heard, told, send = studio.records.folder / "takes" / long, [], [], studio.queue._order

    async def send_and_note(order):
        told.extend(order)
        return await send(order)

    def saved_meanwhile(take, event):
        heard.append(event.get("status"))
        place.mkdir(exist_ok=True)
        (place / "video.mp4").write_bytes(b"")

    monkeypatch.setattr(studio.queue, "_order", send_and_note)
    monkeypatch.setattr(studio.queue, "_note", saved_meanwhile)
    monkeypatch.setattr(jobs, "PATIENCE", PATIENCE)  # or it would be ended where it is slow to stop, and say nothing
    assert client.delete(f"/api/takes/{long}").status_code == 204
    until = time.monotonic() + PATIENCE
    while studio.queue.current is not None:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert told == ["stop"] and heard[-1] in ("stopped", "failed")  # without its folder it can't save
    assert not place.exists()


class Unnoticed:
    """A process whose end is only known once it was waited for."""

    def __init__(self, process):
        self.process, self.waited = process, False

    def __getattr__(self, name):
        return getattr(self.process, name)

    @property
    def returncode(self):
        return self.process.returncode if self.waited else None

    async def wait(self):
        self.waited = True
        return await self.process.wait()


def test_a_generating_process_that_ended_between_two_takes_is_started_again(client, studio):
    ended = studio.queue._maker = Unnoticed(idle_maker(client, studio))
    os.kill(ended.pid, signal.SIGKILL)
    assert wait(client, ask(client, [scene("a circle", 9)]), "done")["done"] == 8
    assert ended.waited and studio.queue._maker is not ended


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")])
def test_too_little_memory_fails_one_take_and_no_more(monkeypatch, error):
    def load(*_):
        raise error

    monkeypatch.setattr(maker.Maker, "_load", load)
    told, order = [], {"weights": "tiny", "loras": []}
    maker.Maker([json.dumps({"run": run, **order}) for run in (1, 2)], told.append).run()
    why = "there is not enough memory for this"
    assert told == [{"run": run, "status": "failed", "error": why} for run in (1, 2)]


def test_history_is_given_in_parts(client, take, monkeypatch):
    video = wait(client, ask(client, SCENES), "done")
    first = min(each["number"] for each in client.get("/api/takes").json()["takes"])  # of another test, maybe
    monkeypatch.setattr(server_module, "MOST_LISTED", 1)
    page = client.get("/api/takes").json()
    assert len(page["takes"]) == 1 and page["more"]
    older = client.get("/api/takes", params={"before": take["number"] + 1}).json()
    assert older["takes"][0]["id"] == take["id"] and older["more"] == (first < take["number"])
    single = wait(client, ask(client, SCENES, until=0), "done")
    assert single["number"] == video["number"]
    assert client.get("/api/takes").json()["takes"][0]["id"] == video["id"]  # else older ones would be asked for


def test_the_history_is_listed_without_comparing_videos(client, monkeypatch):
    """By all their fields, which takes a while where there are thousands."""
    for seed in (1, 2):
        ask(client, [scene("a circle", seed)])
    compared = []
    monkeypatch.setattr(Take, "__eq__", lambda *takes: bool(compared.append(takes)))
    assert len(client.get("/api/takes").json()["takes"]) >= 2 and not compared


def test_time_left_is_not_told_from_windows_that_were_kept(tmp_path, monkeypatch):
    queue = Queue(Records(tmp_path), {})
    queue.current = Take("0" * 16, 1, "tiny", {}, total=100)
    now = time.monotonic()
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=lambda: now))
    queue._pace.extend([(now - 0.3, 8), (now - 0.2, 16)])
    assert queue.left() is None
    queue._pace.append((now + 9.7, 36))
    assert queue.left() == pytest.approx(64 * 10 / 28 + 9.7)


@pytest.mark.parametrize("suffix, option, first", [(".png", "--image", 0), (".mp4", "--video", 9)])
def test_a_story_begins_with_an_upload(client, files, tiny_weights, tmp_path, monkeypatch, suffix, option, first):
    monkeypatch.chdir(tmp_path)
    opening = upload(client, f"../My File{suffix}", files[suffix]).json()
    assert opening["name"] == f"My File{suffix}" and opening["suffix"] == suffix
    assert (opening["height"], opening["width"]) == (20, 30)
    larger = 2 if first else 1
    take = wait(client, ask(client, opening=opening["id"], larger=larger), "done")
    assert take["known"] == (10 if first else 0) and take["total"] == 16 + take["known"]
    assert take["size"] == [16 * larger] * 2
    for path, name in (
        (f"uploads/{opening['id']}/file", f"own{suffix}"),
        (f"takes/{take['id']}/files/story", "s.yaml"),
    ):
        (tmp_path / name).write_bytes(client.get(f"/api/{path}").content)
    words = ["story", "s.yaml", option, f"own{suffix}", "--weights", str(tiny_weights), "--out", "o.mp4"]
    main([*words, "--larger", str(larger)])
    assert client.get(f"/api/takes/{take['id']}/files/mp4").content == (tmp_path / "o.mp4").read_bytes()
    assert client.get(f"/api/uploads/{opening['id']}/picture").content.startswith(b"\x89PNG")


def test_a_take_has_the_warnings_of_its_making(client, files, capfd):
    given = upload(client, "../my cup.png", files[".png"]).json()["id"]
    take = wait(client, ask(client, SCENES[:1], opening=given), "done")
    (warning,) = [text for text in take["warnings"] if "only its middle" in text]
    assert warning.startswith("my cup.png is 30x20; only its middle, 20x20, is used")
    assert str(given) not in "".join(take["warnings"]) + capfd.readouterr().err


@pytest.mark.parametrize(
    "content", [b"", b"<svg/>", b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"GIF89a", b"\0\0\0\x18ftypmp42"]
)
def test_unreadable_uploads_are_refused_and_leave_nothing(client, studio, content):
    before = sorted(studio.records.folder.glob("uploads/*"))
    answer = upload(client, "<b>/etc/passwd.png", content)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "unreadable"
    assert "passwd.png" in answer.text and str(studio.records.folder) not in answer.text
    assert sorted(studio.records.folder.glob("uploads/*")) == before


@pytest.mark.parametrize("gone", [True, False])
def test_uploads_that_stop_leave_nothing(studio, monkeypatch, gone):
    monkeypatch.setattr(uploads, "LONGEST_SILENCE", 0.05)

    async def content():
        yield b"a"
        if gone:
            raise ClientDisconnect
        await asyncio.Event().wait()

    before = sorted(studio.records.folder.glob("uploads/.*"))
    with pytest.raises(UserError, match="the file stopped arriving; send it again"):
        asyncio.run(uploads.receive(studio.records, "a.png", content()))
    assert sorted(studio.records.folder.glob("uploads/.*")) == before


def test_large_uploads_are_refused_by_their_bytes(client, studio, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_UPLOAD", 1000)
    assert upload(client, "a.png", (bytes(600) for _ in range(2))).status_code == 413  # chunked: no length is declared
    answer = client.post("/api/uploads", content=b"a", headers={"content-length": f"{server_module.MOST_UPLOAD + 1}"})
    assert answer.status_code == 413 and "64 MiB" in answer.json()["error"]["message"]
    assert client.post("/api/takes", content=bytes(1 << 19)).status_code == 413


def test_uploads_without_a_story_make_room(client, studio, files, monkeypatch):
    unused = upload(client, "a.png", files[".png"]).json()["id"]
    monkeypatch.setattr(uploads, "MOST_UPLOADS", 1)
    upload(client, "b.png", files[".png"])
    assert client.get(f"/api/uploads/{unused}").status_code == 404
    used = {take.opening for take in studio.records.takes.values()} - {None}
    assert used <= set(studio.records.uploads)


@pytest.mark.parametrize(
    "change, says",
    [
        ({"weights": "tinny"}, "tiny"),
        ({"weights": "../tiny"}, "tiny"),
        ({"scenes": []}, "scenes: at least 1 is needed, got 0"),
        ({"scenes": [scene("a", 1)] * 101}, "scenes: at most 100 are allowed, got 101"),
        ({"scenes": [scene("a", 1, 61.0)]}, "seconds"),
        ({"scenes": [scene("a", -1)]}, "seed"),
        ({"scenes": [scene("a" * 2001, 1)]}, "prompt"),
        ({"scenes": [scene("a", 1, 60.0)] * 11}, "at most 600 seconds"),
        ({"scenes": [{**scene("a", 1), "guidance": 101}]}, "guidance should be 0 to 100"),
        (
            {"scenes": [{"promt": "a"}]},
            "scenes.0: unknown field 'promt' (did you mean 'prompt'?); allowed: ",
        ),
        ({"fps": 0}, "fps"),
        ({"sampling": {"temprature": 1.0}}, "temprature"),
        ({"opening": "../../etc/passwd"}, "opening"),
        ({"opening": "0" * 16}, "no such upload"),
        ({"until": 2}, "until should be below 2"),
        ({"larger": 2}, "a larger story needs an opening"),
        ({"path": "/etc/passwd"}, "path"),
    ],
)
def test_wrong_wishes_are_refused_in_one_line(client, change, says):
    answer = client.post("/api/takes", json={"weights": "tiny", "scenes": SCENES, **change})
    assert answer.status_code in (400, 404, 422)
    message = answer.json()["error"]["message"]
    assert says in message and "\n" not in message


@pytest.mark.parametrize(
    "path",
    ["/api/takes/../../etc/passwd", "/api/takes/%2e%2e%2f%2e%2e/files/mp4", "/api/takes/x/frames", "/../serving.py"],
)
def test_no_path_leads_out(client, path):
    assert client.get(path).status_code in (404, 422)


def test_words_that_the_weights_hardly_know_are_named(client, studio, monkeypatch, tmp_path):
    text = train_text_model(captions_corpus(4000, 0), tmp_path / weights.TEXT_MODEL, 512)
    monkeypatch.setitem(studio.worlds, "worded", World("worded", tmp_path))

    def words(prompt, of="worded"):
        answer = client.post("/api/words", json={"weights": of, "prompt": prompt})
        assert answer.status_code == 200, answer.text
        return answer.json()["words"]

    assert words("a pink dog, 🎈") == text.spelled("a pink dog, 🎈") == ["pink", "dog", ",", "🎈"]
    assert words("a red circle moves up") == words("") == words("a zebra", "tiny") == []
    (tmp_path / weights.TEXT).mkdir()  # as if with a T5
    assert words("a zebra") == []


@pytest.mark.parametrize(
    "asked, status, says",
    [
        ({"weights": "tinny"}, 400, "tiny"),
        ({"weights": "../tiny"}, 400, "tiny"),
        ({"prompt": "a" * 2001}, 422, "prompt"),
        ({"prompt": "\ud800"}, 422, "prompt"),
        ({"prompt": ["a"]}, 422, "prompt"),
        ({"path": "/etc/passwd"}, 422, "path"),
    ],
)
def test_wrong_questions_for_words_are_refused(client, asked, status, says):
    content = json.dumps({"weights": "tiny", "prompt": "a", **asked})
    answer = client.post("/api/words", content=content, headers={"content-type": "application/json"})
    message = answer.json()["error"]["message"]
    assert answer.status_code == status and says in message and "\n" not in message


def test_words_are_for_the_page_alone(client, studio):
    asked = {"weights": "tiny", "prompt": "a"}
    for headers, status in (({"host": "evil.example"}, 421), ({"origin": "https://evil.example"}, 403)):
        assert client.post("/api/words", json=asked, headers=headers).status_code == status
    assert client.post("/api/words", content=bytes(1 << 19)).status_code == 413
    guarded = TestClient(application(studio, None, "Secret-1"), base_url="http://studio.example")  # not started
    assert guarded.post("/api/words", json=asked).status_code == 401
    bearer = {"authorization": "Bearer Secret-1"}
    assert guarded.post("/api/words", json=asked, headers=bearer).json() == {"words": []}


def test_a_take_that_cannot_be_generated_says_why(client):
    take = ask(client, [scene("a", 1)], fps=8, scheme="hierarchical")
    until = time.monotonic() + PATIENCE
    while (answer := client.get(f"/api/takes/{take}").json())["status"] != "failed" and time.monotonic() < until:
        time.sleep(0.05)
    assert answer["status"] == "failed" and "not trained to interpolate" in answer["error"]
    client.delete(f"/api/takes/{take}")


def test_the_queue_has_an_end(client, monkeypatch):
    monkeypatch.setattr(state, "MOST_WAITING", 0)
    answer = client.post("/api/takes", json={"weights": "tiny", "scenes": SCENES})
    assert answer.status_code == 400 and "waiting already" in answer.text


def test_a_crashed_generating_process_is_replaced(client, studio):
    take = ask(client, [scene("a circle", 9, 60.0)] * 9)
    wait_until_running(client, take)
    studio.queue._maker.kill()
    until = time.monotonic() + PATIENCE
    while client.get(f"/api/takes/{take}").json()["status"] != "failed" and time.monotonic() < until:
        time.sleep(0.05)
    assert "process ended" in client.get(f"/api/takes/{take}").json()["error"]
    client.delete(f"/api/takes/{take}")
    wait(client, ask(client), "done")


def test_a_restart_keeps_the_history_and_goes_on(tiny_weights, tmp_path):
    worlds = offered({"tiny": tiny_weights}, tiny_weights)
    records = Records(tmp_path)
    with pytest.raises(UserError, match="another studio uses"):
        Records(tmp_path)
    story = {"segments": SCENES[:1], "fps": 8}
    done, running = (records.add(weights="tiny", story=story) for _ in range(2))
    done.status, running.status = "done", "making"
    for take in (done, running):
        records.save(take)
    for name, text in (("0" * 16, "{"), ("1" * 16, json.dumps({"id": "2"}))):
        (tmp_path / "takes" / name).mkdir()
        (tmp_path / "takes" / name / "take.json").write_text(text)
    (tmp_path / "uploads" / ".half").mkdir()
    records.close()
    with TestClient(application(Studio(tmp_path, worlds), LOOPBACK), base_url="http://127.0.0.1") as client:
        assert client.get(f"/api/takes/{done.id}").json()["status"] == "done"
        take = wait(client, running.id, "done")
        assert len(client.get("/api/takes").json()["takes"]) == 2
        text = client.get(f"/api/takes/{take['id']}/files/story").content
    (tmp_path / "s.yaml").write_bytes(text)
    assert load_story(tmp_path / "s.yaml").segments[0].prompt == SCENES[0]["prompt"]
    assert not (tmp_path / "uploads" / ".half").exists()


def test_a_take_whose_weights_are_not_offered_any_more_says_so(tiny_weights, tmp_path):
    records = Records(tmp_path)
    take = records.add(weights="tiny+style", story={"segments": SCENES[:1], "fps": 8})
    records.close()
    studio = Studio(tmp_path, offered({"tiny": tiny_weights}, tiny_weights))
    with TestClient(application(studio, LOOPBACK), base_url="http://127.0.0.1") as client:
        failed = wait(client, take.id, "failed")
        assert failed["error"] == "the weights tiny+style are not offered now; start the studio with them"
        assert failed["seconds"] < 9


@pytest.mark.parametrize("task, read", [("interpolation", 24.0), ("variation", 8.0)])
def test_a_clip_is_read_at_its_own_rate(client, tmp_path, task, read):
    """Within those that the weights were trained on, 4 and 8, where frames are only taken from it."""
    write_video(tmp_path / "a.mp4", RNG.integers(256, size=(12, 20, 30, 3), dtype=np.uint8), 24)
    source = upload(client, "a.mp4", (tmp_path / "a.mp4").read_bytes()).json()["id"]
    answer = client.post("/api/edits", json={"weights": "editing", "task": task, "source": source})
    assert answer.status_code == 201, answer.text
    done = wait(client, answer.json()["id"], "done")
    assert done["story"]["fps"] == read and done["total"] == (23 if task == "interpolation" else 4)


@pytest.mark.parametrize(
    "wish, said",
    [
        ({"task": "interpolation", "factor": 3}, "should be 2, 4, 8, …, got 3"),
        ({"task": "upscale", "times": 3}, "should be 2, 4, 8, …, got 3"),
        ({"task": "variation", "strength": 7}, "strength"),
        ({"task": "outpaint", "canvas": "wide"}, "canvas"),
        ({"task": "inpaint", "box": [0, 0, 0, 0]}, "the box 0 0 0 0 is not within the video of 30x20 pixels"),
        ({"task": "inpaint", "box": [9, 9, 40, 2]}, "the box 9 9 40 2 is not within the video of 30x20 pixels"),
    ],
)
def test_edits_that_cannot_be_made_are_refused_when_they_are_asked_for(client, files, wish, said):
    source = upload(client, "a.mp4", files[".mp4"]).json()["id"]
    answer = client.post("/api/edits", json={"weights": "editing", "source": source, **wish})
    assert answer.status_code in (400, 422) and said in answer.text


def test_a_request_that_is_no_json_says_so(client):
    answer = client.post("/api/takes", content="{bad", headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "the request is no JSON" in answer.text


def test_an_upload_that_fails_at_its_end_leaves_nothing(client, studio, files, monkeypatch):
    def full(*arguments):
        raise UserError("the disk is full")

    before = {path.name for path in (studio.records.folder / "uploads").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(studio.records, "save", full)
        answer = upload(client, "a.png", files[".png"])
    assert answer.status_code == 400 and "the disk is full" in answer.text
    assert {path.name for path in (studio.records.folder / "uploads").iterdir()} == before


def test_every_request_is_in_the_pages_table():
    text = (Path(__file__).parents[2] / "docs" / "studio.md").read_text(encoding="utf-8")
    for route in server_module.router.routes:
        path = re.sub(r"\{(\w+_)?(\w+)\}", lambda found: found[2].upper(), route.path.removeprefix("/api"))
        for method in route.methods:
            assert re.search(rf"`{method} {path}[`?]", text), f"{method} {path}"
