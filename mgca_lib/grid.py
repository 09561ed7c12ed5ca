"""The grid: variants times seeds, each trained alike and measured with the same yardsticks.

``notebooks/grid/one_cell.py`` trains one cell of it, measures it with the functions of this module and writes
``metrics.json``; ``make grid`` runs that notebook for many variants and seeds. :mod:`mgca_lib.grid_results` reads the
cells as one table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mgca_lib.data.pairs import report_texts
from mgca_lib.data.studies import Studies
from mgca_lib.data.tasks import TASKS, Task, TaskImages, load_picture
from mgca_lib.evaluation.features import Features, embed_pairs, extract_features, model_pairs, model_transform
from mgca_lib.evaluation.grounding import (
    GroundingSummary,
    Phrases,
    ground_boxes,
    ground_phrases,
    summarise_grounding,
    word_maps,
)
from mgca_lib.evaluation.intervals import Interval
from mgca_lib.evaluation.linear_probe import ProbeResult, linear_probe, probe_interval
from mgca_lib.evaluation.prototypes import (
    assign_prototypes,
    cluster_agreement,
    dominant_finding,
    kmeans_prototypes,
)
from mgca_lib.evaluation.receptive_field import patch_offset
from mgca_lib.evaluation.retrieval import chance_recall, retrieval_recall
from mgca_lib.model import MGCA

FRACTIONS = {"1%": 0.01, "10%": 0.1, "100%": 1.0}
CLUSTERS = (16, 64, 256)
"""Numbers of k-means clusters that every cell is measured with, whatever its number of prototypes."""
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Lesion",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
"""Labels that clusters are compared with, as in notebook 08."""
BOX_TEXTS = {
    "Effusion": "pleural effusion",
    "Infiltration": "patchy opacity",
    "Mass": "pulmonary mass",
    "Nodule": "pulmonary nodule",
}
"""What is read for a box of NIH ChestX-ray14 whose label is not a phrase of reports; other labels are read as named."""
STATED = MappingProxyType(
    {
        "consolidation": "Consolidation",
        "pleural effusion": "Pleural Effusion",
        "nodule": "Lung Lesion",
        "pneumothorax": "Pneumothorax",
    }
)
"""The four findings that words should point at, and the labels that say whether a report states them."""
FEWEST_PATIENTS = 10
"""Fewer boxed patients with a label get no number of their own."""
_FILMS = 32  # that say where patches look


def measure_probe(
    model: MGCA,
    studies: Studies,
    *,
    dataset: str = "chexpert",
    seeds: Sequence[int],
) -> dict[str, Interval]:
    """Linear probes from the frozen image encoder, as in notebook 07.

    Args:
        model: A pretrained model.
        studies: The whole prepared dataset.
        dataset: Its name: ``"chexpert"`` or ``"rsna"``, the two of the paper's ablation.
        seeds: One draw of the labels each, at 1 % and 10 %.

    Returns:
        ``probe/chexpert/auroc/1%`` and so on.
    """
    task = TASKS[dataset]
    transform = model_transform(model)
    parts = [
        extract_features(model.image_encoder, TaskImages(studies.split(name), task, transform), num_workers=0)
        for name in ("train", "valid", "test")
    ]
    patients = studies.split("test").table["patient_id"].tolist()
    found = {}
    for label, fraction in FRACTIONS.items():
        probe = linear_probe(*parts, task=task, fraction=fraction, seeds=seeds, groups=patients)
        found[f"probe/{dataset}/auroc/{label}"] = Interval(probe.mean, probe.low, probe.high, probe.n)
    return found


def measure_retrieval(model: MGCA, tokenizer: PreTrainedTokenizerBase, test: Studies) -> dict[str, Interval | float]:
    """Recall at 5 among all films and reports of ``test``; equal reports count as correct.

    Returns:
        ``retrieval/t2i/r@5`` and ``retrieval/i2t/r@5`` with bootstrap intervals, and ``retrieval/r@5/chance``.
    """
    pairs = model_pairs(model, tokenizer, test)
    texts = report_texts(test)
    result = retrieval_recall(*embed_pairs(model, pairs), texts=texts, groups=test.table["patient_id"].tolist())
    return {
        "retrieval/t2i/r@5": result.report_to_image[5],
        "retrieval/i2t/r@5": result.image_to_report[5],
        "retrieval/r@5/chance": chance_recall(len(test), texts=texts)[5],
    }


@dataclass(frozen=True)
class ReadingProbe:
    """A linear probe for one finding on the vectors of one model, with what it takes to measure it.

    Attributes:
        probe: Learned from ``train``, its L2 strength chosen on ``valid``.
        present: ``(N, 1)`` 1 where a test study states the finding, else 0.
        task: The finding as a task.
        patients: Patient of each test study.
    """

    probe: ProbeResult
    present: np.ndarray
    task: Task
    patients: tuple[str, ...]

    def interval(self, baseline: "ReadingProbe | None" = None) -> Interval:
        """AUROC on the test studies, or with a baseline the paired gain over it; bootstrap intervals over patients."""
        other = None if baseline is None else baseline.probe
        return probe_interval(self.probe, self.present, self.task, groups=self.patients, baseline=other)


def measure_reading(
    model: MGCA,
    tokenizer: PreTrainedTokenizerBase,
    studies: Studies,
    *,
    findings: Sequence[str] = tuple(STATED.values()),
) -> dict[str, Interval]:
    """AUROC of the probes of :func:`reading_probes`, each with a bootstrap interval over patients."""
    probes = reading_probes(model, tokenizer, studies, findings=findings)
    return {key: one.interval() for key, one in probes.items()}


def reading_probes(
    model: MGCA,
    tokenizer: PreTrainedTokenizerBase,
    studies: Studies,
    *,
    findings: Sequence[str] = tuple(STATED.values()),
) -> dict[str, ReadingProbe]:
    """What the vectors of the common space still say: linear probes for each finding on reports, and on films.

    A report states its findings, so little should be missing from its vector; what alignment made the report encoder
    forget, it cannot teach the film's side.

    Args:
        model: A model, pretrained or not.
        tokenizer: Its tokenizer.
        studies: The whole prepared dataset with reports: the probe learns from ``train``, and ``valid`` chooses its L2
            strength.
        findings: Label names; present counts against all else. One that a split lacks, or that is everywhere in it,
            gets no number.

    Returns:
        ``reading/FINDING/report`` and ``reading/FINDING/film``. Those of two models on the same studies can be compared
        pairwise, see :class:`ReadingProbe`.
    """
    splits = [studies.split(name) for name in ("train", "valid", "test")]
    vectors = [embed_pairs(model, model_pairs(model, tokenizer, split)) for split in splits]
    names = [tuple(split.table["image_id"]) for split in splits]
    patients = tuple(splits[2].table["patient_id"])
    found = {}
    for finding in findings:
        task = Task(studies.root.name, "multilabel", (finding,), "auroc")
        present = [(split.labels([finding]) == 1).astype(np.float32) for split in splits]
        if not all(0 < part.sum() < len(part) for part in present):
            continue
        for side, source in enumerate(("film", "report")):
            parts = [
                Features(own[side].numpy(), stated, ids)
                for own, stated, ids in zip(vectors, present, names, strict=True)
            ]
            probe = linear_probe(*parts, task=task, fraction=1.0, seeds=[0])
            found[f"reading/{finding}/{source}"] = ReadingProbe(probe, present[2], task, patients)
    return found


def measure_grounding(
    model: MGCA, tokenizer: PreTrainedTokenizerBase, test: Studies, phrases: Phrases
) -> dict[str, Interval | float]:
    """Pointing game, contrast and overlap of word maps with the phantom's masks, by finding and for all phrases.

    Each number of a map is drawn where its patch looks, which need not be its tile
    (:func:`mgca_lib.evaluation.receptive_field.patch_offset`).

    Args:
        model: A pretrained model.
        tokenizer: Its tokenizer.
        test: The studies that ``phrases`` belongs to.
        phrases: From :func:`mgca_lib.evaluation.grounding.load_phrases`.

    Returns:
        For each finding: ``grounding/FINDING/pointing``, ``/contrast`` and ``/iou`` with intervals over patients,
        ``/chance`` (of a blind guess) and, where another patient has the finding, ``/control`` (how often the same
        maximum hits the masks of other patients) and ``/place_control`` (of those whose finding lies on the same side
        and in the same zone); ``/near``, ``/near_chance`` and ``/near_control`` count maxima beside the mask, too
        (:data:`mgca_lib.evaluation.grounding.TOLERANCE`). ``looks/rows`` and ``looks/columns``
        say how far down and to the right of its tile a patch looks, in tiles.
    """
    settings = model.config.model
    sizes = {"stored_size": settings.stored_size, "image_size": settings.image_size}
    maps = word_maps(model, model_pairs(model, tokenizer, test))
    looks = patch_offset(model.image_encoder, first_films(model, test))
    found: dict[str, Interval | float] = dict(zip(("looks/rows", "looks/columns"), looks, strict=True))
    scored = ground_phrases(phrases, maps, **sizes, offset=looks)
    return found | _by_finding("grounding", summarise_grounding(scored))


def measure_boxes(model: MGCA, tokenizer: PreTrainedTokenizerBase, films: Studies) -> dict[str, Interval | float]:
    """The same on films of patients: maps of label names against boxes that radiologists drew.

    Args:
        model: A pretrained model.
        tokenizer: Its tokenizer.
        films: Images, some of them with boxes, for example NIH ChestX-ray14.

    Returns:
        As :func:`measure_grounding`, with keys ``boxes/all/...`` and ``boxes/LABEL/...``, for labels with at least
        :data:`FEWEST_PATIENTS` patients.
    """
    looks = patch_offset(model.image_encoder, first_films(model, films))
    parts = summarise_grounding(ground_boxes(model, tokenizer, films, texts=BOX_TEXTS, offset=looks))
    return _by_finding("boxes", {name: part for name, part in parts.items() if part.pointing.n >= FEWEST_PATIENTS})


def measure_prototypes(
    model: MGCA, tokenizer: PreTrainedTokenizerBase, test: Studies, *, findings: Sequence[str], seed: int
) -> dict[str, Interval | float]:
    """Agreement of clusters of test films with their dominant finding, one film a study.

    Clusters are the model's prototypes where it trained them, and as many k-means clusters of the image embeddings in
    any case, so that models with and without prototype alignment can be compared; k-means also with each number of
    clusters in :data:`CLUSTERS`, so that those with different numbers of prototypes can be, too.

    k-means finds its centres among the test films that it is scored on (without their labels), and findings are
    shuffled between studies, not patients. Both hold for every cell of the committed tables, so variants can be
    compared. Notebook 11 fits k-means on training films and shuffles patients; do not hold its numbers against these.

    Returns:
        ``prototypes/nmi`` (equal to the V-measure), ``prototypes/purity``, ``prototypes/nmi_shuffled`` and
        ``prototypes/purity_shuffled``, if prototypes were trained; ``prototypes/kmeans_nmi`` and
        ``prototypes/kmeans_nmi_shuffled`` always; and ``prototypes/kmeans_K/nmi``, ``.../nmi_shuffled``, ``.../purity``
        and ``.../purity_shuffled`` for each K of at most as many films. Cells of the committed tables have no
        ``purity_shuffled``.
    """
    test = test.select(~test.table["study_id"].duplicated().to_numpy())
    image, _ = embed_pairs(model, model_pairs(model, tokenizer, test))
    labels = dominant_finding(test.labels(list(findings)), findings)
    same = {"groups": test.table["patient_id"].tolist(), "shuffle_groups": False, "seed": seed}
    found: dict[str, Interval | float] = {}
    if model.config.alignment.prototype_weight:
        temperature = model.config.alignment.prototype_temperature
        clusters = assign_prototypes(image, model.prototypes, temperature=temperature).cluster
        agreement = cluster_agreement(clusters, labels, **same)
        found["prototypes/nmi"] = agreement.measures["nmi"]
        found["prototypes/purity"] = agreement.measures["purity"]
        found["prototypes/nmi_shuffled"] = agreement.chance["nmi"]
        found["prototypes/purity_shuffled"] = agreement.chance["purity"]
    own = min(model.config.alignment.num_prototypes, len(test))
    for count in dict.fromkeys((own, *(count for count in CLUSTERS if count <= len(test)))):
        by_means = assign_prototypes(image, kmeans_prototypes(image, count, seed=seed)).cluster
        agreement = cluster_agreement(by_means, labels, **same)
        if count == own:
            found["prototypes/kmeans_nmi"] = agreement.measures["nmi"]
            found["prototypes/kmeans_nmi_shuffled"] = agreement.chance["nmi"]
        if count in CLUSTERS:
            found[f"prototypes/kmeans_{count}/nmi"] = agreement.measures["nmi"]
            found[f"prototypes/kmeans_{count}/nmi_shuffled"] = agreement.chance["nmi"]
            found[f"prototypes/kmeans_{count}/purity"] = agreement.measures["purity"]
            found[f"prototypes/kmeans_{count}/purity_shuffled"] = agreement.chance["purity"]
    return found


def first_films(model: MGCA, studies: Studies) -> Tensor:
    """Return the first 32 films as the model reads them: enough to say where its patches look.

    Args:
        model: Names the sizes.
        studies: A prepared dataset or a part of one.

    Returns:
        ``(n, 1, S, S)`` float32, ``n`` at most 32.
    """
    transform = model_transform(model)
    return torch.stack([transform(load_picture(studies, row)) for row in range(min(_FILMS, len(studies)))])


def _by_finding(prefix: str, summaries: dict[str, GroundingSummary]) -> dict[str, Interval | float]:
    found: dict[str, Interval | float] = {}
    for finding, summary in summaries.items():
        key = f"{prefix}/{finding}"
        found[f"{key}/pointing"] = summary.pointing
        found[f"{key}/contrast"] = summary.contrast
        found[f"{key}/iou"] = summary.iou
        found[f"{key}/chance"] = summary.chance
        found[f"{key}/near"] = summary.near
        found[f"{key}/near_chance"] = summary.near_chance
        if np.isfinite(summary.control):
            found[f"{key}/control"] = summary.control
            found[f"{key}/near_control"] = summary.near_control
        if np.isfinite(summary.place_control):
            found[f"{key}/place_control"] = summary.place_control
    return found
