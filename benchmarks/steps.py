"""One training step of this project and of the baseline, on the same batch; shared by the CPU and GPU benchmarks."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baseline import SLOTS, BaselineMGCA
from benchmarks.synthetic import VOCABULARY, letter_tokenizer
from mgca_lib.config import Config, load_profile
from mgca_lib.data.pairs import PairBatch
from mgca_lib.encoders import Tokens, build_image_encoder, build_report_encoder
from mgca_lib.model import MGCA

Step = Callable[[], None]


def paper_config(*, quick: bool) -> Config:
    """ViT-B/16 at 224 px and a 6-layer BERT, both from scratch; in quick mode a few narrow layers."""
    if quick:
        sizes = {"backbone": "test_vit", "stored_size": 72, "image_size": 64, "text_layers": 1, "text_width": 64}
        return load_profile("paper", text_model="", backbone_weights=False, text_heads=2, hidden_dim=64, **sizes)
    return load_profile("paper", text_model="", backbone_weights=False)


def build(config: Config) -> MGCA:
    """Build the model with a vocabulary of the published size."""
    torch.manual_seed(0)
    image_encoder = build_image_encoder(config.model)
    return MGCA(config, image_encoder, build_report_encoder(config.model, vocabulary=VOCABULARY, padding=0))


def training_step(model: MGCA, batch: PairBatch, *, bf16: bool) -> Step:
    """Return one optimiser step as ``mgca_lib.pretrain`` takes it."""
    training = model.config.training
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
            loss = model(batch)[0].total
        loss.backward()
        optimizer.step()

    return step


def losses_alone(model: MGCA, batch: PairBatch, *, bf16: bool) -> Step:
    """Return forward and backward pass of the three losses, from the tokens that the model makes of the batch."""
    with torch.no_grad(), torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bf16):
        image, report = (_leaves(tokens) for tokens in (model.encode_image(batch.images), model.encode_report(batch)))
    # The model's own forward pass, with the encoders' work done already.
    alone = copy.copy(model)
    alone.encode_image, alone.encode_report = (lambda _: image), (lambda _: report)

    def step() -> None:
        alone(batch)[0].total.backward()

    return step


def _leaves(tokens: Tokens) -> Tokens:
    return replace(tokens, pooled=tokens.pooled.requires_grad_(), local=tokens.local.requires_grad_())


def baseline_step(config: Config, batch: PairBatch, *, quick: bool) -> Step:
    """Return one step of the baseline on the same images and reports, in float32 under anomaly detection."""
    torch.manual_seed(0)
    device = batch.images.device
    names = {number: name for name, number in letter_tokenizer().get_vocab().items()}
    model = BaselineMGCA(
        size=config.model.image_size,
        patch=16,
        width=64 if quick else 768,
        heads=2 if quick else 12,
        image_layers=1 if quick else 12,
        text_layers=config.model.text_layers,
        vocabulary=VOCABULARY,
        names=names,
        hidden=config.model.hidden_dim,
        joint=config.model.joint_dim,
        num_prototypes=config.alignment.num_prototypes,
    ).to(device)
    room = SLOTS - batch.pieces.shape[1]
    pieces, keep = F.pad(batch.pieces, (0, room)), F.pad(batch.piece_keep, (0, room))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, weight_decay=0.05)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autograd.set_detect_anomaly(True):
            model(batch.images, pieces, keep).backward()
        optimizer.step()

    return step


def count_operations(step: Step, model: MGCA, batch: PairBatch) -> tuple[int, int]:
    """Count the floating point operations of a step's matrix products.

    Returns:
        All that the step executes, and how many of them go into padded word pieces.
    """
    with FlopCounterMode(display=False) as whole:
        step()
    return whole.get_total_flops(), 3 * (_reading(model, batch) - sum(_reading(model, one) for one in _singly(batch)))


def _reading(model: MGCA, batch: PairBatch) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.report_encoder(batch.pieces, batch.piece_keep, batch.word_ids, batch.num_words)
    return counter.get_total_flops()


def _singly(batch: PairBatch) -> list[PairBatch]:
    """Every report as a batch of its own, without padding."""

    def cut(tensor: Tensor, row: int, length: int) -> Tensor:
        return tensor[row : row + 1, :length]

    lengths = batch.piece_keep.sum(dim=1).tolist()
    return [
        replace(
            batch,
            pieces=cut(batch.pieces, row, length),
            piece_keep=cut(batch.piece_keep, row, length),
            word_ids=cut(batch.word_ids, row, length),
        )
        for row, length in enumerate(lengths)
    ]
