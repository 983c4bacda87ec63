"""What tokvid needs of this machine: `tokvid doctor`. Checks import what they look at, so that one may be broken."""

import argparse
import glob
import importlib.metadata
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tokvid import __version__
from tokvid.cli.options import Command
from tokvid.errors import UserError, reason
from tokvid.io.files import Outputs
from tokvid.io.libtpu import tpu_devices
from tokvid.io.threads import usable_cores
from tokvid.io.worlds import WORLDS

GB = 1 << 30
NVIDIA = "/proc/driver/nvidia"  # is there where its driver is
LEAST_MEMORY, LEAST_DISK = 2 * GB, GB  # available bytes to generate with the shipped weights; for outputs and caches
EXTRAS = {
    "tensorboardX": "tensorboard",
    "wandb": "wandb",
    "tensorflow-datasets": "tfds",
    "h5py": "import",
    "libtpu": "tpu",
    "fastapi": "studio",
    "apache-beam": "beam",
}
STORES = {"gcsfs": "gs://", "s3fs": "s3://", "huggingface_hub": "hf://", "aiohttp": "https://"}
LETTERS = "Ωж视频"  # of contact sheets' captions


class Finding(NamedTuple):
    """What a check saw, and how to fix it ("": all is well). tokvid works without what isn't `needed`."""

    seen: str
    fix: str = ""
    needed: bool = True


class Doctor(Command):
    """Versions, device, types, memory, fonts, codecs, folders, weights. Ends the program with 1 if it can't work."""

    name = "doctor"
    help = "check this machine and installation: what works, what doesn't, and how to fix it"
    epilog = "Exit code: 0 it works, 1 something that tokvid needs is missing."

    def arguments(self, parser: argparse.ArgumentParser, outputs: Outputs) -> None:
        pass

    def run(self, options: argparse.Namespace) -> None:
        works = True
        for name, check in CHECKS.items():
            for finding in _findings(check):
                bad = bool(finding.fix) and finding.needed
                works = works and not bad
                mark = "FAILS" if bad else "could be better" if finding.fix else "ok"
                print(f"{name:10} {mark:16} {finding.seen}", flush=True)
                if finding.fix:
                    print(f"{'':10} {'to fix it:':16} {finding.fix}", flush=True)
        if not works:
            raise SystemExit(1)


def _findings(check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except Exception as error:  # a broken package may raise anything
        if why := no_device():
            yield Finding(*why)
            return
        seen = " ".join(f"{type(error).__name__}: {error}".split())
        yield Finding(seen, "install tokvid again in a new environment: pip install tokvid")


def _versions() -> Iterator[Finding]:
    yield Finding(
        f"tokvid {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}"
    )
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in importlib.metadata.requires("tokvid") or ()]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    versions = {each.name: _version(each.name) for each in needed}
    yield Finding(", ".join(f"{name} {version or 'is missing'}" for name, version in sorted(versions.items())))
    for each in needed:
        if not (version := versions[each.name]) or version not in each.specifier:
            yield Finding(f"{each.name} {version or 'is missing'}", f"pip install '{each.name}{each.specifier}'")
    optional = [f"{store} ({name})" for name, store in STORES.items() if _version(name)]
    optional += [f"[{extra}]" for name, extra in EXTRAS.items() if _version(name)]
    yield Finding(f"optional: {', '.join(optional) or 'nothing'}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def no_device() -> tuple[str, str] | None:
    """Why JAX cannot compute here, and what to do; None where it can."""
    try:
        import jax

        jax.devices()
    except Exception as error:  # of the driver, mostly; any for wrong values of JAX_PLATFORMS and its like
        named = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("JAX_")]
        what = f"unset {' '.join(named)}" if named else "see that no other program uses the device"
        return f"JAX finds no device ({reason(error)})", f"{what}, or set JAX_PLATFORMS=cpu to compute without one"
    return None


def _device() -> Iterator[Finding]:
    if missing := no_device():
        yield Finding(*missing)
        return
    import jax

    kinds = [device.device_kind for device in jax.devices()]
    yield Finding(", ".join(f"{kinds.count(kind)} × {kind} ({jax.default_backend()})" for kind in sorted(set(kinds))))
    if jax.default_backend() == "cpu":
        for files, extra in ((glob.glob(NVIDIA), "cuda13"), (tpu_devices(), "tpu")):
            if files:
                why = f"there is an accelerator ({files[0]}), but JAX computes on the CPU"
                yield Finding(why, f"pip install 'tokvid[{extra}]', and unset JAX_PLATFORMS", needed=False)


def _types() -> Iterator[Finding]:
    from tokvid.nn.products import compute_dtype

    chosen = compute_dtype("auto")
    why = "the device multiplies it faster" if chosen == "bfloat16" else "the processor has no bfloat16 multipliers"
    yield Finding(f'dtype "auto" computes in {chosen}: {why}')


def _memory() -> Iterator[Finding]:
    import jax

    if (available := _available()) is not None:
        fix = "close other programs" if available < LEAST_MEMORY else ""
        yield Finding(f"{available / GB:.1f} GB available, {usable_cores()} processor cores", fix, needed=False)
    for device in jax.local_devices():
        if limit := (device.memory_stats() or {}).get("bytes_limit"):
            yield Finding(f"{limit / GB:.1f} GB of {device.device_kind} {device.id}")


def _available(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory that programs may still take; None where the system doesn't say."""
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def _font() -> Iterator[Finding]:
    from tokvid.io.media import legible

    if legible(LETTERS):
        yield Finding(f"has letters of many scripts, {LETTERS}")
    else:
        fix = "apt install fonts-noto-cjk, or another font of tokvid.io.media.FONTS"
        yield Finding("captions of contact sheets show other than Latin letters as \\uXXXX", fix, needed=False)


def _codecs() -> Iterator[Finding]:
    import av

    from tokvid.input_pipeline.video_file import CODECS

    version = ".".join(map(str, av.library_versions["libavcodec"]))
    missing = [name for name in CODECS.split(",") if not _has(name, "r")]
    again = "pip install --force-reinstall --only-binary av av, whose wheels bring their own FFmpeg"
    if _has("libx264", "w"):
        yield Finding(f"libavcodec {version}; writes H.264; reads {len(CODECS.split(',')) - len(missing)} codecs")
    else:
        yield Finding(f"libavcodec {version} cannot write H.264, so no .mp4", again)
    if missing:
        yield Finding(f"cannot read {', '.join(missing)}", again, needed=False)


def _has(codec: str, mode: str) -> bool:
    import av.codec.codec

    try:
        av.codec.codec.Codec(codec, mode)  # type: ignore[arg-type]
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _folders() -> Iterator[Finding]:
    from tokvid.io.compiled import default_folder

    folders = {
        "this folder": (Path.cwd(), "work in a folder of your own, or name one with --out"),
        "caches": (default_folder(), "set XDG_CACHE_HOME to a folder of your own"),
        "temporary files": (Path(tempfile.gettempdir()), "set TMPDIR to a folder of your own"),
    }
    for use, (folder, fix) in folders.items():
        there = next(each for each in (folder, *folder.parents) if each.is_dir())
        try:
            with tempfile.TemporaryFile(dir=there) as file:
                file.write(b"0")
        except OSError as error:
            yield Finding(f"{use}: cannot write to {folder}: {reason(error)}", fix, needed=use != "caches")
            continue
        free = shutil.disk_usage(there).free
        full = f"free some space, or {fix}" if free < LEAST_DISK else ""
        yield Finding(f"{use}: can write to {folder}, {free / GB:.1f} GB free", full, needed=False)


def _weights() -> Iterator[Finding]:
    from tokvid.sampling.models import load_models

    for name, folder in WORLDS.items():
        try:
            yield Finding(f"{name}: {load_models(folder).mark}")
        except UserError as error:
            yield Finding(f"{name}: {error}", "install tokvid again, or restore the checkout's data/")


CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "versions": _versions,
    "device": _device,
    "types": _types,
    "memory": _memory,
    "font": _font,
    "codecs": _codecs,
    "folders": _folders,
    "weights": _weights,
}
