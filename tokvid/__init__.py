"""tokvid: text to video the token way, in JAX."""

__version__ = "0.1.0"
