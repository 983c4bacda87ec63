"""Compares tokvid's tokenizer with the C-ViViT of phenaki-pytorch: quality after the same training, and speed.

pip install --editable . --group compare
python scripts/compare/phenaki.py quality --data runs/clips/data --json quality.json
python scripts/compare/phenaki.py speed --json speed.json

quality: both are trained on the same clips in the same order, with equal steps, numbers of tokens, vocabulary and
(within 5 %) parameters, and reconstruct the same held-out clips. phenaki-pytorch uses its own optimizer, both of its
quantizers at each of --rates, and tokvid's schedule; its best result counts. (Its forward() omits the quantizer's loss
unless it trains against its discriminator; here the loss is included.)

speed: medians of training steps, encoding and decoding at the same shapes and widths. A few calls of each alternate, so
that other load on the machine affects both alike. The first call of each group is discarded: the other library's
threads may still be spinning.
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from phenaki_pytorch import CViViT as PhenakiCViViT

from tokvid import weights
from tokvid.config import DataConfig, Recipe, TokenizerConfig, TrainConfig
from tokvid.evaluate.batches import through
from tokvid.input_pipeline.loader import clip_batches
from tokvid.io.files import Outputs, write_json
from tokvid.io.progress import progress
from tokvid.metrics.video import psnr, ssim
from tokvid.sharding import make_mesh, shard_batch
from tokvid.tokenizer.cvivit import CViViT
from tokvid.train.loop import train
from tokvid.train.state import abstract_state, init_state, make_step
from tokvid.train.tokenizer_step import TokenizerTraining
from tokvid.types import VideoBatch

LEVELS = (8, 8, 8, 4, 4)  # 8192 codes, as many as Phenaki has


def tokvid_config(options: argparse.Namespace, **change: Any) -> TokenizerConfig:
    """As deep and wide as `phenaki_model` makes the other, and so, within 5 %, as large."""
    return TokenizerConfig(
        size=(options.size, options.size),
        patch=8,
        width=options.width,
        heads=options.heads,
        mlp=round(options.width / 12)
        * 32,  # 8/3 as wide, as there; CPUs are a third slower at odd numbers than at these
        encoder=("space", "time") * options.layers,
        decoder=("space", "time") * options.layers,
        quantizer="fsq",
        levels=LEVELS,
        **change,
    )


def phenaki_model(options: argparse.Namespace, lookup_free: bool) -> PhenakiCViViT:
    torch.manual_seed(0)
    return PhenakiCViViT(
        dim=options.width,
        codebook_size=math.prod(LEVELS),
        image_size=options.size,
        patch_size=8,
        temporal_patch_size=2,
        spatial_depth=options.layers,
        temporal_depth=options.layers,
        dim_head=options.width // options.heads,
        heads=options.heads,
        use_vgg_and_gan=False,
        lookup_free_quantization=lookup_free,
    )


def to_phenaki(video_BTHWC: np.ndarray) -> torch.Tensor:
    """uint8 → (B, 3, T, H, W) in [0, 1], as its own trainer has it."""
    return torch.from_numpy(np.ascontiguousarray(video_BTHWC.transpose(0, 4, 1, 2, 3))).float() / 255


def trainer(model: PhenakiCViViT, rate: float) -> Callable[[np.ndarray, float], float]:
    """A training step as its CViViTTrainer takes it: (clips, share of the rate) → loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=(0.9, 0.99))
    auxiliary: list[torch.Tensor] = []
    model.vq.register_forward_hook(lambda module, inputs, output: auxiliary.append(output[2].sum()))
    model.train()

    def step(video_BTHWC: np.ndarray, share: float) -> float:
        for group in optimizer.param_groups:
            group["lr"] = rate * share
        auxiliary.clear()
        loss = model(to_phenaki(video_BTHWC)) + auxiliary[0]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return float(loss.detach())

    return step


# Quality


def quality(options: argparse.Namespace) -> dict[str, Any]:
    size = (options.size, options.size)
    data = DataConfig(
        "records", str(options.data), held_out=40, size=size, frames=options.frames, fps=(2.0, 4.0), threads=1
    )
    with contextlib.closing(clip_batches(data, 40, seed=1, split="held_out")) as held_out:
        truths = next(held_out).video
    figures: dict[str, Any] = {"steps": options.steps, "batch": options.batch, "frames": options.frames}

    def score(name: str, made: np.ndarray, parameters: int) -> None:
        pairs = list(zip(truths, made, strict=True))
        figures[name] = {
            "psnr": float(np.mean([psnr(*pair) for pair in pairs])),
            "ssim": float(np.mean([ssim(*pair) for pair in pairs])),
            "parameters": parameters,
        }
        print(name, json.dumps(figures[name]), flush=True)

    score("repeating the first frame", np.repeat(truths[:, :1], options.frames, axis=1), 0)
    for optimizer, rate in (("muon", 3e-3), ("adamw", 1e-3)):
        training = TrainConfig(
            steps=options.steps, batch=options.batch, optimizer=optimizer, learning_rate=rate, warmup=options.warmup,
            ema=0.99, save_every=0, sample_every=0,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            recipe = Recipe(data=data, tokenizer=tokvid_config(options), train_tokenizer=training)
            train(TokenizerTraining(recipe), training, Path(folder))
            loaded = weights.load(folder, "tokenizer")
        made = np.concatenate([through(loaded, truths[i : i + 4])[0] for i in range(0, len(truths), 4)])
        score(f"tokvid, {optimizer} {rate:g}", made, weights.parameter_count(loaded.params))
    for lookup_free, rate in itertools.product((True, False), options.rates):
        name = f"phenaki-pytorch, {'LFQ' if lookup_free else 'VQ'} {rate:g}"
        model = phenaki_model(options, lookup_free)
        step = trainer(model, rate)
        batches = clip_batches(data, options.batch, TrainConfig().seed)
        with contextlib.closing(batches), progress(name, options.steps, "steps") as advance:
            for number in range(options.steps):
                # tokvid's schedule: linear warm-up, then a cosine down to a twentieth.
                done = max(0, number - options.warmup) / (options.steps - options.warmup)
                cosine = 0.05 + 0.95 * (1 + math.cos(math.pi * done)) / 2
                loss = step(next(batches).video, min(number / options.warmup, 1) * cosine)
                advance(1, loss=loss)
        model.eval()
        with torch.no_grad():
            parts = [model(to_phenaki(truths[i : i + 4]), return_recons_only=True) for i in range(0, len(truths), 4)]
        made = (torch.cat(parts).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 4, 1).numpy()
        score(name, made, sum(parameter.numel() for parameter in model.parameters()))
    best = {
        team: max(value["psnr"] for name, value in figures.items() if name.startswith(team))
        for team in ("tokvid", "phenaki-pytorch")
    }
    figures["ahead by dB"] = best["tokvid"] - best["phenaki-pytorch"]
    return figures


# Speed


def speed(options: argparse.Namespace) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    video = rng.integers(0, 256, (options.batch, options.frames, options.size, options.size, 3), np.uint8)
    ours, theirs = _tokvid_work(options, video), _phenaki_work(options, video)
    times: dict[str, list[float]] = {}
    with progress("speed", 3 * options.runs, "rounds") as advance:
        for run, name in itertools.product(range(options.runs + 1), ours):
            for team, work in (("tokvid", ours), ("phenaki-pytorch", theirs)):
                for call in range(4):
                    began = time.perf_counter()
                    work[name]()
                    if run and call:  # the very first compiles
                        times.setdefault(f"{team} {name}", []).append(time.perf_counter() - began)
            if run:
                advance(1)
    frames = options.batch * options.frames
    figures: dict[str, Any] = {name: frames / statistics.median(each) for name, each in times.items()}
    for name in ours:
        figures[f"{name}, ratio"] = figures[f"tokvid {name}"] / figures[f"phenaki-pytorch {name}"]
    return figures


def _tokvid_work(options: argparse.Namespace, video: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Each a call that ends when the work is done."""
    config, training = tokvid_config(options), TrainConfig(batch=options.batch)
    data = DataConfig("shapes", size=config.size, frames=options.frames)
    task, mesh = (
        TokenizerTraining(Recipe(data=data, tokenizer=config, train_tokenizer=training)),
        make_mesh(training.mesh),
    )
    like, graph = abstract_state(task, training, mesh)
    step, state = make_step(task, training, mesh, like, graph), init_state(task, training, like)
    B = options.batch
    batch = shard_batch(VideoBatch(video, np.full(B, 8, np.float32), video[:, :0], np.zeros((B, 0), np.int32)), mesh)
    model = CViViT(config, rngs=nnx.Rngs(0))
    definition, variables = nnx.split(model)
    encode = jax.jit(lambda variables, video: nnx.merge(definition, variables).encode(video).ids)
    decode = jax.jit(lambda variables, ids: nnx.merge(definition, variables).decode(ids))
    signed = jnp.asarray(video, jnp.float32) / 127.5 - 1
    ids = encode(variables, signed)

    def train_step() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    return {
        "training": train_step,
        "encoding": lambda: encode(variables, signed).block_until_ready(),
        "decoding": lambda: decode(variables, ids).block_until_ready(),
    }


def _phenaki_work(options: argparse.Namespace, video: np.ndarray) -> dict[str, Callable[[], Any]]:
    step, clips = trainer(phenaki_model(options, lookup_free=True), 3e-4), to_phenaki(video)
    model = phenaki_model(options, lookup_free=True).eval()
    with torch.no_grad():
        ids = model(clips, return_only_codebook_ids=True)
        codes = model.vq.indices_to_codes(ids.flatten(1))
    no_grad = torch.no_grad()
    return {
        "training": lambda: step(video, 1.0),
        "encoding": no_grad(lambda: model(clips, return_only_codebook_ids=True)),
        "decoding": no_grad(lambda: model.decode(codes)),
    }


def main() -> None:
    outputs = Outputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed"))
    parser.add_argument("--data", type=Path, help="what `tokvid data folder` wrote (quality); 40 videos are kept out")
    parser.add_argument("--json", type=outputs.file(), required=True, help="where the figures are written")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument(
        "--rates", type=float, nargs="+", default=(3e-4, 1e-3), help="learning rates for phenaki-pytorch"
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, help="default: 128 for quality, 256 for speed")
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, help="of each kind, in each half; default: 2 for quality, 4 for speed")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    if options.what == "quality" and options.data is None:
        parser.error("quality needs --data, what `tokvid data folder` wrote")
    small = options.what == "quality"
    options.width = options.width or (128 if small else 256)
    options.layers = options.layers or (2 if small else 4)
    torch.set_num_threads(os.cpu_count() or 1)
    figures = quality(options) if small else speed(options)
    print(json.dumps(figures, indent=2), flush=True)
    write_json(options.json, figures)


if __name__ == "__main__":
    sys.exit(main())
