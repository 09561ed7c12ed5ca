"""Image-report pairs: items, batches and their order, over processes, workers and interruptions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import PATTERNS, small_tokenizer, tiny_studies, with_cell
from torch.utils.data import DataLoader

from mgca_lib.data import pairs as module
from mgca_lib.data.pairs import EpochBatches, PairImages, RunBatches, report_texts
from mgca_lib.data.studies import DatasetError
from mgca_lib.data.transforms import ImageTransform

WORDS = sorted({word for _, _, text in PATTERNS.values() for word in text.split()})
WORDS += ["the", "heart", "normal", "in", "size", "lungs", "cle", "##ar"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return tiny_studies(tmp_path_factory.mktemp("pairs"), train=12, valid=4, test=4).split("train")


def pairs(studies, *, augmentation="crop", seed=3, max_pieces=112, stored_size=36, **settings):
    transform = ImageTransform(stored_size, 32, augmentation)
    return PairImages(studies, small_tokenizer(WORDS), transform, max_pieces=max_pieces, seed=seed, **settings)


def batches(size=50, batch_size=4, **settings):
    return [[row for row, _ in batch] for batch in EpochBatches(size=size, batch_size=batch_size, seed=9, **settings)]


@pytest.mark.parametrize("epoch", [0, 3])
def test_global_batches_do_not_depend_on_the_number_of_processes(epoch):
    alone = batches(batch_size=8, epoch=epoch)
    two = [batches(batch_size=4, processes=2, rank=rank, epoch=epoch) for rank in range(2)]
    four = [batches(batch_size=2, processes=4, rank=rank, epoch=epoch) for rank in range(4)]
    assert len(alone) == 6  # 50 // 8; the rest is dropped
    for number, batch in enumerate(alone):
        for ranks in (two, four):
            share = [rows for rank in ranks for rows in rank[number]]
            assert sorted(share) == sorted(batch)
            assert len(set(share)) == 8
            assert {len(rank[number]) for rank in ranks} == {8 // len(ranks)}
    assert {len(rank) for rank in (*two, *four)} == {6}


@pytest.mark.parametrize("epoch", [0, 3])
def test_optimiser_steps_take_the_same_pairs_however_they_are_shared(epoch):
    """Twelve pairs a step: so many processes, batches one behind the other, or both. In rank order, too."""
    expected = batches(batch_size=12, epoch=epoch)
    for batch_size, processes, accumulation in ((6, 2, 1), (3, 4, 1), (6, 1, 2), (2, 3, 2), (2, 2, 3)):
        ranks = [batches(batch_size=batch_size, processes=processes, rank=r, epoch=epoch) for r in range(processes)]
        gathered = [sum(shares, []) for shares in zip(*ranks, strict=True)]
        steps = [sum(gathered[n : n + accumulation], []) for n in range(0, len(gathered), accumulation)]
        assert steps[: len(expected)] == expected
        assert len(gathered) // accumulation == len(expected) == 4  # 50 // 12; what is left over fills no step


def test_kept_images_are_read_from_disk_once(studies, monkeypatch):
    read = []
    load = module.load_picture
    monkeypatch.setattr(module, "load_picture", lambda studies, row: read.append(row) or load(studies, row))
    plain, kept = pairs(studies), pairs(studies, keep_images=True)
    items = [(row, epoch) for epoch in range(3) for row in range(4)]
    for one, two in zip([plain[item] for item in items], [kept[item] for item in items], strict=True):
        assert torch.equal(one[1], two[1])
    assert len(read) == 12 + 4


def test_an_epoch_visits_no_pair_twice():
    rows = [row for batch in batches() for row in batch]
    assert len(rows) == len(set(rows)) == 48
    assert set(rows) < set(range(50))
    assert rows != sorted(rows)


def test_the_order_depends_on_seed_and_epoch():
    first = list(EpochBatches(size=50, batch_size=4, seed=9))
    assert list(EpochBatches(size=50, batch_size=4, seed=9)) == first
    assert [[row for row, _ in b] for b in EpochBatches(size=50, batch_size=4, seed=10)] != batches()
    assert batches(epoch=1) != batches(epoch=0)
    assert {epoch for batch in EpochBatches(size=50, batch_size=4, seed=9, epoch=5) for _, epoch in batch} == {5}


def test_validation_keeps_one_permutation():
    still = batches(shuffle=False)
    assert batches(shuffle=False, epoch=4) == still
    assert still not in [batches(epoch=epoch) for epoch in range(3)]
    flat = [row for batch in still for row in batch]
    assert flat != sorted(flat)


@pytest.mark.parametrize("first", [0, 1, 5, 12, 13])
def test_resuming_inside_an_epoch(first):
    whole = batches()
    rest = EpochBatches(size=50, batch_size=4, seed=9, first=first)
    assert [[row for row, _ in batch] for batch in rest] == whole[first:]
    assert len(rest) == len(whole[first:])
    assert rest.total == 12


@pytest.mark.parametrize(("epoch", "first"), [(0, 0), (1, 4), (1, 10), (2, 9), (3, 0)])
def test_a_run_goes_through_its_epochs_in_a_row(epoch, first):
    """Ten of the twelve global batches of each epoch, as with accumulation over five; the first from where it is."""
    start = EpochBatches(size=50, batch_size=4, seed=9, epoch=epoch, first=first)
    left = RunBatches(start, epochs=3, per_epoch=10)
    expected = []
    for number in range(epoch, 3):
        whole = list(EpochBatches(size=50, batch_size=4, seed=9, epoch=number))[:10]
        expected += whole[first:] if number == epoch else whole
    assert list(left) == list(left) == expected
    assert len(left) == len(expected)


def test_items(studies):
    data = pairs(studies)
    assert len(data) == 12
    row, image, pieces, words = data[5]
    assert row == 5
    assert image.shape == (1, 32, 32)
    tokenizer = small_tokenizer(WORDS)
    report = report_texts(studies)[5]
    assert report == " ".join(studies.table["sentences"][5])
    assert tokenizer.convert_ids_to_tokens(pieces.tolist()) == ["[CLS]", *report.split(), "[SEP]"]
    assert words.tolist() == [-1, *range(len(report.split())), -1]


def test_a_crop_depends_on_seed_epoch_and_row_alone(studies):
    # With 16 x 16 places, equal crops by accident are rare.
    one = pairs(studies, stored_size=48)

    def crop(key, data=one):
        return data[key][1]

    first = crop((2, 7))
    torch.manual_seed(1234)
    np.random.seed(5)  # noqa: NPY002 - what must not matter
    crop((3, 7))
    assert torch.equal(crop((2, 7)), first)
    assert torch.equal(crop((2, 7), pairs(studies, stored_size=48)), first)
    assert torch.equal(crop(2), crop((2, 0)))
    epochs = [crop((2, epoch)) for epoch in range(6)]
    assert sum(not torch.equal(a, b) for a, b in zip(epochs, epochs[1:], strict=False)) >= 4
    seeds = [crop((2, 7), pairs(studies, stored_size=48, seed=seed)) for seed in range(6)]
    assert sum(not torch.equal(a, b) for a, b in zip(seeds, seeds[1:], strict=False)) >= 4


def test_rows_have_crops_of_their_own(tmp_path):
    """The same picture in every row: crops differ only if the row decides."""
    studies = tiny_studies(tmp_path, train=8, valid=2, test=2).split("train")
    content = studies.image_path(0).read_bytes()
    for row in range(8):
        studies.image_path(row).write_bytes(content)
    data = pairs(studies, stored_size=48)
    crops = [data[(row, 1)][1] for row in range(8)]
    assert len({crop.numpy().tobytes() for crop in crops}) >= 6


def test_evaluation_takes_the_centre(studies):
    data = pairs(studies, augmentation="none")
    assert torch.equal(data[(4, 0)][1], data[(4, 9)][1])


def test_workers_do_not_change_a_batch(studies):
    data = pairs(studies)
    order = EpochBatches(size=12, batch_size=4, seed=1, epoch=2)

    def loaded(workers):
        return list(DataLoader(data, batch_sampler=order, collate_fn=data.collate, num_workers=workers))

    for alone, helped in zip(loaded(0), loaded(2), strict=True):
        assert alone.num_words == helped.num_words
        for name in ("images", "pieces", "piece_keep", "word_ids", "rows", "text_ids", "denied"):
            assert torch.equal(getattr(alone, name), getattr(helped, name)), name


def test_collating_pads_behind_and_marks_it(studies):
    data = pairs(studies)
    items = [data[row] for row in range(6)]
    batch = data.collate(items)
    lengths = [len(pieces) for _, _, pieces, _ in items]
    assert len(set(lengths)) > 1
    assert len(batch) == 6
    assert batch.images.shape == (6, 1, 32, 32)
    assert batch.pieces.shape == batch.word_ids.shape == batch.piece_keep.shape == (6, max(lengths))
    assert (batch.pieces.dtype, batch.word_ids.dtype, batch.piece_keep.dtype) == (torch.int64, torch.int64, torch.bool)
    assert batch.num_words == max(len(report_texts(studies)[row].split()) for row in range(6))
    assert batch.rows.tolist() == list(range(6))
    for index, (_, image, pieces, words) in enumerate(items):
        real = len(pieces)
        assert torch.equal(batch.images[index], image)
        assert batch.pieces[index].tolist() == pieces.tolist() + [0] * (max(lengths) - real)
        assert batch.word_ids[index].tolist() == words.tolist() + [-1] * (max(lengths) - real)
        assert batch.piece_keep[index].tolist() == [True] * real + [False] * (max(lengths) - real)


def test_text_ids_are_equal_where_the_whole_reports_are(studies):
    texts = report_texts(studies)
    equal = [[one == two for two in texts] for one in texts]
    assert any(equal[row][other] for row in range(12) for other in range(row))
    for max_pieces in (112, 5):  # what was cut off counts, too
        data = pairs(studies, max_pieces=max_pieces)
        ids = data.collate([data[row] for row in range(12)]).text_ids
        assert ids.dtype == torch.int64
        assert (ids[:, None] == ids[None, :]).tolist() == equal
        rest = data.collate([data[row] for row in (7, 3, 11)]).text_ids
        assert torch.equal(rest, ids[[7, 3, 11]])


def test_denied_words_are_found_where_the_words_are_numbered(studies):
    """Against words marked by hand; long reports lose their end, and pieces of a word share its number."""
    reports = [["no effusion", "small nodule"], ["nodule is not seen"], ["small effusion", "no pneumothorax"]]
    denied = [[True, True, False, False], [True] * 4, [False, False, True, True]]
    table = studies.select(range(3)).table.assign(sentences=reports)
    data = PairImages(
        replace(studies, table=table),
        small_tokenizer(WORDS),
        ImageTransform(36, 32),
        max_pieces=112,
        seed=0,
        denials=True,
    )
    batch = data.collate([data[row] for row in range(3)])
    assert batch.denied.dtype == torch.bool
    assert batch.denied.tolist() == denied
    swapped = data.collate([data[row] for row in (2, 0)])
    assert swapped.denied.tolist() == [denied[2], denied[0]]
    short = PairImages(data.studies, small_tokenizer(WORDS), ImageTransform(36, 32), max_pieces=5, seed=0, denials=True)
    assert short.collate([short[0], short[2]]).denied.tolist() == [denied[0][:3], denied[2][:3]]
    plain = pairs(data.studies)
    assert plain.collate([plain[row] for row in range(3)]).denied.tolist() == [[False] * 4] * 3


def test_padding_has_the_tokenizer_s_id(studies):
    tokenizer = small_tokenizer(WORDS)
    tokenizer.pad_token = "[MASK]"
    data = PairImages(studies, tokenizer, ImageTransform(36, 32), max_pieces=112, seed=0)
    batch = data.collate([data[row] for row in range(6)])
    assert set(batch.pieces[~batch.piece_keep].tolist()) == {tokenizer.mask_token_id} == {4}


def test_a_batch_of_one(studies):
    data = pairs(studies)
    batch = data.collate([data[1]])
    assert batch.images.shape == (1, 1, 32, 32)
    assert batch.piece_keep.all()
    assert batch.rows.tolist() == [1]


def test_batches_move_between_devices(studies):
    data = pairs(studies)
    batch = data.collate([data[0], data[1]])
    moved = batch.to("meta")
    assert {name for name, value in vars(moved).items() if getattr(value, "is_meta", False)} == {
        "images",
        "pieces",
        "piece_keep",
        "word_ids",
        "rows",
        "text_ids",
        "denied",
    }
    assert moved.num_words == batch.num_words


def test_long_reports_are_cut(studies):
    data = pairs(studies, max_pieces=5)
    batch = data.collate([data[row] for row in range(4)])
    assert batch.pieces.shape == (4, 5)
    assert batch.num_words == 3
    assert data.tokens.truncated.any()


def test_a_row_without_report_is_named(studies):
    broken = with_cell(studies.select(range(4)), 2, "sentences", [])
    with pytest.raises(DatasetError, match=r"image 'train002' \(row 2\) has no report to pair it with"):
        pairs(broken)


def test_an_unreadable_image_is_named_when_it_is_asked_for(tmp_path):
    studies = tiny_studies(tmp_path, train=4, valid=2, test=2).split("train")
    studies.image_path(1).write_bytes(b"broken")
    data = pairs(studies)
    data[0]
    with pytest.raises(DatasetError, match=r"train001\.png: image 'train001' \(row 1\) cannot be read"):
        data[1]
