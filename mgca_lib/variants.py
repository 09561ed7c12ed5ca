"""Named variants of a configuration: what the ablations and comparisons of the course train, and why.

A variant changes a few settings of a profile and nothing else, so that the difference between its numbers and those
of ``all`` is the effect of what it changes. The grid of runs, its figures and its tables go by these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mgca_lib.config import Config, ConfigError

GROUPS = ("ablation", "grounding", "patches", "words", "denials", "together", "prototypes", "quirks")


@dataclass(frozen=True)
class Variant:
    """Settings under a name.

    Attributes:
        name: As in :data:`VARIANTS`, figures and tables.
        group: One of :data:`GROUPS`: the question that the variant belongs to.
        settings: Settings that differ from the profile's; read-only.
        changes: One sentence for readers: what differs.
    """

    name: str
    group: str
    settings: Mapping[str, Any] = field(hash=False)
    changes: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))


_ALL = (
    Variant("ita", "ablation", {"token_weight": 0.0, "prototype_weight": 0.0}, "Instance alignment alone."),
    Variant("ita+cta", "ablation", {"prototype_weight": 0.0}, "Instance and token alignment, no prototypes."),
    Variant("ita+cpa", "ablation", {"token_weight": 0.0}, "Instance and prototype alignment, no tokens."),
    Variant(
        "all", "ablation", {}, "All three terms, corrected: the profile as it is, and what the rest is held against."
    ),
    Variant(
        "cta_grounded",
        "grounding",
        {"token_form": "cta_grounded"},
        "The token term contrasts the pairs of the batch instead of the words of one report.",
    ),
    Variant("gloria", "grounding", {"token_form": "gloria"}, "The token term is GLoRIA's local loss."),
    Variant(
        "cta_grounded-stride-8",
        "patches",
        {"token_form": "cta_grounded", "local_stride": 8},
        "As cta_grounded, with patches from the stage before: four times as many, and each has seen less of the film.",
    ),
    Variant(
        "cta_grounded-stride-8-window",
        "words",
        {"token_form": "cta_grounded", "local_stride": 8, "word_window": 4},
        "As cta_grounded-stride-8, and a word reads four word pieces on either side in each layer.",
    ),
    Variant(
        "cta_grounded-stride-8-window-mlm",
        "words",
        {"token_form": "cta_grounded", "local_stride": 8, "word_window": 4, "mlm_epochs": 10},
        "As cta_grounded-stride-8-window, and the report encoder first fills in masked words for ten passes.",
    ),
    Variant(
        "cta_grounded-affirmed",
        "denials",
        {"token_form": "cta_grounded", "skip_denied_words": True},
        "As cta_grounded, and the words of denials, such as 'no pneumothorax', take no part in it.",
    ),
    Variant(
        "cta_grounded-stride-8-window-mlm-affirmed",
        "together",
        {
            "token_form": "cta_grounded",
            "local_stride": 8,
            "word_window": 4,
            "mlm_epochs": 10,
            "skip_denied_words": True,
        },
        "As cta_grounded-stride-8-window-mlm, and the words of denials take no part in the token term.",
    ),
    Variant(
        "cta_grounded-stride-8-affirmed",
        "together",
        {"token_form": "cta_grounded", "local_stride": 8, "skip_denied_words": True},
        "As cta_grounded-affirmed, with the finer patches of cta_grounded-stride-8.",
    ),
    Variant(
        "cta_grounded-context-affirmed",
        "together",
        {"token_form": "cta_grounded", "local_stride": 8, "local_context": True, "skip_denied_words": True},
        "As cta_grounded-stride-8-affirmed, and each patch also holds what the coarse one at its place has seen.",
    ),
    Variant(
        "cta_grounded-window-mlm-affirmed",
        "together",
        {"token_form": "cta_grounded", "word_window": 4, "mlm_epochs": 10, "skip_denied_words": True},
        "As cta_grounded-affirmed, with the near words and the masked words of cta_grounded-stride-8-window-mlm.",
    ),
    Variant("prototypes-16", "prototypes", {"num_prototypes": 16}, "16 prototypes."),
    Variant("prototypes-256", "prototypes", {"num_prototypes": 256}, "256 prototypes."),
    Variant("queue", "prototypes", {"queue_size": 1024}, "Sinkhorn balances the last 1,024 embeddings with the batch."),
    Variant(
        "quirk-weight-shift",
        "quirks",
        {"shifted_word_weights": True},
        "Every word piece gets the attention weight of its right neighbour.",
    ),
    Variant(
        "quirk-lost-word", "quirks", {"lost_last_word": True}, "A report that fills all slots loses its last word."
    ),
    Variant(
        "quirk-padded-batchnorm",
        "quirks",
        {"padded_batchnorm": True},
        "Padded slots enter the BatchNorm statistics of the word head.",
    ),
    Variant(
        "quirk-padded-softmax",
        "quirks",
        {"padded_softmax": True},
        "Padded slots are negatives of every word in token alignment.",
    ),
    Variant(
        "quirk-unnormalised",
        "quirks",
        {"unnormalized_context": True},
        "What a patch reads from the report is not put back to unit length.",
    ),
    Variant(
        "quirk-separator-word",
        "quirks",
        {"separator_word": True},
        "[SEP] is a word that patches may read, without weight of its own.",
    ),
    Variant(
        "quirk-local-negatives",
        "quirks",
        {"gather": False, "local_groups": 2},
        "Negatives and Sinkhorn stay inside each half of the batch, as on two GPUs that do not exchange anything.",
    ),
    Variant("quirk-one-text-layer", "quirks", {"text_layers": 1}, "The report encoder has one layer."),
    Variant(
        "same-text-masked",
        "quirks",
        {"mask_same_text": True},
        "Studies whose reports read alike are no negatives of each other: a correction that is off by default.",
    ),
    Variant(
        "upstream-vit",
        "quirks",
        {"upstream": "vit"},
        "The token alignment of the published ViT branch: its six quirks together.",
    ),
)

VARIANTS: Mapping[str, Variant] = MappingProxyType({variant.name: variant for variant in _ALL})
"""All variants by name."""


def variant_config(config: Config, name: str) -> Config:
    """Return a configuration with the settings of a variant.

    Args:
        config: A profile, perhaps with settings changed.
        name: A name of :data:`VARIANTS`.

    Raises:
        ConfigError: no variant has this name, or its settings do not fit the configuration.

    >>> from mgca_lib.config import load_profile
    >>> variant_config(load_profile("demo"), "ita+cta").alignment.prototype_weight
    0.0
    """
    if name not in VARIANTS:
        raise ConfigError(f"no variant called {name!r}; use one of {', '.join(VARIANTS)}")
    return config.override(**VARIANTS[name].settings)
