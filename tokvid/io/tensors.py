"""Tensors as files hold them: in float16, with the fingerprint of file and config."""

import hashlib
import json
from typing import Any

import numpy as np


def half(array: Any) -> np.ndarray:
    """The array as float16; what that cannot hold becomes infinite."""
    with np.errstate(over="ignore"):  # who writes it reports it by name
        return np.asarray(array).astype(np.float16)


def fingerprint(config: Any, data: bytes) -> str:
    """16 hex digits of a hash of a config and its file's bytes."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode() + data).hexdigest()[:16]
