"""Writes small random T5s and the hidden states that PyTorch computes, for tests/text/test_t5.py.

    python scripts/t5_fixture.py tests/text/t5              # those that are stored with the tests
    python scripts/t5_fixture.py FOLDER --widths 512 6 64 1024 8    # of the width, heads, … of t5-v1_1-small

Needs torch and transformers, which tokvid itself doesn't. A folder for each version: config.json, model.safetensors,
and states.safetensors with `ids` (B, L), `mask` (B, L) and `states` (B, L, D).
"""

import argparse
from pathlib import Path

import safetensors.torch
import torch
import transformers

VERSIONS = {"v1_0": ("t5", "relu"), "v1_1": ("t5", "gated-gelu"), "mt5": ("mt5", "gated-gelu")}
LENGTHS = (1, 9, 26)  # of the texts; distances are beyond the farthest bucket


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--widths", type=int, nargs=5, default=(12, 2, 4, 10, 2), metavar=("WIDTH", "HEADS", "HEAD", "MLP", "LAYERS")
    )
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16", help="of the file")
    options = parser.parse_args()
    for version, (kind, mlp) in VERSIONS.items():
        write(options.folder / version, kind, mlp, options)


def write(folder: Path, kind: str, mlp: str, options: argparse.Namespace) -> None:
    """One version's folder."""
    torch.manual_seed(0)
    width, heads, head, inner, layers = options.widths
    classes = {
        "t5": (transformers.T5Config, transformers.T5EncoderModel),
        "mt5": (transformers.MT5Config, transformers.MT5EncoderModel),
    }
    config_class, model_class = classes[kind]
    config = config_class(
        vocab_size=24, d_model=width, d_kv=head, d_ff=inner, num_layers=layers, num_heads=heads, feed_forward_proj=mlp,
        relative_attention_num_buckets=8 if width < 100 else 32,
        relative_attention_max_distance=20 if width < 100 else 128,
    )  # fmt: skip
    model, dtype = model_class(config).eval(), getattr(torch, options.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = _scale(name, parameter, head) * torch.randn_like(parameter) + (parameter.ndim == 1)
            parameter.copy_(noise.to(dtype).float())  # what the file can hold
    ids = torch.randint(2, 24, (len(LENGTHS), max(LENGTHS)))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    with torch.no_grad():
        states = model(input_ids=ids * mask, attention_mask=mask).last_hidden_state
    folder.mkdir(parents=True, exist_ok=True)
    config.to_json_file(folder / "config.json")
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    tensors.pop("encoder.embed_tokens.weight", None)  # the same as shared.weight
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    result = {"ids": ids.to(torch.int32), "mask": mask.to(torch.int32), "states": states.contiguous()}
    safetensors.torch.save_file(result, folder / "states.safetensors")


def _scale(name: str, parameter: torch.Tensor, head: int) -> float:
    """A parameter's standard deviation: that of T5's initialisation, but for norms and biases, which differ here."""
    if parameter.ndim == 1:
        return 0.3
    if "shared" in name or "relative_attention_bias" in name:
        return 1.0
    return parameter.shape[1] ** -0.5 * (head**-0.5 if name.endswith("q.weight") else 1.0)


if __name__ == "__main__":
    main()
