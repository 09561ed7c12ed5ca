"""Targets of the downstream tasks and the images that come with them."""

import math

import numpy as np
import pytest
import torch
from helpers import PATTERNS, tiny_studies, with_cell
from PIL import Image

from mgca_lib.data.studies import DatasetError
from mgca_lib.data.tasks import CHEXPERT_LABELS, TASKS, Task, TaskImages, load_picture, task_targets
from mgca_lib.data.transforms import ImageTransform

NAN = float("nan")


@pytest.fixture
def studies(tmp_path):
    """Four training images, one a pattern: effusion, edema, consolidation, normal."""
    return tiny_studies(tmp_path, train=4, valid=2, test=2).split("train")


def relabel(studies, row, **values):
    return with_cell(studies, row, "labels", studies.table.at[row, "labels"] | values)


def test_the_tasks_of_the_paper():
    assert list(TASKS) == ["chexpert", "rsna", "covidx"]
    assert TASKS["chexpert"].classes == ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    assert set(TASKS["chexpert"].classes) < set(CHEXPERT_LABELS)
    assert len(set(CHEXPERT_LABELS)) == 14
    kinds = {name: (task.kind, task.metric, len(task.classes)) for name, task in TASKS.items()}
    assert kinds == {
        "chexpert": ("multilabel", "auroc", 5),
        "rsna": ("multilabel", "auroc", 1),
        "covidx": ("multiclass", "accuracy", 3),
    }


def test_multilabel_targets(studies):
    found = task_targets(studies, TASKS["chexpert"])
    assert found.dtype == np.float32
    expected = [[NAN, 0, 0, 0, 1], [NAN, 0, 0, 1, NAN], [NAN, 0, 1, 0, 0], [NAN, 0, 0, 0, 0]]  # uncertain is unknown
    np.testing.assert_array_equal(found, np.array(expected, dtype=np.float32))
    assert task_targets(studies, TASKS["rsna"]).tolist() == [[0.0], [0.0], [1.0], [0.0]]


def test_multiclass_targets(studies):
    found = task_targets(studies, TASKS["covidx"])
    assert found.dtype == np.int64
    assert found.tolist() == [2, 1, 1, 0]


@pytest.mark.parametrize(
    "values",
    [{"normal": 1.0}, {"COVID-19": 0.0}, {"COVID-19": None}, {"COVID-19": -1.0}],
    ids=["two classes", "none", "unknown", "uncertain"],
)
def test_a_multiclass_image_has_exactly_one_class(studies, values):
    with pytest.raises(DatasetError, match="image 'train000' has not exactly one of normal, pneumonia, COVID-19"):
        task_targets(relabel(studies, 0, **values), TASKS["covidx"])


def test_a_missing_label_is_named(studies):
    task = Task("other", "multilabel", ("Edema", "Nodule"), "auroc")
    with pytest.raises(DatasetError, match="no label 'Nodule'; there are Atelectasis"):
        task_targets(studies, task)


def test_items(studies):
    transform = ImageTransform(stored_size=36, image_size=32)
    images = TaskImages(studies, TASKS["chexpert"], transform)
    assert len(images) == 4
    image, target = images[1]
    with Image.open(studies.root / "images/train001.png") as picture:
        assert torch.equal(image, transform(picture))
    assert image.shape == (1, 32, 32)
    assert target.shape == (5,)
    assert target.dtype == torch.float32
    assert [math.isnan(value) for value in target.tolist()] == [True, False, False, False, True]
    _, label = TaskImages(studies, TASKS["covidx"], transform)[0]
    assert label.shape == ()
    assert label.dtype == torch.int64
    assert label.item() == 2


def test_the_squares_are_where_the_patterns_say(studies):
    """The helper's own images: rows of the table and files on disk belong together."""
    for row, name in enumerate(PATTERNS):
        top, left, _ = PATTERNS[name]
        grey = np.asarray(load_picture(studies, row), dtype=float)
        if top is not None:
            inside = grey[top : top + 12, left : left + 14].mean()
            assert inside > grey.mean() + 100
        else:
            assert grey.max() < 60


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"0" * 50])
def test_an_unreadable_image_is_named(studies, content):
    path = studies.root / "images/train002.png"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    images = TaskImages(studies, TASKS["rsna"], ImageTransform(stored_size=36, image_size=32))
    with pytest.raises(DatasetError) as caught:
        images[2]
    assert str(caught.value).startswith(f"{path}: image 'train002' (row 2) cannot be read: ")
    assert "\n" not in str(caught.value)


def test_a_png_with_a_broken_part_is_named(studies):
    """Pillow calls that a syntax error."""
    path = studies.root / "images/train002.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(len(content) - len(content) // 2))
    with pytest.raises(DatasetError, match=r"image 'train002' \(row 2\) cannot be read"):
        load_picture(studies, 2)


def test_a_truncated_image_is_named(studies):
    path = studies.root / "images/train002.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"image 'train002' \(row 2\) cannot be read"):
        load_picture(studies, 2)
