"""Image and report encoders, and the heads that project both into the joint space.

Both encoders return :class:`Tokens`; the alignments know nothing else of them. Facts about the published
encoders: section 3.1 of the paper; where this code differs from the published code is said at each class.
"""

# isort: off
import mgca_lib.torchvision_operators  # noqa: F401 - first: repairs a torchvision built for another torch

# isort: on
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel, PreTrainedModel

from mgca_lib.batch_norm import MaskedBatchNorm
from mgca_lib.config import ModelConfig
from mgca_lib.data.tokenization import NO_WORD
from mgca_lib.messages import first_line, local_fault

CONTEXT_STRIDE = 16
"""Stride of the published patches, and of what ``local_context`` puts beside finer ones."""
LENGTH_GROUPS = 4
"""In training on a CPU the reports of a batch are read in so many groups of about equal length, which saves most of the
work on padding. Not on a GPU: it would have to wait for the lengths, and whether that pays has not been measured."""


class EncoderError(ValueError):
    """An encoder cannot be built; the message says what to do."""


@dataclass(frozen=True)
class Tokens:
    """What an encoder says about a batch (contract 3 of the architecture).

    Attributes:
        pooled: ``(B, D)`` one vector a study.
        local: ``(B, N, D)`` one vector a patch or word.
        keep: ``(B, N)`` bool, ``True`` = real, ``False`` = padding.
        weight: ``(B, N)`` float32 importance taken from attention, 0 on padding, no gradient; all-equal where the
            encoder has no attention to take it from.
    """

    pooled: Tensor
    local: Tensor
    keep: Tensor
    weight: Tensor


class ImageEncoder(nn.Module):
    """Any timm backbone as an image encoder.

    A ViT gives its class token as ``pooled`` and its patch tokens as ``local``; the weight of a patch is the
    head-averaged attention that the class token pays to it in the last block. A CNN gives its average-pooled last
    stage and the cells of an earlier one (stride 16 as upstream, unless asked otherwise), with equal weights. With
    ``local_context`` a cell of a finer stage is followed by the cell of stride 16 at its place, enlarged bilinearly: it
    says more exactly where, and has seen as much around it. Differs from upstream: the attention row is recomputed
    without gradient from the last block's input, so that every block keeps its fused attention (on a GPU; a CPU is
    faster without).

    Args:
        backbone: timm model name.
        pretrained: Start from timm's weights, which asks the hub unless they are cached.
        image_size: Side of the input, pixels (sets a ViT's position grid).
        channels: Channels per stage, for timm ResNets only; empty: as published.
        stem_width: Channels of the stem's first layers, for timm ResNets only; 0: as published.
        local_stride: Stride of the CNN stage that ``local`` comes from.
        local_context: Put what the stage of stride 16 sees beside it; for a finer ``local_stride`` only.
        upsample_to: Resize the input to this side first (upstream's ResNet-50 uses 299); 0: off.

    Attributes:
        backbone: As given.
        feature_dim: Width of ``pooled``.
        local_dim: Width of ``local``.

    Raises:
        EncoderError: timm does not know the backbone, its weights cannot be had, it has no stage of that stride, or it
            is a transformer with a class token and unusual attention (BEiT, EVA).

    >>> encoder = ImageEncoder("test_resnet", pretrained=False, image_size=64)
    >>> encoder(torch.zeros(2, 1, 64, 64)).local.shape
    torch.Size([2, 16, 192])
    """

    def __init__(
        self,
        backbone: str,
        *,
        pretrained: bool,
        image_size: int,
        channels: tuple[int, ...] = (),
        stem_width: int = 0,
        local_stride: int = 16,
        local_context: bool = False,
        upsample_to: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.local_context = local_context
        self.upsample_to = upsample_to
        self.trunk = _build_trunk(backbone, pretrained, upsample_to or image_size, tuple(channels), stem_width)
        self.is_vit = getattr(self.trunk, "cls_token", None) is not None
        if self.is_vit:
            if not isinstance(getattr(self.trunk.blocks[-1], "attn", None), Attention):
                raise EncoderError(
                    f"backbone {backbone!r}: its attention is not a plain ViT's, so its patches cannot be weighted; "
                    "use another, such as vit_* or deit_*"
                )
            if not torch.cuda.is_available():
                # On a CPU the gradient of torch's fused attention is the slower one: a step of ViT-B takes 12 % longer.
                for block in self.trunk.blocks:
                    block.attn.fused_attn = False
        else:
            # timm trains fastest on channels-last memory, measured on CPU (1.3x) and usual on GPU.
            self.trunk.to(memory_format=torch.channels_last)
        self.set_local_stride(local_stride)
        self.feature_dim = self.trunk.head_hidden_size

    def set_local_stride(self, stride: int) -> None:
        """Take the patches from the CNN stage of this stride; a ViT has no stages and accepts 16 alone.

        Raises:
            EncoderError: there is no such stage, or none with more context.
        """
        if self.is_vit:
            if stride != 16:
                raise EncoderError(f"local_stride = {stride}: backbone {self.backbone!r} has one stage; leave it at 16")
            if self.local_context:
                raise EncoderError(f"local_context = True: backbone {self.backbone!r} has one stage; leave it False")
            self.stages, self.local_dim = (-1,), self.trunk.num_features
            return
        if self.local_context and stride >= CONTEXT_STRIDE:
            raise EncoderError(f"local_context = True: needs a local_stride below {CONTEXT_STRIDE}, got {stride}")
        wanted = (stride, CONTEXT_STRIDE) if self.local_context else (stride,)
        self.stages = tuple(self._last_stage(one) for one in wanted)
        self.local_dim = sum(self.trunk.feature_info[stage]["num_chs"] for stage in self.stages)

    def _last_stage(self, stride: int) -> int:
        """Number of the last stage of a stride: every block of a ViT without class token has the same one."""
        stages = [info["reduction"] for info in self.trunk.feature_info]
        if stride not in stages:
            raise EncoderError(
                f"local_stride = {stride}: backbone {self.backbone!r} has no stage of that stride for patches; it has "
                f"{', '.join(map(str, sorted(set(stages))))}"
            )
        return len(stages) - 1 - stages[::-1].index(stride)

    def forward(self, images: Tensor) -> Tokens:
        """Encode ``(B, 1 or 3, S, S)`` float images in [-1, 1] to unprojected tokens."""
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.upsample_to:
            images = F.interpolate(images, size=self.upsample_to, mode="bilinear", align_corners=True)
        return self._encode_vit(images) if self.is_vit else self._encode_cnn(images)

    def extra_repr(self) -> str:
        """What weights and parts do not show, so that caches by the printed module tell two encoders apart."""
        return f"upsample_to={self.upsample_to}"

    def _encode_cnn(self, images: Tensor) -> Tokens:
        images = images.contiguous(memory_format=torch.channels_last)
        last, (cells, *context) = self.trunk.forward_intermediates(images, indices=list(self.stages))
        wide = [F.interpolate(part, size=cells.shape[-2:], mode="bilinear") for part in context]
        local = torch.cat([cells, *wide], dim=1).flatten(2).transpose(1, 2)
        keep = torch.ones(local.shape[:2], dtype=torch.bool, device=local.device)
        return Tokens(
            pooled=self.trunk.forward_head(last, pre_logits=True),
            local=local,
            keep=keep,
            weight=torch.full(local.shape[:2], 1.0 / local.shape[1], device=local.device),
        )

    def _encode_vit(self, images: Tensor) -> Tokens:
        attention = self.trunk.blocks[-1].attn
        seen: list[Tensor] = []
        handle = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        try:
            tokens = self.trunk.forward_features(images)
        finally:
            handle.remove()
        prefix = self.trunk.num_prefix_tokens
        local = tokens[:, prefix:]
        return Tokens(
            pooled=self.trunk.forward_head(tokens, pre_logits=True),
            local=local,
            keep=torch.ones(local.shape[:2], dtype=torch.bool, device=local.device),
            weight=_vit_class_attention(attention, seen[0])[:, prefix:],
        )


class ReportEncoder(nn.Module):
    """A BERT-type model of transformers that reads word pieces and returns words.

    ``pooled`` is the output of [CLS]; a word is the sum of its pieces (one scatter-add); the weight of a word is
    the sum over its pieces of the head-averaged attention that [CLS] pays to them in the last layer. Differs from
    upstream: a word gets its own weight (upstream is one token off), [SEP] is not a word, the last word of a full
    report is kept, and no cross-attention layers are built. The first and the third can be switched back, the
    second in :class:`mgca_lib.model.MGCA`.

    Args:
        model: A BERT-type model: ``embeddings``, ``encoder.layer[i].attention.self`` with query and key.
        shifted_weights: Give each piece the attention of its right neighbour, as upstream: the last piece gets what
            [CLS] pays to [SEP], and what it pays to the first piece is thrown away.
        full_length: Reports of so many pieces lose their last word, as upstream, whose loop over the pieces ends one
            short of the last slot; 0: never.
        word_window: In each layer a piece reads so many pieces on either side of it, and never [CLS], which reads
            all: a word then knows no more of the report than ``layers * word_window`` pieces around it. 0: every
            piece reads the whole report, as upstream.

    Attributes:
        feature_dim: Width of ``pooled`` and ``local``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        shifted_weights: bool = False,
        full_length: int = 0,
        word_window: int = 0,
    ) -> None:
        super().__init__()
        self.model = model
        self.word_window = word_window
        self.shifted_weights = shifted_weights
        self.full_length = full_length
        self.feature_dim = model.config.hidden_size
        if not torch.cuda.is_available():
            # Torch's fused attention is the slower one on a CPU: a step of the demo takes 10 % longer with it.
            model.set_attn_implementation("eager")

    def forward(self, pieces: Tensor, piece_keep: Tensor, word_ids: Tensor, num_words: int) -> Tokens:
        """Encode a batch of reports.

        Args:
            pieces: ``(B, T)`` int64 word-piece ids, [CLS] first.
            piece_keep: ``(B, T)`` bool, ``True`` = real.
            word_ids: ``(B, T)`` int64, word of each piece; -1 for special tokens and padding.
            num_words: ``W``, word slots of the result.

        Returns:
            Unprojected tokens with ``N = num_words``.
        """
        if not self.training or pieces.device.type != "cpu":
            return self._encode(pieces, piece_keep, word_ids, num_words)
        lengths = piece_keep.sum(dim=1)
        order = lengths.argsort(stable=True)
        parts = []
        for rows in order.chunk(LENGTH_GROUPS):
            cut = rows, slice(int(lengths[rows[-1]]))
            parts.append(self._encode(pieces[cut], piece_keep[cut], word_ids[cut], num_words))
        back = order.argsort()
        return Tokens(**{name: torch.cat([vars(part)[name] for part in parts])[back] for name in vars(parts[0])})

    def _encode(self, pieces: Tensor, piece_keep: Tensor, word_ids: Tensor, num_words: int) -> Tokens:
        attention = self.model.encoder.layer[-1].attention.self
        seen: list[Tensor] = []
        handle = attention.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        try:
            hidden = self.read(pieces, piece_keep)
        finally:
            handle.remove()
        piece_weight = _bert_class_attention(attention, seen[0], piece_keep)
        if self.shifted_weights:
            piece_weight = F.pad(piece_weight[:, 1:], (0, 1))
        if self.full_length:
            full = piece_keep.sum(dim=1, keepdim=True) == self.full_length
            word_ids = word_ids.masked_fill(full & (word_ids == word_ids.amax(dim=1, keepdim=True)), NO_WORD)
        words, keep = merge_pieces(hidden, word_ids, num_words)
        weight, _ = merge_pieces(piece_weight[..., None], word_ids, num_words)
        return Tokens(pooled=hidden[:, 0], local=words, keep=keep, weight=weight[..., 0])

    def read(self, pieces: Tensor, piece_keep: Tensor) -> Tensor:
        """Return what the last layer says about each piece, ``(B, T, feature_dim)``; inputs as of :meth:`forward`."""
        return self.model(input_ids=pieces, attention_mask=self._attention_mask(piece_keep)).last_hidden_state

    def _attention_mask(self, piece_keep: Tensor) -> Tensor:
        """Which pieces are read: ``(B, T)`` int64 by all alike, or ``(B, 1, T, T)`` to be added to the logits."""
        if not self.word_window:
            return piece_keep.long()
        place = torch.arange(piece_keep.shape[1], device=piece_keep.device)
        near = (place[:, None] - place).abs() <= self.word_window
        near[:, 0] = False  # [CLS] has read the whole report
        near[0] = True
        # Padding reads itself, so that no softmax is over nothing.
        read = (near & piece_keep[:, None]) | torch.eye(len(place), dtype=torch.bool, device=place.device)
        logits = torch.zeros(read.shape, dtype=self.model.dtype, device=place.device)
        return logits.masked_fill(~read, torch.finfo(logits.dtype).min)[:, None]


def merge_pieces(values: Tensor, word_ids: Tensor, num_words: int) -> tuple[Tensor, Tensor]:
    """Sum the vectors of the pieces of each word: one scatter-add, no loop, no transfer to the host.

    Args:
        values: ``(B, T, D)`` one vector a piece.
        word_ids: ``(B, T)`` int64, word of each piece; negative: belongs to no word.
        num_words: ``W``, word slots of the result.

    Returns:
        ``(B, W, D)`` sums, zero in empty slots, and ``(B, W)`` bool, ``True`` where a word has pieces.

    >>> values = torch.tensor([[[9.0], [1.0], [2.0], [5.0], [9.0]]])  # [CLS] in ##filtrate lung [SEP]
    >>> words, keep = merge_pieces(values, torch.tensor([[-1, 0, 0, 1, -1]]), 3)
    >>> words[0, :, 0].tolist(), keep[0].tolist()
    ([3.0, 5.0, 0.0], [True, True, False])
    """
    batch, _, width = values.shape
    slot = word_ids.masked_fill(word_ids < 0, num_words)  # one extra slot takes what belongs to no word
    words = values.new_zeros(batch, num_words + 1, width)
    words = words.scatter_add(1, slot[..., None].expand(-1, -1, width), values)
    keep = torch.zeros(batch, num_words + 1, dtype=torch.bool, device=values.device)
    keep = keep.scatter(1, slot, True)
    return words[:, :num_words], keep[:, :num_words]


def separator_numbers(word_ids: Tensor, piece_keep: Tensor, *, full_length: int = 0) -> Tensor:
    """Number the separator of each report as the word after its last one, as upstream's loop over the pieces does.

    Args:
        word_ids: ``(B, T)`` int64, word of each piece; -1 for special tokens and padding.
        piece_keep: ``(B, T)`` bool, ``True`` = real; the last real piece is [SEP].
        full_length: In reports of so many pieces upstream's loop ends before [SEP]; 0: in none.

    Returns:
        ``(B, 1)`` int64; -1 where [SEP] is no word.

    >>> ids = torch.tensor([[-1, 0, 0, 1, -1], [-1, 0, -1, -1, -1]])  # [CLS] in ##filtrate lung [SEP], [CLS] no [SEP]
    >>> keep = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    >>> separator_numbers(ids, keep).tolist(), separator_numbers(ids, keep, full_length=5).tolist()
    ([[2], [1]], [[-1], [1]])
    """
    numbers = word_ids.amax(dim=1, keepdim=True) + 1
    if full_length:
        numbers = numbers.masked_fill(piece_keep.sum(dim=1, keepdim=True) == full_length, NO_WORD)
    return numbers


class GlobalProjection(nn.Module):
    """Head for pooled vectors: Linear, BatchNorm, ReLU, Linear, BatchNorm without affine (as upstream)."""

    def __init__(self, width: int, *, hidden: int, joint: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, joint),
            nn.BatchNorm1d(joint, affine=False),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        """Project ``(B, width)`` to unit vectors ``(B, joint)``, float32."""
        # BatchNorm magnifies what tells the studies of a batch apart. Early in training that is little, and bf16
        # would round much of it off: half the instance loss was noise then. The cost is one vector a study.
        with torch.autocast(pooled.device.type, enabled=False):
            return F.normalize(self.layers(pooled.to(self.layers[0].weight.dtype)), dim=-1)


class LocalProjection(nn.Module):
    """The same head for words or patches; padding never enters its BatchNorm.

    Args:
        width: Width of the incoming vectors.
        hidden: Width between the two layers.
        joint: ``D``, width of the joint space.
        padded: Let every slot into the BatchNorm, padding included, as upstream.
    """

    def __init__(self, width: int, *, hidden: int, joint: int, padded: bool = False) -> None:
        super().__init__()
        self.padded = padded
        self.enter = nn.Linear(width, hidden)
        self.enter_norm = MaskedBatchNorm(hidden)
        self.leave = nn.Linear(hidden, joint)
        self.leave_norm = MaskedBatchNorm(joint, affine=False)

    def forward(self, local: Tensor, keep: Tensor) -> Tensor:
        """Project ``(B, N, width)`` to unit vectors ``(B, N, joint)``, float32."""
        if self.padded:
            keep = torch.ones_like(keep)
        hidden = F.relu(self.enter_norm(self.enter(local), keep))
        return F.normalize(self.leave_norm(self.leave(hidden), keep), dim=-1)


def build_image_encoder(config: ModelConfig) -> ImageEncoder:
    """Build the image encoder that a configuration describes; raises :class:`EncoderError`."""
    return ImageEncoder(
        config.backbone,
        pretrained=config.backbone_weights,
        image_size=config.image_size,
        channels=tuple(config.backbone_channels),
        stem_width=config.stem_width,
        local_stride=config.local_stride,
        local_context=config.local_context,
        upsample_to=config.upsample_to,
    )


def build_report_encoder(
    config: ModelConfig,
    *,
    vocabulary: int,
    padding: int,
    architecture: Path | None = None,
    shifted_weights: bool = False,
    full_length: int = 0,
) -> ReportEncoder:
    """Build the report encoder that a configuration describes.

    Args:
        config: ``text_model`` names a hub id or a folder; when it is empty a fresh model of the ``text_*`` sizes
            is built and nothing is downloaded.
        vocabulary: Size of the tokenizer's vocabulary.
        padding: The tokenizer's padding id.
        architecture: Folder with a ``config.json``; builds that model without weights instead.
        shifted_weights: See :class:`ReportEncoder`.
        full_length: See :class:`ReportEncoder`.

    Raises:
        EncoderError: the model is not on this computer and the hub cannot be reached, it has fewer layers than
            ``text_layers``, or its vocabulary is smaller than the tokenizer's.
    """
    settings = {"shifted_weights": shifted_weights, "full_length": full_length, "word_window": config.word_window}
    if architecture is not None:
        sizes = AutoConfig.from_pretrained(architecture, trust_remote_code=False)
        return ReportEncoder(AutoModel.from_config(sizes, add_pooling_layer=False, trust_remote_code=False), **settings)
    if not config.text_model:
        sizes = BertConfig(
            vocab_size=vocabulary,
            hidden_size=config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=config.text_heads,
            intermediate_size=4 * config.text_width,
            hidden_dropout_prob=config.text_dropout,
            attention_probs_dropout_prob=config.text_dropout,
            max_position_embeddings=config.max_pieces,
            pad_token_id=padding,
        )
        return ReportEncoder(BertModel(sizes, add_pooling_layer=False), **settings)
    name = config.text_model
    try:
        sizes = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if sizes.num_hidden_layers < config.text_layers:
            raise EncoderError(
                f"text_model {name!r}: has {sizes.num_hidden_layers} layers, text_layers = {config.text_layers}"
            )
        if sizes.max_position_embeddings < config.max_pieces:
            raise EncoderError(
                f"text_model {name!r}: reads {sizes.max_position_embeddings} pieces, max_pieces = {config.max_pieces}"
            )
        sizes.num_hidden_layers = config.text_layers  # the first ones: upstream uses 6 of 12
        model = AutoModel.from_pretrained(name, config=sizes, add_pooling_layer=False, trust_remote_code=False)
    except EncoderError:
        raise
    except (OSError, ValueError) as error:
        raise EncoderError(_not_here("text_model", name, error)) from None
    except TypeError as error:
        raise EncoderError(f"text_model {name!r}: is not a BERT-type model ({error})") from None
    if model.config.vocab_size < vocabulary:
        raise EncoderError(
            f"text_model {name!r}: knows {model.config.vocab_size} pieces, its tokenizer has {vocabulary}"
        )
    return ReportEncoder(model, **settings)


def _build_trunk(
    backbone: str, pretrained: bool, image_size: int, channels: tuple[int, ...], stem_width: int
) -> nn.Module:
    if not timm.is_model(backbone):
        raise EncoderError(
            f"backbone {backbone!r}: timm {timm.__version__} knows no such model; see timm.list_models()"
        )
    options: dict[str, object] = {"num_classes": 0, "img_size": image_size}
    if channels:
        options["channels"] = channels
    if stem_width:
        options["stem_width"] = stem_width
    try:
        try:
            return timm.create_model(backbone, pretrained=pretrained, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            del options["img_size"]  # a network for images of any size
            return timm.create_model(backbone, pretrained=pretrained, **options)
    except TypeError as error:
        raise EncoderError(f"backbone {backbone!r}: does not take these settings ({error})") from None
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise EncoderError(f"backbone {backbone!r}: cannot be built ({error})") from None
        raise EncoderError(_not_here("backbone", backbone, error)) from None


def _not_here(setting: str, name: str, error: Exception) -> str:
    reason = first_line(error)
    local = local_fault(name, error) if setting == "text_model" else ""
    if local:
        return f"text_model {name!r}: {local}; put the model there (config.json, weights, vocabulary), or name a hub id"
    remedy = (
        f"set {setting} to a local folder, after `hf download {name} --local-dir FOLDER` on a computer with network"
        if setting == "text_model"
        else "run once with network so that timm caches them, or set backbone_weights to false"
    )
    return (
        f"{setting} {name!r}: the weights are not on this computer and the hub did not give them ({reason}); {remedy}"
    )


@torch.no_grad()
def _vit_class_attention(attention: nn.Module, inputs: Tensor) -> Tensor:
    """Head-averaged attention of the class token to all tokens, ``(B, 1 + P)`` float32."""
    batch, length, _ = inputs.shape
    qkv = attention.qkv(inputs).reshape(batch, length, 3, attention.num_heads, -1)
    query = attention.q_norm(qkv[:, :1, 0]).float()
    key = attention.k_norm(qkv[:, :, 1]).float()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key)[:, :, 0] * attention.scale
    return scores.softmax(dim=-1).mean(dim=1)


@torch.no_grad()
def _bert_class_attention(attention: nn.Module, inputs: Tensor, keep: Tensor) -> Tensor:
    """Head-averaged attention of [CLS] to all pieces, ``(B, T)`` float32, 0 on padding."""
    batch, length, _ = inputs.shape
    heads = attention.num_attention_heads
    query = attention.query(inputs[:, :1]).view(batch, 1, heads, -1).float()
    key = attention.key(inputs).view(batch, length, heads, -1).float()
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key)[:, :, 0] / key.shape[-1] ** 0.5
    scores = scores.masked_fill(~keep[:, None], -torch.inf)
    return scores.softmax(dim=-1).mean(dim=1)
