"""The one exception that is a message to the user rather than a fault of ours, and how a command tells it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a setting, a run.

    Its text is one line that says what was given, what was expected and what to do;
    the entry points print that line and no traceback.
    """


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Ends the process with an InputError's line and status 1, with status 130 after Ctrl-C; without a traceback."""
    try:
        yield
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
