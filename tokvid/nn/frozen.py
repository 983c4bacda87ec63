"""Parameters that aren't trained: without gradients, optimizer moments or averages, but saved with the others."""

from collections.abc import Collection

from flax import nnx

from tokvid.errors import UserError, did_you_mean


class Frozen(nnx.Variable):
    """A parameter that isn't trained; sharded as the `nnx.Param` that it replaces."""


def freeze(model: nnx.Module, beginnings: tuple[str, ...]) -> None:
    """Freezes the model's parameters whose names have one of these beginnings.

    UserError for a beginning that no parameter has.
    """
    names = set()
    for path, module in nnx.iter_modules(model):
        for name, value in vars(module).items():
            if isinstance(value, nnx.Param):
                full = ".".join(map(str, (*path, name)))
                names.add(full)
                if full.startswith(beginnings):
                    setattr(module, name, Frozen(value.get_value(), **value.get_metadata()))
    check_beginnings(beginnings, names)


def check_beginnings(beginnings: tuple[str, ...], names: Collection[str]) -> None:
    """UserError for a beginning that none of the parameters' names has."""
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            raise UserError(did_you_mean(beginning, sorted({name.split(".")[0] for name in names}), "parameter"))
