"""Settings: frozen dataclasses, four profiles, no other configuration layer.

``smoke`` proves that every cell runs, ``demo`` trains something worth looking at on a laptop's CPU, ``full_width``
trains encoders of the published size from scratch on phantoms, ``paper`` is the published recipe.
``load_profile("demo", epochs=3)`` changes single settings; an unknown name raises.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal

Upstream = Literal["", "vit", "resnet"]
TokenForm = Literal["cta", "cta_grounded", "gloria"]
Precision = Literal["auto", "fp32", "bf16"]

TOKEN_SWITCHES = (
    "shifted_word_weights",
    "lost_last_word",
    "padded_batchnorm",
    "padded_softmax",
    "unnormalized_context",
    "separator_word",
)
"""Deviations of the published token alignment, each a setting of :class:`AlignmentConfig` of this name."""


class ConfigError(ValueError):
    """A setting is unknown or out of range; the message is one line that names it."""


def _setting(default: Any, text: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


def _require(part: Any, name: str, holds: bool, problem: str) -> None:
    if not holds:
        raise ConfigError(f"{name} = {getattr(part, name)!r}: {problem}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


LATER: Mapping[str, Any] = MappingProxyType(
    {"chunk_size": 0, "stem_width": 0, "local_stride": 16, "word_window": 0, "mlm_epochs": 0, "text_rate_factor": 1.0}
    | {"separator_word": False, "skip_denied_words": False, "local_context": False}
)
"""Settings that older checkpoints and runs do not name, with what was done then."""

_KINDS = {
    bool: ("True or False", lambda value: isinstance(value, bool)),
    int: ("a whole number", _is_whole),
    float: ("a finite number", _is_finite),
    str: ("text", lambda value: isinstance(value, str)),
    list[int]: ("a list of whole numbers", lambda value: isinstance(value, list) and all(map(_is_whole, value))),
}


def _check_kinds(part: Any) -> None:
    for item in fields(part):
        if item.type in _KINDS:
            kind, fits = _KINDS[item.type]
            _require(part, item.name, fits(getattr(part, item.name)), f"must be {kind}")


@dataclass(frozen=True)
class ModelConfig:
    """The two encoders and the space they share. Defaults: the paper's ViT variant."""

    backbone: str = _setting("deit_base_patch16_224", "timm name of the image encoder, ViT or CNN")
    backbone_weights: bool = _setting(True, "start the image encoder from timm's ImageNet weights (needs the hub)")
    backbone_channels: list[int] = _setting([], "channels per stage, for timm ResNets only; empty: as published")
    stem_width: int = _setting(0, "channels of the stem's first layers, for timm ResNets only; 0: as published")
    local_stride: int = _setting(
        16,
        "stride of the CNN stage that patches come from; 8: four times as many, and each sees less; 16: as published",
    )
    local_context: bool = _setting(
        False, "patches of a CNN's finer stage (local_stride below 16) also hold what that of stride 16 sees there"
    )
    stored_size: int = _setting(256, "side of the padded square image before cropping, pixels")
    image_size: int = _setting(224, "side of the crop that the encoder sees, pixels")
    upsample_to: int = _setting(0, "resize the crop to this side inside the encoder (upstream ResNet-50: 299); 0: off")
    text_model: str = _setting(
        "emilyalsentzer/Bio_ClinicalBERT",
        "hub id or folder of a BERT-type model; empty: build one from the text_* sizes",
    )
    text_layers: int = _setting(6, "number of transformer layers used, counted from the first")
    text_width: int = _setting(768, "hidden size; read only when text_model is empty")
    text_heads: int = _setting(12, "attention heads; read only when text_model is empty")
    text_dropout: float = _setting(0.1, "dropout; read only when text_model is empty")
    word_window: int = _setting(
        0, "word pieces on either side that a piece reads in each layer; [CLS] reads all; 0: all do, as upstream"
    )
    text_vocabulary: int = _setting(
        4000, "size of the WordPiece vocabulary trained on the reports when text_model is empty"
    )
    max_pieces: int = _setting(112, "word pieces kept of a report, [CLS] and [SEP] included")
    hidden_dim: int = _setting(2048, "hidden width of the projection heads")
    joint_dim: int = _setting(128, "D, width of the joint space")

    def __post_init__(self) -> None:
        _check_kinds(self)
        for name in ("image_size", "text_layers", "text_width", "text_heads", "hidden_dim", "joint_dim"):
            _require(self, name, getattr(self, name) >= 1, "must be at least 1")
        _require(self, "stored_size", self.stored_size >= self.image_size, "must be at least image_size")
        _require(self, "upsample_to", self.upsample_to >= 0, "must not be negative")
        _require(self, "backbone_channels", all(width >= 1 for width in self.backbone_channels), "must be positive")
        _require(self, "word_window", self.word_window >= 0, "must not be negative")
        _require(self, "stem_width", self.stem_width == 0 or self.stem_width >= 4, "must be 0 or at least 4")
        _require(self, "local_stride", self.local_stride >= 2, "must be at least 2")
        _require(self, "text_width", self.text_width % self.text_heads == 0, "must be a multiple of text_heads")
        _require(self, "text_vocabulary", self.text_vocabulary >= 6, "must be at least 6: five are special")
        _require(self, "max_pieces", self.max_pieces >= 3, "must be at least 3: [CLS], one piece, [SEP]")
        _require(self, "text_dropout", 0 <= self.text_dropout < 1, "must be in [0, 1)")


@dataclass(frozen=True)
class AlignmentConfig:
    """Weights and settings of the three alignment terms (section 3 of the paper)."""

    instance_weight: float = _setting(1.0, "lambda_1, weight of instance alignment (ITA)")
    token_weight: float = _setting(1.0, "lambda_2, weight of token alignment (CTA)")
    prototype_weight: float = _setting(1.0, "lambda_3, weight of prototype alignment (CPA)")
    instance_temperature: float = _setting(0.07, "tau_1, softmax temperature of ITA")
    token_temperature: float = _setting(0.1, "tau_2, temperature of the cross-attention and the contrast of CTA")
    prototype_temperature: float = _setting(0.2, "tau_3, temperature of the prototype softmax of CPA")
    num_prototypes: int = _setting(500, "K, number of prototypes")
    sinkhorn_epsilon: float = _setting(0.05, "entropic regularisation of Sinkhorn")
    sinkhorn_iterations: int = _setting(3, "Sinkhorn iterations")
    queue_size: int = _setting(
        0, "earlier embeddings of either side that balance the prototypes, too; 0: only the batch (as upstream)"
    )
    freeze_prototypes_epochs: int = _setting(1, "epochs during which the prototypes do not move")
    gather: bool = _setting(True, "contrast and balance over all processes, not over each process alone (as upstream)")
    token_form: TokenForm = _setting(
        "cta", "token term: cta (published), cta_grounded (contrast over pairs) or gloria (its local loss)"
    )
    skip_denied_words: bool = _setting(
        False, "words of denials (no pneumothorax) take no part in a token term that contrasts pairs"
    )
    local_groups: int = _setting(
        1,
        "shares of a batch that contrast and balance alone, as on so many GPUs that do not gather; 1: the whole batch",
    )
    mask_same_text: bool = _setting(False, "studies whose reports read alike are no negatives of each other in ITA")
    upstream: Upstream = _setting(
        "",
        "token alignment as published, by the switches below: vit (all six) or resnet (five); empty: corrected",
    )
    shifted_word_weights: bool = _setting(False, "as upstream: a word piece gets the attention of its right neighbour")
    lost_last_word: bool = _setting(False, "as upstream: a report that fills all max_pieces loses its last word")
    padded_batchnorm: bool = _setting(False, "as upstream: padded slots enter the BatchNorm of the word head")
    padded_softmax: bool = _setting(False, "as upstream: padded slots are negatives of the words in CTA")
    unnormalized_context: bool = _setting(
        False, "as upstream's ViT: what a patch reads from the report keeps its length in CTA"
    )
    separator_word: bool = _setting(False, "as upstream: [SEP] stays a word in CTA, without weight of its own")

    def __post_init__(self) -> None:
        _check_kinds(self)
        for name in ("instance_temperature", "token_temperature", "prototype_temperature", "sinkhorn_epsilon"):
            _require(self, name, getattr(self, name) > 0, "must be positive")
        for name in ("instance_weight", "token_weight", "prototype_weight", "freeze_prototypes_epochs"):
            _require(self, name, getattr(self, name) >= 0, "must not be negative")
        weights = self.instance_weight + self.token_weight + self.prototype_weight
        _require(self, "instance_weight", weights > 0, "one of the three weights must be positive")
        _require(self, "num_prototypes", self.num_prototypes >= 2, "must be at least 2")
        _require(self, "sinkhorn_iterations", self.sinkhorn_iterations >= 1, "must be at least 1")
        _require(self, "queue_size", self.queue_size >= 0, "must not be negative")
        reads_queue = not self.queue_size or self.prototype_weight > 0
        _require(self, "queue_size", reads_queue, "prototype_weight is 0, so nothing would read the queue")
        forms = ("cta", "cta_grounded", "gloria")
        _require(self, "token_form", self.token_form in forms, "must be cta, cta_grounded or gloria")
        _require(self, "upstream", self.upstream in ("", "vit", "resnet"), "must be vit, resnet or empty")
        fits = not self.upstream or self.token_form == "cta"
        _require(self, "upstream", fits, "the published code has token_form cta only")
        self._check_switches()

    def _check_switches(self) -> None:
        """Refuse switches that contradict another setting, or that nothing would read."""
        _require(self, "local_groups", self.local_groups >= 1, "must be at least 1")
        _require(
            self, "local_groups", self.local_groups == 1 or not self.gather, "needs gather off, which it contradicts"
        )
        whole = self.instance_weight + self.prototype_weight
        _require(self, "local_groups", self.local_groups == 1 or whole > 0, "ITA and CPA have no weight")
        shared = self.local_groups == 1 or self.token_form == "cta"
        _require(self, "local_groups", shared, f"token_form {self.token_form} contrasts the whole batch")
        pairwise = self.token_form != "cta" and self.token_weight > 0
        _require(
            self, "skip_denied_words", not self.skip_denied_words or pairwise, "needs a token term that contrasts pairs"
        )
        _require(self, "mask_same_text", not self.mask_same_text or self.instance_weight > 0, "instance_weight is 0")
        _require(self, "upstream", not self.upstream or self.token_weight > 0, "token_weight is 0")
        for name in TOKEN_SWITCHES:
            off = not getattr(self, name)
            _require(self, name, off or not self.upstream, f"upstream = {self.upstream!r} decides it already")
            _require(self, name, off or self.token_weight > 0, "token_weight is 0")
            read = self.token_form == "cta" or name in ("lost_last_word", "padded_batchnorm")
            _require(self, name, off or read, f"token_form {self.token_form} does not read it")

    def spelled_out(self) -> "AlignmentConfig":
        """Return the same settings with ``upstream`` replaced by the single switches that it stands for.

        >>> AlignmentConfig(upstream="resnet").spelled_out().padded_softmax
        True
        """
        if not self.upstream:
            return self
        switches = dict.fromkeys(TOKEN_SWITCHES, True) | {"unnormalized_context": self.upstream == "vit"}
        return replace(self, upstream="", **switches)


@dataclass(frozen=True)
class TrainingConfig:
    """The pretraining loop. Defaults: the published recipe (methods of the paper, section 4.1)."""

    epochs: int = _setting(50, "passes over the training pairs")
    batch_size: int = _setting(72, "pairs per process and forward pass (published: 72 on each of 2 GPUs)")
    accumulation: int = _setting(1, "forward passes per optimiser step")
    chunk_size: int = _setting(
        0, "encode so many pairs at a time and compute them again in the backward pass, to save memory; 0: off"
    )
    sync_batchnorm: bool = _setting(True, "BatchNorm over the batches of all processes (upstream: each GPU alone)")
    learning_rate: float = _setting(2e-5, "peak learning rate of AdamW")
    text_rate_factor: float = _setting(
        1.0, "the report encoder learns at so many times this rate; below 1 it keeps more of what it has read before"
    )
    weight_decay: float = _setting(0.05, "weight decay of AdamW")
    warmup_fraction: float = _setting(0.4, "share of all steps with linearly rising learning rate; then cosine")
    clip_norm: float = _setting(0.0, "clip the gradient to this norm; 0: off (published)")
    patience: int = _setting(5, "stop after so many epochs without a better validation loss; 0: never")
    precision: Precision = _setting("auto", "auto: bf16 where the device is fast in it; or fp32, bf16")
    workers: int = _setting(12, "loader processes per training process")
    keep_images: bool = _setting(False, "keep decoded images in memory, for a dataset that fits; use with workers 0")
    checkpoint_steps: int = _setting(500, "write a resumable checkpoint every so many steps, and after each epoch")
    mlm_epochs: int = _setting(
        0, "passes over the training reports in which the report encoder first learns to fill in masked words; 0: off"
    )
    max_train_pairs: int = _setting(0, "use only the first so many training pairs of a seeded shuffle; 0: all")

    def __post_init__(self) -> None:
        _check_kinds(self)
        for name in ("epochs", "accumulation", "checkpoint_steps"):
            _require(self, name, getattr(self, name) >= 1, "must be at least 1")
        _require(self, "batch_size", self.batch_size >= 2, "must be at least 2: contrast needs a second pair")
        for name in ("learning_rate", "text_rate_factor"):
            _require(self, name, getattr(self, name) > 0, "must be positive")
        _require(self, "warmup_fraction", 0 <= self.warmup_fraction < 1, "must be in [0, 1)")
        _require(self, "precision", self.precision in ("auto", "fp32", "bf16"), "must be auto, fp32 or bf16")
        for name in ("chunk_size", "weight_decay", "clip_norm", "patience", "workers", "mlm_epochs", "max_train_pairs"):
            _require(self, name, getattr(self, name) >= 0, "must not be negative")


@dataclass(frozen=True)
class Config:
    """All settings of one run."""

    profile: str
    model: ModelConfig
    alignment: AlignmentConfig
    training: TrainingConfig

    def __post_init__(self) -> None:
        groups, batch_size = self.alignment.local_groups, self.training.batch_size
        fits = batch_size % groups == 0 and batch_size // groups >= 2
        problem = f"must divide batch_size = {batch_size} into shares of at least 2 pairs"
        _require(self.alignment, "local_groups", fits, problem)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as nested dictionaries, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Config":
        """Rebuild the settings that :meth:`to_dict` returned, perhaps before the latest settings existed.

        Raises:
            ConfigError: a key is missing or unknown, or a value is out of range.
        """
        expected = {item.name for item in fields(cls)}
        if set(content) != expected:
            raise ConfigError(f"configuration: expected the keys {sorted(expected)}, found {sorted(content)}")
        parts = {"model": ModelConfig, "alignment": AlignmentConfig, "training": TrainingConfig}
        for name, part in parts.items():
            known, given = {item.name for item in fields(part)}, set(content[name])
            for setting in sorted(known - given - set(LATER)):
                raise ConfigError(f"configuration: setting {name}.{setting} is missing")
            for setting in sorted(given - known):
                raise ConfigError(f"configuration: setting {name}.{setting} is unknown")
        return cls(profile=content["profile"], **{name: part(**content[name]) for name, part in parts.items()})

    def override(self, **settings: Any) -> "Config":
        """Return a copy with single settings changed, whichever part they belong to.

        Raises:
            ConfigError: no part has a setting of that name, or its value is out of range.

        >>> load_profile("demo").override(epochs=3).training.epochs
        3
        """
        parts = {}
        for name in ("model", "alignment", "training"):
            part = getattr(self, name)
            own = {item.name for item in fields(part)} & set(settings)
            parts[name] = replace(part, **{key: settings.pop(key) for key in own})
        if settings:
            raise ConfigError(f"unknown setting {sorted(settings)[0]!r}; see python -m mgca_lib.pretrain --help")
        return replace(self, **parts)


_SMALL_TEXT = {"text_model": "", "text_layers": 2, "backbone_weights": False}

PROFILES: dict[str, Config] = {
    "smoke": Config(
        profile="smoke",
        model=ModelConfig(
            **_SMALL_TEXT,
            backbone="test_resnet",
            stored_size=72,
            image_size=64,
            text_width=32,
            text_heads=2,
            text_vocabulary=400,
            hidden_dim=64,
            joint_dim=32,
        ),
        alignment=AlignmentConfig(num_prototypes=12),
        training=TrainingConfig(
            epochs=2,
            batch_size=16,
            learning_rate=1e-3,
            workers=0,
            keep_images=True,
            precision="fp32",
            checkpoint_steps=50,
        ),
    ),
    "demo": Config(
        profile="demo",
        model=ModelConfig(
            **_SMALL_TEXT,
            backbone="resnet10t",
            backbone_channels=[32, 64, 128, 256],
            stem_width=16,
            stored_size=120,
            image_size=96,
            text_width=128,
            text_heads=2,
            text_dropout=0.0,
            text_vocabulary=1500,
            hidden_dim=512,
            joint_dim=128,
        ),
        alignment=AlignmentConfig(num_prototypes=64),
        training=TrainingConfig(
            epochs=18,
            batch_size=48,
            learning_rate=2e-3,
            warmup_fraction=0.1,
            workers=0,
            keep_images=True,
            checkpoint_steps=100,
        ),
    ),
    "full_width": Config(
        profile="full_width",
        model=ModelConfig(text_model="", backbone_weights=False, text_vocabulary=1500),
        alignment=AlignmentConfig(num_prototypes=64),  # 16 pairs cannot be spread over 500
        training=TrainingConfig(
            epochs=2,
            batch_size=16,
            learning_rate=2e-4,
            warmup_fraction=0.2,
            clip_norm=1.0,
            workers=0,
            keep_images=True,
            checkpoint_steps=50,
        ),
    ),
    "paper": Config(profile="paper", model=ModelConfig(), alignment=AlignmentConfig(), training=TrainingConfig()),
}


def load_profile(name: str, **settings: Any) -> Config:
    """Return a profile, with single settings changed.

    Args:
        name: Key of :data:`PROFILES`.
        **settings: Settings to change, by name.

    Raises:
        ConfigError: the profile or a setting is unknown, or a value is out of range.

    >>> load_profile("paper").training.batch_size
    72
    """
    if name not in PROFILES:
        raise ConfigError(f"PROFILE: no profile called {name!r}; use one of {', '.join(PROFILES)}")
    return PROFILES[name].override(**settings)
