"""Trained models and other files: reconstruct, inspect."""

import json
import shutil

import numpy as np
import pytest

from tokvid.input_pipeline.clips import probe
from tokvid.io.media import write_video


@pytest.mark.parametrize(
    "source, out, frames", [("in.mp4", "a.mp4", 10), ("in.png", "a.png", 1), ("in.png", "b.mp4", 1)]
)
def test_reconstruct(tokvid, tiny_weights, movie, tmp_path, source, out, frames):
    code, text, err = tokvid("reconstruct", source, "--out", out, "--weights", tiny_weights, "--json")
    figures = json.loads(text)
    assert (code, err, figures["frames"], figures["size"]) == (0, "", frames, [16, 16])
    latent_frames = 6 if frames == 10 else 1
    assert figures["tokens"] == 4 * latent_frames and 3 < figures["psnr"] < 30 and -1 < figures["ssim"] < 1
    assert abs(figures["bits_per_pixel"] - 4 * latent_frames * np.log2(30) / (frames * 256)) < 1e-6
    info, rate = probe(tmp_path / out), {"a.mp4": 10.0, "a.png": 0.0, "b.mp4": 1.0}[out]
    side = 16 if out == "a.png" else 256
    assert (info.width, info.height, info.frames, info.fps) == (side, side, frames, rate)


def test_a_varying_rate_keeps_its_times(tokvid, trained_for, tiny_weights, tmp_path):
    """A GIF of twelve frames, the first of which lasts two seconds: each is written when it was shown."""
    noise = np.random.default_rng(0).integers(256, size=(12, 16, 16, 3), dtype=np.uint8)
    write_video(tmp_path / "in.gif", [*noise[:1].repeat(16, 0), *noise[1:]], 8)
    assert probe(tmp_path / "in.gif").frames == 12
    code, text, err = tokvid("reconstruct", "in.gif", "--out", "a.mp4", "--weights", tiny_weights, "--json")
    assert (code, err) == (0, "") and json.loads(text)["frames"] == 27
    info = probe(tmp_path / "a.mp4")
    assert (info.fps, info.frames) == (8.0, 27)
    trained_for(["interpolation"], rows=(0, 1, 2))
    code, out, err = tokvid("interpolate", "in.gif", "--factor", 2, "--weights", "w", "--rows", 1)
    assert (code, out) == (0, "interpolated.mp4: 53 frames at 16 fps\n"), err


def test_reconstruct_at_another_rate_and_size(tokvid, tiny_weights, movie, tmp_path):
    arguments = ("--fps", 3, "--size", 8, 24, "--fit", "letterbox", "--weights", tiny_weights)
    code, text, _ = tokvid("reconstruct", "in.mp4", "--out", "a.gif", *arguments)
    assert code == 0 and "ssim                     None" in text  # too small for its window
    info = probe(tmp_path / "a.gif")
    assert (info.width, info.height, info.frames) == (24 * 32, 8 * 32, 3)


@pytest.mark.parametrize("scale, side", [(1, 16), (3, 48)])
def test_reconstruct_enlarges_pixels(tokvid, tiny_weights, movie, tmp_path, scale, side):
    for source, out in (("in.mp4", "a.mp4"), ("in.png", "a.png")):
        code, _, err = tokvid("reconstruct", source, "--out", out, "--scale", scale, "--weights", tiny_weights)
        assert (code, err) == (0, "") and probe(tmp_path / out).width == side
    code, _, err = tokvid("reconstruct", "in.mp4", "--out", "b.mp4", "--scale", 65, "--weights", tiny_weights)
    assert (code, err) == (
        2,
        "tokvid: scale should be 1 to 64, or 0 for a shorter side of 256 pixels or more, got 65\n",
    ) and not (tmp_path / "b.mp4").exists()


@pytest.mark.slow
def test_reconstruct_with_other_numbers_of_later_codes(tokvid, make_weights, movie):
    """The weights keep 2 of 4 sub-codes after the first latent frame; --later-codes 0 keeps all."""
    figures, words = {}, ("--out", "a.mp4", "--weights", make_weights(patch=4, fold=2, groups=1), "--json")
    for number in (None, 2, 0):
        code, text, err = tokvid(
            "reconstruct", "in.mp4", *words, *([] if number is None else ["--later-codes", number])
        )
        assert (code, err) == (0, "")
        figures[number] = json.loads(text)
    assert figures[None] == figures[2] and figures[0]["psnr"] != figures[2]["psnr"]
    assert figures[0]["bits_per_pixel"] / figures[2]["bits_per_pixel"] == pytest.approx(6 * 4 / (4 + 5 * 2), abs=1e-4)


@pytest.mark.parametrize("part", ["tokenizer", "transformer"])
@pytest.mark.parametrize(
    "name, damage", [("config.json", "cut"), ("weights.safetensors", "cut"), ("weights.safetensors", "bit")]
)
def test_damaged_weights(refused, tiny_weights, tmp_path, part, name, damage):
    shutil.copytree(tiny_weights, tmp_path / "w")
    path, rng = tmp_path / "w" / part / name, np.random.default_rng(0)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[rng.integers(len(data)) :]
    else:
        data[rng.integers(len(data))] ^= 8
    path.write_bytes(data)
    refused("generate", "--prompt", "a", "--seconds", 0.2, "--weights", "w")
    refused("inspect", f"w/{part}")
