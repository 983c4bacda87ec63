"""All settings, as frozen dataclasses. A file in `configs/` defines a `Recipe`, which is saved as JSON with weights."""

import dataclasses
import math
import re
import runpy
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from tokvid.errors import UserError, suggestion
from tokvid.io.settings import at_least, overridden, to_dict
from tokvid.tasks.tasks import check_mixture

Dtype = Literal["auto", "float32", "bfloat16"]  # "auto": the type that the device multiplies fastest
LOWEST_TEMPERATURE = 0.001  # lower ones are greedy too, but logits would overflow
HIGHEST_TEMPERATURE = 100


def check_guidance(guidance: float) -> None:
    """UserError for a guidance scale below 0 (away from the text) or above 100 (a single code has all probability)."""
    if not 0 <= guidance <= 100:
        raise UserError(f"guidance should be 0 to 100 (1 disables it), got {guidance}")


def check_seed(seed: int) -> None:
    """UserError for a seed of more than 32 bits, which JAX would silently cut."""
    if not 0 <= seed < 2**32:
        raise UserError(f"seed should be 0 to {2**32 - 1}, got {seed}")


def _check_temperature(name: str, value: float | None) -> None:
    """UserError for a temperature at which nothing can be drawn."""
    if value is not None and not (value == 0 or LOWEST_TEMPERATURE <= value <= HIGHEST_TEMPERATURE):
        allowed = f"0 (greedy), or {LOWEST_TEMPERATURE} to {HIGHEST_TEMPERATURE}"
        raise UserError(f"{name} should be {allowed}, got {value}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The source of videos, and the clips cut from them."""

    source: str = "shapes"  # a key of input_pipeline.sources.SOURCES
    path: str = ""  # the folder, shards, record file or digits file; procedural sources need none
    videos: int = 1_000_000  # of a procedural source
    held_out: int = 0  # the last n videos of a stored source are held out of training
    size: tuple[int, int] = (64, 64)  # height, width in pixels
    fit: Literal["crop", "letterbox"] = "crop"  # for videos of another aspect ratio
    fps: tuple[float, ...] = (2.0, 4.0, 8.0)  # frame rates to train with
    fps_rule: Literal["uniform", "lowest"] = "uniform"  # "lowest": the lowest rate that fills a clip, as in CogVideo
    frames: int = 11  # of a training clip for the tokenizer; 1 + a multiple of the temporal patch
    images: int = 0  # single images in the tokenizer's training, for each clip
    images_path: str = ""  # a folder of these images; "": frames of the videos
    flip: float = 0.0  # probability to mirror a clip, where its caption, English or Chinese, stays true
    zoom: float = 1.0  # clips are enlarged by a random factor up to this, and cropped at random
    light: float = 0.0  # brightness and contrast change by up to this share, where the caption stays true
    conditions: float = 0.0  # share of the tokenizer's clips shown as a condition of the recipe's tasks instead
    max_unreadable: float = 0.1  # largest share of files that may be unreadable
    threads: int = 2  # reading threads
    seed: int = 0

    def __post_init__(self) -> None:
        at_least(self, 0, "images")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """C-ViViT (Phenaki, section 2.1). `encoder` and `decoder` are layer orders of "space" and "time"."""

    size: tuple[int, int] = (64, 64)  # height, width of training videos in pixels
    patch: int = 8  # pixels, square
    fold: int = 1  # rows and columns of patches in one token; their `fold`² codes become its sub-codes
    temporal_patch: int = 2  # frames
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    encoder: tuple[str, ...] = ("space", "time") * 2
    decoder: tuple[str, ...] = ("space", "time") * 3
    time_window: int = 2  # latent frames that a time layer sees, including the current one
    tile: int = 0  # rows and columns of patches that a space layer mixes at once; 0: those of `size`
    first_frame: Literal["own", "still"] = "own"  # "still": is encoded as frames that don't move, with their codes
    quantizer: str = "vq"  # a key of tokenizer.quantizers.QUANTIZERS
    groups: int = 1  # sub-codes of a patch, each with its own channels
    levels: tuple[int, ...] = (8, 5, 5, 5)  # FSQ levels of a sub-code; their product is its vocabulary
    hysteresis: float = 0.0  # of FSQ: levels beyond its boundary up to which a channel keeps the last frame's level
    # Sub-codes of a token that latent frames after the first keep, 0 for all. Where several numbers are given, training
    # draws one for each clip, and encoding keeps the first.
    later_codes: tuple[int, ...] = (0,)
    recall_first: bool = False  # whether the decoder sees the first frame's latents beside each later frame's, for ever
    codes: int = 8192  # the vocabulary of VQ and LFQ, of a sub-code
    code_width: int = 32  # channels of VQ's codes
    commitment_weight: float = 0.25  # pulls latents to their codes (VQ, LFQ)
    entropy_weight: float = 0.1  # of LFQ: certain codes, all equally frequent
    stillness_weight: float = 0.0  # of FSQ: L1 between consecutive latent frames, in levels
    l1_weight: float = 1.0
    l2_weight: float = 1.0
    temporal_weight: float = 0.0  # L1 between differences of consecutive frames
    ssim_weight: float = 0.0
    perceptual_weight: float = 0.0  # distance in a network's features; needs `train_tokenizer.perceptual`
    dtype: Dtype = "auto"  # of attention and MLP; parameters, norms, softmax and the residual stream stay float32
    remat: str = "none"  # a key of nn.blocks.REMAT
    attention: str = "auto"  # or a key of nn.attention.IMPLEMENTATIONS

    def __post_init__(self) -> None:
        at_least(self, 1, "size", "patch", "fold", "temporal_patch", "width", "heads", "mlp", "time_window")
        at_least(self, 1, "groups", "code_width")
        at_least(self, 0, "tile", "hysteresis", "later_codes")
        if not self.later_codes:
            raise UserError("later_codes is empty; give numbers of sub-codes, 0 for all")


@dataclasses.dataclass(frozen=True)
class AdversaryConfig:
    """The discriminators that the tokenizer trains against; `weight` 0 for none."""

    weight: float = 0.0  # of their gradient on the pixels, relative to all other losses'
    judges: tuple[str, ...] = ("frame", "space-time")
    game: Literal["hinge", "non-saturating"] = "hinge"
    width: int = 32  # channels of the first layer; later layers have up to 8 times as many
    layers: int = 3  # each halves height and width
    start: int = 1000  # steps of the discriminators before the tokenizer trains against them
    most: float = 1e3  # upper bound of the factor on their gradient
    captions: bool = False  # whether the judges read the captions (Miyato & Koyama 2018)
    lecam: float = 0.01  # LeCam regularisation (Tseng et al. 2021)
    r1: float = 0.0  # gradient penalty on real videos (Mescheder et al. 2018)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The one trunk (docs/design.md)."""

    latent_frames: int = 6  # of one window
    text_vocabulary: int = 512
    text_length: int = 32  # text tokens; longer prompts are cut, with a warning
    width: int = 384
    layers: int = 6
    heads: int = 6
    kv_heads: int = 6
    mlp: int = 1024
    ticks_per_second: float = 8.0  # units of rotary positions in a second
    dtype: Dtype = "auto"  # of attention, MLP and head, as the tokenizer's
    z_loss: float = 1e-4
    head: Literal["autoregressive", "independent"] = "autoregressive"  # whether sub-codes depend on one another
    head_width: int = 192  # of the network over sub-codes; tokens of a single code need only a matrix
    head_layers: int = 2
    copies: bool = False  # whether the head sees the token before at the same place, and may keep its codes
    copies_slower: bool = False  # with `copies`: also of the token in the slower video that is refined
    later_temperature: float | None = None  # `Sampling.later_temperature` by default; None: its temperature
    scan_layers: bool = False
    remat: str = "none"
    attention: str = "auto"  # or a key of nn.attention.IMPLEMENTATIONS
    # A recipe leaves these out; `train.recipe.fitted` takes them from its tokenizer, tasks and T5: rows and columns of
    # a latent frame, frames in one, codes of a sub-code (0: all are the tokenizer's), sub-codes of a token, how many of
    # these are generated (0: all; the others then have the code `silent`), and the conditions that have an embedding.
    grid: tuple[int, int] = (8, 8)
    temporal_patch: int = 2
    vocabulary: int = 0
    subcodes: int = 1
    generated: int = 0
    silent: int = 0
    conditions: tuple[str, ...] = ()
    text_width: int = 0  # of the hidden states of the T5 that reads the prompts (`tokens.t5`); 0: ids of a text model

    # Settings of earlier versions, with their only value today; scripts/compare/timeless.py compares both values.
    retired: ClassVar[Mapping[str, Any]] = {"seconds": True, "rate_token": True}

    def __post_init__(self) -> None:
        at_least(self, 1, "text_vocabulary", "latent_frames", "grid", "temporal_patch", "subcodes")
        at_least(self, 1, "width", "layers", "heads", "kv_heads", "mlp")
        at_least(self, 0, "text_length", "vocabulary", "text_width", "generated", "silent")
        _check_temperature("later_temperature", self.later_temperature)
        if self.copies_slower and not self.copies:
            raise UserError("copies_slower needs copies, whose table of tokens it reads; set both")

    @staticmethod
    def renamed(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Converts the JSON values of earlier versions, in which `latent` stood for `latent_frames` and `grid`."""
        if not isinstance(latent := values.get("latent"), list) or len(latent) != 3:
            return values
        others = {name: value for name, value in values.items() if name != "latent"}
        return {"latent_frames": latent[0], "grid": latent[1:]} | others

    @property
    def latent(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns of one window."""
        return (self.latent_frames, *self.grid)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """The encoder of a T5, as the user's files have it (tokvid/text/t5.py)."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    head_width: int
    mlp: int
    gated: bool  # v1.1 and mT5: gelu(gate)·up; v1.0: relu(up)
    buckets: int = 32  # of distances between tokens
    farthest: int = 128  # distance with a bucket of its own

    def __post_init__(self) -> None:
        at_least(self, 1, "vocabulary", "width", "layers", "heads", "head_width", "mlp")
        at_least(self, 4, "buckets")
        at_least(self, 1 + self.buckets // 4, "farthest")


@dataclasses.dataclass(frozen=True)
class LayoutConfig:
    """The layouts to train for: `tasks` are keys of tasks.TASKS and their shares, of any sum."""

    tasks: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"text_to_video": 0.4, "image_to_video": 0.1, "continuation": 0.5}
    )
    text_dropout: float = 0.1  # share of samples without their text, for guidance
    word_dropout: float = 0.0  # share of a caption's words that a sample lacks, at most
    at_start: float = 0.0  # share of windows where a video begins, at least, in tasks that also begin in mid-video
    rows: tuple[int, ...] = (0,)  # rows drawn at once, one of these for each sample; 0: token by token, all: in rounds
    corruption: float = 0.0  # share of a window's input tokens replaced by another video's, at most, at its end
    stalls: float = 0.0  # share of what a window's samples see that has stopped: codes of the frame before, at most
    scheduled_sampling: float = 0.0  # share of what a window's samples see that the model has drawn itself, at most
    lengths: tuple[int, ...] = (0,)  # latent frames of a batch's windows; 1: images, 0: whole windows

    def __post_init__(self) -> None:
        check_mixture(self.tasks)
        for name in ("text_dropout", "word_dropout", "at_start", "corruption", "stalls", "scheduled_sampling"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise UserError(f"{name} should be 0 to 1, got {share}")
        if not self.rows:
            raise UserError("rows is empty; give the numbers of rows to draw at once, 0 for token by token")


@dataclasses.dataclass(frozen=True)
class TokensConfig:
    """The size of the token cache."""

    videos: int = 20_000
    latent_frames: int = 16  # of each cached video, at most; windows are cut from these
    text_samples: int = 20_000  # captions to train the text model on, at most
    held_out: int = 128  # held-out videos to tokenize, for validation
    t5: str = ""  # folder of a T5, whose encoder reads the prompts; "": a text model of the captions is trained


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """Fine-tuning of the transformer by a reward of its own videos, with group-relative advantages (GRPO)."""

    name: str = ""  # a key of evaluate.rewards.REWARDS, or module:function; "": no reward, but likelihood
    tasks: tuple[str, ...] = ("text_to_video",)  # whose windows are generated, each as often
    rows: int = 0  # drawn at once, as `layouts.rows`; not all rows, whose rounds have no likelihood
    group: int = 16  # videos generated for each prompt
    kept: int = 8  # of a group are trained on, half with the lowest rewards and half with the highest
    guidance: float = 1.0  # of every second video of a group; 1: none, all are the model's own
    kl: float = 0.05  # weight of the divergence from the start, per token
    real: float = 0.2  # weight of the cross-entropy of the real windows, which keeps their likelihood

    def __post_init__(self) -> None:
        at_least(self, 0, "rows", "kl", "real")
        check_guidance(self.guidance)
        if not 2 <= self.kept <= self.group:
            raise UserError(f"kept should be 2 to group ({self.group}), got {self.kept}")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run, of either model."""

    steps: int = 10_000
    batch: int = 32  # of all devices and processes together
    accumulate: int = 1  # micro-batches of a batch, whose gradients are summed: less memory, the same loss
    optimizer: str = "adamw"  # or "muon", or "adafactor" (factored second moments, no first ones)
    moments: Literal["float32", "bfloat16"] = "float32"  # type of the optimizer's moments
    learning_rate: float = 1e-3
    adversary_learning_rate: float = 0.0  # of the discriminators, always with AdamW; 0 without them
    warmup: int = 200  # steps in which the learning rate rises from 0, half of all at most
    schedule: Literal["cosine", "stable"] = "cosine"  # "stable": constant until the last `decay` of the steps
    decay: float = 0.2  # share of steps in which "stable" decays; before that, steps can be added
    final_learning_rate: float = 0.05  # at the end, as a share of the peak
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    ema: float = 0.999
    log_every: int = 20
    save_every: int = 500  # steps
    save_minutes: float = 10.0  # most minutes between checkpoints; 0: no limit
    profile: int = 0  # steps to trace, from the third on, into profile/, for XProf or Perfetto
    sample_every: int = 1000
    val_every: int = 500  # steps between validations on held-out data, with averaged weights; 0: never
    val_batches: int = 8
    keep: int = 2  # checkpoints kept, 2 at least
    max_non_finite: int = 10  # skipped steps in a row that stop the run
    step_timeout: float = 900.0  # seconds after which a step counts as hung and the job is ended; 0: never
    wandb: str = ""  # a project of Weights & Biases to log to, beside metrics.jsonl (extra `wandb`)
    seed: int = 0
    start: str = ""  # weights to start from: a folder, or a name of shipped ones; "": random weights
    start_without: tuple[str, ...] = ()  # parameters of `start` that are left out, by the beginnings of their names
    lora: int = 0  # rank of LoRA's updates, trained instead of the transformer's parameters; 0: these are trained
    start_lora: str = ""  # a LoRA of `start`'s, whose training goes on: its file
    perceptual: str = ""  # the tokenizer's: a .safetensors file of a VGG network, see tokenizer/perceptual.py
    freeze: tuple[str, ...] = ()  # parameters not trained, by the beginnings of their names
    freeze_steps: int = 0  # steps for which `freeze` holds; 0: all
    mesh: tuple[int, int, int, int] = (-1, 1, 1, 1)  # data, fsdp, tensor, context; -1: all remaining devices

    def __post_init__(self) -> None:
        at_least(self, 1, "steps", "batch", "accumulate", "keep", "max_non_finite")
        at_least(
            self, 0, "lora", "warmup", "log_every", "save_every", "profile", "sample_every", "val_every", "val_batches"
        )
        at_least(self, 0, "freeze_steps", "save_minutes", "step_timeout", "learning_rate", "adversary_learning_rate")
        at_least(self, 0, "weight_decay", "final_learning_rate")
        if not self.clip_norm > 0:
            raise UserError(f"clip_norm should be above 0, got {self.clip_norm}")
        if not 0 <= self.ema < 1:
            raise UserError(f"ema should be 0 or more and below 1, got {self.ema}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"betas should be 0 or more and below 1, got {self.betas}")
        check_seed(self.seed)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings of a training: data, both models, both trainings. A file in `configs/` defines one as `recipe`."""

    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    adversary: AdversaryConfig = AdversaryConfig()
    transformer: TransformerConfig = TransformerConfig()
    layouts: LayoutConfig = dataclasses.field(default_factory=LayoutConfig)
    tokens: TokensConfig = TokensConfig()
    reward: RewardConfig = RewardConfig()
    train_tokenizer: TrainConfig = TrainConfig()
    train_transformer: TrainConfig = TrainConfig()


GUIDANCE = 3.0  # default guidance scale
LOW_GUIDANCE = 1.5  # that of tasks whose input shows where things are
# The order of generation. hierarchical: keyframes, then the frames between them, level by level; one-level: all frames
# in order, at the final rate.
Scheme = Literal["hierarchical", "one-level"]


def _setting(default: Any, help: str, least: float, most: float = math.inf) -> Any:
    """A field of `Sampling`: its line of `--help` and its allowed values."""
    return dataclasses.field(default=default, metadata={"help": help, "range": (least, most)})


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Settings of sampling. Each field is a key of a story file's `sampling:` and a flag of the command line.

    The defaults, and GUIDANCE, measured best on Moving Shapes; temperature 1 with top_p 1 samples from the model's own
    distribution. A top_p below 1, or a low temperature, also removes events that are unlikely at each place but must
    happen at one, like the first appearance of an object: "a small red circle moves slowly to the left" has none in 22
    of 64 videos with top_p 0.9, and in 4 with temperature 0.8. In later latent frames, which go on with what is there,
    a low one keeps outlines clean, and too low a one keeps real clips still. All rows at once are decoded in rounds
    (MaskGIT), each of which keeps its likeliest tokens.
    """

    temperature: float = _setting(
        0.9, "sampling temperature; lower is less random, 0 is greedy", 0, HIGHEST_TEMPERATURE
    )
    later_temperature: float | None = _setting(
        None,
        "that of a video's later latent frames; unused with --temperature 0 (default: the weights' own)",
        0,
        HIGHEST_TEMPERATURE,
    )
    top_k: int = _setting(0, "sample from the N most likely tokens; 0: from all", 0)
    top_p: float = _setting(
        1.0, "nucleus sampling: from the fewest tokens whose probabilities add up to X; 1: all", 1e-9, 1
    )
    guidance_limit: float = _setting(
        0.0,
        "in a video's first latent frame, the most that guidance adds to the log-odds of a code against the likeliest "
        "one, in nats; 0: any",
        0,
        1000,
    )
    rows: int = _setting(0, "rows of a latent frame per step, if the weights were trained for it; 0: token by token", 0)
    rounds: int = _setting(
        8, "decoding rounds (MaskGIT) of latent frames whose rows are all generated at once", 1, 1000
    )
    choice_temperature: float = _setting(1.0, "randomness in which tokens each decoding round keeps; 0: none", 0, 100)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, bounds = getattr(self, field.name), field.metadata.get("range")  # names and truth values have none
            if bounds and value is not None and not bounds[0] <= value <= bounds[1]:
                least, most = bounds
                allowed = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
                raise UserError(f"{field.name} should be {allowed}, got {value}")
        for name in ("temperature", "later_temperature"):
            _check_temperature(name, getattr(self, name))


# Settings of later versions, and values with which earlier checkpoints resume.
ADDED = {
    "text_width": 0,
    "later_codes": [0],
    "recall_first": False,
    "generated": 0,
    "silent": 0,
    "copies_slower": False,
    "word_dropout": 0.0,
    "at_start": 0.0,
}


# Of speed and memory: the numbers are the same but for rounding.
SPEED = ("attention", "remat", "scan_layers")


def computed(config: Any) -> dict[str, Any]:
    """The settings that a model's training depends on, as JSON values: all but those of speed and of sampling.

    `config` may also be such values, as an earlier version saved them.
    """
    others = (*SPEED, "later_temperature")
    values = (config if isinstance(config, Mapping) else to_dict(config)).items()
    return {name: value for name, value in values if name not in others and (name, value) not in ADDED.items()}


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Runs a config file and returns its `recipe`, with fields changed by `--field.name value`."""
    if not path.is_file():
        raise UserError(f"no config file {path}; recipes are in the folder configs/ of tokvid's repository")
    try:
        recipe = runpy.run_path(str(path)).get("recipe")
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's code can raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        raise UserError(f"config {path} fails{where} with {type(error).__name__}: {error}{_like(error)}") from error
    if not isinstance(recipe, Recipe):
        raise UserError(f"config {path} should define `recipe = Recipe(...)`, as those in configs/ do")
    if overrides and not overrides[0].startswith("--"):
        raise UserError(f"unexpected {overrides[0]!r}; fields are changed like this: --train_tokenizer.steps 100")
    return overridden(recipe, overrides)


def _like(error: BaseException) -> str:
    """A suggestion for a misspelt field of a config, or ""."""
    match = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    kind = globals().get(match[1]) if match else None
    if not match or not dataclasses.is_dataclass(kind):
        return ""
    return suggestion(match[2], (field.name for field in dataclasses.fields(kind)))
