"""Word-to-region grounding: do the words of a finding look at the place where the finding is?

The phantom reports come with the truth that no public dataset has: for every finding phrase the span of its
words and the mask of the pixels it speaks of. A word's attention over the patches is enlarged to the image
and compared with that mask.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mgca_lib.alignment.token import attention_maps
from mgca_lib.data.pairs import PairImages
from mgca_lib.data.reports import ReportWord, report_words
from mgca_lib.data.studies import DAMAGED, DatasetError, Studies
from mgca_lib.data.transforms import mask_to_input
from mgca_lib.evaluation.dense_data import box_mask
from mgca_lib.evaluation.features import encoder_device, frozen, model_pairs, model_transform, pair_batches
from mgca_lib.evaluation.intervals import Interval, bootstrap_interval, wilson_interval
from mgca_lib.evaluation.receptive_field import ON_TILES
from mgca_lib.model import MGCA

PHRASES_FILE = "phrases.parquet"
THRESHOLDS = np.round(np.arange(0.0, 1.0, 0.05), 2)
TOLERANCE = 1 / 32
"""How far from a mask a maximum may lie and still count as near, in sides of the image: 3 pixels of 96. The pointing
game of Zhang et al. (ECCV 2016) allows 15 pixels on photographs of about 500."""

_TEXT = ("dicom_id", "study_id", "section", "phrase", "finding", "side", "zone", "severity", "mask")
_NUMBERS = ("first_word", "last_word")
_FLAGS = ("negated", "uncertain")


@dataclass(frozen=True)
class Phrases:
    """Finding phrases of a dataset, with the words they are made of.

    Attributes:
        table: One row an image and phrase: the columns of ``phrases.parquet``, and ``row`` (of the image in
            the dataset), ``patient_id``, and ``positions`` (tuple of word numbers in the cleaned report;
            empty where cleaning removed all of them).
        folder: Folder that the ``mask`` column is relative to.
        left_out: Number of phrases for each reason to leave them out.
    """

    table: pd.DataFrame
    folder: Path
    left_out: dict[str, int]


@dataclass(frozen=True)
class RegionScore:
    """How well one map agrees with one mask.

    Attributes:
        hit: Pointing game: whether the map's maximum lies inside the mask.
        chance: Share of the image that the mask covers: the hit rate of a blind guess.
        contrast: Contrast-to-noise ratio, ``(mean inside - mean outside) / sqrt(variance inside + variance
            outside)``, with its sign: a map that avoids the finding is negative (some authors take the
            absolute value and cannot tell).
        iou: ``(T,)`` intersection over union of the mask and the map above each of ``THRESHOLDS``, the map
            scaled to [0, 1]. The first threshold is 0 and keeps the whole image, so its value is the mask's
            share of the image.
        peak: Row and column of the map's maximum.
        near: Whether the maximum lies inside the mask or within :data:`TOLERANCE` of it. What is looked at may be the
            *edge* of a finding: the line where the collapsed lung ends, not the air beside it.
        near_chance: Share of the image that lies so near.
    """

    hit: bool
    chance: float
    contrast: float
    iou: np.ndarray
    peak: tuple[int, int]
    near: bool
    near_chance: float


@dataclass(frozen=True)
class Grounding:
    """Scores of all phrases that point at something visible.

    Attributes:
        table: One row a phrase: ``number`` (its row in the table of phrases; for boxes, the label's place among those
            that were read), ``row``, ``patient_id``, ``finding``, ``phrase``, ``uncertain``, ``side``, ``zone``,
            ``hit``, ``chance``, ``contrast``, ``ceiling``: whether any map over the same patches could hit, and
            ``control``: how often the same maximum hits the masks of the same finding in other patients (NaN
            without any). A model that only knows where a finding usually lies has ``hit`` equal to ``control``.
            ``place_control`` asks only those other patients whose finding lies on the same ``side`` and in the same
            ``zone`` (NaN without any, and for boxes, which have neither): what goes where the words send it, and
            no closer, has ``hit`` equal to it. ``near``, ``near_chance`` and ``near_control`` are ``hit``, ``chance``
            and ``control`` with :data:`TOLERANCE`.
        iou: ``(N, T)`` intersection over union at ``THRESHOLDS``.
        left_out: Number of phrases for each reason to leave them out.
    """

    table: pd.DataFrame
    iou: np.ndarray
    left_out: dict[str, int]


@dataclass(frozen=True)
class GroundingSummary:
    """Means over patients, the phrases of a patient averaged first.

    Attributes:
        pointing: Hit rate with Wilson's interval over patients.
        chance: Expected hit rate of a blind guess.
        ceiling: Hit rate that no map over the same patches can exceed, see :func:`can_hit`. Thin and small findings may
            lie between the centres of coarse patches, so it can be well below 1.
        control: Hit rate on the masks of the same finding in other patients; NaN where no other patient has
            it.
        place_control: The same, of those other patients whose finding lies on the same side and in the same zone.
        contrast: Contrast-to-noise ratio with a bootstrap interval over patients.
        iou: Intersection over union with a bootstrap interval, at ``threshold``.
        iou_chance: Intersection over union of a map that marks the whole image.
        threshold: The one of ``THRESHOLDS`` with the highest mean IoU. It is chosen on the same phrases, so
            ``iou`` is optimistic.
        phrases: Number of phrases.
        near: Hit rate with :data:`TOLERANCE`, with Wilson's interval over patients.
        near_chance: Expected value of a blind guess.
        near_control: Its value on the masks of other patients; NaN where no other patient has the finding.
    """

    pointing: Interval
    chance: float
    ceiling: float
    control: float
    place_control: float
    contrast: Interval
    iou: Interval
    iou_chance: float
    threshold: float
    phrases: int
    near: Interval
    near_chance: float
    near_control: float


def load_phrases(folder: str | Path, studies: Studies) -> Phrases:
    """Load the phantom's ground truth and find its words in the cleaned reports of a prepared dataset.

    Args:
        folder: ``ground_truth`` folder of the raw phantom dataset.
        studies: Prepared dataset, or a split of it; its ``image_id`` is the ``dicom_id`` of the ground truth.

    Raises:
        DatasetError: the file is missing, cannot be read, lacks a column or holds a value that makes no
            sense, no image of the dataset has a phrase, or a phrase is not found in its report.
    """
    folder = Path(folder)
    path = folder / PHRASES_FILE
    if not path.is_file():
        raise DatasetError(
            f"{path}: missing; ground truth exists for the phantom only, made by data_scripts/make_phantoms.py"
        )
    try:
        table = pd.read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DatasetError(f"{path}: not a readable parquet file ({error})") from None
    _check_phrases(table, path)
    number_of = {image_id: row for row, image_id in enumerate(studies.table["image_id"])}
    inside = table["dicom_id"].isin(number_of)
    left_out = {"image not in this dataset": int((~inside).sum())}
    table = table[inside].copy()
    if table.empty:
        raise DatasetError(f"{path}: none of its images is in {studies.root}; do they belong together?")
    table["row"] = table["dicom_id"].map(number_of).astype(int)
    table["patient_id"] = studies.table["patient_id"].to_numpy()[table["row"]]
    words_of: dict[int, list[ReportWord]] = {}
    positions = []
    for phrase in table.itertuples():
        if phrase.row not in words_of:
            words_of[phrase.row] = _cleaned_words(studies, phrase.row)
        words = words_of[phrase.row]
        places = phrase_positions(words, phrase.section, phrase.first_word, phrase.last_word)
        runs = re.findall(r"\w+", phrase.phrase)
        for place in places:
            offset = words[place].index - phrase.first_word
            said = runs[offset].lower().encode("ascii", "ignore").decode() if offset < len(runs) else ""
            if words[place].text != said:
                raise DatasetError(
                    f"{path}: row {phrase.Index}, image {phrase.dicom_id!r}: the report says "
                    f"{words[place].text!r} where the phrase {phrase.phrase!r} should stand; "
                    "make the phantoms and prepare them again"
                )
        positions.append(places)
    table["positions"] = positions
    return Phrases(table.reset_index(drop=True), folder, left_out)


def phrase_positions(words: Sequence[ReportWord], section: str, first_word: int, last_word: int) -> tuple[int, ...]:
    r"""Numbers of a phrase's words in the cleaned report.

    Args:
        words: The cleaned report, from `mgca_lib.data.reports.report_words`.
        section: ``"impression"`` or ``"findings"``.
        first_word: Number of the first word among the ``\w+`` runs of the section.
        last_word: Number of the last one, inclusive.

    Returns:
        Word numbers as the tokenizer and the encoder count them; words that cleaning removed are absent.

    >>> words = report_words(findings="Small left effusion. Normal heart.", impression="1. Left effusion.")
    >>> phrase_positions(words, "findings", 0, 2), phrase_positions(words, "impression", 2, 2)
    ((2, 3, 4), (1,))
    """
    return tuple(
        number for number, word in enumerate(words) if word.section == section and first_word <= word.index <= last_word
    )


@torch.inference_mode()
def word_maps(model: MGCA, pairs: PairImages, *, batch_size: int = 64) -> dict[int, Tensor]:
    """Where every word of every report looks: the attention that the token loss trains.

    Args:
        model: A model; it works where it is, in eval mode and float32, and gets its training mode back.
        pairs: Image-report pairs with the evaluation transform.
        batch_size: Pairs at a time.

    Returns:
        For each row of the dataset a float32 ``(W, P)`` tensor on the CPU; ``W`` is the number of words
        that the tokenizer kept, each row sums to 1 over the patches (0 for a word without any piece).
    """
    maps: dict[int, Tensor] = {}
    temperature = model.config.alignment.token_temperature
    with frozen(model), torch.autocast(encoder_device(model).type, enabled=False):
        for batch in pair_batches(model, pairs, batch_size):
            image, report = model.encode_image(batch.images), model.encode_report(batch)
            attention = attention_maps(report.local, image.local, temperature=temperature, word_keep=report.keep)
            for row, own, keep in zip(batch.rows.tolist(), attention.float().cpu(), report.keep.cpu(), strict=True):
                maps[row] = own[: int(keep.nonzero().max()) + 1].clone() if keep.any() else own[:0]
    return maps


def phrase_map(maps: Tensor, positions: Sequence[int]) -> Tensor | None:
    """Mean map of the words of a phrase.

    Args:
        maps: ``(W, P)`` maps of the words that the tokenizer kept.
        positions: Word numbers; those from ``W`` on were cut off and are left out.

    Returns:
        ``(P,)``, or ``None`` when no word of the phrase is left.

    >>> phrase_map(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), (1, 2)).tolist()
    [0.0, 1.0]
    """
    kept = [place for place in positions if place < len(maps) and bool(maps[place].any())]
    return maps[kept].mean(dim=0) if kept else None


def phrase_mask(phrases: Phrases, mask: str, *, stored_size: int, image_size: int) -> np.ndarray:
    """Read the mask of a phrase, in the geometry of the encoder's input.

    Args:
        phrases: Ground truth from `load_phrases`.
        mask: Path from the ``mask`` column of its table, not empty.
        stored_size: As in `mgca_lib.data.transforms.ImageTransform`.
        image_size: As there.

    Returns:
        ``(image_size, image_size)`` bool; all False where the crop leaves the finding out.

    Raises:
        DatasetError: the mask file is missing or unreadable.
    """
    return mask_to_input(_read_mask(phrases.folder / mask), stored_size=stored_size, image_size=image_size)


def enlarge_map(
    values: Tensor, *, image_size: int, grid: tuple[int, int] | None = None, offset: tuple[float, float] = ON_TILES
) -> np.ndarray:
    """Enlarge a map over patches to the encoder's input, bilinearly.

    Args:
        values: ``(P,)`` map, patches row by row.
        image_size: Side of the input, pixels.
        grid: Rows and columns of the patches; by default a square.
        offset: How far each value lies from the middle of its tile, in tiles, down and to the right:
            :func:`mgca_lib.evaluation.receptive_field.patch_offset` puts it where the patch looks. By default it is
            drawn in the middle of its tile, as upstream and most others do.

    Returns:
        ``(image_size, image_size)`` float32.

    Raises:
        ValueError: the patches do not fill the grid.

    >>> enlarge_map(torch.tensor([0.0, 1.0, 0.0, 1.0]), image_size=4)[0].tolist()
    [0.0, 0.25, 0.75, 1.0]
    """
    side = round(len(values) ** 0.5)
    rows, columns = grid or (side, side)
    if rows * columns != len(values):
        raise ValueError(f"{len(values)} patches do not fill a grid of {rows} x {columns}; pass grid=(rows, columns)")
    small = values.detach().float().cpu().reshape(1, 1, rows, columns)
    return _moved(small, offset, (rows, columns), (image_size, image_size), outside="border")[0, 0].numpy()


def perfect_map(
    mask: np.ndarray, patches: int, *, grid: tuple[int, int] | None = None, offset: tuple[float, float] = ON_TILES
) -> Tensor:
    """The map of an encoder that knows the truth: the share of each patch that the mask covers.

    Args:
        mask: ``(S, S)`` bool.
        patches: Number of patches.
        grid: Rows and columns of the patches; by default a square.
        offset: See :func:`enlarge_map`; what a patch covers moves with it, and what then lies outside the film holds
            nothing.

    Returns:
        ``(patches,)`` float32, row by row.

    >>> perfect_map(np.eye(4) > 0, 4).tolist()
    [0.5, 0.0, 0.0, 0.5]
    """
    side = round(patches**0.5)
    grid = grid or (side, side)
    values = torch.from_numpy(np.asarray(mask, dtype=np.float32))[None, None]
    if offset != ON_TILES:
        values = _moved(values, (-offset[0], -offset[1]), grid, values.shape[2:], outside="zeros")
    return F.adaptive_avg_pool2d(values, grid).flatten()


def can_hit(
    mask: np.ndarray, patches: int, *, grid: tuple[int, int] | None = None, offset: tuple[float, float] = ON_TILES
) -> bool:
    """Tell whether any map over a grid of patches could win the pointing game.

    A bilinearly enlarged map is brightest next to the centre of one of its patches (at the border of the image, where
    nothing is left to interpolate with, anywhere from there to the border), so a finding that holds none of these
    pixels cannot be hit.

    Args:
        mask: ``(S, S)`` bool.
        patches: Number of patches.
        grid: Rows and columns of the patches; by default a square.
        offset: See :func:`enlarge_map`.

    >>> column = np.zeros((8, 8), dtype=bool)
    >>> column[:, 3] = True
    >>> can_hit(column, 4), can_hit(column, 64)
    (False, True)
    """
    return bool(np.asarray(mask)[_possible_peaks(patches, len(mask), grid, offset)].any())


def score_region(heat: np.ndarray, mask: np.ndarray) -> RegionScore:
    """Compare a map with a mask.

    Args:
        heat: ``(H, W)`` finite values. Of several equal maxima the first in reading order counts; for a
            flat map that is a corner.
        mask: ``(H, W)`` bool with at least one pixel set and one not.

    Raises:
        ValueError: the shapes differ, the mask is empty or full, or a value is not finite.

    >>> heat = np.array([[0.0, 0.0], [0.0, 1.0]])
    >>> score = score_region(heat, heat > 0)
    >>> score.hit, score.chance, score.iou[0], score.iou[10]
    (True, 0.25, np.float64(0.25), np.float64(1.0))
    """
    mask = np.asarray(mask, dtype=bool)
    if heat.shape != mask.shape or heat.ndim != 2:
        raise ValueError(f"map of shape {heat.shape} for a mask of shape {mask.shape}")
    if not np.isfinite(heat).all():
        raise ValueError("the map is not finite")
    area = int(mask.sum())
    if not 0 < area < mask.size:
        raise ValueError(f"the mask covers {area} of {mask.size} pixels; there is nothing to compare")
    heat = heat.astype(np.float64)
    span = np.ptp(heat)
    # Enlarging a flat map leaves rounding noise, which scaling would turn into a picture.
    scaled = (heat - heat.min()) / span if span > 1e-6 * np.abs(heat).max() else np.zeros_like(heat)
    inside, outside = scaled[mask], scaled[~mask]
    noise = max(np.sqrt(inside.var() + outside.var()), 1e-6)  # a map of two levels has none
    # Counting values above each threshold is one sort instead of one image per threshold.
    above_inside, above_outside = (
        len(part) - np.searchsorted(np.sort(part), THRESHOLDS, side="left") for part in (inside, outside)
    )
    peak = np.unravel_index(int(scaled.argmax()), heat.shape)
    close = _widened(mask)
    return RegionScore(
        hit=bool(mask[peak]),
        chance=area / mask.size,
        contrast=float((inside.mean() - outside.mean()) / noise),
        iou=above_inside / (area + above_outside),
        peak=(int(peak[0]), int(peak[1])),
        near=bool(close[peak]),
        near_chance=float(close.mean()),
    )


def score_words(
    phrases: Phrases,
    maps: Tensor,
    row: int,
    *,
    stored_size: int,
    image_size: int,
    grid: tuple[int, int] | None = None,
    offset: tuple[float, float] = ON_TILES,
) -> list[tuple[str, RegionScore] | None]:
    """Score every word of one report by itself against the finding that its phrase speaks of.

    Args:
        phrases: Ground truth from `load_phrases`.
        maps: ``(W, P)`` maps of the report's words, from `word_maps`.
        row: Row of the image in the dataset.
        stored_size: As in `mgca_lib.data.transforms.ImageTransform`.
        image_size: As there; masks and maps are compared at this size.
        grid: Rows and columns of the patches; by default a square.
        offset: See :func:`enlarge_map`.

    Returns:
        For each of the ``W`` words the path of its mask, for `phrase_mask`, and its score; ``None`` for a word that
        belongs to no finding, to a denied one, or to one that the crop leaves out or that fills it.

    Raises:
        DatasetError: a mask file is missing or unreadable.
    """
    scores: list[tuple[str, RegionScore] | None] = [None] * len(maps)
    table = phrases.table
    for phrase in table[(table["row"] == row) & (table["mask"] != "")].itertuples():
        mask = phrase_mask(phrases, phrase.mask, stored_size=stored_size, image_size=image_size)
        if not mask.any() or mask.all():
            continue
        for place in phrase.positions:
            if place < len(maps) and bool(maps[place].any()):
                heat = enlarge_map(maps[place], image_size=image_size, grid=grid, offset=offset)
                scores[place] = (phrase.mask, score_region(heat, mask))
    return scores


def ground_phrases(
    phrases: Phrases,
    maps: Mapping[int, Tensor],
    *,
    stored_size: int,
    image_size: int,
    grid: tuple[int, int] | None = None,
    offset: tuple[float, float] = ON_TILES,
) -> Grounding:
    """Score the map of every phrase against its mask.

    Args:
        phrases: Ground truth from `load_phrases`.
        maps: For each row of the dataset the ``(W, P)`` maps of its words, from `word_maps`.
        stored_size: As in `mgca_lib.data.transforms.ImageTransform`.
        image_size: As there; masks and maps are compared at this size.
        grid: Rows and columns of the patches; by default a square.
        offset: See :func:`enlarge_map`.

    Raises:
        DatasetError: a mask file is missing or unreadable.
        KeyError: an image has no maps.
        ValueError: no phrase is left.
    """
    return _ground(
        phrases,
        lambda phrase: phrase_map(maps[phrase.row], phrase.positions),
        stored_size=stored_size,
        image_size=image_size,
        grid=grid,
        offset=offset,
    )


def ground_findings(
    phrases: Phrases,
    maps: Tensor,
    findings: Sequence[str],
    *,
    stored_size: int,
    image_size: int,
    grid: tuple[int, int] | None = None,
    offset: tuple[float, float] = ON_TILES,
) -> Grounding:
    """Score one map a film and finding against the mask of every phrase that names the finding.

    For maps that no word made, such as those of :func:`mgca_lib.evaluation.told_heads.finding_maps`. Unlike
    :func:`ground_phrases`, all phrases of a finding share a map, whichever side they name, and none is cut off.

    Args:
        phrases: Ground truth from `load_phrases`.
        maps: ``(N, F, P)``, for each row of the dataset and each of ``findings``.
        findings: Names along the second axis.
        stored_size: As in `mgca_lib.data.transforms.ImageTransform`.
        image_size: As there.
        grid: Rows and columns of the patches; by default a square.
        offset: See :func:`enlarge_map`.

    Raises:
        DatasetError: a mask file is missing or unreadable.
        ValueError: a phrase names another finding, ``maps`` has another number of them, or no phrase is left.
    """
    if maps.ndim != 3 or maps.shape[1] != len(findings):
        raise ValueError(f"maps must be (N, {len(findings)}, P) for {len(findings)} findings, got {tuple(maps.shape)}")
    number_of = {finding: number for number, finding in enumerate(findings)}
    unknown = set(phrases.table.loc[phrases.table["mask"] != "", "finding"]) - set(number_of)
    if unknown:
        raise ValueError(f"phrases speak of {sorted(unknown)[0]!r}, for which there is no map")
    return _ground(
        phrases,
        lambda phrase: maps[phrase.row, number_of[phrase.finding]],
        stored_size=stored_size,
        image_size=image_size,
        grid=grid,
        offset=offset,
    )


def ground_boxes(
    model: MGCA,
    tokenizer: PreTrainedTokenizerBase,
    studies: Studies,
    *,
    texts: Mapping[str, str] | None = None,
    offset: tuple[float, float] = ON_TILES,
) -> Grounding:
    """Score the maps of label names against the boxes that somebody drew for these labels.

    For films without reports, such as those of NIH ChestX-ray14: the name of the label is all that the report encoder
    reads, and the mean map of its words is compared with the boxes of that name, joined to one mask.

    Args:
        model: A model with token projections.
        tokenizer: The tokenizer that it was trained with.
        studies: Images, some with boxes; a box counts in the pixels of the image as released.
        texts: What to read for a label, for example ``{"Effusion": "pleural effusion"}``; others are read as they are
            called, in lower case.
        offset: See :func:`enlarge_map`.

    Returns:
        One row an image and label name; ``finding`` is the label, ``phrase`` the text that was read.

    Raises:
        ValueError: no box can be scored.
    """
    transform = model_transform(model)
    names = [sorted({box["name"] for box in boxes}) for boxes in studies.table["boxes"]]
    rows = [row for row, own in enumerate(names) for _ in own]
    labels = [name for own in names for name in own]
    left_out = {"images without boxes": sum(not own for own in names), "box outside the crop": 0}
    if not rows:
        raise ValueError(f"{studies.root}: no image has boxes")
    read = [(texts or {}).get(label, label.lower()) for label in labels]
    boxed = studies.select(rows)
    boxed = replace(boxed, table=boxed.table.assign(sentences=[[text] for text in read]))
    maps = word_maps(model, model_pairs(model, tokenizer, boxed))
    found, heats, masks = [], [], []
    for number, (label, text) in enumerate(zip(labels, read, strict=True)):
        mask = box_mask(boxed, number, transform, name=label)
        heat = phrase_map(maps[number], range(len(maps[number])))
        if heat is None or not mask.any() or mask.all():
            left_out["box outside the crop"] += 1
            continue
        heats.append(heat)
        masks.append(mask)
        found.append((number, rows[number], boxed.table["patient_id"].iat[number], label, text, False, None, None))
    return _grounding(found, heats, masks, left_out, offset=offset)


def summarise_grounding(grounding: Grounding, *, resamples: int = 1000, seed: int = 0) -> dict[str, GroundingSummary]:
    """Summarise all phrases together (``"all"``) and the phrases of each finding.

    Phrases of one patient are not independent, so they are averaged first, and every patient counts once.

    Args:
        grounding: Scores of the phrases.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    table = grounding.table
    parts = {"all": np.ones(len(table), bool)}
    parts |= {finding: (table["finding"] == finding).to_numpy() for finding in sorted(table["finding"].unique())}
    return {name: _summarise(table[part], grounding.iou[part], resamples, seed) for name, part in parts.items()}


def pointing_gain(
    after: Grounding, before: Grounding, *, finding: str = "all", resamples: int = 1000, seed: int = 0
) -> Interval:
    """How much more often one kind of map hits than another, on the same phrases.

    Phrases of a patient are averaged first; then the *differences* of the patients are drawn anew. What makes a patient
    easy or hard for both kinds falls out, so this interval says more than the two hit rates with theirs.

    Args:
        after: Scores of one kind of map.
        before: Scores of the other, from the same phrases or boxes. What only one of the two could score, such as a
            phrase that the tokenizer cut off, is left out.
        finding: ``"all"``, or one finding.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The mean difference of the hit rates over patients. Where it is the same in all of them, a bootstrap would have
        no width: the ends then lie as far off as Wilson's upper end for the share of patients with another difference.

    Raises:
        ValueError: the two have no phrase of the finding in common, or a number means another phrase in each.
    """
    both = after.table.merge(before.table, on="number", suffixes=("", "_before"))
    if any((both[key] != both[f"{key}_before"]).any() for key in ("row", "patient_id", "finding", "phrase")):
        raise ValueError("a paired gain needs maps that were scored on the same phrases")
    both = both if finding == "all" else both[both["finding"] == finding]
    if both.empty:
        raise ValueError(f"{finding!r}: the two have no phrase in common")
    gains = (both["hit"] - both["hit_before"]).groupby(both["patient_id"]).mean().to_numpy()
    return _mean_gain(gains, resamples, seed)


def own_gain(grounding: Grounding, *, finding: str = "all", resamples: int = 1000, seed: int = 0) -> Interval | None:
    """How much more often maps hit their own patient's mask than those of other patients with the finding.

    Above zero is what the maps know about this patient and not about the usual place; paired as in
    :func:`pointing_gain`.

    Args:
        grounding: Scores of the maps.
        finding: ``"all"``, or one finding.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        The mean of ``hit - control`` over patients; ``None`` where no other patient has the finding.
    """
    table = grounding.table if finding == "all" else grounding.table[grounding.table["finding"] == finding]
    gains = (table["hit"] - table["control"]).groupby(table["patient_id"]).mean().dropna().to_numpy()
    return _mean_gain(gains, resamples, seed) if len(gains) else None


def _mean_gain(gains: np.ndarray, resamples: int, seed: int) -> Interval:
    """Bootstrap interval of the mean of paired differences in [-1, 1]; by Wilson where all of them are equal."""
    if not np.ptp(gains):
        mean, reach = float(gains[0]), wilson_interval(0, len(gains)).high
        return Interval(mean, max(mean - reach, -1.0), min(mean + reach, 1.0), len(gains))
    return bootstrap_interval(lambda rows: gains[rows].mean(), len(gains), resamples=resamples, seed=seed)


@cache
def _possible_peaks(
    patches: int, image_size: int, grid: tuple[int, int] | None, offset: tuple[float, float]
) -> np.ndarray:
    """``(S, S)`` bool: pixels where some map over the patches can be brightest."""
    place = {"image_size": image_size, "grid": grid, "offset": offset}
    alone = np.stack([enlarge_map(values, **place) for values in torch.eye(patches)])
    # Several pixels lie equally close to a centre; which of them is brightest depends on the neighbouring patches.
    return (alone >= alone.max(axis=(1, 2), keepdims=True) - 1e-5).any(axis=0)


def _ground(
    phrases: Phrases,
    map_of: Callable[[Any], Tensor | None],
    *,
    stored_size: int,
    image_size: int,
    grid: tuple[int, int] | None,
    offset: tuple[float, float],
) -> Grounding:
    left_out = dict(phrases.left_out) | dict.fromkeys(
        ("negated, points at nothing", "cut off by the tokenizer", "mask outside the crop"), 0
    )
    rows, heats, masks, read = [], [], [], {}
    for phrase in phrases.table.itertuples():
        if phrase.negated or not phrase.mask:
            left_out["negated, points at nothing"] += 1
            continue
        heat = map_of(phrase)
        if heat is None:
            left_out["cut off by the tokenizer"] += 1
            continue
        if phrase.mask not in read:
            read[phrase.mask] = phrase_mask(phrases, phrase.mask, stored_size=stored_size, image_size=image_size)
        mask = read[phrase.mask]
        if not mask.any() or mask.all():
            left_out["mask outside the crop"] += 1
            continue
        heats.append(heat)
        masks.append(mask)
        said = (phrase.finding, phrase.phrase, bool(phrase.uncertain), phrase.side, phrase.zone)
        rows.append((phrase.Index, phrase.row, phrase.patient_id, *said))
    return _grounding(rows, heats, masks, left_out, grid=grid, offset=offset)


def _grounding(
    rows: Sequence[tuple[int, int, str, str, str, bool, str | None, str | None]],
    heats: Sequence[Tensor],
    masks: Sequence[np.ndarray],
    left_out: dict[str, int],
    *,
    grid: tuple[int, int] | None = None,
    offset: tuple[float, float] = ON_TILES,
) -> Grounding:
    if not rows:
        raise ValueError(f"nothing can be scored ({left_out})")
    place = {"grid": grid, "offset": offset}
    scores = [
        score_region(enlarge_map(heat, image_size=len(mask), **place), mask)
        for heat, mask in zip(heats, masks, strict=True)
    ]
    table = pd.DataFrame(
        rows, columns=["number", "row", "patient_id", "finding", "phrase", "uncertain", "side", "zone"]
    )
    for name in ("hit", "chance", "contrast", "near", "near_chance"):
        table[name] = [float(getattr(score, name)) for score in scores]
    table["ceiling"] = [float(can_hit(mask, len(heat), **place)) for heat, mask in zip(heats, masks, strict=True)]
    table["control"] = _control(table, ["finding"], scores, masks)
    table["place_control"] = _control(table, ["finding", "side", "zone"], scores, masks)
    table["near_control"] = _control(table, ["finding"], scores, [_widened(mask) for mask in masks])
    return Grounding(table, np.stack([score.iou for score in scores]), left_out)


def _summarise(table: pd.DataFrame, iou: np.ndarray, resamples: int, seed: int) -> GroundingSummary:
    patients = table["patient_id"].to_numpy()
    controls = ["control", "place_control", "near_control"]
    averaged = ["hit", "chance", "ceiling", "contrast", "near", "near_chance", *controls]
    means = table.groupby(patients)[averaged].mean()
    iou = pd.DataFrame(iou).groupby(patients).mean().to_numpy()
    best = int(iou.mean(axis=0).argmax())
    n = len(means)
    contrast = means["contrast"].to_numpy()
    return GroundingSummary(
        pointing=wilson_interval(float(means["hit"].sum()), n),
        chance=float(means["chance"].mean()),
        ceiling=float(means["ceiling"].mean()),
        control=float(means["control"].mean()),
        place_control=float(means["place_control"].mean()),
        contrast=bootstrap_interval(lambda rows: contrast[rows].mean(), n, resamples=resamples, seed=seed),
        iou=bootstrap_interval(lambda rows: iou[rows, best].mean(), n, resamples=resamples, seed=seed),
        iou_chance=float(iou[:, 0].mean()),
        threshold=float(THRESHOLDS[best]),
        phrases=len(table),
        near=wilson_interval(float(means["near"].sum()), n),
        near_chance=float(means["near_chance"].mean()),
        near_control=float(means["near_control"].mean()),
    )


def _moved(
    picture: Tensor, offset: tuple[float, float], tiles: tuple[int, int], size: Sequence[int], *, outside: str
) -> Tensor:
    """Resample ``(1, 1, H, W)`` to ``size``, moved down and to the right by so many tiles of a grid."""
    down, right = (2 * move / count for move, count in zip(offset, tiles, strict=True))
    # The sampling grid runs from -1 to 1 over the picture, and says where each new pixel comes from.
    where = F.affine_grid(torch.tensor([[[1.0, 0.0, -right], [0.0, 1.0, -down]]]), [1, 1, *size], align_corners=False)
    return F.grid_sample(picture, where, mode="bilinear", padding_mode=outside, align_corners=False)


def _widened(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of a mask and those within the tolerance of one."""
    return distance_transform_edt(~mask) <= TOLERANCE * max(mask.shape)


def _control(
    table: pd.DataFrame, alike: list[str], scores: Sequence[RegionScore], masks: Sequence[np.ndarray]
) -> np.ndarray:
    """How often each maximum hits the masks of other patients whose rows agree in the columns ``alike``."""
    control = np.full(len(table), np.nan)
    patients = table["patient_id"].to_numpy()
    peaks = np.array([score.peak for score in scores])
    for rows in table.groupby(alike).indices.values():
        stack = np.stack([masks[row] for row in rows])
        for row in rows:
            others = patients[rows] != patients[row]
            if others.any():
                control[row] = stack[others, peaks[row, 0], peaks[row, 1]].mean()
    return control


def _cleaned_words(studies: Studies, row: int) -> list[ReportWord]:
    report = studies.table.iloc[row]
    words = report_words(findings=report["findings"], impression=report["impression"])
    if [word.text for word in words] != " ".join(report["sentences"]).split():
        raise DatasetError(
            f"{studies.root}: image {report['image_id']!r}: its sentences were not made from its findings and "
            "impression, so its words cannot be matched with the ground truth; prepare the dataset again"
        )
    return words


def _read_mask(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("L")) >= 128
    except DAMAGED as error:
        raise DatasetError(f"{path}: mask cannot be read: {error}") from None


def _check_phrases(table: pd.DataFrame, path: Path) -> None:
    def fail(row: int, column: str, problem: str) -> None:
        raise DatasetError(f"{path}: row {row}, column {column!r}: {problem}")

    for column in (*_TEXT, *_NUMBERS, *_FLAGS):
        if column not in table.columns:
            raise DatasetError(f"{path}: column {column!r} is missing")
    for column in _TEXT:
        for row, value in enumerate(table[column].tolist()):
            if not isinstance(value, str):
                fail(row, column, f"expected text, found {value!r}")
    for row, value in enumerate(table["section"].tolist()):
        if value not in ("impression", "findings"):
            fail(row, "section", f"{value!r} is not 'impression' or 'findings'")
    for row, (first, last) in enumerate(zip(table["first_word"].tolist(), table["last_word"].tolist(), strict=True)):
        if not 0 <= first <= last:
            fail(row, "last_word", f"words {first} to {last} are no span")
    for row, (mask, negated) in enumerate(zip(table["mask"].tolist(), table["negated"].tolist(), strict=True)):
        if Path(mask).is_absolute() or ".." in Path(mask).parts:
            fail(row, "mask", f"{mask!r} must be a path inside the ground truth")
        if bool(mask) == bool(negated):
            fail(row, "mask", f"{mask!r} with negated = {negated}: a phrase either is negated or has a mask")
