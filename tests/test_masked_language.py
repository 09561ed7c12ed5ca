"""Masked words: what is there to be learned is learned, in the encoder itself, and alike every time."""

import copy
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import RobertaConfig, RobertaModel

from mgca_lib.config import load_profile
from mgca_lib.data.tokenization import train_tokenizer
from mgca_lib.encoders import EncoderError, ReportEncoder, build_report_encoder
from mgca_lib.masked_language import train_masked_language

pytestmark = pytest.mark.usefixtures("one_thread")

SUBJECTS = ("heart", "lung", "pleura", "hilum", "aorta", "spine")
STATES = ("large", "clear", "thick", "dense", "tortuous", "bent")


def language(count, *, seed):
    """Every subject has its own state: who has learned that needs no more than a neighbour to guess a word."""
    rng = np.random.default_rng(seed)
    picks = [rng.choice(len(SUBJECTS), size=3, replace=False) for _ in range(count)]
    return [" ".join(f"{SUBJECTS[i]} {STATES[i]}" for i in pick) for pick in picks]


TRAIN, VALID = language(96, seed=0), language(48, seed=1)
TOKENIZER = train_tokenizer(sorted(set(TRAIN)), vocabulary=200)
LOSS_OF_FREQUENCIES = math.log(len(SUBJECTS) + len(STATES))  # all words are equally frequent


def encoder(*, seed=0, **settings):
    sizes = {"text_width": 32, "text_heads": 2, "text_layers": 2, "text_dropout": 0.0} | settings
    torch.manual_seed(seed)
    return build_report_encoder(load_profile("smoke", **sizes).model, vocabulary=len(TOKENIZER), padding=0)


def learn(model, *, epochs, learning_rate=3e-3, seed=5, **more):
    AcceleratorState._reset_state()
    settings = {"batch_size": 16, "max_pieces": 20, "seed": seed, "accelerator": Accelerator(cpu=True)} | more
    return train_masked_language(model, TOKENIZER, TRAIN, VALID, epochs=epochs, learning_rate=learning_rate, **settings)


@pytest.fixture(scope="module")
def learned():
    model = encoder(word_window=1)
    return model, learn(model, epochs=120)


def test_a_neighbour_tells_the_word(learned):
    """A neighbour is enough, so words that read one piece on either side learn it: far below what frequencies allow."""
    _, history = learned
    assert [row["epoch"] for row in history] == list(range(1, 121))
    assert history[-1]["train"] < 0.4 * LOSS_OF_FREQUENCIES
    assert history[-1]["valid"] < 0.4 * LOSS_OF_FREQUENCIES


def test_the_encoder_stays_one_of_its_kind(learned):
    """The guessing layer is thrown away, and the embeddings that it shared have moved."""
    model, _ = learned
    fresh = encoder(word_window=1)
    assert set(model.state_dict()) == set(fresh.state_dict())
    own, before = (part.model.get_input_embeddings().weight for part in (model, fresh))
    word = TOKENIZER.convert_tokens_to_ids("heart")
    assert not torch.allclose(own[word], before[word], atol=0.01)


def test_knowing_nothing_costs_the_logarithm_of_the_vocabulary():
    history = learn(encoder(), epochs=1, learning_rate=1e-12)
    for part in ("train", "valid"):
        assert history[0][part] == pytest.approx(math.log(len(TOKENIZER)), rel=0.05)


def test_the_same_seed_learns_the_same_bits_and_another_seed_others():
    models = [encoder() for _ in range(3)]
    histories = [learn(model, epochs=2, seed=seed) for model, seed in zip(models, (5, 5, 6), strict=True)]
    one, two, other = (model.state_dict() for model in models)
    assert histories[0] == histories[1] != histories[2]
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = next(name for name in one if "query.weight" in name)
    assert not torch.equal(one[name], other[name])


def test_validation_is_masked_alike_every_time():
    """Nothing is learned, so nothing may change either."""
    history = learn(encoder(), epochs=3, learning_rate=1e-30)
    assert len({row["valid"] for row in history}) == 1
    assert len({row["train"] for row in history}) == 3


def test_a_model_of_another_class_is_refused():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    roberta = RobertaModel(RobertaConfig(vocab_size=len(TOKENIZER), **sizes), add_pooling_layer=False)
    with pytest.raises(EncoderError, match="mlm_epochs: needs a BertModel, and text_model is a RobertaModel"):
        learn(ReportEncoder(roberta), epochs=1)


def test_validation_has_no_dropout():
    """A model that does not move, with dropout: every validation finds the same loss."""
    history = learn(encoder(text_dropout=0.5), epochs=3, learning_rate=1e-30)
    assert len({row["valid"] for row in history}) == 1
    assert len({row["train"] for row in history}) == 3


def test_it_goes_on_from_any_pass():
    """Bit for bit, with dropout: from what was kept after each pass, with the encoder's weights of then."""
    kept = []
    model = encoder(text_dropout=0.3)

    def keep(reading):
        kept.append((copy.deepcopy(reading), copy.deepcopy(model.state_dict())))

    history = learn(model, epochs=3, keep=keep)
    assert [len(reading.history) for reading, _ in kept] == [1, 2, 3]
    for reading, weights in kept:
        other = encoder(seed=9, text_dropout=0.3)
        other.load_state_dict(weights)
        assert learn(other, epochs=3, begin=reading) == history
        assert all(torch.equal(weight, other.state_dict()[name]) for name, weight in model.state_dict().items())
