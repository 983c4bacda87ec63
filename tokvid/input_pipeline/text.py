"""Text to ids and back: a sentencepiece model trained on the captions, with bytes for unseen characters."""

import functools
import hashlib
import io
import itertools
import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from tokvid.errors import UserError
from tokvid.io.files import atomic, read_limited

log = logging.getLogger(__name__)

PADDING = -1  # not an id of the model, so that no prompt looks like "no text"
UNKNOWN, BEGIN, END = 0, 1, 2  # begin and end are reserved but unused
SMALLEST_VOCABULARY = 3 + 256 + 32  # the reserved ids, the bytes, and room for the captions' own pieces
NORMALIZATION = "nmt_nfkc"  # NFKC, with tabs and line ends as spaces and without control characters
LONGEST_CAPTION = 4096  # characters; longer ones are cut before the text model is trained
ROOM_FOR_WORDS = 512  # ids from which on frequent words are whole
LARGEST_MODEL = 64 << 20  # bytes
SPACES = dict.fromkeys(map(ord, "\x0b\x1c\x1d\x1e\x1f\x85"), " ")  # controls that sentencepiece leaves out
SPACE, BYTE = "\u2581", re.compile("<0x[0-9A-F]{2}>")  # how sentencepiece writes them
LATIN = "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿ"
WORD = re.compile(rf"[{LATIN}]+|[^\s{LATIN}]")  # a word of Latin letters, or another character
LONGEST_SHOWN = 80  # characters of a text, in a warning
CHARACTERS_PER_TOKEN = 32  # twice the longest piece of sentencepiece


def train_text_model(captions: Iterable[str], path: str | Path, vocabulary: int = 512) -> "TextModel":
    """Trains a byte-pair sentencepiece model (Sennrich 2016, arXiv:1508.07909) and writes it to `path`.

    Not a unigram model (Kudo 2018): sentencepiece counts its candidates over distinct words, so that a small grammar
    with few words is split into letters, 33 tokens instead of 13 for the longest Moving Shapes caption.

    The same captions in the same order give the same bytes. Any string can be encoded: characters without a piece fall
    back to UTF-8 bytes. `vocabulary` is the highest number of ids; few captions give a smaller model, with a warning in
    the log. UserError when there is no text, or when the vocabulary cannot hold the bytes.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise UserError(
            f"text vocabulary {vocabulary} is too small: 256 bytes and 3 reserved ids come first; "
            f"use at least {SMALLEST_VOCABULARY}"
        )
    normal = sentencepiece.SentencePieceNormalizer(rule_name=NORMALIZATION)
    texts = [text for text in (normal.normalize(checked(each)[:LONGEST_CAPTION]) for each in captions) if text]
    if not texts:
        raise UserError("the captions hold no text to train a text model from; give captions that aren't empty")
    model_bytes = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_without_rare_characters(texts, vocabulary)),
            model_writer=model_bytes,
            model_type="bpe",
            vocab_size=vocabulary,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name=NORMALIZATION,
            max_sentence_length=4 * LONGEST_CAPTION,
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            eos_id=END,
            pad_id=-1,
            num_threads=1,  # the order of sums, and so the model, must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"cannot train a text model from {len(texts)} captions: {error}") from error
    with atomic(path) as temporary:
        temporary.write_bytes(model_bytes.getvalue())
        model = TextModel.load(temporary)  # an unreadable model must not replace an older one
    if model.vocabulary < vocabulary:
        log.warning("the captions give only %d text ids, not %d; going on with these", model.vocabulary, vocabulary)
    return model


class TextModel:
    """A sentencepiece model: `encode` a prompt to ids, `decode` ids to a prompt."""

    KEPT = 100_000  # encoded texts that an `encoder` keeps
    width = 0  # of hidden states, where `encode` gives these (tokvid/text/t5.py)

    def __init__(self, model: bytes, where: str = "text model"):
        try:
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
            self.vocabulary: int = self._pieces.get_piece_size()
            self._pieces.id_to_piece(list(range(self.vocabulary)))  # finds damaged pieces now, not at their first use
        except (RuntimeError, OSError, ValueError) as error:
            raise UserError(
                f"{where} is not a sentencepiece model or is damaged; train one from your captions"
            ) from error
        self.fingerprint: str = hashlib.sha256(model).hexdigest()[:16]
        self._warnings: set[str] = set()  # logged

    @classmethod
    def load(cls, path: str | Path) -> "TextModel":
        """Reads a sentencepiece model, ours or another's. UserError when missing, too large or damaged."""
        return cls(read_model(path), f"text model {path}")

    def encode(self, text: str, length: int) -> np.ndarray:
        """Ids of the first `length` tokens of `text`, padded with -1: int32 (length,).

        An empty text is all padding, which means no text. A long one is cut, and the log warns of it once. UserError
        when `text` isn't valid Unicode.
        """
        ids_L, cut = self._encode(text, length)
        if cut and cut not in self._warnings:
            self._warnings.add(cut)
            log.warning("%s", cut)
        return ids_L

    def _encode(self, text: str, length: int) -> tuple[np.ndarray, str]:
        """The ids, and a warning where the text was cut, else ""."""
        text = checked(text).translate(SPACES).strip()
        most = CHARACTERS_PER_TOKEN * length  # saves encoding a megabyte to keep 32 tokens
        ids = self._pieces.encode(text[:most])
        ids_L = np.full(length, PADDING, np.int32)
        ids_L[: len(ids)] = ids[:length]
        if len(ids) <= length and len(text) <= most:
            return ids_L, ""
        read = self._pieces.decode(ids[:length]).rstrip("\ufffd")  # a character of which some bytes are cut off
        return ids_L, f"of a text of {len(text)} characters, only the beginning is read: {_shortened(read)!r}"

    def spelled(self, text: str) -> list[str]:
        """The words of `text` that have to be spelled out, because the captions hardly had them, or not at all.

        A word of Latin letters is one where its pieces have fewer than two letters on average, any other character
        where it has no piece at all. Common words of a large vocabulary are split, too, but into longer pieces. A model
        without room for words has none to name.
        """
        if self.vocabulary < ROOM_FOR_WORDS:
            return []
        words = dict.fromkeys(WORD.findall(unicodedata.normalize("NFKC", checked(text)[:LONGEST_CAPTION])))
        return [word for word in words if self._is_spelled(word)]

    def _is_spelled(self, word: str) -> bool:
        pieces = [piece.lstrip(SPACE) for piece in self._pieces.encode(word, out_type=str)]
        pieces = [piece for piece in pieces if piece]
        unseen = any(BYTE.fullmatch(piece) for piece in pieces)
        return unseen or (len(pieces) > 1 and 2 * len(pieces) > len(word))

    def words(self, count: int) -> list[str]:
        """The commonest words that it has whole, `count` or fewer, of three letters or more; no parts of others."""
        ids = sorted(range(self.vocabulary), key=self._pieces.get_score, reverse=True)
        pieces = [piece[1:] for piece in self._pieces.id_to_piece(ids) if piece.startswith(SPACE)]
        words = [piece for piece in pieces if len(piece) >= 3 and WORD.fullmatch(piece)]
        parts = {word for word, after in itertools.pairwise(sorted(set(words))) if after.startswith(word)}
        return [word for word in words if word not in parts][:count]

    def decode(self, ids_L: Sequence[int] | np.ndarray) -> str:
        """The text of `ids_L`, without padding. UserError on an id that the model doesn't have."""
        ids = [int(i) for i in ids_L if i != PADDING]
        if ids and not 0 <= min(ids) <= max(ids) < self.vocabulary:
            raise UserError(f"text ids should be 0 to {self.vocabulary - 1}, found {min(ids)} to {max(ids)}")
        return self._pieces.decode(ids)

    def encoder(self, length: int) -> Callable[[str], np.ndarray]:
        """`encode` to `length` tokens, cached for the last KEPT texts; the arrays are read-only.

        Only the first cut text is logged.
        """
        warned = False

        @functools.lru_cache(maxsize=self.KEPT)
        def encode(text: str) -> np.ndarray:
            nonlocal warned
            ids_L, cut = self._encode(text, length)
            if cut and not warned:
                warned = True
                log.warning("%s (the weights' text_length is %d tokens; a word is one or more)", cut, length)
            ids_L.flags.writeable = False
            return ids_L

        return encode


def _shortened(text: str) -> str:
    """At most LONGEST_SHOWN characters, from both ends."""
    half = LONGEST_SHOWN // 2
    return text if len(text) <= LONGEST_SHOWN else f"{text[:half]} … {text[-half:]}"


def read_model(path: str | Path) -> bytes:
    """The bytes of a sentencepiece model. UserError when missing, empty or too large."""
    model = read_limited(path, "text model", LARGEST_MODEL, "take a smaller one")
    if not model:  # which sentencepiece takes for one
        raise UserError(f"text model {path} is empty; copy it again")
    return model


def checked(text: str, what: str = "the prompt") -> str:
    """`text` itself. UserError, which calls it `what`, where it is no string or no valid Unicode (lone surrogates)."""
    if not isinstance(text, str):
        raise UserError(f"{what} should be text, got {type(text).__name__} {text!r:.60}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        letter = ascii(text[error.start])
        raise UserError(
            f"{what} is not valid UTF-8 at character {error.start} ({letter} alone is no letter); save it as UTF-8 and "
            "try again"
        ) from error
    return text


def _without_rare_characters(texts: list[str], vocabulary: int) -> list[str]:
    """`texts` with at most half as many distinct characters as the vocabulary has free ids.

    Sentencepiece refuses more characters than ids, and Chinese captions soon have these. Rare characters are left to
    the byte fallback, and the other half of the ids to longer pieces.
    """
    counts = Counter(character for text in texts for character in text)
    kept = (vocabulary - 3 - 256) // 2
    rare = str.maketrans(dict.fromkeys([character for character, _ in counts.most_common()[kept:]], " "))
    return [text.translate(rare) for text in texts]
