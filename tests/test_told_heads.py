"""Heads that are told the truth: shares by hand, a planted signal that they must find and noise that they cannot."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mgca_lib.data.studies import DatasetError
from mgca_lib.evaluation import told_heads
from mgca_lib.evaluation.grounding import Phrases, ground_findings, ground_phrases, summarise_grounding
from mgca_lib.evaluation.told_heads import finding_maps, patch_shares, train_label_head, train_mask_head

pytestmark = pytest.mark.usefixtures("one_thread")
SQUARE = {"stored_size": 16, "image_size": 16}
FINDINGS = ("edema", "nodule")


def phrases_of(folder, rows):
    """Phrases from (row, finding, mask) with masks as sets of quarters: 0 to 3, row by row."""
    table = []
    for number, (row, finding, quarters) in enumerate(rows):
        name = f"{number}.png" if quarters else ""
        if quarters:
            mask = np.zeros((16, 16), np.uint8)
            for quarter in quarters:
                mask[quarter // 2 * 8 :, quarter % 2 * 8 :][:8, :8] = 255
            Image.fromarray(mask).save(folder / name)
        table.append((row, f"p{row}", finding, finding, False, not quarters, name, (0,), "left", "upper"))
    columns = ["row", "patient_id", "finding", "phrase", "uncertain", "negated", "mask", "positions", "side", "zone"]
    return Phrases(pd.DataFrame(table, columns=columns), folder, {})


def test_shares_by_hand(tmp_path):
    """Two phrases of one finding add up to the larger share; denied findings and other names cover nothing."""
    rows = [(0, "nodule", {0}), (0, "nodule", {3}), (1, "edema", {0, 1}), (1, "nodule", set()), (2, "mass", {0})]
    phrases = phrases_of(tmp_path, rows)
    four = patch_shares(phrases, films=3, patches=4, findings=FINDINGS, **SQUARE)
    expected = torch.zeros(3, 4, 2)
    expected[0, [0, 3], 1] = 1
    expected[1, [0, 1], 0] = 1
    assert torch.equal(four, expected)
    one = patch_shares(phrases, films=3, patches=1, findings=FINDINGS, **SQUARE)
    assert one[:, 0].tolist() == [[0, 0.25], [0.5, 0], [0, 0]]
    (tmp_path / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"0\.png"):
        patch_shares(phrases, films=3, patches=4, findings=FINDINGS, **SQUARE)


def planted(folder, films, *, seed, every=1):
    """A nodule in ``every`` so many-th film, in a quarter at random; its patch differs by one product of two widths."""
    rng = np.random.default_rng(seed)
    quarters = rng.integers(0, 4, films)
    ill = np.arange(0, films, every)
    phrases = phrases_of(folder, [(int(row), "nodule", {int(quarters[row])}) for row in ill])
    signs = rng.choice([-1.0, 1.0], (films, 4, 6))
    signs[..., 1] = -signs[..., 0]
    signs[ill, quarters[ill], 1] *= -1  # only the product of the first two tells: no linear head can
    noise = 0.1 * rng.normal(size=signs.shape)
    return phrases, torch.tensor((signs + noise) * [1, 1, 1, 1, 1, 1000], dtype=torch.float32)


def test_a_planted_sign_is_found_on_other_films_and_noise_is_not(tmp_path):
    hits = {}
    for kind in ("planted", "noise"):
        parts = []
        for name, films in (("train", 192), ("test", 96)):
            folder = tmp_path / f"{kind}-{name}"
            folder.mkdir()
            phrases, patches = planted(folder, films, seed=len(name))
            if kind == "noise":
                patches = torch.randn(patches.shape, generator=torch.Generator().manual_seed(films))
            parts.append((phrases, patches))
        (known, train), (asked, test) = parts
        shares = patch_shares(known, films=192, patches=4, findings=FINDINGS, **SQUARE)
        head = train_mask_head(train, shares, hidden=32, epochs=30, learning_rate=1e-2)
        maps = finding_maps(head, test)
        assert maps.shape == (96, 2, 4)
        assert maps[:, 0].max() < 0.1, "edema was never seen"
        found = ground_findings(asked, maps, FINDINGS, **SQUARE)
        hits[kind] = summarise_grounding(found, resamples=10)["nodule"].pointing.mean
    assert hits["planted"] > 0.95
    assert abs(hits["noise"] - 0.25) < 0.15  # chance; three standard errors are 0.13


def test_labels_of_whole_films_teach_the_place_and_shuffled_ones_do_not(tmp_path):
    """Half of the films are ill. The head is never told where; each film's label must lead it there."""
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    known, train = planted(tmp_path / "train", 384, seed=1, every=2)
    asked, test = planted(tmp_path / "test", 96, seed=2)
    labels = torch.zeros(384, 2, dtype=torch.bool)
    labels[known.table["row"].tolist(), 1] = True
    shuffled = labels[torch.randperm(384, generator=torch.Generator().manual_seed(0))]
    hits = {}
    for name, told in (("own", labels), ("shuffled", shuffled)):
        head = train_label_head(train, told, hidden=32, epochs=30, learning_rate=1e-2)
        found = ground_findings(asked, finding_maps(head, test), FINDINGS, **SQUARE)
        hits[name] = summarise_grounding(found, resamples=10)["nodule"].pointing.mean
    assert hits["own"] > 0.95
    assert abs(hits["shuffled"] - 0.25) < 0.15


def test_the_loss_of_labels_by_hand(monkeypatch):
    """Three patches with odds 1, 3 and 8: the film's odds are their mean, 4, and its loss is log(5) or log(5 / 4)."""
    losses = []

    def watched(patches, targets, loss, **_):
        losses.append(loss(torch.tensor([[[1.0], [3.0], [8.0]]]).log(), targets).item())

    monkeypatch.setattr(told_heads, "train_head", watched)
    for label in (0, 1):
        train_label_head(torch.zeros(1, 3, 2), torch.tensor([[label]]))
    assert losses == pytest.approx([np.log(5), np.log(5 / 4)])


def test_the_same_seed_gives_the_same_head_and_leaves_the_global_one_alone(tmp_path):
    phrases, patches = planted(tmp_path, 48, seed=0)
    shares = patch_shares(phrases, films=48, patches=4, findings=FINDINGS, **SQUARE)
    state = torch.get_rng_state()
    one, two, other = (finding_maps(train_mask_head(patches, shares, seed=seed), patches) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_maps_by_finding_score_as_the_same_maps_by_word(tmp_path):
    phrases = phrases_of(tmp_path, [(0, "nodule", {1}), (1, "edema", {2, 3}), (1, "nodule", {0}), (0, "edema", set())])
    maps = torch.rand(2, 2, 4, generator=torch.Generator().manual_seed(0))
    by_finding = ground_findings(phrases, maps, FINDINGS, **SQUARE)
    for row in (0, 1, 2):
        phrase = phrases.table.loc[row]
        own = Phrases(phrases.table.loc[[row]], tmp_path, {})
        column = FINDINGS.index(phrase["finding"])
        by_word = ground_phrases(own, {phrase["row"]: maps[phrase["row"], column][None]}, **SQUARE)
        columns = ["hit", "chance", "contrast", "ceiling"]
        assert by_word.table[columns].iloc[0].tolist() == by_finding.table[columns].iloc[row].tolist()
    assert by_finding.left_out["negated, points at nothing"] == 1


def test_what_does_not_belong_together_is_refused(tmp_path):
    phrases, patches = planted(tmp_path, 24, seed=0)
    shares = patch_shares(phrases, films=24, patches=4, findings=FINDINGS, **SQUARE)
    with pytest.raises(ValueError, match=r"patches \(24, 4, 6\) and shares \(23, 4, 2\)"):
        train_mask_head(patches, shares[:23])
    with pytest.raises(ValueError, match=r"patches \(24, 4, 6\) and labels \(23, 2\)"):
        train_label_head(patches, torch.zeros(23, 2))
    with pytest.raises(ValueError, match="24 films do not fill a batch of 25"):
        train_mask_head(patches, shares, batch_size=25)
    with pytest.raises(ValueError, match=r"maps must be \(N, 2, P\) for 2 findings, got \(24, 1, 4\)"):
        ground_findings(phrases, torch.rand(24, 1, 4), FINDINGS, **SQUARE)
    with pytest.raises(ValueError, match="'nodule', for which there is no map"):
        ground_findings(phrases, torch.rand(24, 1, 4), ["edema"], **SQUARE)
