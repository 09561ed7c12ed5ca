"""What a folder of prepared data knows of earlier runs, so that a run can go on where another stopped.

Each finished image is noted in ``preparation/journal.jsonl`` with its checksum. A later run reuses what is whole and
belongs to an unchanged source file, so a run that was killed and started again ends with the same files as one that
was not.
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from data_scripts.command_line import FORMATS, Settings
from mgca_lib.data.studies import CARD_FILE, TABLE_FILE, DatasetError

STATE_FOLDER = "preparation"
IMAGE_FOLDER = "images"
MASK_FOLDER = "masks"
DECODING = 1  # raised when the same file would give other pixels


class Journal:
    """The settings that the images of ``out`` were made with, and which images are finished.

    Args:
        out: Folder of the prepared dataset; made when missing.
        name: Dataset.
        settings: Shared settings; size and format of the images must be those of the earlier runs.

    Raises:
        DatasetError: ``out`` holds something else, or images of other settings and ``overwrite`` is not set.
    """

    def __init__(self, out: Path, name: str, settings: Settings) -> None:
        self.out = out
        self.folder = out / STATE_FOLDER
        self.suffix = FORMATS[settings.image_format]
        self.size = settings.size
        wanted = {
            "dataset": name,
            "size": settings.size,
            "image_format": settings.image_format,
            "decoding": DECODING,
        }
        self._check(wanted, overwrite=settings.overwrite)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "settings.json", json.dumps(wanted, indent=2) + "\n")
        self.entries: dict[str, dict[str, Any]] = dict(self._read_journal())
        self._stream = (self.folder / "journal.jsonl").open("a", encoding="utf-8")
        # A run that was killed may have left half a line; what follows must not be glued to it.
        self._stream.write("\n")

    def _check(self, wanted: Mapping[str, Any], *, overwrite: bool) -> None:
        path = self.folder / "settings.json"
        if self.out.exists() and not self.out.is_dir():
            raise DatasetError(f"{self.out}: is a file; --out wants a folder")
        if not path.is_file():
            others = sorted(item.name for item in self.out.iterdir()) if self.out.is_dir() else []
            others = [name for name in others if name != STATE_FOLDER]
            if others:
                raise DatasetError(
                    f"{self.out}: holds {others[0]} and was not made by a prepare script; name an empty or new folder"
                )
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            found = {}
        if not isinstance(found, dict):
            found = {}
        if found.get("dataset", wanted["dataset"]) != wanted["dataset"]:
            raise DatasetError(f"{self.out}: holds the dataset {found['dataset']}; name another folder with --out")
        changed = [key for key in wanted if found.get(key) != wanted[key]]
        if changed and not overwrite:
            key = changed[0]
            raise DatasetError(
                f"{self.out}: its images were made with {key} {found.get(key)}, now it is {wanted[key]}; "
                "add --overwrite to make them anew, or name another folder with --out"
            )
        if changed:
            for name in (CARD_FILE, TABLE_FILE):
                (self.out / name).unlink(missing_ok=True)
            (self.folder / "journal.jsonl").unlink(missing_ok=True)

    def _read_journal(self) -> Iterator[tuple[str, dict[str, Any]]]:
        path = self.folder / "journal.jsonl"
        if not path.is_file():
            return
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                yield entry["image"], entry
            except (ValueError, KeyError, TypeError):
                continue  # cut off by a kill; the image is made again

    def finished(self, image: str, stamp: Sequence[int]) -> dict[str, Any] | None:
        """Return the journal entry of an image that is, with its mask, whole and up to date."""
        entry = self.entries.get(image)
        if entry is None or entry.get("stamp") != list(stamp):
            return None
        try:
            whole = checksum(self.out / image) == entry.get("check")
            if whole and "mask" in entry:
                whole = checksum(self.out / entry["mask"]) == entry.get("mask_check")
        except OSError:
            return None
        return entry if whole else None

    def add(self, entry: dict[str, Any]) -> None:
        """Note a finished image."""
        self.entries[entry["image"]] = entry
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def finish(self, images: Sequence[str]) -> None:
        """Remove images and masks that belong to no row, and write the journal anew in table order."""
        self.close()
        lines = [json.dumps(self.entries[image]) + "\n" for image in images]
        write_text(self.folder / "journal.jsonl", "".join(lines))
        wanted = {self.entries[image].get(kind) for image in images for kind in ("image", "mask")}
        folders = (os.walk(self.out / name, topdown=False) for name in (IMAGE_FOLDER, MASK_FOLDER))
        for folder, _, files in chain.from_iterable(folders):
            for name in files:
                path = Path(folder, name)
                if path.relative_to(self.out).as_posix() not in wanted:
                    path.unlink()
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()

    def close(self) -> None:
        """Close the journal; twice does no harm."""
        self._stream.close()


def checksum(path: Path) -> list[int]:
    """Return length and CRC-32 of a file.

    Raises:
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name first, so that a kill leaves the whole file or none.

    What UTF-8 cannot hold, such as a file name in another encoding, is written as an escape.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(temporary, path)
