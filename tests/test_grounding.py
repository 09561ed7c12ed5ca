"""Grounding: word positions, hand-made masks, slow loops, and chance by simulation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import tiny_config, tiny_studies, tiny_tokenizer
from PIL import Image

from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.reports import clean_sentences, report_words
from mgca_lib.data.studies import Card, DatasetError, Studies
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.evaluation.grounding import (
    ON_TILES,
    THRESHOLDS,
    Phrases,
    can_hit,
    enlarge_map,
    ground_boxes,
    ground_phrases,
    load_phrases,
    own_gain,
    perfect_map,
    phrase_map,
    phrase_mask,
    phrase_positions,
    pointing_gain,
    score_region,
    score_words,
    summarise_grounding,
    word_maps,
)
from mgca_lib.model import build_model

REPORTS = {
    "a": ("Heart is large. There is a small left effusion in the base.", "1. Small left effusion.\n2. No edema."),
    "b": ("Effusion. Nodule in the right lung.", ""),
}


@pytest.fixture
def truth(tmp_path):
    """Two images with reports, masks of 40 x 20 pixels, and phrases: one seen twice, one negated, one cleaned away."""
    folder = tmp_path / "ground_truth"
    (folder / "masks").mkdir(parents=True)
    masks = {name: np.zeros((40, 20), np.uint8) for name in ("left", "lung", "edge")}
    masks["left"][20:40, 10:20] = 255
    masks["lung"][0:20, 0:20] = 255
    masks["edge"][0:1, 0:1] = 255
    for name, mask in masks.items():
        Image.fromarray(mask).save(folder / "masks" / f"{name}.png")
    rows = [
        ("a", "impression", 1, 3, "Small left effusion", "pleural effusion", False, "masks/left.png"),
        ("a", "findings", 5, 8, "a small left effusion", "pleural effusion", False, "masks/left.png"),
        ("a", "impression", 5, 6, "No edema", "edema", True, ""),
        ("b", "findings", 0, 0, "Effusion", "pleural effusion", False, "masks/lung.png"),
        ("b", "findings", 1, 5, "Nodule in the right lung", "nodule", False, "masks/lung.png"),
        ("z", "findings", 0, 0, "Effusion", "pleural effusion", False, "masks/lung.png"),
    ]
    columns = ["dicom_id", "section", "first_word", "last_word", "phrase", "finding", "negated", "mask"]
    table = pd.DataFrame(rows, columns=columns)
    for column in ("study_id", "side", "zone", "severity"):
        table[column] = "x"
    table["uncertain"] = False
    table.to_parquet(folder / "phrases.parquet")
    return folder, table, studies_of(tmp_path)


def studies_of(root):
    rows = [
        {
            "image_id": name,
            "patient_id": f"patient {name}",
            "findings": findings,
            "impression": impression,
            "sentences": clean_sentences(findings=findings, impression=impression),
        }
        for name, (findings, impression) in REPORTS.items()
    ]
    return Studies(root=root, table=pd.DataFrame(rows), card=Card("m", "1", "phantom", "none", False))


def test_phrases_find_their_words(truth):
    folder, _, studies = truth
    phrases = load_phrases(folder, studies)
    found = []
    for phrase in phrases.table.itertuples():
        findings, impression = REPORTS[phrase.dicom_id]
        words = report_words(findings=findings, impression=impression)
        found.append(" ".join(words[place].text for place in phrase.positions))
    assert found == ["small left effusion", "a small left effusion", "no edema", "", "nodule in the right lung"]
    assert phrases.table["row"].tolist() == [0, 0, 0, 1, 1]
    assert phrases.table["patient_id"].tolist() == ["patient a"] * 3 + ["patient b"] * 2
    assert phrases.left_out == {"image not in this dataset": 1}


def test_positions_count_cleaned_words_impression_first():
    words = report_words(findings="Heart is large. Small left effusion.", impression="2. Left effusion.")
    assert phrase_positions(words, "findings", 3, 5) == (5, 6, 7)
    assert phrase_positions(words, "impression", 0, 2) == (0, 1)
    assert phrase_positions(words, "impression", 9, 9) == ()


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("phrase", 0, "Large left effusion", "row 0, image 'a': the report says 'small'"),
        ("phrase", 1, "a small", "the report says 'left'"),
        ("section", 2, "history", "row 2, column 'section'"),
        ("last_word", 1, 4, "row 1, column 'last_word': words 5 to 4"),
        ("mask", 2, "masks/left.png", "row 2, column 'mask'"),
        ("mask", 0, "", "row 0, column 'mask'"),
        ("mask", 0, "../left.png", "inside the ground truth"),
        ("finding", 0, None, "row 0, column 'finding': expected text"),
        ("dicom_id", slice(None), "q", "none of its images"),
    ],
)
def test_wrong_ground_truth_is_refused(truth, column, row, value, message):
    folder, table, studies = truth
    table = table.astype({column: object})
    table.loc[row, column] = value
    table.to_parquet(folder / "phrases.parquet")
    with pytest.raises(DatasetError, match=message):
        load_phrases(folder, studies)


def test_missing_and_broken_files_are_named(truth):
    folder, table, studies = truth
    table.drop(columns="side").to_parquet(folder / "phrases.parquet")
    with pytest.raises(DatasetError, match="column 'side' is missing"):
        load_phrases(folder, studies)
    (folder / "phrases.parquet").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match=r"phrases\.parquet: not a readable"):
        load_phrases(folder, studies)
    (folder / "phrases.parquet").unlink()
    with pytest.raises(DatasetError, match="phantom only"):
        load_phrases(folder, studies)
    table.to_parquet(folder / "phrases.parquet")
    (folder / "masks" / "left.png").write_bytes(b"nonsense")
    with pytest.raises(DatasetError, match=r"left\.png: mask cannot be read"):
        ground_phrases(load_phrases(folder, studies), uniform(studies), stored_size=40, image_size=32)
    studies.table.at[0, "sentences"] = ["other words"]
    with pytest.raises(DatasetError, match="image 'a': its sentences were not made"):
        load_phrases(folder, studies)


def uniform(studies, patches=16):
    return {row: torch.full((30, patches), 1 / patches) for row in range(len(studies))}


def test_scores_of_a_map_that_knows_and_of_one_that_does_not(truth):
    folder, _, studies = truth
    phrases = load_phrases(folder, studies)
    maps = uniform(studies)
    # the 40 x 20 image stands in the middle of a 40 x 40 square; its lower right quarter is columns 20 to 29
    right = torch.zeros(16)
    right[[10, 14]] = 1.0  # 4 x 4 patches of 10 pixels: rows 2 and 3, column 2
    maps[0][:] = right
    grounding = ground_phrases(phrases, maps, stored_size=40, image_size=40)
    table = grounding.table
    assert table["phrase"].tolist() == ["Small left effusion", "a small left effusion", "Nodule in the right lung"]
    assert table["hit"].tolist() == [1, 1, 0]
    np.testing.assert_allclose(table["chance"], [200 / 1600, 200 / 1600, 400 / 1600])
    assert table["contrast"].iloc[0] > 2
    assert table["contrast"].iloc[2] == 0
    assert grounding.iou[0].max() > 0.8
    assert grounding.left_out == {
        "image not in this dataset": 1,
        "negated, points at nothing": 1,
        "cut off by the tokenizer": 1,
        "mask outside the crop": 0,
    }
    assert np.isnan(table["control"]).all()


def test_each_word_is_scored_against_the_finding_it_speaks_of(truth):
    folder, _, studies = truth
    phrases = load_phrases(folder, studies)
    square = {"stored_size": 40, "image_size": 40}
    words = report_texts(studies)[0].split()
    corner = torch.zeros(len(words), 16)
    corner[:, 15] = 1.0  # lower right: inside the left effusion, which covers the lower half right of the middle
    corner[0] = 0.0  # a word without a piece
    scores = score_words(phrases, corner, 0, **square)
    spoken = {
        place for phrase in phrases.table.itertuples() if phrase.row == 0 and phrase.mask for place in phrase.positions
    }
    assert {place for place, score in enumerate(scores) if score} == spoken - {0}
    assert len(scores) == len(words)
    assert spoken
    for place in spoken - {0}:
        path, score = scores[place]
        mask = phrase_mask(phrases, path, **square)
        assert path == "masks/left.png"
        expected = score_region(enlarge_map(corner[place], image_size=40), mask)
        assert (score.hit, score.chance, score.contrast) == (expected.hit, expected.chance, expected.contrast)
    cut = score_words(phrases, corner[:2], 0, **square)
    assert len(cut) == 2
    assert score_words(phrases, torch.zeros(3, 16), 0, **square) == [None] * 3


def test_words_that_the_tokenizer_cut_off_are_counted(truth):
    folder, _, studies = truth
    phrases = load_phrases(folder, studies)
    maps = {row: values[:9] for row, values in uniform(studies).items()}
    grounding = ground_phrases(phrases, maps, stored_size=40, image_size=40)
    # the second phrase of image a has words 10 to 13, and one phrase of image b lost its word to cleaning
    assert grounding.left_out["cut off by the tokenizer"] == 2
    assert len(grounding.table) == 2
    cut = {row: values[:0] for row, values in maps.items()}
    with pytest.raises(ValueError, match="nothing can be scored"):
        ground_phrases(phrases, cut, stored_size=40, image_size=40)


def test_a_mask_outside_the_crop_is_counted(truth):
    folder, table, studies = truth
    table.loc[0, "mask"] = "masks/edge.png"
    table.to_parquet(folder / "phrases.parquet")
    phrases = load_phrases(folder, studies)
    grounding = ground_phrases(phrases, uniform(studies), stored_size=40, image_size=32)
    assert grounding.left_out["mask outside the crop"] == 1


def test_phrase_mask_takes_the_road_of_the_image(truth):
    folder, _, studies = truth
    phrases = load_phrases(folder, studies)
    # 40 x 20 pixels stand in the middle of the 40 x 40 square; the crop takes 2 pixels off each side.
    expected = np.zeros((36, 36), bool)
    expected[18:36, 18:28] = True
    found = phrase_mask(phrases, "masks/left.png", stored_size=40, image_size=36)
    assert np.array_equal(found, expected)
    with pytest.raises(DatasetError, match="gone.png"):
        phrase_mask(phrases, "masks/gone.png", stored_size=40, image_size=36)


def test_score_equals_a_slow_loop():
    rng = np.random.default_rng(0)
    heat, mask = rng.normal(size=(12, 9)), rng.uniform(size=(12, 9)) < 0.3
    score = score_region(heat, mask)
    inside = [heat[i, j] for i in range(12) for j in range(9) if mask[i, j]]
    outside = [heat[i, j] for i in range(12) for j in range(9) if not mask[i, j]]
    contrast = (np.mean(inside) - np.mean(outside)) / np.sqrt(np.var(inside) + np.var(outside))
    assert score.contrast == pytest.approx(contrast, rel=1e-9)
    scaled = (heat - heat.min()) / (heat.max() - heat.min())
    for threshold, iou in zip(THRESHOLDS, score.iou, strict=True):
        marked = scaled >= threshold
        assert iou == pytest.approx((marked & mask).sum() / (marked | mask).sum(), abs=1e-12)
    assert score.hit == (heat.max() in inside)
    assert score_region(-heat, mask).contrast == pytest.approx(-contrast)
    assert score.iou[0] == pytest.approx(mask.mean())


def test_blind_maps_hit_as_often_as_chance_says():
    rng = np.random.default_rng(1)
    mask = np.zeros((20, 20), bool)
    mask[3:9, 5:15] = True
    hits = [score_region(rng.normal(size=(20, 20)), mask).hit for _ in range(2000)]
    chance = score_region(rng.normal(size=(20, 20)), mask).chance
    assert chance == pytest.approx(60 / 400)
    assert np.mean(hits) == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 2000))


def test_enlarged_patches_lie_where_the_patches_are():
    values = torch.zeros(12)
    values[7] = 1.0
    image = enlarge_map(values, image_size=24, grid=(3, 4))
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert (row // 8, column // 6) == (1, 3)
    with pytest.raises(ValueError, match="12 patches do not fill a grid of 3 x 3"):
        enlarge_map(values, image_size=24)


@pytest.mark.parametrize(
    ("offset", "peak"), [((0, 0), (11, 15)), ((-0.5, -0.5), (8, 12)), ((0.25, 0), (14, 15)), ((0, -1.0), (12, 9))]
)
def test_an_offset_moves_the_map_by_so_much_of_a_tile(offset, peak):
    """Tiles of 8 x 6 pixels; the centre of the one hot patch lies between rows 11 and 12, and columns 14 and 15."""
    values = torch.zeros(12)
    values[6] = 1.0
    image = enlarge_map(values, image_size=24, grid=(3, 4), offset=offset)
    brightest = np.argwhere(image >= image.max() - 1e-5)
    centre = np.array([12 + 8 * offset[0], 15 + 6 * offset[1]]) - 0.5
    assert np.allclose(brightest.mean(axis=0), centre, atol=0.51)
    assert peak in {tuple(map(int, place)) for place in brightest}


def test_an_offset_of_whole_pixels_is_a_shift_and_the_border_goes_on():
    values = torch.rand(16, generator=torch.Generator().manual_seed(0))
    plain, moved = (enlarge_map(values, image_size=32, offset=offset) for offset in (ON_TILES, (-3 / 8, -1 / 8)))
    assert np.allclose(moved[:-3, :-1], plain[3:, 1:], atol=1e-6)
    assert np.allclose(moved[-3:, :-1], plain[-1, 1:], atol=1e-6)
    assert np.allclose(enlarge_map(values, image_size=32, offset=(1e-9, 0)), plain, atol=1e-6)


def test_with_an_offset_masks_and_maps_move_together():
    """What a patch covers is where its value is drawn: a mask that is one moved patch is hit, its share is one."""
    mask = np.zeros((32, 32), bool)
    mask[5:13, 15:23] = True  # patch (1, 2) of 4 x 4, three pixels up and one to the left
    moved = (-3 / 8, -1 / 8)
    shares = perfect_map(mask, 16, offset=moved)
    assert shares.tolist() == pytest.approx([1.0 if patch == 6 else 0.0 for patch in range(16)], abs=1e-5)
    assert perfect_map(mask, 16)[6] == pytest.approx(5 / 8 * 7 / 8, abs=1e-6)
    assert score_region(enlarge_map(shares, image_size=32, offset=moved), mask).hit
    corner = np.zeros((32, 32), bool)
    corner[-2:, -2:] = True
    assert can_hit(corner, 16, offset=moved)
    edge = np.zeros((32, 32), bool)
    edge[8] = True  # between the centres 3.5 and 11.5 of the tiles; 8.5 when they move by three
    assert not can_hit(edge, 16)
    assert can_hit(edge, 16, offset=moved)
    with pytest.raises(ValueError, match="do not fill"):
        enlarge_map(torch.zeros(5), image_size=8, offset=(0.5, 0.5))


def test_half_a_pixel_divides_a_pixel_between_two_patches():
    mask = np.zeros((8, 8), bool)
    mask[:, 3] = True  # tiles end at 4 and, moved by half a pixel, at 3.5
    assert perfect_map(mask, 4).tolist() == [0.25, 0, 0.25, 0]
    # The upper two tiles reach half a pixel out of the film.
    assert perfect_map(mask, 4, offset=(-1 / 8, -1 / 8)).tolist() == pytest.approx([7 / 64, 7 / 64, 1 / 8, 1 / 8])


def test_phrase_map_is_a_mean_over_real_words():
    maps = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert phrase_map(maps, (0, 1, 2, 5)).tolist() == [0.5, 0.5]
    assert phrase_map(maps, (2, 5)) is None
    assert phrase_map(maps, ()) is None


def many(n, *, know, tmp_path):
    """Phrases of ``n`` patients, two each, with one patch as mask; the maps know the patch or the usual place."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "many"
    folder.mkdir()
    rows, maps = [], {}
    for row in range(n):
        patch = int(rng.choice([0, 5, 10, 15]))
        mask = np.zeros((16, 16), np.uint8)
        mask[patch // 4 * 4 : patch // 4 * 4 + 4, patch % 4 * 4 : patch % 4 * 4 + 4] = 255
        Image.fromarray(mask).save(folder / f"{row}.png")
        values = torch.full((2, 16), 0.01)
        values[:, patch if know else 5] = 1
        maps[row] = values
        for position in (0, 1):
            rows.append((row, f"p{row}", "nodule", "word", False, False, f"{row}.png", (position,), "left", "upper"))
    columns = ["row", "patient_id", "finding", "phrase", "uncertain", "negated", "mask", "positions", "side", "zone"]
    phrases = Phrases(pd.DataFrame(rows, columns=columns), Path(folder), {})
    return ground_phrases(phrases, maps, stored_size=16, image_size=16)


@pytest.mark.parametrize(
    ("peak", "hit", "near"),
    [((40, 40), True, True), ((40, 53), False, True), ((40, 54), False, False), ((53, 52), False, False)],
)
def test_a_maximum_beside_the_mask_is_near(peak, hit, near):
    """A block of 11 x 11 of 96 pixels, from 40 to 50 on both axes: three pixels away is near, four is not.

    Nor is the corner's neighbour three down and two to the right, which lies 3.6 away.
    """
    mask, heat = np.zeros((96, 96), dtype=bool), np.zeros((96, 96))
    mask[40:51, 40:51] = True
    heat[peak] = 1.0
    score = score_region(heat, mask)
    assert (score.hit, score.near) == (hit, near)
    own = np.argwhere(mask)
    slow = [np.hypot(*(own - place).T).min() <= 3 for place in np.ndindex(96, 96)]
    assert score.near_chance == pytest.approx(np.mean(slow))
    assert score.chance == pytest.approx(121 / 96**2)


def test_near_is_summed_up_with_its_own_chance_and_control(tmp_path):
    """64 pixels, so two are near; the patch is brightest in column 27 or 28, one or two beside the first two masks."""
    rows, maps, shares = [], {}, []
    for row, (top, left) in enumerate(((20, 29), (22, 29), (0, 0))):
        mask = np.zeros((64, 64), np.uint8)
        mask[top : top + 16, left : left + 12] = 255
        Image.fromarray(mask).save(tmp_path / f"{row}.png")
        maps[row] = torch.full((1, 64), 0.01)
        maps[row][0, 27] = 1
        own = np.argwhere(mask)
        shares.append(np.mean([np.hypot(*(own - place).T).min() <= 2 for place in np.ndindex(64, 64)]))
        rows.append((row, f"p{row}", "pneumothorax", "word", False, False, f"{row}.png", (0,), "left", "apical"))
    columns = ["row", "patient_id", "finding", "phrase", "uncertain", "negated", "mask", "positions", "side", "zone"]
    phrases = Phrases(pd.DataFrame(rows, columns=columns), tmp_path, {})
    grounding = ground_phrases(phrases, maps, stored_size=64, image_size=64)
    part = summarise_grounding(grounding, resamples=10)["pneumothorax"]
    assert part.pointing.mean == 0
    assert part.near.mean == pytest.approx(2 / 3)
    assert part.near_chance == pytest.approx(np.mean(shares))
    assert part.near_control == pytest.approx(np.mean([0.5, 0.5, 1.0]))


def test_what_only_follows_the_side_is_no_better_than_its_place_control(tmp_path):
    """Two patients a side, in different corners of it; the map always takes the upper one of the side in the phrase."""
    rows, maps = [], {}
    for row, (side, quarter, looks) in enumerate((("left", 1, 1), ("left", 3, 1), ("right", 0, 0), ("right", 2, 0))):
        mask = np.zeros((16, 16), np.uint8)
        mask[quarter // 2 * 8 :, quarter % 2 * 8 :][:8, :8] = 255
        Image.fromarray(mask).save(tmp_path / f"{row}.png")
        maps[row] = torch.full((1, 4), 0.01)
        maps[row][0, looks] = 1
        rows.append((row, f"p{row}", "nodule", "word", False, False, f"{row}.png", (0,), side, ""))
    columns = ["row", "patient_id", "finding", "phrase", "uncertain", "negated", "mask", "positions", "side", "zone"]
    grounding = ground_phrases(
        Phrases(pd.DataFrame(rows, columns=columns), tmp_path, {}), maps, stored_size=16, image_size=16
    )
    assert grounding.table["hit"].tolist() == [1, 0, 1, 0]
    np.testing.assert_allclose(grounding.table["control"], [0, 1 / 3, 0, 1 / 3])
    assert grounding.table["place_control"].tolist() == [0, 1, 0, 1]
    part = summarise_grounding(grounding, resamples=10)["nodule"]
    assert part.pointing.mean == part.place_control == 0.5
    assert part.control == pytest.approx(1 / 6)
    apart = [(*row[:-1], f"zone {number}") for number, row in enumerate(rows)]
    alone = ground_phrases(
        Phrases(pd.DataFrame(apart, columns=columns), tmp_path, {}), maps, stored_size=16, image_size=16
    )
    assert alone.table["place_control"].isna().all()
    assert alone.table["control"].notna().all()


def test_control_tells_knowledge_from_habit(tmp_path):
    (tmp_path / "k").mkdir()
    knows = summarise_grounding(many(40, know=True, tmp_path=tmp_path / "k"), resamples=100)["nodule"]
    habit = summarise_grounding(many(40, know=False, tmp_path=tmp_path), resamples=100)["nodule"]
    assert knows.pointing.mean == 1
    assert knows.control == pytest.approx(0.25, abs=0.05)
    assert habit.pointing.mean == pytest.approx(habit.control, abs=0.05)
    assert habit.pointing.low > habit.chance == pytest.approx(1 / 16)


def test_summary_counts_patients_not_phrases(tmp_path):
    grounding = many(12, know=True, tmp_path=tmp_path)
    grounding.table["hit"] = [1.0, 0.0] * 6 + [1.0, 1.0] * 6
    summary = summarise_grounding(grounding, resamples=100)
    assert set(summary) == {"all", "nodule"}
    part = summary["all"]
    assert part.pointing.mean == pytest.approx(0.75)
    assert part.pointing.n == part.contrast.n == part.iou.n == 12
    assert part.phrases == 24
    means = grounding.iou.mean(axis=0)
    assert part.threshold == THRESHOLDS[means.argmax()]
    assert part.iou.mean == pytest.approx(means.max())
    assert part.iou_chance == pytest.approx(1 / 16)


@pytest.mark.parametrize(
    ("heat", "mask", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 3), bool), "shape"),
        (np.zeros((2, 2)), np.zeros((2, 2), bool), "covers 0 of 4"),
        (np.zeros((2, 2)), np.ones((2, 2), bool), "covers 4 of 4"),
        (np.full((2, 2), np.nan), np.eye(2, dtype=bool), "not finite"),
    ],
)
def test_bad_maps_are_refused(heat, mask, message):
    with pytest.raises(ValueError, match=message):
        score_region(heat, mask)


def test_word_maps_are_the_softmax_over_patches_of_each_report_alone(tmp_path):
    studies = tiny_studies(tmp_path / "tiny", train=6, valid=1, test=1).split("train")
    config, tokenizer = tiny_config(token_temperature=0.3), tiny_tokenizer(studies)
    model = build_model(config, tokenizer, seed=0)
    transform = ImageTransform(config.model.stored_size, config.model.image_size)
    pairs = PairImages(studies, tokenizer, transform, max_pieces=40, seed=0)
    maps = word_maps(model, pairs, batch_size=4)
    assert sorted(maps) == list(range(6))
    model.eval()
    for row, text in enumerate(report_texts(studies)):
        assert len(maps[row]) == len(text.split())
        batch = pairs.collate([pairs[row]])
        with torch.no_grad():
            words, patches = model.encode_report(batch).local[0], model.encode_image(batch.images).local[0]
        expected = torch.stack([torch.softmax(patches @ word / 0.3, dim=0) for word in words])
        torch.testing.assert_close(maps[row], expected, rtol=1e-3, atol=1e-6)


def test_word_maps_end_where_the_tokenizer_cut(tmp_path):
    studies = tiny_studies(tmp_path / "tiny", train=4, valid=1, test=1).split("train")
    config, tokenizer = tiny_config(), tiny_tokenizer(studies)
    transform = ImageTransform(config.model.stored_size, config.model.image_size)
    pairs = PairImages(studies, tokenizer, transform, max_pieces=5, seed=0)
    maps = word_maps(build_model(config, tokenizer, seed=0), pairs)
    lengths = [int(pairs.tokens.report(row)[1].max()) + 1 for row in range(4)]
    assert [len(maps[row]) for row in range(4)] == lengths
    assert max(lengths) <= 3


# ---- the best possible map, and boxes


def test_a_perfect_map_by_hand():
    """Mask of 8 x 8: the upper left quarter, and one column of four pixels in the lower right one."""
    mask = np.zeros((8, 8), bool)
    mask[:4, :4] = True
    mask[4:, 6] = True
    assert perfect_map(mask, 4).tolist() == [1.0, 0.0, 0.0, 0.25]
    assert perfect_map(mask[:, :4], 2, grid=(2, 1)).tolist() == [1.0, 0.0]


def test_no_map_hits_what_cannot_be_hit():
    """3 x 3 patches of 12 x 12 pixels: the brightest pixel of a random map is one of the four around a centre."""
    rng = np.random.default_rng(0)
    reachable = np.zeros((12, 12), bool)
    for row, column in np.ndindex(12, 12):
        mask = np.zeros((12, 12), bool)
        mask[row, column] = True
        reachable[row, column] = can_hit(mask, 9)
    middle = np.array([0, 1, 5, 6, 10, 11])  # at the border all pixels out to it are as bright
    assert np.array_equal(np.argwhere(reachable.any(axis=0)).ravel(), middle)
    assert np.array_equal(reachable, np.isin(np.arange(12), middle)[:, None] & np.isin(np.arange(12), middle))
    seen = set()
    for _ in range(500):
        heat = enlarge_map(torch.from_numpy(rng.normal(size=9)).float(), image_size=12)
        seen.add(np.unravel_index(heat.argmax(), heat.shape))
    assert all(reachable[peak] for peak in seen)
    assert {(5, 5), (5, 6), (6, 5), (6, 6)} <= {tuple(map(int, peak)) for peak in seen}
    tall = np.zeros((12, 12), bool)
    tall[:, 3] = True  # the right edge of the first column of patches
    assert not can_hit(tall, 9)
    assert can_hit(tall, 12, grid=(1, 12))


def test_the_ceiling_is_the_hit_rate_of_the_best_maps(truth):
    """With 4 x 4 patches of 10 pixels, a quarter of the film is hit, and a column at the edge of its patch is not."""
    folder, _, studies = truth
    thin = np.zeros((40, 20), np.uint8)
    thin[:, 9] = 255  # column 19 of the square: the right edge of a patch of 10
    Image.fromarray(thin).save(folder / "masks" / "lung.png")
    phrases = load_phrases(folder, studies)
    scored = ground_phrases(phrases, uniform(studies), stored_size=40, image_size=40)
    by_finding = scored.table.groupby("finding")["ceiling"].mean().to_dict()
    assert by_finding == {"nodule": 0.0, "pleural effusion": 1.0}
    summary = summarise_grounding(scored)
    assert (summary["nodule"].ceiling, summary["pleural effusion"].ceiling) == (0.0, 1.0)
    assert summary["all"].ceiling == pytest.approx(0.5)  # of two patients, the mean


@pytest.fixture(scope="module")
def boxed(tmp_path_factory):
    studies = tiny_studies(tmp_path_factory.mktemp("boxed"), train=16, valid=4, test=4)
    return studies, tiny_tokenizer(studies)


def test_boxes_are_scored_with_the_name_of_their_label(boxed):
    """Every film with a box counts once a label; the box lies where the pattern was drawn."""
    studies, tokenizer = boxed
    model = build_model(tiny_config(), tokenizer, seed=0)
    films = studies.split("train")
    films = replace(films, table=films.table.assign(sentences=[[] for _ in range(len(films))]))  # films without reports
    scored = ground_boxes(model, tokenizer, films)
    assert scored.table["row"].tolist() == [1, 5, 9, 13]
    assert set(scored.table["phrase"]) == {"edema"}
    assert scored.left_out == {"images without boxes": 12, "box outside the crop": 0}
    # 44 x 40 pixels, shrunk to 36 wide: factor 36 / 44, two pixels of padding above and below, crop of 2 on each side.
    share = 36 / 44
    left, right = 4 * share - 2, 18 * share - 2
    top, bottom = 4 * share + (36 - round(40 * share)) // 2 - 2, 16 * share + (36 - round(40 * share)) // 2 - 2
    assert scored.table["chance"].iloc[0] == pytest.approx((right - left) * (bottom - top) / 32**2, abs=0.01)
    named = ground_boxes(model, tokenizer, films, texts={"edema": "perihilar haze"})
    assert set(named.table["phrase"]) == {"perihilar haze"}
    assert set(named.table["finding"]) == {"edema"}


def test_two_labels_of_one_film_are_two_rows(boxed):
    studies, tokenizer = boxed
    model = build_model(tiny_config(), tokenizer, seed=0)
    films = studies.split("test")
    boxes = [[] for _ in range(len(films))]
    boxes[2] = [
        {"x": 2.0, "y": 6.0, "w": 10.0, "h": 10.0, "name": "edema"},
        {"x": 30.0, "y": 6.0, "w": 10.0, "h": 10.0, "name": "edema"},
        {"x": 20.0, "y": 30.0, "w": 4.0, "h": 4.0, "name": "consolidation"},
    ]
    scored = ground_boxes(model, tokenizer, replace(films, table=films.table.assign(boxes=boxes)))
    assert scored.table[["row", "finding"]].to_numpy().tolist() == [[2, "consolidation"], [2, "edema"]]
    small, both = scored.table["chance"]
    assert both == pytest.approx(200 / 16 * small, rel=0.35)  # whole pixels of small boxes
    with pytest.raises(ValueError, match="no image has boxes"):
        ground_boxes(model, tokenizer, films.select([0]))


def test_a_patient_counts_once_however_many_phrases_point(tmp_path):
    """By hand: one patient with two phrases that hit, three with one that misses: a quarter, not two fifths."""
    full = many(4, know=True, tmp_path=tmp_path)
    keep = [0, 1, 2, 4, 6]
    part = replace(full, table=full.table.iloc[keep].reset_index(drop=True), iou=full.iou[keep])
    for name in ("hit", "chance", "control", "near", "near_chance", "near_control"):
        part.table[name] = [1.0, 1.0, 0.0, 0.0, 0.0]
    found = summarise_grounding(part, resamples=10)["all"]
    values = (found.pointing.mean, found.chance, found.control, found.near.mean, found.near_chance, found.near_control)
    assert values == (0.25,) * 6


def test_a_gain_is_paired_by_phrase_and_patient(tmp_path):
    """Ten patients with two phrases each; hits by hand, and a bootstrap of the patients' differences beside it."""
    before = many(10, know=True, tmp_path=tmp_path)
    after = replace(before, table=before.table.copy())
    rng = np.random.default_rng(0)
    before.table["hit"], after.table["hit"] = (rng.integers(0, 2, 20).astype(float) for _ in range(2))
    patients = before.table["patient_id"].unique()
    by_hand = [
        after.table.loc[before.table["patient_id"] == name, "hit"].mean()
        - before.table.loc[before.table["patient_id"] == name, "hit"].mean()
        for name in patients
    ]
    found = pointing_gain(after, before, resamples=4000)
    spread = np.std(by_hand) / np.sqrt(10)
    assert (found.mean, found.n) == (pytest.approx(np.mean(by_hand)), 10)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.2)  # ten patients: steps of .05
    assert pointing_gain(before, after, resamples=10).mean == pytest.approx(-found.mean)
    mixed = after.table.sample(frac=1, random_state=0).iloc[:-2]  # another order, and two phrases that it lacks
    common = pointing_gain(replace(after, table=mixed), before, finding="nodule", resamples=10)
    kept = before.table.loc[sorted(mixed.index)]
    gains = (after.table.loc[kept.index, "hit"] - kept["hit"]).groupby(kept["patient_id"]).mean()
    assert common.mean == pytest.approx(gains.mean())
    with pytest.raises(ValueError, match="'edema': the two have no phrase in common"):
        pointing_gain(after, before, finding="edema")
    with pytest.raises(ValueError, match="scored on the same phrases"):
        pointing_gain(replace(after, table=after.table.assign(phrase="another")), before)


def test_a_gain_of_nothing_keeps_a_width(tmp_path):
    """No patient of eight differs: up to z^2 / (8 + z^2) of all patients still may."""
    scored = many(8, know=True, tmp_path=tmp_path)
    found = pointing_gain(scored, scored)
    reach = 1.959964**2 / (8 + 1.959964**2)
    assert (found.mean, found.n) == (0, 8)
    assert (found.low, found.high) == (pytest.approx(-reach, abs=1e-6), pytest.approx(reach, abs=1e-6))


def test_own_masks_are_held_against_those_of_others(tmp_path):
    scored = many(4, know=True, tmp_path=tmp_path)
    scored.table["hit"] = [1, 1, 0, 0, 1, 0, 0, 0]
    scored.table["control"] = [0.5, 0.5, 0.25, 0.25, 0, 0, np.nan, np.nan]
    found = own_gain(scored, resamples=50)
    assert (found.mean, found.n) == (pytest.approx((0.5 - 0.25 + 0.5) / 3), 3)  # the last patient has no others
    scored.table["control"] = np.nan
    assert own_gain(scored) is None
