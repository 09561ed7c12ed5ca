"""Make the phantom datasets: synthetic chest radiographs with reports, in the raw layouts of public datasets.

Run ``python -m data_scripts.make_phantoms --out raw --profile demo``. The images are drawn from simple solids and
show nobody; they teach and test, and are not for clinical use.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_scripts.phantom import PHANTOM_FILE
from data_scripts.phantom.layouts import chexpert, covidx, mimic_cxr, object_cxr, rsna, siim
from data_scripts.phantom.layouts.common import Map, Settings, darkroom

VERSION = "4"
"""Raised whenever the same seed would give other bytes."""

LAYOUTS = {layout.NAME: layout for layout in (mimic_cxr, chexpert, rsna, covidx, siim, object_cxr)}
PROFILES: dict[str, dict[str, dict[str, int]]] = {
    "smoke": {
        "mimic_cxr": {"train": 64, "validate": 12, "test": 20},
        "chexpert": {"train": 72, "valid": 36},
        "rsna": {"train": 64},
        "covidx": {"train": 45, "test": 19},
        "siim": {"train": 40},
        "object_cxr": {"train": 40, "dev": 16},
    },
    "demo": {
        "mimic_cxr": {"train": 5200, "validate": 300, "test": 500},
        "chexpert": {"train": 2400, "valid": 600},
        "rsna": {"train": 1000},
        "covidx": {"train": 800, "test": 250},
        "siim": {"train": 900},
        "object_cxr": {"train": 700, "dev": 300},
    },
    "full_width": {  # as many pairs as demo; fewer films to test on, since each costs a large encoder's time
        "mimic_cxr": {"train": 5200, "validate": 300, "test": 500},
        "chexpert": {"train": 1200, "valid": 300},
        "rsna": {"train": 500},
        "covidx": {"train": 400, "test": 125},
        "siim": {"train": 300},
        "object_cxr": {"train": 300, "dev": 100},
    },
}
"""Profile -> dataset -> split as the dataset names it -> number of frontal images."""


class PhantomError(Exception):
    """The phantoms cannot be made as asked; the message is one line that says what to do."""


def make_phantoms(
    out: Path,
    *,
    profile: str = "demo",
    seed: int = 0,
    datasets: Sequence[str] = tuple(LAYOUTS),
    size: int = 256,
    counts: Mapping[str, int] | None = None,
    workers: int = 1,
) -> dict[str, Path]:
    """Write raw phantom datasets below ``out``, one folder a dataset; finished ones are left as they are.

    The same seed, size and counts give the same bytes, whatever the number of workers. A dataset is written under
    a temporary name and renamed when complete, so an interrupted run leaves nothing half done.

    Args:
        out: Folder that gets one folder a dataset.
        profile: Key of `PROFILES`: how many images.
        seed: Non-negative integer.
        datasets: Which of `LAYOUTS` to make.
        size: Longer side of the images in pixels, 64 to 2048.
        counts: Dataset -> total number of frontal images, instead of the profile's; splits keep their proportions.
        workers: Number of processes.

    Returns:
        Dataset -> its folder.

    Raises:
        PhantomError: If a setting is out of range or a folder holds something else.
    """
    _check(profile=profile, seed=seed, datasets=datasets, size=size, counts=counts or {}, workers=workers)
    out = Path(out)
    missing = {}
    for name in datasets:
        splits = PROFILES[profile][name]
        if counts and name in counts:
            splits = _scale(splits, counts[name])
        settings = Settings(seed=seed, size=size, counts=splits)
        if _is_finished(out / name, _card(name, settings)):
            print(f"{name}: already there, left as it is ({out / name})")
        else:
            missing[name] = settings
    if missing:
        with darkroom(workers) as develop:
            for name, settings in missing.items():
                _make_dataset(out, name, settings, develop=develop)
    return {name: out / name for name in datasets}


def _check(
    *, profile: str, seed: int, datasets: Sequence[str], size: int, counts: Mapping[str, int], workers: int
) -> None:
    if profile not in PROFILES:
        raise PhantomError(f"unknown profile {profile!r}; choose from {', '.join(PROFILES)}")
    for name in [*datasets, *counts]:
        if name not in LAYOUTS:
            raise PhantomError(f"unknown dataset {name!r}; choose from {', '.join(LAYOUTS)}")
    if seed < 0:
        raise PhantomError(f"seed is {seed}; it must be 0 or more")
    if not 64 <= size <= 2048:
        raise PhantomError(f"size is {size} pixels; it must lie between 64 and 2048")
    if workers < 1:
        raise PhantomError(f"workers is {workers}; it must be 1 or more")
    for name, count in counts.items():
        if name not in datasets:
            raise PhantomError(f"counts names {name}, which is not among the datasets to make")
        if count < len(LAYOUTS[name].SPLITS):
            raise PhantomError(f"counts asks for {count} {name} images; it needs one a split at least")


def _scale(splits: Mapping[str, int], total: int) -> dict[str, int]:
    """Share a total among splits in proportion, at least one image each.

    >>> _scale({"train": 3000, "validate": 300, "test": 500}, 38)
    {'train': 30, 'validate': 3, 'test': 5}
    """
    whole = sum(splits.values())
    first, *others = splits
    shares = {name: max(1, round(total * splits[name] / whole)) for name in others}
    return {first: max(1, total - sum(shares.values()))} | shares


def _card(name: str, settings: Settings) -> dict[str, object]:
    return {
        "name": name,
        "format": LAYOUTS[name].FORMAT,
        "version": VERSION,
        "seed": settings.seed,
        "size": settings.size,
        "counts": dict(settings.counts),
        "hospital": name,
        "source": "phantom",
        "restricted": False,
    }


def _make_dataset(out: Path, name: str, settings: Settings, *, develop: Map) -> None:
    folder = out / name
    try:
        out.mkdir(parents=True, exist_ok=True)
        unfinished = out / f".{name}.partial"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
    except OSError as error:
        raise PhantomError(f"cannot write to {out}: {error.strerror}; choose another --out") from error
    LAYOUTS[name].write(unfinished, settings, develop=develop)
    (unfinished / PHANTOM_FILE).write_text(
        json.dumps(_card(name, settings), indent=2) + "\n", encoding="utf-8", newline="\n"
    )
    if folder.exists():
        folder.rmdir()
    unfinished.rename(folder)
    print(f"{name}: {sum(settings.counts.values())} frontal images in {folder}")


def _is_finished(folder: Path, card: dict[str, object]) -> bool:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    path = folder / PHANTOM_FILE
    if not path.is_file():
        raise PhantomError(f"{folder} exists and holds no phantom dataset (no {PHANTOM_FILE}); choose another --out")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PhantomError(f"{path} is not valid JSON; remove {folder} to make it anew") from error
    for key, value in card.items():
        if not isinstance(found, dict) or found.get(key) != value:
            old = found.get(key) if isinstance(found, dict) else None
            raise PhantomError(f"{folder} was made with {key} {old}, not {value}; remove it or choose another --out")
    return True


def _count(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form dataset=number, as in mimic_cxr=3000")
    return name, int(number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 a setting cannot be used, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m data_scripts.make_phantoms",
        description="Make synthetic chest radiographs with reports in the raw layouts of MIMIC-CXR-JPG, CheXpert, "
        "RSNA stage 2, COVIDx v9A, SIIM-ACR stage 1 and object-CXR. Finished datasets are left as they are. "
        "Not for clinical use.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that gets one folder a dataset")
    parser.add_argument("--profile", choices=PROFILES, default="demo", help="how many images (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument(
        "--datasets",
        nargs="+",
        choices=LAYOUTS,
        default=list(LAYOUTS),
        metavar="NAME",
        help=f"which to make: {', '.join(LAYOUTS)} (default: all)",
    )
    parser.add_argument("--size", type=int, default=256, help="longer side in pixels (default: %(default)s)")
    parser.add_argument(
        "--counts",
        nargs="+",
        type=_count,
        default=[],
        metavar="NAME=NUMBER",
        help="frontal images of a dataset instead of the profile's, shared among its splits in proportion",
    )
    parser.add_argument(
        "--workers", type=int, default=min(os.cpu_count() or 1, 8), help="processes (default: one a core, 8 at most)"
    )
    options = parser.parse_args(arguments)
    try:
        make_phantoms(
            options.out,
            profile=options.profile,
            seed=options.seed,
            datasets=options.datasets,
            size=options.size,
            counts=dict(options.counts),
            workers=options.workers,
        )
    except (PhantomError, OSError) as error:
        print(f"make_phantoms: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command makes what is not finished (the rest is in {options.out})", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
