"""What all raw layouts share: films and how they are written, seeds, tables, follow-up films."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import signal
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy import ndimage
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data_scripts.phantom.cases import DEVICES, FINDINGS, IMPLANTS, LASTING, Case, Finding, sample_case, seen_together
from data_scripts.phantom.hospitals import HOSPITALS, Hospital
from data_scripts.phantom.layouts.dicom import write_dicom
from data_scripts.phantom.render import Rendered, render_case

JPEG_QUALITY = 95
COMPETITION_FINDINGS = ("atelectasis", "cardiomegaly", "consolidation", "edema", "pleural effusion")
"""The findings of the five CheXpert competition classes."""

Box = tuple[int, int, int, int]
"""x, y, width, height in pixels; x and y of the upper left corner."""


Map = Callable[[Callable, Iterable], Iterable]
"""Like the built-in ``map``, perhaps on several processes."""


@dataclass(frozen=True)
class Settings:
    """What one raw dataset is made from.

    Attributes:
        seed: Any non-negative integer.
        size: Longer side of the images in pixels.
        counts: Split as the dataset names it -> number of frontal images.
    """

    seed: int
    size: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Film:
    """One image file to write.

    Attributes:
        path: Relative to the dataset folder; the suffix (.jpg, .jpeg, .png, .dcm) chooses the format.
        case: What is on it; None is a lateral view.
        hospital: Key of `HOSPITALS`.
        seed: Entropy of everything random in the image.
        size: Longer side in pixels.
        aspect: Width over height.
        masks: Path of the mask of each finding, relative to the dataset folder; () writes none.
        tags: Attributes of a DICOM file.
        colour: True stores grey values as RGB.
        study: Seed of what the films of one study share, as in `render_case`.
    """

    path: str
    case: Case | None
    hospital: str
    seed: tuple[int, ...]
    size: int
    aspect: float = 1.0
    masks: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    colour: bool = False
    study: int | None = None


@dataclass(frozen=True)
class WrittenFilm:
    """What was written.

    Attributes:
        width: Columns of the image.
        height: Rows of the image.
        boxes: Bounding box of each finding's mask; None if it shows nowhere.
        parts: Bounding boxes of the connected parts of each finding's mask, larger part first.
    """

    width: int
    height: int
    boxes: tuple[Box | None, ...]
    parts: tuple[tuple[Box, ...], ...]


def dataset_key(name: str) -> int:
    """A fixed number for a dataset name, so that datasets of one seed share no random stream."""
    return zlib.crc32(name.encode())


def generator(*entropy: int) -> np.random.Generator:
    """A random generator that depends on these numbers only."""
    return np.random.default_rng(np.random.SeedSequence(entropy))


def patient_seed(settings: Settings, name: str, *who: int) -> int:
    """Seed of `Case.patient` for one patient of a dataset, named by any numbers."""
    return int(generator(settings.seed, dataset_key(name), 3, *who).integers(2**62))


def coverage(names: Sequence[str] = FINDINGS, *, repeats: int = 1) -> list[list[str]]:
    """Forced findings of the first studies of a split, so that every class has positives in tiny sets too.

    >>> coverage(["edema", "nodule"])
    [['edema'], ['nodule'], []]
    """
    return [[name] for _ in range(repeats) for name in names] + [[]]


def follow_up(previous: Case, hospital: Hospital, rng: np.random.Generator) -> Case:
    """The same patient some days later: most findings stay, some change in size, some clear, some are new.

    What `same_patient` keeps stays; the view and the lines are drawn anew.
    """
    fresh = sample_case(rng, hospital)
    kept = [evolved for finding in previous.findings if (evolved := _evolve(finding, fresh, rng))]
    names = {finding.name for finding in previous.findings}
    if rng.random() < 0.35:
        kept += [finding for finding in fresh.findings if finding.name not in names]
    findings = tuple(sorted(kept, key=lambda finding: FINDINGS.index(finding.name)))
    return replace(same_patient(fresh, previous), findings=seen_together(findings))


def same_patient(fresh: Case, previous: Case) -> Case:
    """A case drawn anew, of the patient of another: sex, age, habitus, incidentals, body and implants are theirs.

    A large heart or a nodule that both have is the earlier one. Overinflated lungs stay so, as emphysema does; neither
    they nor implants are new on a later film.
    """
    implanted = {name for name in previous.devices if name in IMPLANTS}
    lines = {name for name in fresh.devices if name not in IMPLANTS}
    wide = "hyperinflated"
    inspiration = wide if previous.inspiration == wide else "normal" if fresh.inspiration == wide else fresh.inspiration
    lasting = {finding.name: finding for finding in previous.findings if finding.name in LASTING}
    return replace(
        fresh,
        sex=previous.sex,
        age=previous.age,
        habitus=previous.habitus,
        incidentals=previous.incidentals,
        patient=previous.patient,
        inspiration=inspiration,
        findings=tuple(lasting.get(finding.name, finding) for finding in fresh.findings),
        devices=tuple(name for name in DEVICES if name in implanted | lines),
    )


def _evolve(finding: Finding, fresh: Case, rng: np.random.Generator) -> Finding | None:
    chance = rng.random()
    if finding.name == "foreign object":
        return None
    if finding.name in LASTING:
        return finding
    if chance < 0.25:
        return None
    if finding.name == "pleural effusion":
        finding = replace(finding, kind="layering" if fresh.supine else "")
    if finding.name in ("edema", "atelectasis") or chance < 0.65:
        return finding
    step = 1 if chance < 0.80 else -1
    levels = ("mild", "moderate", "severe")
    level = min(max(levels.index(finding.severity) + step, 0), 2)
    return replace(finding, severity=levels[level])


@contextmanager
def darkroom(workers: int) -> Iterator[Map]:
    """Processes that write films: a ``map`` over them, in order; one worker stays in this process.

    Every process computes on one thread: sums in another order could move a grey value, and the bytes must depend
    neither on the number of workers nor on the machine.
    """
    if workers == 1:
        with threadpool_limits(1):
            yield map
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_begin_work) as pool:
        yield partial(pool.imap, chunksize=8)


def _begin_work() -> None:
    """Compute on one thread, and leave an interrupt to the process that waits for the films."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)


def write_films(folder: Path, films: Sequence[Film], *, develop: Map, name: str) -> list[WrittenFilm]:
    """Render and write films in a `darkroom`; returns what was written, in order."""
    paths = [path for film in films for path in (film.path, *film.masks)]
    for parent in sorted({(folder / path).parent for path in paths}):
        parent.mkdir(parents=True, exist_ok=True)
    results = develop(partial(write_film, folder), films)
    return list(tqdm(results, total=len(films), desc=name, unit="image", disable=None))


def write_film(folder: Path, film: Film) -> WrittenFilm:
    """Render one film and write it with its masks; a finding that shows nowhere gets none."""
    rng = generator(*film.seed)
    tags = dict(film.tags)
    if film.case is None:
        pixels, masks = _to_bytes(_lateral(rng, film.size)), ()
        window = _crop_window(film.size, film.aspect, None)
    else:
        rendered = render_case(film.case, HOSPITALS[film.hospital], rng, size=film.size, study=film.study)
        pixels, masks = _to_bytes(rendered.image), rendered.finding_masks
        window = _crop_window(film.size, film.aspect, rendered)
        tags["PixelSpacing"] = "\\".join([f"{10.0 * rendered.pixel:.6f}"] * 2)
    pixels = np.ascontiguousarray(pixels[window])
    masks = tuple(mask[window] for mask in masks)
    _write_pixels(folder / film.path, pixels, film, tags)
    for path, mask in zip(film.masks, masks, strict=bool(film.masks)):
        if mask.any():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / path)
    return WrittenFilm(
        width=pixels.shape[1],
        height=pixels.shape[0],
        boxes=tuple(_box(mask) for mask in masks),
        parts=tuple(mask_parts(mask) for mask in masks),
    )


def mask_parts(mask: np.ndarray, *, smallest: float = 0.15) -> tuple[Box, ...]:
    """Boxes of the connected parts of a mask that have at least ``smallest`` of the largest part's area.

    >>> mask = np.zeros((4, 8), bool)
    >>> mask[1:3, 0:2] = mask[0:4, 5:8] = True
    >>> mask_parts(mask)
    ((5, 0, 3, 4), (0, 1, 2, 2))
    """
    if not mask.any():
        return ()
    labels, count = ndimage.label(mask)
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = [i for i in np.argsort(-areas, kind="stable") if areas[i] >= smallest * areas.max()]
    slices = ndimage.find_objects(labels)
    return tuple(
        (int(columns.start), int(rows.start), int(columns.stop - columns.start), int(rows.stop - rows.start))
        for rows, columns in (slices[i] for i in order)
    )


def _box(mask: np.ndarray) -> Box | None:
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    x, y = int(columns.min()), int(rows.min())
    return x, y, int(columns.max()) - x + 1, int(rows.max()) - y + 1


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def _crop_window(size: int, aspect: float, rendered: Rendered | None) -> tuple[slice, slice]:
    """Rows and columns of a crop with this aspect that keeps lungs and findings."""
    width = size if aspect >= 1.0 else round(size * aspect)
    height = size if aspect <= 1.0 else round(size / aspect)
    keep = np.zeros((size, size), bool)
    if rendered is None:
        keep[size // 2, size // 2] = True
    else:
        keep |= rendered.lung_mask
        for mask in rendered.finding_masks:
            keep |= mask
    return _interval(keep.any(axis=1), height), _interval(keep.any(axis=0), width)


def _interval(keep: np.ndarray, length: int) -> slice:
    inside = np.flatnonzero(keep)
    first, last = (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, len(keep))
    length = max(length, last - first)
    start = min(max((first + last - length) // 2, 0), len(keep) - length)
    return slice(start, start + length)


def _lateral(rng: np.random.Generator, size: int) -> np.ndarray:
    """A plain side view in [0, 1]: trunk, lung, heart, spine. Preparation drops it; it only has to look different."""
    y, x = np.mgrid[0:size, 0:size] / size - 0.5

    def ellipse(cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
        return np.sqrt(np.clip(1.0 - ((x - cx) / rx) ** 2 - ((y - cy) / ry) ** 2, 0.0, None))

    depth = rng.uniform(0.30, 0.38)
    image = 0.75 * ellipse(0.0, 0.05, depth, 0.62) - 0.55 * ellipse(0.02, -0.08, depth * 0.8, 0.36)
    image += 0.35 * ellipse(-0.08, 0.10, 0.13, 0.15)
    image += 0.18 * np.exp(-(((x - 0.22 + 0.25 * y**2) / 0.045) ** 2)) * (1 + 0.25 * np.cos(70 * y))
    image = ndimage.gaussian_filter(image, size / 180) + rng.normal(0.0, 0.012, image.shape)
    return np.clip(0.05 + image, 0.0, 1.0)


def _write_pixels(path: Path, pixels: np.ndarray, film: Film, tags: Mapping[str, str]) -> None:
    if path.suffix == ".dcm":
        write_dicom(path, pixels, tags, key=dataset_key(film.hospital))
        return
    picture = Image.fromarray(pixels)
    if film.colour:
        picture = picture.convert("RGB")
    if path.suffix == ".png":
        picture.save(path)
        return
    content = io.BytesIO()  # Pillow's own way to a file does not notice when a JPEG does not fit on the disk
    picture.save(content, format="JPEG", quality=JPEG_QUALITY)
    path.write_bytes(content.getbuffer())


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Write a csv, gzipped without a time stamp if the name ends in ``.gz``; None and NaN become empty."""
    text = io.StringIO()
    text.write(",".join(columns) + "\n")
    for row in rows:
        text.write(",".join(_cell(value) for value in row) + "\n")
    data = text.getvalue().encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, compresslevel=6, mtime=0)
    path.write_bytes(data)


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    text = str(value)
    return f'"{text}"' if "," in text else text


def write_parquet(path: Path, columns: Mapping[str, pa.DataType], rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows with fixed column types; no pandas metadata, so equal rows give equal bytes."""
    arrays = {name: pa.array([row[name] for row in rows], kind) for name, kind in columns.items()}
    pq.write_table(pa.table(arrays), path, compression="zstd")


def hex_groups(rng: np.random.Generator, lengths: Sequence[int]) -> str:
    """Random lower-case hexadecimal groups joined by hyphens, as in UUIDs and MIMIC-CXR image names."""
    return "-".join("".join("0123456789abcdef"[i] for i in rng.integers(16, size=n)) for n in lengths)


def unique_numbers(rng: np.random.Generator, low: int, high: int, count: int) -> list[int]:
    """Different whole numbers from ``low`` up to but without ``high``, ascending."""
    if count > high - low:
        raise ValueError(f"cannot draw {count} different numbers from {low} to {high - 1}")
    numbers: set[int] = set()
    while len(numbers) < count:
        numbers.add(int(rng.integers(low, high)))
    return sorted(numbers)
