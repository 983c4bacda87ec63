"""Mistakes of the user, reported on one line without a traceback; warnings; and SIGTERM."""

import difflib
import logging
import unicodedata
from collections.abc import Iterable
from typing import Any

MOST_LISTED = 40


class UserError(ValueError):
    """One line: what was wrong, what is allowed, what to do. The command line prints it and exits with 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, with cleaning up."""


def show_warnings() -> None:
    """Prints what is logged as a warning to standard error, marked as one; of chatty libraries, only errors."""
    to_stderr = logging.StreamHandler()
    to_stderr.setFormatter(_Plain("tokvid: warning: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[to_stderr])
    for chatty in ("absl", "jax", "orbax"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def plain(text: str) -> str:
    """Text for a terminal, which would obey some characters: these are shown as escapes."""
    return "".join(ascii(each)[1:-1] if _is_obeyed(each) else each for each in text)


def _is_obeyed(letter: str) -> bool:
    return (
        unicodedata.category(letter) in ("Cc", "Zl", "Zp")
        or "\u202a" <= letter <= "\u202e"
        or "\u2066" <= letter <= "\u2069"
    )


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(plain, super().format(record).split("\n")))


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, the machine's or, by XLA's word for it, the device's."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error))


def reason(error: BaseException) -> str:
    """The message of an exception, on one line; of one by the system, what the system says."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__


def did_you_mean(name: object, allowed: Iterable[object], what: str) -> str:
    """The message for an unknown name: `unknown colour 'rad' (did you mean 'red'?); allowed: ...`.

    Of more than MOST_LISTED allowed names, only the most similar ones are listed.
    """
    names = [str(each) for each in allowed]
    close = difflib.get_close_matches(str(name), names, n=5)
    listed = ", ".join(close) + ", …" if close and len(names) > MOST_LISTED else ", ".join(names)
    return f"unknown {what} {str(name)!r:.80}{suggestion(name, names)}; allowed: {listed}"


def suggestion(name: object, allowed: Iterable[str]) -> str:
    """` (did you mean 'red'?)`, or "" where no allowed name is similar."""
    allowed = list(allowed)
    close = [each for each in allowed if each.casefold() == str(name).casefold()]
    close = close or difflib.get_close_matches(str(name), allowed, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def difference(saved: Any, wanted: Any) -> str:
    """The values that differ, those of JSON objects by field: `steps=1 (asked for: 2)`."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        names = [name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)]
        return ", ".join(f"{name}={saved.get(name)!r} (asked for: {wanted.get(name)!r})" for name in sorted(names))
    return f"{saved!r} (asked for: {wanted!r})"
