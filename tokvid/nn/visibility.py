"""Visibility in attention: a block number for each token, and the rule that turns these into masks."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Int

NEVER = 2**30  # the block number of padding: later than all others, so that only padding sees it


class Blocks(NamedTuple):
    """The block numbers of queries and keys, for a batch of B, or of 1 where all samples share them."""

    query_BL: Int[Array, "b l"]
    key_BS: Int[Array, "b s"]
    window: int | None = None


def block_mask(
    query_block_BL: Int[Array, "b l"], key_block_BS: Int[Array, "b s"], window: int | None = None
) -> Bool[Array, "b l s"]:
    """Token i sees token j iff block[j] <= block[i]; with a window also block[j] > block[i] - window.

    Equal numbers see each other (text, known tokens, a row decoded at once); rising numbers are causal. For a text of
    two tokens, a padding token and two generated tokens, block = [0 0 . 1 2] with `.` for NEVER::

        0 0 . 1 2
        1 1 0 0 0   text sees all of the text
        1 1 0 0 0
        1 1 1 1 1   padding sees everything and nothing sees it (its output is unused)
        1 1 0 1 0   the first generated token
        1 1 0 1 1   the second
    """
    query, key = query_block_BL[:, :, None], key_block_BS[:, None, :]
    mask_BLS = key <= query
    return mask_BLS if window is None else mask_BLS & (key > query - window)
