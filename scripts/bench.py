"""Speed of every component, and its share of what this machine can do.

python scripts/bench.py --weights shapes --config configs/shapes64.py --json bench.json
python scripts/bench.py --step transformer --config configs/base_350m.py --transformer.layers 2 \
    --train_transformer.batch 2
python scripts/bench.py --decoding --quick --config configs/base_350m.py --transformer.layers 4

The same run measures the machine's limits: a matrix multiplication, and memory reads and writes. Shares are relative to
these or, on an accelerator in tokvid/flops.py, to its manufacturer's numbers, where the share of FLOPs is the MFU.
FLOPs are counted from the configs (a training step is three forward passes), padding and masked attention included; the
bytes of decoding are the parameters and the cache, once per step, in the compute type. Every number is the median of
several runs after the first, which compiles. The slowest operations of a training step are named.
"""

import argparse
import collections
import dataclasses
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from tokvid.config import Recipe, Sampling, TransformerConfig
from tokvid.errors import UserError
from tokvid.flops import chip_of, tokenizer_flops, transformer_flops
from tokvid.input_pipeline.loader import clip_batches
from tokvid.io.files import Outputs, read_json, write_json
from tokvid.io.threads import usable_cores
from tokvid.nn.products import compute_dtype
from tokvid.sampling.codec import decode_clips
from tokvid.sampling.decode import Request, generate
from tokvid.sampling.models import Models, load_models
from tokvid.sharding import make_mesh, shard_batch
from tokvid.tokenizer.cvivit import CViViT, latent_shape
from tokvid.tokenizer.quantizers import channels, codes_of
from tokvid.train.recipe import open_recipe
from tokvid.train.state import abstract_state, init_state, make_step
from tokvid.train.tokenizer_step import TokenizerTraining, encode_ids
from tokvid.train.transformer_step import TransformerTraining
from tokvid.transformer.model import Transformer
from tokvid.types import TokenBatch, VideoBatch, stride_of, token_batch
from tokvid.weights import Loaded, find, parameter_count

ROOT = Path(__file__).resolve().parents[1]
KNOWN = 2  # latent frames that a window takes over


@dataclasses.dataclass(frozen=True)
class Row:
    """One measurement: so many units of work, FLOPs and bytes moved, in so many seconds."""

    name: str
    unit: str
    work: float
    seconds: float
    flops: float = 0.0
    bytes: float = 0.0
    costs: tuple[tuple[str, float], ...] = ()  # the operations that take longest, with their share of the time


@dataclasses.dataclass(frozen=True)
class Peaks:
    """The FLOP/s and bytes/s that shares are of."""

    flops: float
    bytes: float
    source: str


# Measuring


def median_seconds(work: Callable[[], Any], runs: int) -> float:
    """Of one call of `work`, after a first one that doesn't count."""
    jax.block_until_ready(work())
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def machine(runs: int, quick: bool) -> list[Row]:
    """What the machine can do at most; accelerators multiply in bfloat16."""
    side, numbers = (1024, 1 << 24) if quick else (2048, 1 << 26)
    dtype = jnp.float32
    if jax.default_backend() != "cpu":
        side, numbers, dtype = 8192, 1 << 28, jnp.bfloat16
    matrix, long = jnp.ones((side, side), dtype), jnp.ones(numbers, jnp.float32)
    product, scaled = jax.jit(jnp.matmul), jax.jit(lambda x: x * 1.5)
    flops, size = 2.0 * side**3, 8.0 * numbers  # read and written
    return [
        Row(
            "matrix multiplication", "GFLOP", flops / 1e9, median_seconds(lambda: product(matrix, matrix), runs), flops
        ),
        Row("memory", "GB", size / 1e9, median_seconds(lambda: scaled(long), runs), 0, size),
    ]


def peaks_of(machine_rows: list[Row]) -> Peaks:
    """A known chip's published numbers, else what was measured."""
    if (chip := chip_of(jax.devices()[0].device_kind)) is not None:
        return Peaks(chip.flops, chip.bandwidth, chip.source)
    product, memory = machine_rows
    return Peaks(product.flops / product.seconds, memory.bytes / memory.seconds, "measured in this run")


def largest_costs(work: Callable[[], Any], count: int = 3) -> tuple[tuple[str, float], ...]:
    """The kinds of operations that take longest in one call of `work`, with their share of the devices' time."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(work())
        traces = [jax.profiler.ProfileData.from_file(str(path)) for path in Path(folder).rglob("*.xplane.pb")]
        lines = [line for trace in traces for line in traced_lines(trace)]
    total: collections.Counter[str] = collections.Counter()
    for line in lines:
        for name, nanoseconds in own_times(line):
            total[re.sub(r"([._]\d+)+$", "", name)] += nanoseconds
    whole = sum(total.values())
    return tuple((name, nanoseconds / whole) for name, nanoseconds in total.most_common(count))


Event = tuple[float, float, str]  # start, duration, name


def traced_lines(trace: Any) -> Iterator[list[Event]]:
    """What each stream of an accelerator did; on a CPU, what each thread did of a compiled program."""
    lines = [(plane.name, line) for plane in trace.planes for line in plane.lines]
    on_device = [
        line
        for plane, line in lines
        if plane.startswith("/device:") and (line.name.startswith("Stream") or line.name == "XLA Ops")
    ]
    for line in on_device or [line for plane, line in lines if plane == "/host:CPU"]:
        events = []
        for event in line.events:
            operation = dict(event.stats).get("hlo_op")
            # A library's kernel says more than "custom-call" does, and one without an operation has only its name.
            own_name = operation is None or str(operation).startswith("custom-call")
            if on_device or operation is not None:
                events.append((event.start_ns, event.duration_ns, event.name[:80] if own_name else str(operation)))
        yield events


def own_times(events: list[Event]) -> Iterator[tuple[str, float]]:
    """Of each event its name and time without the events inside it: a loop's body isn't the loop's."""
    around: list[list[Any]] = []  # end, name, own time
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while around and around[-1][0] <= start:
            yield tuple(around.pop()[1:])
        if around:
            around[-1][2] -= duration
        around.append([start + duration, name, duration])
    yield from (tuple(event[1:]) for event in around)


def tokenizer_rows(tokenizer: Loaded, runs: int, quick: bool) -> list[Row]:
    """Encoding as for the token cache, decoding as for a story."""
    rng = np.random.default_rng(0)
    c, codes, batch, latent_frames = tokenizer.config, codes_of(tokenizer.config), 4 if quick else 16, 16
    frames = 1 + (latent_frames - 1) * c.temporal_patch
    _, rows, columns = latent_shape(c, frames, *c.size)
    video = rng.integers(256, size=(batch, frames, *c.size, 3), dtype=np.uint8)
    seconds = median_seconds(lambda: encode_ids(tokenizer.graph, tokenizer.params, video), runs)
    flops = batch * tokenizer_flops(c, "encoder", latent_frames, latent_frames, channels(c))
    found = [Row(f"tokenizer, encode {batch} clips", "frames", batch * frames, seconds, flops)]
    for batch in (1, 8):
        tokens = rng.integers(
            codes.vocabulary, size=(batch, latent_frames, rows, columns, codes.per_token), dtype=np.int32
        )
        seconds = median_seconds(lambda tokens=tokens: decode_clips(tokenizer, tokens), runs)
        flops = batch * tokenizer_flops(c, "decoder", latent_frames, c.time_window, channels(c))
        found.append(Row(f"tokenizer, decode {batch} streams", "frames", batch * frames, seconds, flops))
    return found


def training_row(training: Any, config: Any, batch: Any, runs: int, frames: int = 0) -> Row:
    """Steps of the real training program, on one batch again and again; counted in clips, or in `frames` of each."""
    mesh = make_mesh(config.mesh)
    like, graph = abstract_state(training, config, mesh)
    train_step, state, sharded = (
        make_step(training, config, mesh, like, graph),
        init_state(training, config, like),
        shard_batch(batch, mesh),
    )

    def work() -> Any:
        nonlocal state
        state, metrics = train_step(state, sharded)
        return metrics

    seconds, unit = median_seconds(work, runs), "frames" if frames else "clips"
    flops, costs = config.batch * training.flops(), largest_costs(work)
    return Row(f"training, {training.name}", unit, config.batch * (frames or 1), seconds, flops, 0, costs)


def tokenizer_step_row(recipe: Recipe, runs: int) -> Row:
    """The tokenizer's training step."""
    rng, data, config = np.random.default_rng(0), recipe.data, recipe.train_tokenizer
    shapes = ((config.batch, count, *recipe.tokenizer.size, 3) for count in (data.frames, data.images))
    video, images = (rng.integers(256, size=shape, dtype=np.uint8) for shape in shapes)
    clips = VideoBatch(video, np.full(config.batch, 8, np.float32), images, np.zeros((config.batch, 0), np.int32))
    return training_row(TokenizerTraining(recipe), config, clips, runs, data.frames + data.images)


def transformer_step_row(recipe: Recipe, runs: int) -> Row:
    """The transformer's training step."""
    config = recipe.train_transformer
    windows = random_windows(recipe.transformer, config.batch, 0, np.random.default_rng(0))
    return training_row(TransformerTraining(recipe), config, windows, runs)


STEPS = {"tokenizer": tokenizer_step_row, "transformer": transformer_step_row}


def random_windows(c: TransformerConfig, batch: int, known: int, rng: np.random.Generator) -> TokenBatch:
    """Random windows."""
    return token_batch(
        tokens=rng.integers(c.vocabulary, size=(batch, *c.latent, c.subcodes), dtype=np.int32),
        start=np.full(batch, 5 * bool(known), np.int32),
        fps=np.full(batch, 8, np.float32),
        text=rng.integers(c.text_vocabulary, size=(batch, c.text_length), dtype=np.int32),
        known=np.broadcast_to(np.arange(c.latent_frames) < known, (batch, c.latent_frames)),
    )


def decoding_rows(loaded: Loaded, rows: tuple[int, ...], runs: int, quick: bool, rounds: int = 1) -> list[Row]:
    """A window of a story, with guidance: every token runs twice, with the text and without.

    All rows at once are drawn in so many rounds.
    """
    rng, c, found = np.random.default_rng(0), loaded.config, []
    size = jnp.dtype(compute_dtype(c.dtype)).itemsize
    frames, height, width = c.latent
    given, count = c.text_length + 1 + KNOWN * height * width, 1 if quick else frames - KNOWN
    slots, tokens = given + (frames - KNOWN) * height * width, count * height * width
    for batch, number in itertools.product((1, 8), rows):
        windows, keys = random_windows(c, batch, KNOWN, rng), jax.random.split(jax.random.key(0), batch)
        sampling, at_once = Sampling(rows=number, rounds=rounds), stride_of(number, c.latent)

        def work(windows: TokenBatch = windows, keys: jax.Array = keys, sampling: Sampling = sampling) -> Any:
            guidance, no_text = np.full((len(keys), frames), 2, np.float32), np.full_like(windows.text, -1)
            request = Request(windows, no_text, keys, guidance, np.int32(KNOWN * height * width), np.int32(tokens))
            options: dict[str, Any] = {"sampling": sampling, "guided": True}
            return generate(loaded.graph, loaded.params, request, **options)

        steps = (rounds + 1) * count if number == height else tokens // at_once  # a whole one also runs as it stands
        step = transformer_flops(c, at_once, slots, at_once)
        flops = 2 * batch * (transformer_flops(c, given, slots, 0) + steps * step)
        cache = 2 * batch * c.layers * slots * 2 * c.kv_heads * (c.width // c.heads) * size
        moved = steps * (size * parameter_count(loaded.params) + cache)
        way = f"{number} rows" if number else "tokens"
        way += f" in {rounds} rounds" if number == height and rounds > 1 else ""
        name = f"decoding {way}, batch {batch}"
        found.append(Row(name, "tokens", batch * tokens, median_seconds(work, runs), flops, moved))
    return found


def untrained(kind: Callable[..., nnx.Module], config: Any) -> Loaded:
    """A model with random parameters, as fast as a trained one."""
    graph, params = nnx.split(nnx.jit(lambda: kind(config, rngs=nnx.Rngs(0)))())
    return Loaded(config, graph, params, {})


def pipeline_row(recipe: Recipe, runs: int) -> Row:
    """Clips for the tokenizer, drawn or decoded, cut and batched."""
    config = recipe.train_tokenizer
    batches = clip_batches(recipe.data, config.batch, seed=0)
    try:
        batch = next(batches)
        seconds = median_seconds(lambda: [next(batches) for _ in range(8)], runs) / 8
    finally:
        batches.close()
    return Row("input pipeline", "clips", config.batch, seconds, 0, batch.video.nbytes)


# Saying it


def values(row: Row, peaks: Peaks) -> dict[str, Any]:
    """A row as JSON values, with shares of the peaks."""
    found: dict[str, Any] = {"name": row.name, "unit": f"{row.unit}/s", "per_second": row.work / row.seconds}
    found["seconds"] = row.seconds
    for name in ("flops", "bytes"):
        if getattr(row, name):
            speed = getattr(row, name) / row.seconds
            found |= {f"{name}_per_second": speed, f"share_of_{name}": speed / getattr(peaks, name)}
    if row.costs:
        found["costs"] = [{"operation": name, "share": share} for name, share in row.costs]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'':30} {'':>18} {'GFLOP/s':>9} {'of most':>8} {'GB/s':>7} {'of most':>8}"]
    for row in rows:
        cells = [f"{row['name']:30}", f"{row['per_second']:>9,.4g} {row['unit']:8}"]
        for name, width in (("flops", 9), ("bytes", 7)):
            known = f"{name}_per_second" in row
            cells += [f"{row[f'{name}_per_second'] / 1e9:{width}.1f}" if known else " " * width]
            cells += [f"{row[f'share_of_{name}']:8.1%}" if known else " " * 8]
        lines.append(" ".join(cells).rstrip())
        lines += [f"    {cost['share']:6.1%} {cost['operation']}" for cost in row.get("costs", ())]
    return "\n".join(lines)


def trained_rows(loaded: Loaded) -> tuple[int, ...]:
    """How many rows at once weights were trained to draw."""
    return tuple(sorted(set(loaded.about.get("layouts", {}).get("rows", [0]))))


def all_rows(recipe: Recipe, models: Models, runs: int, quick: bool) -> list[Row]:
    """All there is."""
    return [
        *tokenizer_rows(models.tokenizer, runs, quick),
        *(step(recipe, runs) for step in STEPS.values()),
        *decoding_rows(models.transformer, trained_rows(models.transformer), runs, quick),
        pipeline_row(recipe, runs),
    ]


def ratios(now: dict[str, Any], earlier: dict[str, Any]) -> str:
    """How many times as fast each row is as the row of the same name was, as a Markdown table."""
    where = ("device", "cores", "config")
    lines = [f"(the earlier {name} was {earlier.get(name)})" for name in where if earlier.get(name) != now[name]]
    lines += ["| row | then | now | ratio |", "|---|---|---|---|"]
    then = {row["name"]: row for row in earlier.get("rows", [])}
    for row in now["rows"]:
        if (old := then.get(row["name"])) is not None:
            speeds = old["per_second"], row["per_second"]
            lines.append(f"| {row['name']} | {speeds[0]:.4g} | {speeds[1]:.4g} | {speeds[1] / speeds[0]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    outputs = Outputs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=find, default="shapes")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "shapes.py")
    parser.add_argument("--json", type=outputs.file(), help="write the figures there, too")
    against = "an earlier --json: print how many times as fast each row is now"
    parser.add_argument("--against", type=Path, metavar="OLD.json", help=against)
    parser.epilog = "Any field of the recipe can be changed: --train_transformer.batch 2, --transformer.layers 2, …"
    parser.add_argument("--quick", action="store_true", help="smaller and fewer runs")
    parser.add_argument("--step", choices=STEPS, help="only the training step of the recipe's model")
    parser.add_argument("--decoding", action="store_true", help="only decoding, the recipe's transformer untrained")
    parser.add_argument("--rounds", type=int, default=1, help="in which whole latent frames are drawn (default 1)")
    parser.add_argument(
        "--streaming", action="store_true", help="only the recipe's tokenizer, untrained, as it streams"
    )
    options, overrides = parser.parse_known_args()
    runs = 3 if options.quick else 9
    try:
        earlier = None if options.against is None else read_json(options.against, "the earlier figures")
        recipe, limits = open_recipe(options.config, overrides), machine(runs, options.quick)
        mark = ""
        if options.step:
            rows = [STEPS[options.step](recipe, runs)]
        elif options.decoding:
            c = recipe.transformer
            ways = (0, 1, c.latent[1])
            rows = decoding_rows(untrained(Transformer, c), ways, runs, options.quick, options.rounds)
        elif options.streaming:
            rows = tokenizer_rows(untrained(CViViT, recipe.tokenizer), runs, options.quick)
        else:
            models = load_models(options.weights)
            mark, rows = models.mark, all_rows(recipe, models, runs, options.quick)
    except UserError as error:
        sys.exit(f"bench: {error}")
    peaks = peaks_of(limits)
    figures = {
        "device": jax.devices()[0].device_kind,
        "cores": usable_cores(),
        "weights": mark,
        "config": options.config.name,
        "runs": runs,
        "peaks": dataclasses.asdict(peaks),
        "rows": [values(row, peaks) for row in [*limits, *rows]],
    }
    print(f"{figures['device']}, {figures['cores']} cores; medians of {runs} runs; peaks {peaks.source}\n")
    print(table(figures["rows"]), flush=True)
    if earlier is not None:
        print(f"\n{ratios(figures, earlier)}", flush=True)
    if options.json is not None:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
