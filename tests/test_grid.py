"""What a cell of the grid measures: the same numbers as the functions behind it, under flat names."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import tiny_config, tiny_studies, tiny_tokenizer

from mgca_lib import grid
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.tasks import load_picture
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.evaluation.features import embed_pairs, model_pairs
from mgca_lib.evaluation.grounding import ground_boxes, summarise_grounding
from mgca_lib.evaluation.linear_probe import linear_probe
from mgca_lib.evaluation.prototypes import assign_prototypes, cluster_agreement, dominant_finding, kmeans_prototypes
from mgca_lib.evaluation.receptive_field import ON_TILES, patch_offset
from mgca_lib.model import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    studies = tiny_studies(tmp_path_factory.mktemp("grid"), train=48, valid=16, test=48)
    tokenizer = tiny_tokenizer(studies)
    return build_model(tiny_config(), tokenizer, seed=1).eval(), tokenizer, studies


def test_retrieval_by_a_slow_count(setting):
    model, tokenizer, studies = setting
    test = studies.split("test")
    found = grid.measure_retrieval(model, tokenizer, test)
    pairs = PairImages(test, tokenizer, ImageTransform(36, 32), max_pieces=112, seed=0)
    image, report = (np.asarray(part) for part in embed_pairs(model, pairs))
    texts = report_texts(test)
    cosine = report @ image.T / np.linalg.norm(report, axis=1)[:, None] / np.linalg.norm(image, axis=1)
    hits = [any(texts[j] == texts[i] for j in np.argsort(-cosine[i])[:5]) for i in range(len(test))]
    assert found["retrieval/t2i/r@5"].mean == pytest.approx(np.mean(hits))
    assert 5 / len(test) <= found["retrieval/r@5/chance"] < 1


def test_probe_has_every_fraction(setting):
    model, _, studies = setting
    for dataset in ("chexpert", "rsna"):
        found = grid.measure_probe(model, studies, dataset=dataset, seeds=[1, 2])
        assert list(found) == [f"probe/{dataset}/auroc/{part}" for part in ("1%", "10%", "100%")]
        assert all(0 <= cell.low <= cell.mean <= cell.high <= 1 for cell in found.values() if np.isfinite(cell.low))


@pytest.mark.parametrize(("knows", "other"), [("film", "report"), ("report", "film")])
def test_reading_is_of_the_side_that_it_says(setting, monkeypatch, knows, other):
    """One side's vectors hold the label and nothing else, those of the other side are noise."""
    model, tokenizer, studies = setting
    twos = [f"p-{row // 2}" for row in range(len(studies))]  # two films of each patient
    studies = replace(studies, table=studies.table.assign(patient_id=twos))

    def embed(_, pairs):
        label = torch.from_numpy(pairs.studies.labels(["Edema"]) == 1).float()
        noise = torch.randn(len(label), 4, generator=torch.Generator().manual_seed(len(label)))
        vectors = {knows: label * 2 - 1, other: noise}
        return vectors["film"], vectors["report"]

    monkeypatch.setattr(grid, "embed_pairs", embed)
    found = grid.measure_reading(model, tokenizer, studies, findings=["Edema"])
    assert set(found) == {"reading/Edema/film", "reading/Edema/report"}
    cell = found[f"reading/Edema/{knows}"]
    assert (cell.mean, cell.low, cell.high, cell.n) == (1, 1, 1, 24)
    assert 0.2 < found[f"reading/Edema/{other}"].mean < 0.8
    probes = grid.reading_probes(model, tokenizer, studies, findings=["Edema"])
    sure, blind = probes[f"reading/Edema/{knows}"], probes[f"reading/Edema/{other}"]
    gain = sure.interval(blind)
    assert gain.mean == pytest.approx(1 - blind.interval().mean)
    assert gain.low == pytest.approx(1 - blind.interval().high)  # the same resamples on both sides of the difference
    assert (blind.interval(blind).low, blind.interval(blind).high) == (0, 0)


def test_reading_leaves_out_what_a_split_lacks(setting):
    model, tokenizer, studies = setting
    assert set(grid.measure_reading(model, tokenizer, studies, findings=["Edema", "Cardiomegaly"])) == {
        "reading/Edema/film",
        "reading/Edema/report",
    }


PARTS = ("nmi", "nmi_shuffled", "purity", "purity_shuffled")


def test_prototypes_only_where_they_were_trained(setting, monkeypatch):
    model, tokenizer, studies = setting
    monkeypatch.setattr(grid, "CLUSTERS", (5, 7, 1000))  # there are 48 films
    by_means = {"prototypes/kmeans_nmi", "prototypes/kmeans_nmi_shuffled"}
    by_means |= {f"prototypes/kmeans_{k}/{part}" for k in (5, 7) for part in PARTS}
    found = grid.measure_prototypes(
        model, tokenizer, studies.split("test"), findings=["Edema", "Consolidation"], seed=0
    )
    assert set(found) == {f"prototypes/{part}" for part in PARTS} | by_means
    without = build_model(tiny_config(prototype_weight=0.0), tokenizer, seed=1).eval()
    found = grid.measure_prototypes(without, tokenizer, studies.split("test"), findings=["Edema"], seed=0)
    assert set(found) == by_means


def test_boxes_of_labels_with_enough_patients(setting, monkeypatch):
    model, tokenizer, studies = setting
    found = grid.measure_boxes(model, tokenizer, studies.split("test"))
    assert {name.split("/")[1] for name in found} == {"all", "edema"}  # 12 patients
    assert found["boxes/edema/pointing"].n == 12
    assert found["boxes/all/chance"] == pytest.approx(0.12, abs=0.02)
    monkeypatch.setattr(grid, "FEWEST_PATIENTS", 13)
    assert grid.measure_boxes(model, tokenizer, studies.split("test")) == {}


def test_maps_are_scored_where_patches_look(setting):
    model, tokenizer, studies = setting
    test = studies.split("test")
    found = grid.measure_boxes(model, tokenizer, test)
    films = torch.stack([ImageTransform(36, 32)(load_picture(test, row)) for row in range(32)])
    looks = patch_offset(model.image_encoder, films)
    assert looks != ON_TILES
    by_hand, on_tiles = (
        summarise_grounding(ground_boxes(model, tokenizer, test, texts=grid.BOX_TEXTS, offset=offset))["all"]
        for offset in (looks, ON_TILES)
    )
    assert found["boxes/all/contrast"] == by_hand.contrast != on_tiles.contrast
    assert found["boxes/all/pointing"] == by_hand.pointing


@pytest.fixture(scope="module")
def twos(setting):
    """The same studies, with two films of each study and four of each patient."""
    studies = setting[2]
    names = {
        f"{kind}_id": [f"{kind}-{row // each}" for row in range(len(studies))]
        for kind, each in (("study", 2), ("patient", 4))
    }
    return replace(studies, table=studies.table.assign(**names))


def test_intervals_draw_whole_patients(setting, twos):
    model, tokenizer, _ = setting
    found = grid.measure_retrieval(model, tokenizer, twos.split("test"))
    assert {found[f"retrieval/{way}/r@5"].n for way in ("t2i", "i2t")} == {12}
    assert grid.measure_probe(model, twos, seeds=[1])["probe/chexpert/auroc/100%"].n == 12
    assert (
        grid.measure_prototypes(model, tokenizer, twos.split("test"), findings=["Edema"], seed=0)["prototypes/nmi"].n
        == 12
    )


def test_retrieval_from_films_by_a_slow_count(setting):
    model, tokenizer, studies = setting
    test = studies.split("test")
    image, report = (part.numpy() for part in embed_pairs(model, model_pairs(model, tokenizer, test)))
    texts, cosine = report_texts(test), image @ report.T
    hits = [any(texts[j] == texts[i] for j in np.argsort(-cosine[i])[:5]) for i in range(len(test))]
    assert grid.measure_retrieval(model, tokenizer, test)["retrieval/i2t/r@5"].mean == pytest.approx(np.mean(hits))


def test_shares_of_labels_are_what_they_are_called(setting, monkeypatch):
    model, _, studies = setting
    asked = []

    def noting(*parts, fraction, **settings):
        asked.append(fraction)
        return linear_probe(*parts, fraction=fraction, **settings)

    monkeypatch.setattr(grid, "linear_probe", noting)
    grid.measure_probe(model, studies, seeds=[1, 2])
    assert asked == [0.01, 0.1, 1.0]


FEW = ["Edema", "Consolidation", "Cardiomegaly", "Pleural Effusion"]


def test_prototypes_are_judged_by_one_film_of_each_study(setting, twos, monkeypatch):
    model, tokenizer, _ = setting
    test = twos.split("test")
    first = test.select(range(0, 48, 2))
    image, _ = embed_pairs(model, model_pairs(model, tokenizer, first))
    temperature = model.config.alignment.prototype_temperature
    clusters = assign_prototypes(image, model.prototypes, temperature=temperature).cluster
    labels = dominant_finding(first.labels(FEW), FEW)
    same = {"groups": first.table["patient_id"].tolist(), "shuffle_groups": False, "seed": 0}
    own = cluster_agreement(clusters, labels, **same)
    monkeypatch.setattr(grid, "CLUSTERS", (7,))
    found = grid.measure_prototypes(model, tokenizer, test, findings=FEW, seed=0)
    seven = assign_prototypes(image, kmeans_prototypes(image, 7, seed=0)).cluster
    by_means = cluster_agreement(seven, labels, **same)
    assert found["prototypes/kmeans_7/nmi"] == by_means.measures["nmi"]
    assert found["prototypes/kmeans_7/purity"] == by_means.measures["purity"]
    assert found["prototypes/kmeans_7/nmi_shuffled"] == by_means.chance["nmi"]
    assert found["prototypes/kmeans_7/purity_shuffled"] == by_means.chance["purity"]
    assert found["prototypes/nmi"] == own.measures["nmi"]
    assert found["prototypes/purity"] == own.measures["purity"]
    assert found["prototypes/nmi_shuffled"] == own.chance["nmi"]
    assert found["prototypes/purity_shuffled"] == own.chance["purity"]
    assert found["prototypes/nmi"] != found["prototypes/purity"]
