"""The one exception that is a message to the user rather than a fault of ours, and how a command tells its end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a setting, a run.

    Its text is one line that says what was given, what was expected and what to do;
    the entry points print that line and no traceback.
    """


def one_line(error: Exception) -> str:
    """What a command says of the error that ends it: its text; of an OSError, what was refused and what to do."""
    if not isinstance(error, OSError):
        return str(error)
    where = f"{error.filename}: " if error.filename is not None else ""
    return (
        f"{where}{error.strerror or error}; what was saved before is whole: see to the disk or the folder's rights, "
        "and give the same command again"
    )


@contextmanager
def told_in_one_line() -> Iterator[None]:
    """Ends the process with an InputError's or OSError's line and status 1, with status 130 after Ctrl-C; without a
    traceback."""
    try:
        yield
    except (InputError, OSError) as error:
        sys.exit(f"error: {one_line(error)}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
