"""MGCA: two encoders, four projection heads and the three alignment terms (section 3 of the paper)."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from mgca_lib.alignment.instance import InstanceAlignment
from mgca_lib.alignment.pairwise import PairwiseAlignment
from mgca_lib.alignment.prototype import PrototypeAlignment
from mgca_lib.alignment.token import TokenAlignment, importance_weights
from mgca_lib.chunking import encode_in_chunks, project_in_chunks
from mgca_lib.config import Config, ConfigError
from mgca_lib.data.pairs import PairBatch
from mgca_lib.encoders import (
    GlobalProjection,
    ImageEncoder,
    LocalProjection,
    ReportEncoder,
    Tokens,
    build_image_encoder,
    build_report_encoder,
    separator_numbers,
)


@dataclass(frozen=True)
class Losses:
    """The parts of the objective, before their weights, and the weighted total; scalars.

    Attributes:
        instance: ITA, equation 3 of the paper.
        token: CTA, equation 6, or the pairwise term that ``token_form`` names.
        prototype: CPA, equation 9.
        total: ``lambda_1 ITA + lambda_2 CTA + lambda_3 CPA``.
    """

    instance: Tensor
    token: Tensor
    prototype: Tensor
    total: Tensor

    def named(self) -> dict[str, Tensor]:
        """Return the parts by name, detached, the total last."""
        return {name: getattr(self, name).detach() for name in ("instance", "token", "prototype", "total")}


class MGCA(nn.Module):
    """The model: a batch of image-report pairs in, the three losses out.

    A term of weight 0 is neither computed nor reported (it is 0): ITA alone is what the published repository
    calls ConVIRT. A batch of more than ``chunk_size`` pairs passes through encoders and local heads in chunks
    (:mod:`mgca_lib.chunking`).

    Args:
        config: Heads, temperatures and weights of the terms.
        image_encoder: Gives patches.
        report_encoder: Gives words.

    Raises:
        ConfigError: ``chunk_size`` is set, and the image encoder has BatchNorm.
    """

    def __init__(self, config: Config, image_encoder: ImageEncoder, report_encoder: ReportEncoder) -> None:
        super().__init__()
        alignment = config.alignment.spelled_out()
        sizes = {"hidden": config.model.hidden_dim, "joint": config.model.joint_dim}
        self.config = config
        self.chunk_size = config.training.chunk_size
        self.separator_word = alignment.separator_word
        if self.chunk_size and any(isinstance(part, nn.BatchNorm2d) for part in image_encoder.modules()):
            raise ConfigError(
                f"chunk_size = {self.chunk_size}: backbone {config.model.backbone!r} has BatchNorm, whose statistics "
                "would be those of a chunk; use a ViT, or chunk_size 0"
            )
        self.image_encoder = image_encoder
        self.report_encoder = report_encoder
        self.image_global = GlobalProjection(image_encoder.feature_dim, **sizes)
        self.image_local = LocalProjection(image_encoder.local_dim, **sizes)
        self.report_global = GlobalProjection(report_encoder.feature_dim, **sizes)
        self.report_local = LocalProjection(report_encoder.feature_dim, **sizes, padded=alignment.padded_batchnorm)
        # Upstream pads every batch to its 111 slots; where padding counts, its amount must not depend on the batch.
        padding_counts = alignment.padded_batchnorm or alignment.padded_softmax
        self.least_words = config.model.max_pieces - 1 if padding_counts else 0
        self.instance_alignment = InstanceAlignment(
            temperature=alignment.instance_temperature, gather=alignment.gather, local_groups=alignment.local_groups
        )
        self.token_alignment: TokenAlignment | PairwiseAlignment
        if alignment.token_form == "cta":
            self.token_alignment = TokenAlignment(
                temperature=alignment.token_temperature,
                padded_softmax=alignment.padded_softmax,
                unnormalized_context=alignment.unnormalized_context,
            )
        else:
            self.token_alignment = PairwiseAlignment(
                alignment.token_form,
                temperature=alignment.token_temperature,
                chunk=self.chunk_size,
                gather=alignment.gather,
            )
        self.prototype_alignment = PrototypeAlignment(
            alignment.num_prototypes,
            config.model.joint_dim,
            temperature=alignment.prototype_temperature,
            epsilon=alignment.sinkhorn_epsilon,
            iterations=alignment.sinkhorn_iterations,
            queue_size=alignment.queue_size,
            distributed=alignment.gather,
            local_groups=alignment.local_groups,
        )

    @property
    def prototypes(self) -> Tensor:
        """``(K, D)`` prototypes."""
        return self.prototype_alignment.prototypes.weight

    def encode_image(self, images: Tensor) -> Tokens:
        """Encode ``(B, 1 or 3, S, S)`` images to unit vectors in the joint space, float32."""
        tokens = self._encode(self.image_encoder, images)
        return self._project(tokens, self.image_global, self.image_local)

    def encode_report(self, batch: PairBatch) -> Tokens:
        """Encode the reports of a batch to unit vectors in the joint space, float32."""
        num_words = max(batch.num_words, self.least_words)
        pieces = (batch.pieces, batch.piece_keep, batch.word_ids)
        tokens = self._encode(self.report_encoder, *pieces, num_words=num_words)
        return self._project(tokens, self.report_global, self.report_local)

    def forward(self, batch: PairBatch) -> tuple[Losses, Tokens, Tokens]:
        """Return the losses of a batch, and its image and report tokens without their gradient.

        Gradients go through the losses alone: where a term is left out, several processes could not tell otherwise
        that its heads are idle (DistributedDataParallel looks at what a forward pass returns).
        """
        image = self.encode_image(batch.images)
        report = self._encode_with_separator(batch) if self.separator_word else self.encode_report(batch)
        weights = self.config.alignment
        zero = image.pooled.new_zeros(())
        instance = token = prototype = zero
        if weights.instance_weight:
            text_id = batch.text_ids if weights.mask_same_text else None
            instance = self.instance_alignment(image.pooled, report.pooled, text_id=text_id)
        if weights.token_weight:
            word_keep = report.keep
            if weights.skip_denied_words:
                word_keep = word_keep & ~F.pad(batch.denied, (0, word_keep.shape[1] - batch.denied.shape[1]))
            token = self.token_alignment(
                report.local,
                image.local,
                word_keep=word_keep,
                word_weight=importance_weights(report.weight, report.keep),
                patch_weight=importance_weights(image.weight, image.keep),
            )
        if weights.prototype_weight:
            prototype = self.prototype_alignment(image.pooled, report.pooled)
        total = weights.instance_weight * instance + weights.token_weight * token + weights.prototype_weight * prototype
        losses = Losses(instance=instance, token=token, prototype=prototype, total=total)
        return losses, _detached(image), _detached(report)

    def _encode_with_separator(self, batch: PairBatch) -> Tokens:
        """As :meth:`encode_report`, and [SEP] is one more word, whose own weight is zero as in the published code."""
        full_length = self.report_encoder.full_length
        numbers = separator_numbers(batch.word_ids, batch.piece_keep, full_length=full_length)
        last = batch.piece_keep.sum(dim=1, keepdim=True) - 1
        word_ids = batch.word_ids.scatter(1, last, numbers)
        report = self.encode_report(replace(batch, word_ids=word_ids, num_words=batch.num_words + 1))
        separator = torch.arange(report.weight.shape[1], device=numbers.device) == numbers
        return replace(report, weight=report.weight.masked_fill(separator, 0.0))

    def _encode(self, encoder: nn.Module, *inputs: Tensor, **settings: int) -> Tokens:
        if 0 < self.chunk_size < len(inputs[0]):
            return encode_in_chunks(encoder, self.chunk_size, *inputs, **settings)
        return encoder(*inputs, **settings)

    def _project(self, tokens: Tokens, pooled: GlobalProjection, local: LocalProjection) -> Tokens:
        if 0 < self.chunk_size < len(tokens.local):
            projected = project_in_chunks(local, tokens.local, tokens.keep, self.chunk_size)
        else:
            projected = local(tokens.local, tokens.keep)
        return replace(tokens, pooled=pooled(tokens.pooled), local=projected)


def _detached(tokens: Tokens) -> Tokens:
    return replace(tokens, **{name: value.detach() for name, value in vars(tokens).items()})


def build_model(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int | None = None,
    architecture: Path | None = None,
) -> MGCA:
    """Build the model that a configuration describes.

    Args:
        config: All settings.
        tokenizer: Decides the size of the vocabulary.
        seed: Seed of the initial weights; ``None`` leaves torch's generator as it is.
        architecture: Folder with the report encoder's ``config.json``. Builds both encoders without any
            published weights and without asking the hub: for a checkpoint's weights to be loaded into.

    Raises:
        EncoderError: an encoder cannot be built.
    """
    if seed is not None:
        torch.manual_seed(seed)
    model = config.model if architecture is None else replace(config.model, backbone_weights=False)
    alignment = config.alignment.spelled_out()
    return MGCA(
        config,
        build_image_encoder(model),
        build_report_encoder(
            model,
            vocabulary=len(tokenizer),
            padding=int(tokenizer.pad_token_id),
            architecture=architecture,
            shifted_weights=alignment.shifted_word_weights,
            full_length=model.max_pieces if alignment.lost_last_word else 0,
        ),
    )
