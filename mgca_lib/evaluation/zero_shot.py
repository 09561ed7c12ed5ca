"""Zero-shot classification: can a film be named by sentences alone, without a single label?

Sentences about each class pass through the report encoder like any report; a film is of the class whose
sentences it resembles. The published MGCA code has no zero-shot evaluation; this follows what ConVIRT and GLoRIA
made usual, with prompts of its own wording:

- *pairs*: one question a finding, "present or absent?", answered by the softmax over a positive and a negative
  sentence (macro AUROC);
- *exclusive classes*: one question a film, "which of these?", on films that show exactly one of them, such as
  CheXpert 5x200 (accuracy).
"""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from mgca_lib.data.reports import clean_sentences
from mgca_lib.data.studies import TABLE_FILE, DatasetError, Studies
from mgca_lib.data.tasks import DISEASES, TASKS, Task
from mgca_lib.data.tokenization import NO_WORD, tokenize_reports
from mgca_lib.evaluation.features import Features, encoder_device, frozen
from mgca_lib.evaluation.intervals import Interval, bootstrap_interval
from mgca_lib.evaluation.linear_probe import rank_auroc, score
from mgca_lib.model import MGCA

FIVE_CLASSES = TASKS["chexpert"].classes


class PromptError(ValueError):
    """A prompt set is incomplete or a prompt cannot be read by the model; the message names set and prompt."""


@dataclass(frozen=True)
class PromptSet:
    """Prompts of each class, as sentences of a report.

    Attributes:
        name: Name of the set, for messages and as the name of its task.
        positive: For each class the prompts that say it is there; the order of the classes is the order of the
            columns of every score.
        negative: For each class the prompts that say it is not there. Without any the classes are exclusive.

    Raises:
        PromptError: there is no class, a class has no prompt or one twice, or positive and negative prompts are
            of different classes.

    >>> prompts = PromptSet("toy", {"Edema": ("There is edema.",)}, {"Edema": ("No edema.", "No congestion.")})
    >>> prompts.task.kind, prompts.task.metric
    ('multilabel', 'auroc')
    """

    name: str
    positive: Mapping[str, Sequence[str]]
    negative: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.positive:
            raise PromptError(f"prompt set {self.name!r} has no class")
        if self.negative and tuple(self.negative) != tuple(self.positive):
            raise PromptError(
                f"prompt set {self.name!r}: positive prompts are of {', '.join(self.positive)}, negative ones of "
                f"{', '.join(self.negative)}; give both for the same classes in the same order"
            )
        for kind, part in (("positive", self.positive), ("negative", self.negative)):
            for label, prompts in part.items():
                where = f"prompt set {self.name!r}, {kind} prompts of {label!r}"
                if isinstance(prompts, str) or not len(prompts):
                    raise PromptError(f"{where}: expected one sentence or more in a tuple, found {prompts!r}")
                if len(set(prompts)) < len(prompts):
                    raise PromptError(f"{where}: a prompt occurs twice and would count twice")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the scores."""
        return tuple(self.positive)

    @property
    def task(self) -> Task:
        """The task that these prompts answer, for `mgca_lib.data.tasks.task_targets`."""
        if self.negative:
            return Task(self.name, "multilabel", self.classes, "auroc")
        return Task(self.name, "multiclass", self.classes, "accuracy")

    def only(self, classes: Sequence[str]) -> "PromptSet":
        """Return the prompts of these classes alone, in this order.

        Raises:
            PromptError: the set has no prompts of a class.
        """
        for label in classes:
            if label not in self.positive:
                raise PromptError(
                    f"prompt set {self.name!r} has no class {label!r}; there are {', '.join(self.classes)}"
                )
        negative = {label: self.negative[label] for label in classes} if self.negative else {}
        return PromptSet(self.name, {label: self.positive[label] for label in classes}, negative)


def combine(severities: Sequence[str], kinds: Sequence[str], locations: Sequence[str]) -> tuple[str, ...]:
    """Write one prompt for each combination of severity, kind and location; ``""`` leaves a part out.

    GLoRIA draws five such prompts a class at random. Here all of them are used, so that the result does not
    depend on a draw.

    >>> combine(("", "small"), ("pleural effusion",), ("on the left",))
    ('pleural effusion on the left', 'small pleural effusion on the left')
    """
    return tuple(" ".join(part for part in parts if part) for parts in product(severities, kinds, locations))


_BASES = ("at the left base", "at the right base", "at both lung bases")
_LOBES = ("in the right lower lobe", "in the left lower lobe", "in the right upper lobe", "in both lungs")

EXCLUSIVE_PROMPTS: dict[str, tuple[str, ...]] = {
    "Atelectasis": combine(("", "mild", "patchy"), ("atelectasis", "subsegmental atelectasis"), _BASES),
    "Cardiomegaly": combine(("mild", "moderate", "severe"), ("cardiomegaly", "enlargement of the heart"), ("",))
    + ("the heart is enlarged", "the cardiac silhouette is enlarged"),
    "Consolidation": combine(("", "dense", "patchy"), ("consolidation", "airspace consolidation"), _LOBES),
    "Edema": combine(("", "mild", "moderate", "severe"), ("pulmonary edema", "interstitial edema"), ("",)),
    "Lung Lesion": combine(("", "small", "solitary"), ("pulmonary nodule", "lung nodule"), _LOBES[:3]),
    "Pleural Effusion": combine(
        ("", "small", "moderate", "large"), ("pleural effusion",), ("on the left", "on the right")
    )
    + ("bilateral pleural effusions",),
    "Pneumonia": combine(("", "early", "extensive"), ("pneumonia", "bronchopneumonia"), _LOBES),
    "Pneumothorax": combine(("", "small", "moderate", "large"), ("pneumothorax",), ("on the left", "on the right"))
    + ("apical pneumothorax",),
}
"""Severity x kind x location for each of `mgca_lib.data.tasks.DISEASES`; own wording."""

_NOUNS = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Consolidation": "consolidation",
    "Edema": "pulmonary edema",
    "Lung Lesion": "pulmonary nodule",
    "Pleural Effusion": "pleural effusion",
    "Pneumonia": "pneumonia",
    "Pneumothorax": "pneumothorax",
}
_COUNTABLE = ("Lung Lesion", "Pleural Effusion", "Pneumothorax")
# Reports also deny a finding by describing the normal.
_NORMAL = {
    "Atelectasis": ("The lungs are well expanded.",),
    "Cardiomegaly": ("The heart is normal in size.", "Heart size is normal."),
    "Consolidation": ("The lungs are clear.",),
    "Edema": ("The pulmonary vasculature is normal.",),
    "Lung Lesion": ("No nodule or mass.",),
    "Pleural Effusion": ("The costophrenic angles are sharp.",),
    "Pneumonia": ("The lungs are clear.",),
    "Pneumothorax": ("Both lungs are fully expanded.",),
}


def template_pairs(
    name: str, positive: Sequence[str], negative: Sequence[str], *, classes: Sequence[str] = FIVE_CLASSES
) -> PromptSet:
    """Write the same sentences for each class: what wording is worth, with all else equal.

    Args:
        name: Name of the set.
        positive: Sentences in which ``{finding}`` stands for the noun of a class (lower case) and ``{a}`` for its
            article, a blank included (empty where the noun takes none).
        negative: Likewise. Here ``{finding}`` may be missing, as in "The lungs are clear."
        classes: Some of `mgca_lib.data.tasks.DISEASES`.

    Raises:
        PromptError: a class has no noun, a positive sentence does not name the finding, or a sentence has another
            field.

    >>> prompts = template_pairs("toy", ["There is {a}{finding}."], ["No {finding}."], classes=["Pleural Effusion"])
    >>> prompts.positive["Pleural Effusion"], prompts.negative["Pleural Effusion"]
    (('There is a pleural effusion.',), ('No pleural effusion.',))
    """
    for template in positive:
        if "{finding}" not in template:
            raise PromptError(f"prompt set {name!r}: positive sentence {template!r} does not name the {{finding}}")
    return PromptSet(
        name,
        {label: tuple(_sentence(name, template, label) for template in positive) for label in classes},
        {label: tuple(_sentence(name, template, label) for template in negative) for label in classes},
    )


def _sentence(name: str, template: str, label: str) -> str:
    if label not in _NOUNS:
        raise PromptError(f"prompt set {name!r}: no noun for {label!r}; there are {', '.join(_NOUNS)}")
    try:
        return template.format(finding=_NOUNS[label], a="a " if label in _COUNTABLE else "")
    except (KeyError, IndexError, ValueError):
        raise PromptError(f"prompt set {name!r}: {template!r} may hold {{finding}} and {{a}} only") from None


def _pairs(name: str, classes: Sequence[str]) -> PromptSet:
    prompts = template_pairs(
        name,
        ("There is {a}{finding}.", "Findings are consistent with {a}{finding}."),
        ("No {finding}.", "There is no evidence of {finding}."),
        classes=classes,
    )
    return PromptSet(name, prompts.positive, {label: (*prompts.negative[label], *_NORMAL[label]) for label in classes})


PROMPT_SETS: dict[str, PromptSet] = {
    prompts.name: prompts
    for prompts in (
        _pairs("chexpert", FIVE_CLASSES),
        PromptSet("chexpert_5x200", {label: EXCLUSIVE_PROMPTS[label] for label in FIVE_CLASSES}),
        _pairs("findings", DISEASES),
        PromptSet("findings_exclusive", {label: EXCLUSIVE_PROMPTS[label] for label in DISEASES}),
        PromptSet(
            "covidx",
            {
                "normal": ("The lungs are clear.", "No acute cardiopulmonary process.", "Normal chest radiograph."),
                "pneumonia": EXCLUSIVE_PROMPTS["Pneumonia"],
                "COVID-19": combine(
                    ("", "scattered", "multifocal"),
                    ("ground-glass opacities", "hazy opacities"),
                    ("in both lungs", "in the periphery of both lungs"),
                ),
            },
        ),
    )
}
"""The built-in sets by name. Class names are label names of the prepared tables: ``chexpert`` and ``chexpert_5x200``
hold the five competition labels, ``findings`` and ``findings_exclusive`` every disease that the phantoms show
(their nodules are Lung Lesion), ``covidx`` the three classes of that task, its COVID-like opacities included.
Foreign objects are no label of any table."""


@dataclass(frozen=True)
class ClassVectors:
    """The prompts of each class as one unit vector.

    Attributes:
        task: Kind and names of the classes.
        positive: ``(C, D)`` float32.
        negative: ``(C, D)`` float32 for pairs; ``None`` for exclusive classes.
    """

    task: Task
    positive: Tensor
    negative: Tensor | None


@dataclass(frozen=True)
class ZeroShotResult:
    """Zero-shot classification of one test set; all intervals are 95 % bootstrap intervals over films.

    Attributes:
        auroc: Macro average over the classes that can be scored; one class against the rest for exclusive
            classes. Chance is 0.5.
        accuracy: Share of films whose highest score is of their class; ``None`` for pairs.
        majority: Accuracy of always naming the most frequent class, the level to beat; ``1 / C`` where classes
            are balanced, as in 5x200. ``None`` for pairs.
        per_class: AUROC of each class that can be scored.
        left_out: Classes without both positive and negative films.
        scores: ``(N, C)`` float64 probabilities.
    """

    auroc: Interval
    accuracy: Interval | None
    majority: float | None
    per_class: dict[str, Interval]
    left_out: tuple[str, ...]
    scores: np.ndarray = field(repr=False, compare=False)


@torch.inference_mode()
def encode_prompts(
    model: MGCA, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], *, batch_size: int = 64
) -> Tensor:
    """Encode sentences as if each were a whole report.

    They are cleaned like reports first (lower case, no punctuation), since that is all the encoder has ever
    seen.

    Args:
        model: A model; it works where it is, in eval mode and float32, and gets its training mode back.
        tokenizer: The tokenizer that it was trained with.
        prompts: One text each; several sentences are joined.
        batch_size: Prompts at a time; the result does not depend on it.

    Returns:
        ``(P, D)`` float32 unit vectors in the joint space, on the CPU.

    Raises:
        PromptError: there is no prompt, nothing of a prompt is left after cleaning (a sentence of one word is
            dropped, as in reports), or it is longer than ``max_pieces``.

    Warns:
        UserWarning: the tokenizer does not know a word of a prompt.
    """
    if isinstance(prompts, str) or not len(prompts):
        raise PromptError("expected a sequence of one prompt or more")
    words = [" ".join(clean_sentences(findings=prompt, impression="")).split() for prompt in prompts]
    for prompt, kept in zip(prompts, words, strict=True):
        if not kept:
            raise PromptError(
                f"prompt {prompt!r}: nothing is left after cleaning; write a sentence of two words or more"
            )
    limit = model.config.model.max_pieces
    tokens = tokenize_reports(tokenizer, words, max_pieces=limit)
    if tokens.truncated.any():
        prompt = prompts[int(tokens.truncated.argmax())]
        raise PromptError(f"prompt {prompt!r}: longer than the {limit} word pieces that the model reads; shorten it")
    _warn_of_unknown_words(tokenizer, [tokens.report(row) for row in range(len(tokens))], words)
    device = encoder_device(model)
    vectors = []
    with frozen(model), torch.autocast(device.type, enabled=False):
        for rows in torch.arange(len(words)).split(batch_size):
            parts = [[torch.from_numpy(part).long() for part in tokens.report(int(row))] for row in rows]
            pieces = pad_sequence([part[0] for part in parts], batch_first=True, padding_value=tokenizer.pad_token_id)
            word_ids = pad_sequence([part[1] for part in parts], batch_first=True, padding_value=NO_WORD)
            lengths = torch.tensor([len(part[0]) for part in parts])
            keep = torch.arange(pieces.shape[1]) < lengths[:, None]
            encoded = model.report_encoder(
                pieces.to(device), keep.to(device), word_ids.to(device), int(word_ids.max()) + 1
            )
            vectors.append(model.report_global(encoded.pooled).float().cpu())
    return torch.cat(vectors)


def encode_classes(
    model: MGCA, tokenizer: PreTrainedTokenizerBase, prompts: PromptSet, *, batch_size: int = 64
) -> ClassVectors:
    """Encode a prompt set: the mean of the unit vectors of a class's prompts, brought back to length 1.

    GLoRIA and BenchX take the best prompt of a class instead of the mean, which favours classes with more
    prompts.

    Args:
        model: See `encode_prompts`.
        tokenizer: The tokenizer that it was trained with.
        prompts: The prompts.
        batch_size: Prompts at a time.

    Raises:
        PromptError: a prompt cannot be encoded.
    """
    parts = [*prompts.positive.values(), *prompts.negative.values()]
    vectors = encode_prompts(model, tokenizer, [text for part in parts for text in part], batch_size=batch_size)
    means = torch.stack([part.mean(dim=0) for part in vectors.split([len(part) for part in parts])])
    count = len(prompts.classes)
    means = F.normalize(means, dim=1)
    return ClassVectors(prompts.task, means[:count], means[count:] if prompts.negative else None)


@torch.inference_mode()
def project_features(model: MGCA, features: Features) -> Tensor:
    """Bring stored features of the image trunk into the joint space, for films without reports.

    Args:
        model: The model whose ``image_encoder`` gave the features to `extract_features`.
        features: Its ``(N, trunk width)`` pooled features.

    Returns:
        ``(N, D)`` float32 unit vectors on the CPU, those of ``model.encode_image(...).pooled``.
    """
    device = encoder_device(model)
    with frozen(model), torch.autocast(device.type, enabled=False):
        return model.image_global(torch.from_numpy(features.values).to(device)).float().cpu()


def zero_shot_scores(
    image: Tensor,
    positive: Tensor,
    negative: Tensor | None = None,
    *,
    temperature: float = 0.07,
    standardize: Literal["none", "images"] = "none",
) -> Tensor:
    r"""Score each film for each class by the cosine of film and prompts.

    Pairs: :math:`p_{ic} = \sigma((\cos(v_i, t^+_c) - \cos(v_i, t^-_c)) / \tau)`, the softmax over the positive and
    the negative vector; a film may have any number of classes. Exclusive classes: the softmax of
    :math:`\cos(v_i, t_c) / \tau` over the classes; the prediction is the argmax, which no temperature changes.

    Args:
        image: ``(N, D)`` image embeddings, any norm (unit-normed here).
        positive: ``(C, D)`` vectors of the classes, any norm.
        negative: ``(C, D)`` vectors of their absence; without it the classes are exclusive.
        temperature: Positive; that of the instance loss fits the scale the encoders were trained at.
        standardize: ``"none"``, or ``"images"`` for exclusive classes: the cosines of each class become z-scores
            over the ``N`` films before the softmax (at temperature 1), as GLoRIA does. It takes away that some
            class's prompts resemble all films, but a film's score then depends on the other test films and on
            the mixture of classes among them. A class with equal cosines gets z-scores of 0.

    Returns:
        ``(N, C)`` float64 probabilities on the CPU; rows sum to 1 for exclusive classes.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a setting is not one of those above.

    >>> films, finding, absence = torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> zero_shot_scores(films, finding, absence, temperature=1.0).round(decimals=3).tolist()  # sigmoid(+-1)
    [[0.731], [0.269]]
    """
    logits = _class_logits(image, positive, negative, temperature=temperature, standardize=standardize)
    return logits.softmax(dim=1) if negative is None else logits.sigmoid()


def _class_logits(
    image: Tensor, positive: Tensor, negative: Tensor | None, *, temperature: float, standardize: str
) -> Tensor:
    """What `zero_shot_scores` takes the sigmoid of, or the softmax over the classes, with its checks."""
    parts = {"image": image, "positive": positive} | ({} if negative is None else {"negative": negative})
    for name, part in parts.items():
        if part.ndim != 2 or not len(part) or part.shape[1] != image.shape[-1]:
            raise ValueError(f"{name}: expected (rows, {image.shape[-1]}), found {tuple(part.shape)}")
        if not torch.isfinite(part).all():
            raise ValueError(f"{name}: a value is not finite; the encoder has diverged")
    if negative is not None and negative.shape != positive.shape:
        raise ValueError(f"{len(positive)} positive but {len(negative)} negative vectors")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, found {temperature}")
    if standardize not in ("none", "images"):
        raise ValueError(f"standardize must be 'none' or 'images', found {standardize!r}")
    # In float32 a confident sigmoid rounds to 1, and equal scores would cost AUROC.
    unit = {name: F.normalize(part.detach().cpu().double(), dim=1) for name, part in parts.items()}
    cosine = unit["image"] @ unit["positive"].T
    if negative is not None:
        if standardize != "none":
            raise ValueError("standardize='images' is for exclusive classes; pairs are compared with their negative")
        return (cosine - unit["image"] @ unit["negative"].T) / temperature
    if standardize == "none":
        return cosine / temperature
    if len(image) < 2:
        raise ValueError("standardize='images' needs two films or more")
    spread = cosine.std(dim=0, correction=0)
    constant = spread < 1e-6  # what is left then is rounding, and dividing would make it a signal
    deviation = (cosine - cosine.mean(dim=0)).masked_fill(constant, 0.0)
    return deviation / spread.masked_fill(constant, 1.0)


def _log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each class against all others, from the logits ``(N, C)`` of a softmax."""
    count = logits.shape[1]
    itself = torch.eye(count, dtype=torch.bool)
    return logits - logits[:, None, :].expand(-1, count, -1).masked_fill(itself, -math.inf).logsumexp(dim=2)


def zero_shot(
    image: Tensor,
    vectors: ClassVectors,
    targets: np.ndarray,
    *,
    temperature: float = 0.07,
    standardize: Literal["none", "images"] = "none",
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> ZeroShotResult:
    """Classify films by prompts, and measure it.

    Args:
        image: ``(N, D)`` image embeddings, from `embed_pairs` or `project_features`.
        vectors: The classes, from `encode_classes`.
        targets: As `mgca_lib.data.tasks.task_targets` gives them for ``vectors.task``. Pairs: ``(N, C)`` of 1, 0 and
            NaN (unknown, left out). Exclusive classes: ``(N,)`` class numbers.
        temperature: See `zero_shot_scores`.
        standardize: See `zero_shot_scores`.
        groups: ``N`` names, for example patients, that are drawn together by the bootstrap.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: the inputs do not fit each other, or no class has both positive and negative films.

    Warns:
        UserWarning: a class is left out for want of positive or negative films.
    """
    logits = _class_logits(image, vectors.positive, vectors.negative, temperature=temperature, standardize=standardize)
    exclusive = vectors.negative is None
    scores = (logits.softmax(dim=1) if exclusive else logits.sigmoid()).numpy()
    # At a low temperature the probabilities of all sure films round to 1, and ties would cost AUROC.
    odds = (_log_odds(logits) if exclusive else logits).numpy()
    task = vectors.task
    targets = np.asarray(targets)
    truth = _one_column_a_class(targets, task, len(scores))
    binary = Task(task.name, "multilabel", task.classes, "auroc")
    value, _, left_out = score(odds, truth, binary)
    if not math.isfinite(value):
        raise ValueError(f"{task.name}: no class has both positive and negative films")
    if left_out:
        warnings.warn(
            f"{task.name}: left out for want of positive or negative films: {', '.join(left_out)}", stacklevel=2
        )
    columns = [number for number, name in enumerate(task.classes) if name not in left_out]
    drawing = {"groups": groups, "resamples": resamples, "seed": seed}
    accuracy = majority = None
    if task.kind == "multiclass":
        right = (scores.argmax(axis=1) == targets).astype(np.float64)
        accuracy = bootstrap_interval(lambda rows: right[rows].mean(), len(scores), **drawing)
        majority = float(truth.mean(axis=0).max())
    return ZeroShotResult(
        auroc=bootstrap_interval(lambda rows: _macro_auroc(odds[rows], truth[rows], columns), len(odds), **drawing),
        accuracy=accuracy,
        majority=majority,
        per_class={
            task.classes[column]: bootstrap_interval(
                lambda rows, column=column: _macro_auroc(odds[rows], truth[rows], [column]), len(odds), **drawing
            )
            for column in columns
        },
        left_out=left_out,
        scores=scores,
    )


def auroc_gain(
    scores: np.ndarray,
    baseline: np.ndarray,
    targets: np.ndarray,
    *,
    groups: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Gain in macro AUROC of some scores over others of the same films: a bootstrap of the difference.

    Two intervals that overlap leave open which is ahead, since luck in the draw of films moves both alike. Here each
    resample scores both on the same films.

    Args:
        scores: ``(N, C)`` scores of ``N`` films for ``C`` classes, or ``(D, N, C)`` of several draws, such as probes
            with other labelled films; the AUROCs of the draws are then averaged.
        baseline: The same of the others; the number of draws may differ.
        targets: ``(N, C)`` of 1, 0 and NaN (unknown, left out).
        groups: ``N`` names, for example patients, that are drawn together.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: scores and targets do not fit, a score is not finite, or no class has both kinds of films.

    >>> targets = np.array([[1.0], [0.0]] * 8)
    >>> print(auroc_gain(targets, 1 - targets, targets, resamples=20))
    1.000 (1.000 to 1.000, n=16)
    """
    sides = [np.asarray(side) if np.ndim(side) == 3 else np.asarray(side)[None] for side in (scores, baseline)]
    targets = np.asarray(targets)
    for side in sides:
        if side.shape[1:] != targets.shape or not np.isfinite(side).all():
            raise ValueError(f"expected finite scores {targets.shape}, as the targets; found {side.shape[1:]}")

    def auroc(draws: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean([_macro_auroc(one[rows], targets[rows], range(targets.shape[1])) for one in draws]))

    return bootstrap_interval(
        lambda rows: auroc(sides[0], rows) - auroc(sides[1], rows),
        len(targets),
        groups=groups,
        resamples=resamples,
        seed=seed,
    )


def five_by_200(
    studies: Studies,
    *,
    per_class: int = 200,
    classes: Sequence[str] = FIVE_CLASSES,
    among: Sequence[str] | None = None,
    at_most: bool = False,
    seed: int = 0,
) -> Studies:
    """Draw a CheXpert-5x200 style test set: the same number of films of each class, each with that class alone.

    A film belongs to a class whose label is 1 while every other label of ``among`` is neither 1 nor uncertain
    (-1); an unknown label counts as absent, as blanks do in CheXpert. ``task_targets`` with the task of
    ``PROMPT_SETS["chexpert_5x200"]`` gives the class numbers. A smaller ``per_class`` draws a part of what a larger
    one draws with the same seed.

    Args:
        studies: Films with labels; frontal views only and one split, chosen beforehand.
        per_class: Films of each class.
        classes: Label names; by default the five CheXpert competition labels.
        among: Labels among which the class must be alone; by default ``classes``. GLoRIA's published list is
            stricter: alone among all labels but No Finding. Umbrella labels (Lung Opacity for Edema) rule a
            film out when they are named here.
        at_most: Take as many films as a class has where it has fewer than ``per_class``, at least one; the
            classes are then no longer balanced.
        seed: Seed of the draw.

    Returns:
        The films, in the order of the table.

    Raises:
        DatasetError: a class has too few films, or there is no such label; the message names it.
        ValueError: ``per_class`` is not positive or ``classes`` names fewer than two labels, or one twice.
    """
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, found {per_class}")
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"classes must be two labels or more, each once, found {', '.join(classes)}")
    others = tuple(classes) if among is None else tuple(among)
    names = tuple(dict.fromkeys([*classes, *others]))
    labels = studies.labels(names)
    disturbing = (labels == 1) | (labels == -1)
    chosen = []
    for number, name in enumerate(classes):
        alone = np.flatnonzero((labels[:, number] == 1) & (np.delete(disturbing, number, axis=1).sum(axis=1) == 0))
        if len(alone) < (1 if at_most else per_class):
            raise DatasetError(
                f"{studies.root / TABLE_FILE}: {len(alone)} images show {name!r} alone among {', '.join(names)}, "
                f"{per_class} are wanted; take fewer (per_class), what there is (at_most=True) or other classes"
            )
        chosen.append(np.random.default_rng([seed, number]).permutation(alone)[:per_class])
    return studies.select(np.sort(np.concatenate(chosen)), what=f"{len(classes)} classes of {per_class} images")


def _warn_of_unknown_words(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[tuple[np.ndarray, np.ndarray]], words: Sequence[Sequence[str]]
) -> None:
    unknown = {
        words[row][number]
        for row, (pieces, numbers) in enumerate(tokens)
        for number in numbers[pieces == tokenizer.unk_token_id]
    }
    if unknown:
        warnings.warn(
            f"the tokenizer does not know these words of the prompts: {', '.join(sorted(unknown))}", stacklevel=3
        )


def _one_column_a_class(targets: np.ndarray, task: Task, n: int) -> np.ndarray:
    """Check the targets and return them as ``(N, C)`` of 0, 1 and NaN."""
    count = len(task.classes)
    if task.kind == "multiclass":
        if targets.shape != (n,) or not np.isin(targets, np.arange(count)).all():
            raise ValueError(f"{task.name}: the targets must be {n} class numbers 0 ... {count - 1}, one a film")
        return np.eye(count)[targets.astype(np.int64)]
    if targets.shape != (n, count) or not (np.isnan(targets) | np.isin(targets, (0, 1))).all():
        raise ValueError(
            f"{task.name}: the targets must be ({n}, {count}) of 0, 1 or NaN, found shape {targets.shape}; "
            "task_targets makes them"
        )
    return targets.astype(np.float64)


def _macro_auroc(scores: np.ndarray, truth: np.ndarray, columns: Sequence[int]) -> float:
    """Mean AUROC of some columns, of those that have both kinds."""
    values = []
    for column in columns:
        known = ~np.isnan(truth[:, column])
        values.append(rank_auroc(scores[known, column], truth[known, column] == 1))
    values = [value for value in values if not math.isnan(value)]
    return float(np.mean(values)) if values else math.nan
