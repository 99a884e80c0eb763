"""The one exception that is a message to the user rather than a fault of ours."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a folder, a setting, a run.

    Its text is one line that says what was given, what was expected and what to do;
    the entry points print that line and no traceback.
    """
