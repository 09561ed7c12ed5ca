"""The command line that all prepare scripts share: its settings, arguments and exit codes."""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_scripts.ledger import StrictError, Summary
from mgca_lib.data.studies import DatasetError

FORMATS = {"jpeg": ".jpg", "png": ".png"}


@dataclass(frozen=True)
class Settings:
    """What all prepare scripts can be told.

    Attributes:
        size: Longer side of the stored images, in pixels.
        image_format: ``"jpeg"`` (quality 95) or ``"png"`` (lossless).
        workers: Threads that convert images; ``None`` uses every processor.
        strict: Fail when any row is dropped as faulty.
        limit: Keep at most so many images of each split; ``None`` keeps all.
        overwrite: Discard images that were made with other settings instead of refusing.
        quiet: Show no progress bar.
    """

    size: int = 256
    image_format: str = "jpeg"
    workers: int | None = None
    strict: bool = False
    limit: int | None = None
    overwrite: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 16 <= self.size <= 8192:
            raise DatasetError(f"--size {self.size}: use 16 to 8192 pixels")
        if self.image_format not in FORMATS:
            raise DatasetError(f"--image-format {self.image_format}: use one of {', '.join(FORMATS)}")
        if self.workers is not None and self.workers < 1:
            raise DatasetError(f"--workers {self.workers}: use at least 1")
        if self.limit is not None and self.limit < 1:
            raise DatasetError(f"--limit {self.limit}: use at least 1")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that every prepare script has."""
    parser.add_argument("--raw", required=True, metavar="DIR", help="folder of the original dataset")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the prepared dataset")
    parser.add_argument("--size", type=int, default=256, metavar="PX", help="longer side of the images (default 256)")
    parser.add_argument(
        "--image-format", choices=tuple(FORMATS), default="jpeg", help="jpeg at quality 95 (default) or lossless png"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="threads (default: all processors)")
    parser.add_argument("--limit", type=int, metavar="N", help="keep at most N images of each split")
    parser.add_argument("--strict", action="store_true", help="fail (exit code 1) when a row has to be dropped")
    parser.add_argument(
        "--overwrite", action="store_true", help="discard images that were made with other settings and start again"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress bar")


def add_split_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of scripts that draw the splits themselves, see :func:`data_scripts.selection.draw_splits`."""
    parser.add_argument("--valid-fraction", type=float, default=0.1, metavar="X", help="validation share (default 0.1)")
    parser.add_argument("--test-fraction", type=float, default=0.2, metavar="X", help="test share (default 0.2)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split (default 0)")


def run_command(
    parser: argparse.ArgumentParser, prepare: Callable[..., Summary], argv: Sequence[str] | None = None
) -> int:
    """Run a prepare script from the command line.

    Returns:
        Exit code: 0 done, 1 strict mode found a fault, 2 unusable input or arguments, 130 interrupted.
    """
    try:
        arguments = vars(parser.parse_args(argv))
    except SystemExit as stop:
        return int(stop.code or 0)
    out = Path(arguments["out"])
    try:
        print(prepare(arguments.pop("raw"), arguments.pop("out"), **arguments))
    except StrictError as error:
        print(f"strict: {error}", file=sys.stderr)
        return 1
    except DatasetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        name = error.filename or out
        print(f"error: {name}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on where it stopped (finished images are in {out})", file=sys.stderr)
        return 130
    return 0
