"""The `tokvid` command of a transformer that knows less of time, to compare with.

python scripts/compare/timeless.py numbered train transformer configs/shapes.py --workdir runs/numbered
python scripts/compare/timeless.py numbered evaluate shapes --weights runs/numbered --scheme one-level

`numbered`: latent frames are counted, not placed in seconds (for one level: a coarse clip has no place then).
`rateless`: the frame rate isn't among the input. Several are joined by commas. Evaluate weights as they were trained.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from tokvid.cli.main import main
from tokvid.transformer import layout, model


def numbered() -> None:
    def number(latent_T: Any, fps: Any, temporal_patch: int) -> Any:
        return latent_T

    layout.latent_seconds = number


def rateless() -> None:
    embed = model.Transformer._embed

    def without_rate(self: Any, sequence: Any, ticks_BLA: Any) -> Any:
        return embed(self, sequence._replace(fps=jnp.zeros_like(sequence.fps)), ticks_BLA)

    model.Transformer._embed = without_rate  # type: ignore[method-assign]


CHANGES: dict[str, Callable[[], None]] = {"numbered": numbered, "rateless": rateless}

if __name__ == "__main__":
    names = sys.argv[1].split(",") if len(sys.argv) > 1 else []
    if not names or not set(names) <= set(CHANGES):
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(CHANGES)} COMMAND ...; see the top of the file")
    for name in names:
        CHANGES[name]()
    main(sys.argv[2:])
