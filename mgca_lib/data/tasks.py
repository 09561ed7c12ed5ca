"""The downstream classification tasks of the paper's table 1, and the images and targets they are made of."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mgca_lib.data.studies import DAMAGED, DatasetError, Studies
from mgca_lib.data.transforms import ImageTransform

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)

DISEASES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Lesion",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
"""The labels that each name one disease on the film: no umbrella terms, fractures, devices or "no finding"."""


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        name: Name of the prepared dataset that holds its images.
        kind: ``"multilabel"`` (independent yes/no per class) or ``"multiclass"`` (exactly one class).
        classes: Label names, in column order of the target.
        metric: ``"auroc"`` (macro average over classes) or ``"accuracy"``.
    """

    name: str
    kind: Literal["multilabel", "multiclass"]
    classes: tuple[str, ...]
    metric: Literal["auroc", "accuracy"]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "chexpert",
            "multilabel",
            ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
            "auroc",
        ),
        Task("rsna", "multilabel", ("Pneumonia",), "auroc"),
        Task("covidx", "multiclass", ("normal", "pneumonia", "COVID-19"), "accuracy"),
    )
}


def task_targets(studies: Studies, task: Task) -> np.ndarray:
    """Return the targets of a task.

    Args:
        studies: Images with labels.
        task: The task.

    Returns:
        Multilabel: float32 ``(N, C)``, NaN where a label is unknown or uncertain. Multiclass: int64 ``(N,)``.

    Raises:
        DatasetError: a label is missing, or a multiclass image does not have exactly one class.
    """
    labels = studies.labels(task.classes)
    if task.kind == "multilabel":
        return np.where(labels < 0, np.nan, labels).astype(np.float32)
    wrong = np.flatnonzero((labels == 1).sum(axis=1) != 1)
    if len(wrong):
        image_id = studies.table["image_id"].iat[wrong[0]]
        raise DatasetError(f"{studies.root}: image {image_id!r} has not exactly one of {', '.join(task.classes)}")
    return (labels == 1).argmax(axis=1).astype(np.int64)


class TaskImages(Dataset):
    """Images of a task with their targets.

    An item is ``(image, target)``: image ``(1, S, S)`` float32 in [-1, 1]; target float32 ``(C,)`` for
    multilabel tasks (NaN unknown), int64 scalar for multiclass tasks.

    Args:
        studies: Images with labels, usually one split.
        task: Names the labels that make the target.
        transform: Makes the tensor from the stored image.
    """

    def __init__(self, studies: Studies, task: Task, transform: ImageTransform) -> None:
        self.studies = studies
        self.task = task
        self.transform = transform
        self.targets = torch.from_numpy(task_targets(studies, task))

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        return self.transform(load_picture(self.studies, row)), self.targets[row]


def load_picture(studies: Studies, row: int) -> Image.Image:
    """Open the stored image of one row.

    Raises:
        DatasetError: the file is missing or cannot be decoded; the message names it and its row.
    """
    path = studies.image_path(row)
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture if picture.mode == "L" else picture.convert("L")
    except DAMAGED as error:
        image_id = studies.table["image_id"].iat[row]
        raise DatasetError(f"{path}: image {image_id!r} (row {row}) cannot be read: {error}") from None
