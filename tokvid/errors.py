"""Errors that are the user's to mend, one clear line each, never a traceback at the command line; and SIGTERM."""

import difflib
from collections.abc import Iterable

MOST_LISTED = 40


class UserError(ValueError):
    """What was wrong, what is allowed, and what to do, in one line. The command line prints it and exits with 2."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: like Ctrl-C, work is cleaned up before the end."""


def did_you_mean(given: object, allowed: Iterable[object], what: str) -> str:
    """The one line for a name that isn't among those allowed: `unknown colour 'rad' (did you mean 'red'?); ...`.

    Of very many names only those most like it are listed.
    """
    names = [str(name) for name in allowed]
    close = difflib.get_close_matches(str(given), names, n=5)
    listed = ", ".join(close) + ", …" if close and len(names) > MOST_LISTED else ", ".join(names)
    return f"unknown {what} {str(given)!r}{suggestion(given, names)}; allowed: {listed}"


def suggestion(given: object, allowed: Iterable[str]) -> str:
    """` (did you mean 'red'?)`, or nothing where no allowed name is like the one given."""
    close = difflib.get_close_matches(str(given), list(allowed), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
