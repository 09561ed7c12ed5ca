"""The grid: variants times seeds, each trained alike and measured with the same yardsticks.

Notebook 11 trains one cell of it and writes ``metrics.json``; ``make grid`` runs that notebook for many variants and
seeds; notebooks read the cells as one table. The same seed gives every variant the same data in the same order, so
variants are compared by differences within a seed.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from transformers import PreTrainedTokenizerBase

from mgca_lib.course.summary import METRICS_FILE, read_metrics
from mgca_lib.data.pairs import PairImages, report_texts
from mgca_lib.data.studies import Studies
from mgca_lib.data.tasks import TASKS, TaskImages
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.evaluation.features import embed_pairs, extract_features
from mgca_lib.evaluation.grounding import Phrases, ground_phrases, summarise_grounding, word_maps
from mgca_lib.evaluation.intervals import Interval, t_interval
from mgca_lib.evaluation.linear_probe import linear_probe
from mgca_lib.evaluation.prototypes import assign_prototypes, cluster_agreement, dominant_finding
from mgca_lib.evaluation.retrieval import chance_recall, retrieval_recall
from mgca_lib.model import MGCA

FRACTIONS = {"1%": 0.01, "10%": 0.1, "100%": 1.0}
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
TABLE_COLUMNS = ("variant", "seed", "metric", "value")


def measure_probe(
    model: MGCA, chexpert: Studies, *, seeds: Sequence[int], cache_dir: Path | None = None
) -> dict[str, Interval]:
    """Linear probes on CheXpert from the frozen image encoder, as in notebook 07.

    Args:
        model: A pretrained model.
        chexpert: The whole prepared dataset.
        seeds: One draw of the labels each, at 1 % and 10 %.
        cache_dir: Folder for the features.

    Returns:
        ``probe/chexpert/auroc/1%`` and so on.
    """
    task = TASKS["chexpert"]
    transform = _transform(model)
    parts = [
        extract_features(
            model.image_encoder, TaskImages(chexpert.split(name), task, transform), cache_dir=cache_dir, num_workers=0
        )
        for name in ("train", "valid", "test")
    ]
    found = {}
    for label, fraction in FRACTIONS.items():
        probe = linear_probe(*parts, task=task, fraction=fraction, seeds=seeds)
        found[f"probe/chexpert/auroc/{label}"] = Interval(probe.mean, probe.low, probe.high, probe.n)
    return found


def measure_retrieval(model: MGCA, tokenizer: PreTrainedTokenizerBase, test: Studies) -> dict[str, Interval | float]:
    """Recall at 5 among all films and reports of ``test``; equal reports count as correct.

    Returns:
        ``retrieval/t2i/r@5`` and ``retrieval/i2t/r@5`` with bootstrap intervals, and ``retrieval/r@5/chance``.
    """
    pairs = _pairs(model, tokenizer, test)
    texts = report_texts(test)
    result = retrieval_recall(*embed_pairs(model, pairs), texts=texts, groups=test.table["patient_id"].tolist())
    return {
        "retrieval/t2i/r@5": result.report_to_image[5],
        "retrieval/i2t/r@5": result.image_to_report[5],
        "retrieval/r@5/chance": chance_recall(len(test), texts=texts)[5],
    }


def measure_grounding(
    model: MGCA, tokenizer: PreTrainedTokenizerBase, test: Studies, phrases: Phrases
) -> dict[str, Interval | float]:
    """Pointing game, contrast and overlap of word maps with the phantom's masks, by finding and for all phrases.

    Args:
        model: A pretrained model.
        tokenizer: Its tokenizer.
        test: The studies that ``phrases`` belongs to.
        phrases: From :func:`mgca_lib.evaluation.grounding.load_phrases`.

    Returns:
        For each finding: ``grounding/FINDING/pointing``, ``/contrast`` and ``/iou`` with intervals over patients,
        ``/chance`` (of a blind guess) and, where another patient has the finding, ``/control`` (how often the same
        maximum hits the masks of other patients).
    """
    settings = model.config.model
    sizes = {"stored_size": settings.stored_size, "image_size": settings.image_size}
    maps = word_maps(model, _pairs(model, tokenizer, test))
    found: dict[str, Interval | float] = {}
    for finding, summary in summarise_grounding(ground_phrases(phrases, maps, **sizes)).items():
        key = f"grounding/{finding}"
        found[f"{key}/pointing"] = summary.pointing
        found[f"{key}/contrast"] = summary.contrast
        found[f"{key}/iou"] = summary.iou
        found[f"{key}/chance"] = summary.chance
        if np.isfinite(summary.control):
            found[f"{key}/control"] = summary.control
    return found


def measure_prototypes(
    model: MGCA, tokenizer: PreTrainedTokenizerBase, test: Studies, *, findings: Sequence[str], seed: int
) -> dict[str, Interval | float]:
    """Agreement of clusters of test films with their dominant finding, one film a study.

    Clusters are the model's prototypes where it trained them, and as many k-means clusters of the image embeddings in
    any case, so that models with and without prototype alignment can be compared.

    Returns:
        ``prototypes/nmi`` (equal to the V-measure), ``prototypes/purity`` and ``prototypes/nmi_shuffled``, if
        prototypes were trained; ``prototypes/kmeans_nmi`` and ``prototypes/kmeans_nmi_shuffled`` always.
    """
    test = test.select(~test.table["study_id"].duplicated().to_numpy())
    image, _ = embed_pairs(model, _pairs(model, tokenizer, test))
    labels = dominant_finding(test.labels(list(findings)), findings)
    groups = test.table["patient_id"].tolist()
    found: dict[str, Interval | float] = {}
    if model.config.alignment.prototype_weight:
        temperature = model.config.alignment.prototype_temperature
        clusters = assign_prototypes(image, model.prototypes, temperature=temperature).cluster
        agreement = cluster_agreement(clusters, labels, groups=groups, seed=seed)
        found["prototypes/nmi"] = agreement.measures["nmi"]
        found["prototypes/purity"] = agreement.measures["purity"]
        found["prototypes/nmi_shuffled"] = agreement.chance["nmi"]
    count = min(model.config.alignment.num_prototypes, len(test))
    unit = F.normalize(torch.as_tensor(image), dim=-1).numpy()
    by_means = KMeans(count, n_init=4, random_state=seed).fit_predict(unit)
    agreement = cluster_agreement(by_means, labels, groups=groups, seed=seed)
    found["prototypes/kmeans_nmi"] = agreement.measures["nmi"]
    found["prototypes/kmeans_nmi_shuffled"] = agreement.chance["nmi"]
    return found


def grid_table(folder: str | Path) -> pd.DataFrame:
    """Read every finished cell below ``folder/VARIANT/seed-N/metrics.json``.

    Args:
        folder: For example ``outputs/demo/grid``.

    Returns:
        One row a number: ``variant``, ``seed``, ``metric``, ``value`` (the mean, where the cell has an interval);
        empty where there is no cell.
    """
    rows = []
    for path in sorted(Path(folder).glob(f"*/seed-*/{METRICS_FILE}")):
        content = read_metrics(path.parent)
        seed = content["provenance"]["seed"]
        for metric, value in content["metrics"].items():
            number = value["mean"] if isinstance(value, dict) else value
            rows.append((path.parent.parent.name, seed, metric, float(number)))
    return pd.DataFrame(rows, columns=list(TABLE_COLUMNS))


def paired_differences(table: pd.DataFrame, baseline: str, metric: str) -> pd.DataFrame:
    """Difference of every variant to a baseline, within each seed.

    Args:
        table: From :func:`grid_table`.
        baseline: Variant that the others are held against.
        metric: Name of a metric.

    Returns:
        One row a variant: ``variant``, ``mean``, ``low``, ``high`` (95 % t interval over the seeds that both have;
        NaN with fewer than two) and ``n``, its number of seeds. Variants without a common seed are left out.

    Raises:
        ValueError: the baseline has no cell with that metric.

    >>> rows = [("all", 1, "auroc", 0.7), ("all", 2, "auroc", 0.8), ("ita", 1, "auroc", 0.6), ("ita", 2, "auroc", 0.7)]
    >>> paired_differences(pd.DataFrame(rows, columns=list(TABLE_COLUMNS)), "all", "auroc")["mean"].round(3).tolist()
    [-0.1]
    """
    by_seed = table[table["metric"] == metric].pivot_table(index="seed", columns="variant", values="value")
    if baseline not in by_seed:
        raise ValueError(f"no cell of {baseline!r} has the metric {metric!r}; found {sorted(by_seed)}")
    rows = []
    for variant in by_seed.columns.drop(baseline):
        differences = (by_seed[variant] - by_seed[baseline]).dropna().tolist()
        if not differences:
            continue
        spread = t_interval(differences) if len(differences) > 1 else Interval(differences[0], np.nan, np.nan, 1)
        rows.append((variant, spread.mean, spread.low, spread.high, spread.n))
    return pd.DataFrame(rows, columns=["variant", "mean", "low", "high", "n"])


def _transform(model: MGCA) -> ImageTransform:
    return ImageTransform(model.config.model.stored_size, model.config.model.image_size)


def _pairs(model: MGCA, tokenizer: PreTrainedTokenizerBase, test: Studies) -> PairImages:
    return PairImages(test, tokenizer, _transform(model), max_pieces=model.config.model.max_pieces, seed=0)
