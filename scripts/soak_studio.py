"""Asks a studio for hundreds of videos, with disturbances, and measures whether it stays as it was.

python scripts/soak_studio.py --weights runs/tiny --jobs 500 --report soak_studio.json

A server is started as `tokvid studio` starts it. Most jobs run to their end; some are stopped, and then resumed or
deleted; the generating process is killed, and the take resumed; what is no video is uploaded; the server is killed and
started again. Every story of the same seed must be the same video, byte for byte. Memory, threads and open files of the
server and its generating process are measured after each twentieth job, when nothing is being made. The exit code is 1
if a request failed, a video was another one, memory grew by more than GROWTH, or something was left over.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from tokvid.io.progress import progress

GROWTH = 0.02  # of memory, from the second quarter of the measurements to the last
PATIENCE = 120.0  # seconds
EVERY = 20  # jobs between two measurements
SEEDS = 6  # stories that are asked for again and again
ACTIONS = {"finish": 70, "stop": 12, "delete": 6, "kill the maker": 4, "upload": 6, "kill the server": 2}
ENDED = ("done", "stopped", "failed")


class Server:
    """The server's process, and requests to it."""

    def __init__(self, folder: Path, weights: Path):
        command = [sys.executable, "-m", "tokvid", "studio", "--port", "0", "--folder", str(folder)]
        self.process = subprocess.Popen(
            [*command, "--weights", str(weights)], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout is not None
        address = re.search(r"http://[\d.:]+", line := self.process.stdout.readline())
        if address is None:
            sys.exit(f"the studio doesn't start: {line}")
        self.client = httpx.Client(base_url=address[0], timeout=PATIENCE)

    def ask(self, method: str, path: str, allowed: tuple[int, ...] = (200, 201, 204), **more: Any) -> httpx.Response:
        """An answer; RuntimeError for a status that isn't allowed."""
        answer = self.client.request(method, f"/api/{path}", **more)
        if answer.status_code not in allowed:
            raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
        return answer

    def take(self, number: str, *, until: str = "") -> dict[str, Any]:
        """A take once it has ended, or has some frames (`until` is "some")."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            take = self.ask("GET", f"takes/{number}").json()
            if take["status"] in ENDED or (until == "some" and take["done"]):
                return take
            time.sleep(0.02)
        raise RuntimeError(f"take {number} has not ended after {PATIENCE:g} s: {take}")

    def children(self) -> list[int]:
        """The processes that it has started."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in text.split()]

    def measured(self) -> dict[str, int]:
        """Memory in bytes, threads and open files, of the server and its processes."""
        total: Counter[str] = Counter()
        for pid in (self.process.pid, *self.children()):
            status = Path(f"/proc/{pid}/status").read_text()
            for name, key in (("memory", "RssAnon"), ("threads", "Threads")):
                found = re.search(rf"{key}:\s+(\d+)", status)
                total[name] += int(found[1]) * (1024 if name == "memory" else 1) if found else 0
            total["files"] += len(os.listdir(f"/proc/{pid}/fd"))
        return dict(total)

    def end(self, number: int) -> None:
        self.client.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, number)
        self.process.wait(60)


class Soak:
    """The jobs, one after another."""

    def __init__(self, folder: Path, weights: Path, seed: int):
        self.folder, self.weights, self.draw = folder, weights, random.Random(seed)
        self.server = Server(folder, weights)
        self.name = self.server.ask("GET", "studio").json()["weights"][0]["name"]
        self.videos: dict[int, str] = {}  # a hash of each story's, by its seed
        self.done: Counter[str] = Counter()
        self.failures: list[str] = []
        self.measurements: list[list[dict[str, int]]] = [[]]  # of each server

    def job(self) -> None:
        """A story, and what is done to it."""
        action = self.draw.choices(tuple(ACTIONS), tuple(ACTIONS.values()))[0]
        self.done[action] += 1
        try:
            getattr(self, f"_{action.replace(' ', '_')}")()
        except Exception as error:
            self.failures.append(f"{action}: {type(error).__name__}: {error}")

    def measure(self) -> None:
        self.measurements[-1].append(self.server.measured())

    def _begun(self) -> tuple[int, str]:
        """A new story, by its seed and its id."""
        seed = self.draw.randrange(SEEDS)
        scenes = [{"prompt": "a red circle moves up", "seconds": 2, "guidance": 2.5, "seed": seed}] * (1 + seed % 3)
        asked = {"weights": self.name, "fps": 4, "scenes": scenes}
        return seed, self.server.ask("POST", "takes", json=asked).json()["id"]

    def _check(self, seed: int, number: str) -> None:
        """Waits for the end of a story, and compares it with earlier ones of its seed."""
        if (take := self.server.take(number))["status"] != "done":
            raise RuntimeError(f"{take['status']}: {take['error']}")
        video = hashlib.sha256(self.server.ask("GET", f"takes/{number}/files/mp4").content).hexdigest()
        if self.videos.setdefault(seed, video) != video:
            raise RuntimeError(f"seed {seed} gives another video than before")

    def _finish(self) -> None:
        self._check(*self._begun())

    def _stop(self) -> None:
        seed, number = self._begun()
        self._wait_a_little(number)
        self.server.ask("POST", f"takes/{number}/stop")
        self.server.ask("POST", f"takes/{number}/resume")
        self._check(seed, number)

    def _delete(self) -> None:
        _, number = self._begun()
        self._wait_a_little(number)
        self.server.ask("DELETE", f"takes/{number}")
        self.server.ask("GET", f"takes/{number}", (404,))

    def _kill_the_maker(self) -> None:
        seed, number = self._begun()
        self._wait_a_little(number)
        for child in self.server.children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if self.server.take(number)["status"] == "failed":
            self.server.ask("POST", f"takes/{number}/resume")
        self._check(seed, number)

    def _upload(self) -> None:
        content = self.draw.choice((b"", self.draw.randbytes(5000), b"\x89PNG\r\n\x1a\n" + self.draw.randbytes(500)))
        self.server.ask("POST", "uploads", (400, 413, 422), content=content, params={"name": "../a.png"})

    def _kill_the_server(self) -> None:
        seed, number = self._begun()
        self._wait_a_little(number)
        children = self.server.children()
        self.server.end(signal.SIGKILL)
        self.server = Server(self.folder, self.weights)
        self.measurements.append([])
        self._check(seed, number)
        time.sleep(1)
        if left := [child for child in children if Path(f"/proc/{child}").exists()]:
            raise RuntimeError(f"processes {left} outlived their server")

    def _wait_a_little(self, number: str) -> None:
        """Until some frames are made, or for a random time."""
        if self.draw.random() < 0.5:
            self.server.take(number, until="some")
        else:
            time.sleep(self.draw.uniform(0, 0.5))

    def result(self) -> dict[str, Any]:
        """The figures. Memory is compared within each server's life, if that was long enough."""
        growth = 0.0
        for life in self.measurements:
            if len(life) >= 8:
                quarter = len(life) // 4
                early, late = life[quarter : 2 * quarter], life[-quarter:]
                average = [sum(each["memory"] for each in part) / quarter for part in (early, late)]
                growth = max(growth, average[1] / average[0] - 1)
        known = {take["id"] for take in self._takes()}
        there = {path.name for path in (self.folder / "takes").iterdir()}
        extra = sorted(there ^ known) + [str(path) for path in self.folder.glob("*/.*")]
        ends = [(life[0], life[-1]) for life in self.measurements if life]
        more = {name: max(late[name] - early[name] for early, late in ends) for name in ("threads", "files")}
        if growth > GROWTH:
            self.failures.append(f"memory grew by {growth:.1%}")
        if extra:
            self.failures.append(f"left over: {extra[:5]}")
        jobs = {"jobs": dict(self.done), "videos": len(known), "growth": round(growth, 4), "more": more}
        return jobs | {"measurements": self.measurements, "failures": self.failures}

    def _takes(self) -> list[dict[str, Any]]:
        takes: list[dict[str, Any]] = []
        while True:
            before = {"before": takes[-1]["number"]} if takes else {}
            answer = self.server.ask("GET", "takes", params=before).json()
            takes += answer["takes"]
            if not answer["more"]:
                return takes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="small ones, that stories be quick")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0, help="of the jobs")
    parser.add_argument("--steady", action="store_true", help="never kill the server, so that its memory is compared")
    parser.add_argument("--report", type=Path, default=Path("soak_studio.json"))
    options = parser.parse_args()
    if options.steady:
        ACTIONS["kill the server"] = 0
    with tempfile.TemporaryDirectory(prefix="soak.") as temporary:
        soak = Soak(Path(temporary) / "studio", options.weights, options.seed)
        try:
            with progress("studio", options.jobs, "jobs") as advance:
                for number in range(options.jobs):
                    soak.job()
                    if number % EVERY == EVERY - 1:
                        soak.measure()
                    advance(1, failures=len(soak.failures))
            result = soak.result()
        finally:
            soak.server.end(signal.SIGTERM)
    options.report.write_text(json.dumps(result, indent=1))
    print(json.dumps({name: value for name, value in result.items() if name != "measurements"}, indent=1))
    sys.exit(bool(result["failures"]))


if __name__ == "__main__":
    main()
