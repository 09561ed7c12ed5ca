"""Converting the images of a preparation, and the rows of the prepared table.

Images are converted in threads, not processes: the codecs release the interpreter lock, nothing has to be imported
anew, and nothing outlives a kill.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from data_scripts.candidates import FRONTAL_VIEWS, Candidate
from data_scripts.command_line import Settings
from data_scripts.images import ImageError, read_radiograph, resize_longer_side, write_image
from data_scripts.journal import IMAGE_FOLDER, MASK_FOLDER, Journal, checksum
from data_scripts.ledger import Ledger
from mgca_lib.data.studies import CARD_FILE


def make_rows(
    candidates: Sequence[Candidate], ledger: Ledger, journal: Journal, settings: Settings
) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Convert all images; return the rows of the table and how many images were converted and reused."""
    rows: list[dict[str, Any]] = []
    counts: Counter[str] = Counter()
    vanished = 0
    for candidate, (result, reused) in zip(candidates, _convert(candidates, journal, settings), strict=True):
        if isinstance(result, str):
            reason, _, detail = result.partition("\n")
            ledger.drop_candidate(candidate, reason, detail)
            continue
        counts["reused" if reused else "converted"] += 1
        problem = _box_problem(candidate, result)
        if problem:
            ledger.drop_candidate(candidate, "box outside the image", problem)
        elif result["view"] not in ("", *FRONTAL_VIEWS):
            ledger.drop_candidate(candidate, f"view {result['view']}", faulty=False)
        else:
            rows.append(_table_row(candidate, result))
            vanished += result.get("mask_pixels") == 0
    if vanished:
        ledger.notes.append(f"{vanished} masks are too thin for --size {settings.size} and have no pixel left")
    return rows, counts


def _convert(
    candidates: Sequence[Candidate], journal: Journal, settings: Settings
) -> Iterator[tuple[dict[str, Any] | str, bool]]:
    """Yield per candidate the journal entry, or reason, newline, detail of a failure; and whether it was reused."""
    workers = settings.workers or os.cpu_count() or 1
    waiting = iter(candidates)
    bar = tqdm(total=len(candidates), unit="image", desc="images", disable=True if settings.quiet else None)
    with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool, bar:
        warnings.simplefilter("ignore")  # codecs remark on harmless oddities of single files
        try:
            # A short queue: results come in table order, and an interrupt has little to wait for.
            queue = [pool.submit(_convert_one, item, journal) for item in islice(waiting, 4 * workers)]
            while queue:
                entry, reused = queue.pop(0).result()
                queue += [pool.submit(_convert_one, item, journal) for item in islice(waiting, 1)]
                if isinstance(entry, dict) and not reused:
                    journal.add(entry)
                bar.update()
                yield entry, reused
        finally:
            pool.shutdown(cancel_futures=True)


def _convert_one(candidate: Candidate, journal: Journal) -> tuple[dict[str, Any] | str, bool]:
    image = f"{IMAGE_FOLDER}/{candidate.stored}{journal.suffix}"
    try:
        status = candidate.path.stat()
        stamp = [status.st_size, status.st_mtime_ns]
        if candidate.mask is not None:
            stamp.append(candidate.mask_stamp)
        entry = journal.finished(image, stamp)
        if entry is not None:
            return entry, True
        # Scaled decoding rounds the shape, so that a mask would no longer lie exactly on its image.
        longer_side = journal.size if candidate.mask is None else None
        radiograph = read_radiograph(candidate.path, longer_side=longer_side)
    except FileNotFoundError:
        return "image file missing", False
    except ImageError as error:
        return f"image unreadable\n{error}", False
    except OSError as error:
        return f"image unreadable\n{error.strerror or error}", False
    mask = None
    if candidate.mask is not None:
        try:
            drawn = candidate.mask(radiograph.height, radiograph.width)
        except ValueError as error:
            return f"mask malformed\n{error}", False
        mask = (resize_longer_side(drawn * np.uint8(255), journal.size) >= 128) * np.uint8(255)
    pixels = resize_longer_side(radiograph.pixels, journal.size)
    # From here on the table of an earlier run need not fit the images; without its card it is not loaded.
    (journal.out / CARD_FILE).unlink(missing_ok=True)
    write_image(journal.out / image, pixels)
    entry = {
        "image": image,
        "stamp": stamp,
        "check": checksum(journal.out / image),
        "width": pixels.shape[1],
        "height": pixels.shape[0],
        "raw_width": radiograph.width,
        "raw_height": radiograph.height,
        "view": radiograph.view,
    }
    if mask is not None:
        name = f"{MASK_FOLDER}/{candidate.stored}.png"
        write_image(journal.out / name, mask)
        entry |= {
            "mask": name,
            "mask_check": checksum(journal.out / name),
            "mask_pixels": int(np.count_nonzero(mask)),
        }
    return entry, False


def _box_problem(candidate: Candidate, entry: Mapping[str, Any]) -> str:
    for box in candidate.boxes:
        x, y, w, h = (box[key] for key in "xywh")
        width, height = entry["raw_width"], entry["raw_height"]
        if x < 0 or y < 0 or x + w > width or y + h > height:
            return f"box {x:g}, {y:g}, {w:g}, {h:g} in an image of {width} x {height}"
    return ""


def _table_row(candidate: Candidate, entry: Mapping[str, Any]) -> dict[str, Any]:
    across, down = entry["width"] / entry["raw_width"], entry["height"] / entry["raw_height"]
    boxes = []
    for box in candidate.boxes:
        # The far edge is limited because 1024 * (256 / 1024) need not be 256 exactly for every size.
        x, y = box["x"] * across, box["y"] * down
        w, h = min(box["w"] * across, entry["width"] - x), min(box["h"] * down, entry["height"] - y)
        boxes.append({"x": x, "y": y, "w": w, "h": h, "name": box["name"]})
    return {
        "image_id": candidate.image_id,
        "patient_id": candidate.patient_id,
        "study_id": candidate.study_id,
        "split": candidate.split,
        "view": candidate.view or entry["view"],
        "image": entry["image"],
        "width": entry["width"],
        "height": entry["height"],
        "findings": candidate.findings,
        "impression": candidate.impression,
        "sentences": list(candidate.sentences),
        "labels": dict(candidate.labels),
        "boxes": boxes,
        "mask": entry.get("mask", ""),
        "source": candidate.source,
    }
