"""An image on its way from the raw release into the prepared dataset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FRONTAL_VIEWS = ("AP", "PA")


@dataclass
class Candidate:
    """An image on its way into the prepared dataset.

    Attributes:
        image_id: Unique id.
        patient_id: Patient.
        study_id: Examination.
        split: ``"train"``, ``"valid"`` or ``"test"``.
        path: The raw image.
        source: The raw image relative to the raw folder.
        file: Table that lists it.
        rows: Lines of that table that speak of it.
        stored: Stored image without suffix, relative to ``images/``.
        labels: Label values.
        view: ``"AP"``, ``"PA"`` or ``""``.
        findings: Findings section.
        impression: Impression section.
        sentences: Cleaned sentences.
        boxes: ``x, y, w, h`` in raw pixels and ``name``.
        mask: Draws the mask: called with height and width of the raw image, returns bool ``(height, width)``, and
            raises ``ValueError`` when it does not fit the image; ``None`` where there is no mask.
        mask_stamp: Number that changes when the mask does, such as a checksum of its text.
    """

    image_id: str
    patient_id: str
    study_id: str
    split: str
    path: Path
    source: str
    file: str
    rows: tuple[int, ...]
    stored: str
    labels: Mapping[str, float | None]
    view: str = ""
    findings: str = ""
    impression: str = ""
    sentences: Sequence[str] = ()
    boxes: Sequence[Mapping[str, Any]] = ()
    mask: Callable[[int, int], np.ndarray] | None = None
    mask_stamp: int = 0
