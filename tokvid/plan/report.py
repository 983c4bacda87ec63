"""The plan of a training on a pod (memory, days, videos), as text and as JSON values."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from tokvid.config import Recipe, Sampling
from tokvid.flops import transformer_flops
from tokvid.plan.aot import (
    VIDEOS,
    DoesNotFit,
    Topology,
    decoding_mesh,
    decoding_program,
    longest_kind,
    topology,
    training_program,
)
from tokvid.plan.roofline import judge
from tokvid.sharding import AXES, make_mesh
from tokvid.train.transformer_step import TransformerTraining
from tokvid.transformer.layout import schedule, slot_count

DAY = 86400  # seconds


def plan(
    recipe: Recipe,
    where: str,
    mesh: tuple[int, int, int, int] | None = None,
    *,
    slices: int = 1,
    only: str | None = None,
    rows: int = 0,
    keep: Callable[[str, str], object] = lambda name, text: None,
) -> dict[str, Any]:
    """The plan for training the recipe's transformer on `slices` slices of topology `where`, as JSON values.

    `only` "training" or "decoding" halves the work; decoding draws `rows` rows at once, as in sampling; `keep` gets
    each compiled program's name and text. In the result, `fits` says whether both fit, and `reason` why not. UserError
    if mesh, batch and topology don't match.
    """
    target = topology(where, slices)
    if mesh is not None:
        recipe = dataclasses.replace(recipe, train_transformer=dataclasses.replace(recipe.train_transformer, mesh=mesh))
    if target.stand_in and recipe.transformer.dtype == "auto":  # which asks the device
        recipe = dataclasses.replace(recipe, transformer=dataclasses.replace(recipe.transformer, dtype="bfloat16"))
    on = make_mesh(recipe.train_transformer.mesh, target.devices)
    result: dict[str, Any] = {"topology": where, "slices": slices, "chips": len(target.devices)}
    result |= {"compiled for": "virtual CPUs" if target.stand_in else "these chips"}
    result |= {"mesh": dict(on.shape), "chip": dataclasses.asdict(target.chip)}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "training": lambda: _training(recipe, target, on, keep),
        "decoding": lambda: _decoding(recipe, target, rows, keep),
    }
    reasons = []
    for name, part in parts.items():
        if only not in (None, name):
            continue
        try:
            result[name] = part()
            reasons += _too_large(name, result[name]["memory"])
        except DoesNotFit as error:
            reasons.append(f"{name}: {error}")
    return result | {"fits": not reasons, "reason": "; ".join(reasons)}


def _training(recipe: Recipe, target: Topology, mesh: Mesh, keep: Callable[[str, str], object]) -> dict[str, Any]:
    config, slots = recipe.train_transformer, slot_count(recipe.transformer)
    program = training_program(recipe, mesh)
    keep("training", program.text)
    training = TransformerTraining(recipe)
    longest = training.flops_of(longest_kind(recipe))
    result = judge(program, target, mesh, config.batch * longest)
    steps = DAY / (result["seconds"]["at least"] * training.flops() / longest)  # other batches are shorter
    return result | {
        "clips a step": config.batch,
        "tokens a day": steps * config.batch * slots,
        "videos a day": steps * config.batch,
        "days": config.steps / steps,
    }


def _decoding(recipe: Recipe, target: Topology, rows: int, keep: Callable[[str, str], object]) -> dict[str, Any]:
    config, mesh = recipe.transformer, decoding_mesh(recipe.transformer, target)
    videos, slots, tokens = VIDEOS * mesh.shape["data"], slot_count(config), math.prod(config.latent)
    lead, stride = schedule(config.latent, rows, given=False)
    program = decoding_program(config, mesh, Sampling(rows=rows))
    keep("decoding", program.text)
    # How often the loops run whose length is an argument: how much is drawn.
    trips = (*([int(lead)] if lead else []), (tokens - int(lead)) // stride)
    # Twice: with and without the text.
    result = judge(program, target, mesh, 2 * videos * transformer_flops(config, slots, slots, tokens), trips=trips)
    windows = DAY / result["seconds"]["at least"]
    return result | {
        "mesh": dict(mesh.shape),
        "videos at once": videos,
        "tokens at once": stride,
        "tokens a day": windows * videos * tokens,
        "videos a day": windows * videos,
    }


def _too_large(name: str, memory: dict[str, float]) -> list[str]:
    if memory["total"] <= memory["of"]:
        return []
    return [f"{name}: needs {_size(memory['total'])}, but a chip has {_size(memory['of'])}"]


# As text


def lines(config: Path, result: dict[str, Any]) -> list[str]:
    """The plan as lines of text."""
    chip = result["chip"]
    mesh = " x ".join(f"{name} {size}" for name, size in result["mesh"].items())
    several = f"{result['slices']} slices of " if result["slices"] > 1 else ""
    about = [
        f"{config} on {several}{result['topology']}: {result['chips']} chips, mesh {mesh}",
        f"a chip: {chip['flops'] / 1e12:.0f} TFLOP/s, {_size(chip['memory'])} at {chip['bandwidth'] / 1e9:.0f} GB/s, "
        f"links of {chip['link'] / 1e9:.0f} GB/s each way ({chip['source']})",
    ]
    if result["compiled for"] == "virtual CPUs":
        about.append(
            "compiled for as many virtual CPUs: temporaries and collectives are upper estimates; bytes of HBM, and so "
            "the bounds on speed, count weights and states only"
        )
    if training := result.get("training"):
        about += ["", f"Training step (compiled in {training['compiled in seconds']:.0f} s)", *_program_lines(training)]
        about += [
            f"  {_count(training['tokens a day'])} tokens and {_count(training['videos a day'])} videos a day at most, "
            f"{training['days']:.1f} days for the recipe at least"
        ]
    if decode := result.get("decoding"):
        at = f"{decode['videos at once']} videos at once, mesh {tuple(decode['mesh'][name] for name in AXES)}"
        at += f", {decode['tokens at once']} tokens of each" * (decode["tokens at once"] > 1)
        about += ["", f"Decoding, {at} (compiled in {decode['compiled in seconds']:.0f} s)", *_program_lines(decode)]
        about += [
            f"  {_count(decode['tokens a day'])} tokens and {_count(decode['videos a day'])} videos a day at most"
        ]
    return [*about, "", "fits" if result["fits"] else f"does not fit: {result['reason']}"]


def _program_lines(result: dict[str, Any]) -> list[str]:
    memory, seconds, mfu = (result[name] for name in ("memory", "seconds", "mfu"))
    of_model, of_each = (result["flops"][name] for name in ("of the model", "executed by each device"))
    parts = ", ".join(f"{name} {_size(size)}" for name, size in memory.items() if name not in ("total", "of"))
    rows = [
        f"  memory      {_size(memory['total'])} of {_size(memory['of'])}: {parts}",
        f"  FLOPs       {of_model:.3g} of the model; each device executes {of_each:.3g}",
        f"  HBM         {_size(result['bytes of HBM'])} read and written",
    ]
    for kind, sums in result["collectives"].items():
        rows.append(f"  {kind:20} {sums['runs']:6,} runs, {_size(sums['bytes']):>10} sent, {sums['seconds']:.3g} s")
    if result["largest collectives"]:
        most = result["largest collectives"][0]
        rows.append(
            f"  largest     {most['kind']} among {most['devices']}, {most['runs']} of {_size(most['bytes of each'])}, "
            f"{most['seconds']:.3g} s: {most['source'] or 'the compiler'}"
        )
    kinds = ("compute", "memory", "interconnect", *(["network"] if seconds["network"] else []))
    parts = ", ".join(f"{name} {seconds[name]:.3g} s" for name in kinds)
    rows.append(f"  roofline    {seconds['at least']:.3g} s, bound by {seconds['bound by']}: {parts}")
    rows.append(f"  MFU         {mfu['allowed']:.1%} at most, {mfu['if nothing overlapped']:.1%} if nothing overlapped")
    return rows


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**27 else f"{size / 2**20:.2f} MiB"


def _count(number: float) -> str:
    for unit, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:,.0f}"
