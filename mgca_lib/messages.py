"""Errors of other libraries, put into one line for a user."""

from pathlib import Path


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its kind where it has none.

    >>> first_line(ValueError("no such weight" + chr(10) + "in layer 3"))
    'no such weight'
    >>> first_line(KeyError())
    'KeyError'
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def local_fault(name: str, error: Exception) -> str:
    """Return what is wrong with a name that can only be a place on this computer; "" where it may be a hub id.

    A hub id is one name, or owner/name; whatever else has slashes is a path.

    >>> local_fault("./models/text", OSError("nothing there"))
    'no such folder'
    >>> local_fault("emilyalsentzer/Bio_ClinicalBERT", OSError("no network"))
    ''
    """
    if not name.startswith((".", "/", "~")) and name.count("/") < 2:
        return ""
    what = f"holds nothing that can be read ({first_line(error)})" if Path(name).is_dir() else "no such folder"
    return what + ("; '~' is not replaced" if name.startswith("~") else "")
