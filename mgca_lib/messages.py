"""Errors of other libraries, put into one line for a user."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its kind where it has none.

    >>> first_line(ValueError("no such weight" + chr(10) + "in layer 3"))
    'no such weight'
    >>> first_line(KeyError())
    'KeyError'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
