"""The training loop: it learns, repeats itself, survives kill -9 bit for bit, and says what is wrong."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import CARD, tiny_config, tiny_studies, tiny_table, with_cell
from run_helpers import assert_same_run, command_words, die_at, in_child, timeless
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgca_lib import checkpoint
from mgca_lib import pretrain as module
from mgca_lib.checkpoint import CheckpointError, load_checkpoint
from mgca_lib.config import LATER, ConfigError, TrainingConfig
from mgca_lib.data.pairs import EpochBatches, PairImages, report_texts
from mgca_lib.data.studies import DatasetError, write_studies
from mgca_lib.data.tokenization import train_tokenizer
from mgca_lib.data.transforms import ImageTransform
from mgca_lib.encoders import EncoderError, Tokens
from mgca_lib.masked_language import train_masked_language
from mgca_lib.model import build_model
from mgca_lib.pretrain import PretrainError, learning_rate_at, main, pretrain, retrieval_accuracy
from mgca_lib.training_state import Keeper, Pretraining, run_identity

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return tiny_studies(tmp_path_factory.mktemp("pretrain"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two steps an epoch."""
    return tiny_studies(tmp_path_factory.mktemp("small"), train=16, valid=4, test=4)


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    """The run that every killed one must equal."""
    return pretrain(tiny_config(), small, tmp_path_factory.mktemp("undisturbed") / "run", seed=3)


# ---- what a run does


def test_the_loss_falls_on_something_learnable(tmp_path):
    studies = tiny_studies(tmp_path / "data", train=64, valid=16, test=4)
    sizes = {"hidden_dim": 64, "joint_dim": 64, "batch_size": 16, "epochs": 12, "patience": 0, "text_dropout": 0.0}
    config = tiny_config(
        **sizes, learning_rate=5e-3, warmup_fraction=0.1, instance_temperature=0.3, checkpoint_steps=1000
    )
    history = pretrain(config, studies, tmp_path / "run", seed=0).history
    for part in ("instance", "token", "prototype", "total"):
        assert history[-1][f"train/{part}"] < 0.7 * history[0][f"train/{part}"], part
    # Sixteen pairs of four patterns: by chance the own report is among the first five in 5 of 16 cases.
    assert np.mean([row["valid/top5"] for row in history[-3:]]) > 0.6


def test_same_seed_same_bits_other_seed_other_bits(small, undisturbed, tmp_path):
    torch.manual_seed(99)  # what happened before must not matter
    assert_same_run(pretrain(tiny_config(), small, tmp_path / "again", seed=3), undisturbed)
    other = pretrain(tiny_config(), small, tmp_path / "other", seed=4)
    one, two = (load_file(run.last / "model.safetensors") for run in (undisturbed, other))
    names = [name for name, weight in one.items() if weight.is_floating_point() and weight.std() > 0]
    assert sum(torch.equal(one[name], two[name]) for name in names) < 0.1 * len(names)


def test_same_bits_in_bf16_on_two_threads(small, tmp_path):
    """What the demo profile runs in: sums that two threads share must not depend on which is first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        config = tiny_config(precision="bf16")
        assert_same_run(*(pretrain(config, small, tmp_path / name, seed=3) for name in ("one", "two")))
    finally:
        torch.set_num_threads(threads)


def test_kept_images_change_nothing(small, undisturbed, tmp_path):
    other = not tiny_config().training.keep_images
    kept = pretrain(tiny_config(keep_images=other), small, tmp_path / "kept", seed=3)
    assert timeless(kept.history) == timeless(undisturbed.history)


def test_loader_processes_change_nothing(small, undisturbed, tmp_path):
    helped = pretrain(tiny_config(workers=2), small, tmp_path / "helped", seed=3)
    assert timeless(helped.history) == timeless(undisturbed.history)


def test_denied_words_are_found_in_training_and_validation(small, tmp_path):
    """A fourth of the tiny reports deny what they name ("no acute process"), so the token loss must change."""
    histories = []
    for skip in (False, True):
        config = tiny_config(epochs=1, token_form="cta_grounded", skip_denied_words=skip)
        histories.append(pretrain(config, small, tmp_path / str(skip), seed=1).history[0])
    before, after = histories
    for side in ("train", "valid"):
        assert abs(after[f"{side}/token"] - before[f"{side}/token"]) > 1e-3


def test_the_folder_and_the_history(small, undisturbed):
    out = undisturbed.last.parent
    files = ["best", "finished.json", "history.json", "last", "tensorboard"]
    assert sorted(path.name for path in out.iterdir()) == files
    assert undisturbed.trained
    assert [(row["epoch"], row["step"]) for row in undisturbed.history] == [(1, 2), (2, 4)]
    expected = {"epoch", "step", "learning_rate", "pairs_per_second", "seconds", "valid/top1", "valid/top5"}
    expected |= {f"{split}/{part}" for split in ("train", "valid") for part in module.PARTS}
    for row in undisturbed.history:
        assert set(row) == expected
        for split in ("train", "valid"):
            parts = sum(row[f"{split}/{part}"] for part in ("instance", "token", "prototype"))
            assert row[f"{split}/total"] == pytest.approx(parts, rel=1e-5)
    assert [row["learning_rate"] for row in undisturbed.history] == [
        learning_rate_at(step, 4, tiny_config().training) for step in (1, 3)
    ]
    provenance = load_checkpoint(undisturbed.last)[2]
    assert (provenance["seed"], provenance["step"]) == (3, 4)
    assert provenance["data"]["sha256"] == small.card.table_sha256
    assert provenance["settings"] == tiny_config().to_dict()


def test_validation_is_what_the_best_checkpoint_says(small, undisturbed):
    """The recorded validation losses, computed again from the saved weights."""
    model, tokenizer, provenance = load_checkpoint(undisturbed.best)
    row = next(row for row in undisturbed.history if row["step"] == provenance["step"])
    assert row["valid/total"] == min(row["valid/total"] for row in undisturbed.history)
    valid = small.split("valid")
    data = PairImages(valid, tokenizer, ImageTransform(36, 32), max_pieces=112, seed=0)
    with torch.no_grad():
        losses, image, report = model(data.collate([data[index] for index in range(4)]))
    for name, value in losses.named().items():
        assert row[f"valid/{name}"] == pytest.approx(value.item(), rel=1e-5)
    assert row["valid/top1"] == pytest.approx(retrieval_accuracy(image, report)["top1"].item())


def parts_of(model):
    """Parameters by the first part of their name; AdamW treats each alone, so several optimisers are one."""
    parts = {}
    for name, parameter in model.named_parameters():
        parts.setdefault(name.split(".")[0], []).append(parameter)
    return parts


def manual_run(config, studies, seed):
    """Two epochs written out with plain torch: accumulation, schedule, frozen prototypes, AdamW."""
    training = config.training
    train = studies.split("train")
    tokenizer = train_tokenizer(sorted(set(report_texts(train))), vocabulary=config.model.text_vocabulary)
    model = build_model(config, tokenizer, seed=seed).train()
    # The same kernel as in the loop: where a gradient is nearly zero, Adam's division magnifies how a kernel rounds.
    settings = {"betas": (0.9, 0.999), "weight_decay": training.weight_decay, "fused": True}
    rates = {"report_encoder": training.text_rate_factor}
    optimizers = [
        (rates.get(name, 1.0), torch.optim.AdamW(part, lr=1.0, **settings)) for name, part in parts_of(model).items()
    ]
    data = PairImages(train, tokenizer, ImageTransform(36, 32, "crop"), max_pieces=112, seed=seed)
    micro = len(train) // training.batch_size
    steps = micro // training.accumulation
    step = 0
    for epoch in range(training.epochs):
        order = list(EpochBatches(size=len(train), batch_size=training.batch_size, seed=seed, epoch=epoch))
        for first in range(0, steps * training.accumulation, training.accumulation):
            model.zero_grad()
            for keys in order[first : first + training.accumulation]:
                (model(data.collate([data[key] for key in keys]))[0].total / training.accumulation).backward()
            if epoch < config.alignment.freeze_prototypes_epochs:
                model.prototypes.grad = None
            if training.clip_norm:
                torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            for factor, optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = factor * learning_rate_at(step, steps * training.epochs, training)
                optimizer.step()
            step += 1
    return model.state_dict()


@pytest.mark.parametrize(
    "settings",
    [
        {"accumulation": 2, "batch_size": 4},
        {"clip_norm": 0.5},
        {"accumulation": 3, "batch_size": 2, "epochs": 3},
        {"text_rate_factor": 0.25},
    ],
    ids=["accumulation", "clipping", "uneven accumulation", "slower text"],
)
def test_the_loop_against_one_written_out(small, tmp_path, settings):
    config = tiny_config(text_dropout=0.0, checkpoint_steps=100, **settings)
    run = pretrain(config, small, tmp_path / "run", seed=5)
    found, expected = load_file(run.last / "model.safetensors"), manual_run(config, small, 5)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6, msg=name)
    start = build_model(config, load_checkpoint(run.last)[1], seed=5).state_dict()
    moved = [name for name in start if not torch.allclose(start[name].float(), found[name].float(), atol=1e-5)]
    assert len(moved) > 0.8 * len(start)


@pytest.mark.parametrize(("frozen", "moves"), [(1, False), (0, True)])
def test_prototypes_stay_in_their_frozen_epoch(small, tmp_path, frozen, moves):
    config = tiny_config(epochs=1, freeze_prototypes_epochs=frozen, checkpoint_steps=100, warmup_fraction=0.0)
    run = pretrain(config, small, tmp_path / "run", seed=1)
    model, tokenizer, _ = load_checkpoint(run.last)
    start = build_model(config, tokenizer, seed=1)
    assert torch.allclose(model.prototypes, start.prototypes, rtol=0, atol=1e-6) is not moves
    before, after = start.image_global.layers[0].weight, model.image_global.layers[0].weight
    assert not torch.allclose(before, after, rtol=0, atol=1e-4)


def test_prototypes_move_after_their_frozen_epoch(small, tmp_path):
    config = tiny_config(epochs=2, freeze_prototypes_epochs=1, checkpoint_steps=100, warmup_fraction=0.0)
    model, tokenizer, _ = load_checkpoint(pretrain(config, small, tmp_path / "run", seed=1).last)
    start = build_model(config, tokenizer, seed=1)
    assert (model.prototypes - start.prototypes).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("warmup", "total", "peak"), [(0.4, 50, 2e-5), (0.0, 10, 1e-3), (0.1, 37, 1.0), (0.9, 10, 1.0)]
)
def test_the_learning_rate_in_closed_form(warmup, total, peak):
    training = TrainingConfig(learning_rate=peak, warmup_fraction=warmup)
    rates = [learning_rate_at(step, total, training) for step in range(total)]
    top = int(warmup * total)
    for step, rate in enumerate(rates):
        if step < top:
            expected = 1e-8 + (peak - 1e-8) * step / top
        else:
            expected = 1e-8 + (peak - 1e-8) * math.cos(math.pi / 2 * (step - top) / (total - top)) ** 2
        assert rate == pytest.approx(expected, rel=1e-12)
    assert max(rates) == rates[top] == pytest.approx(peak)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_early_stop_and_best(small, tmp_path, monkeypatch):
    """Validation losses as given: the second epoch is best, and two without gain end the run."""
    totals = iter([3.0, 2.0, 2.5, 2.0, 1.0])
    parts = {"instance": 1.0, "token": 1.0, "prototype": 1.0}
    monkeypatch.setattr(module, "evaluate", lambda *_: parts | {"total": next(totals)})
    run = pretrain(tiny_config(epochs=5, patience=2), small, tmp_path / "run", seed=1)
    assert [row["valid/total"] for row in run.history] == [3.0, 2.0, 2.5, 2.0]
    assert load_checkpoint(run.best)[2]["step"] == 4
    assert load_checkpoint(run.last)[2]["step"] == 8
    again = pretrain(tiny_config(epochs=5, patience=2), small, tmp_path / "run", seed=1, resume=True)
    assert not again.trained
    totals = iter([3.0, 3.5, 3.6, 3.7])
    run = pretrain(tiny_config(epochs=4, patience=0), small, tmp_path / "never", seed=1)
    assert len(run.history) == 4


def test_fewer_pairs_by_setting(studies, tmp_path, monkeypatch):
    seen = []
    original = module.PairImages

    def recording(part, *arguments, **settings):
        seen.append(part.table["image_id"].tolist())
        return original(part, *arguments, **settings)

    monkeypatch.setattr(module, "PairImages", recording)
    for seed in (1, 1, 2):
        pretrain(tiny_config(max_train_pairs=10, epochs=1), studies, tmp_path / str(len(seen)), seed=seed)
    train = [ids for ids in seen if ids[0].startswith("train")]
    assert [len(ids) for ids in train] == [10, 10, 10]
    assert train[0] == train[1] == sorted(train[0])
    assert train[0] != train[2]
    assert {len(ids) for ids in seen if ids[0].startswith("valid")} == {8}


def test_a_seed_out_of_range_is_refused_before_anything_is_built(studies, tmp_path):
    for seed in (-1, 2**64):  # torch's generator has 64 bits
        with pytest.raises(ConfigError, match=f"seed is {seed}: use a whole number from 0 to {2**64 - 1}"):
            pretrain(tiny_config(), studies, tmp_path / "run", seed=seed)
    assert not (tmp_path / "run").exists()


def test_precision_may_change_between_runs_of_one_process(small, tmp_path):
    losses = []
    for precision in ("fp32", "bf16", "fp32"):
        config = tiny_config(precision=precision, epochs=1, text_dropout=0.0)
        losses.append(pretrain(config, small, tmp_path / str(len(losses)), seed=1).history[0]["train/total"])
    assert losses[0] == losses[2]
    assert losses[1] != losses[0]
    assert math.isfinite(losses[1])


@pytest.mark.parametrize(("tiles", "vectors"), [(True, True), (True, False), (False, True), (False, False)])
def test_auto_takes_bf16_where_the_processor_has_instructions_for_it(monkeypatch, tiles, vectors):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": tiles, "avx512_bf16": vectors})
    assert module._precision(tiny_config(precision="auto")) == ("bf16" if tiles or vectors else "no")
    assert module._precision(tiny_config(precision="fp32")) == "no"
    assert module._precision(tiny_config(precision="bf16")) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"neon": True})  # another architecture names others
    assert module._precision(tiny_config(precision="auto")) == "no"


def test_retrieval_accuracy_by_hand():
    """Scores of six pairs: rank of the own report 1, 1, 2, 6, 1, 1 by row; columns likewise by transposing."""
    scores = torch.eye(6)
    scores[2, 0] = 2.0
    scores[3] = torch.tensor([5.0, 5.0, 5.0, 1.0, 5.0, 5.0])

    def tokens(pooled):
        return Tokens(pooled, torch.empty(0), torch.empty(0), torch.empty(0))

    found = retrieval_accuracy(tokens(scores), tokens(torch.eye(6)))
    # Rows: 4 of 6 first, 5 of 6 among five. Columns: 3 has its own highest; 0, 1, 2, 4, 5 lose to row 3, 0 also to 2.
    assert found["top1"].item() == pytest.approx((4 / 6 + 1 / 6) / 2)
    assert found["top5"].item() == pytest.approx((5 / 6 + 6 / 6) / 2)
    few = retrieval_accuracy(tokens(torch.eye(3).flip(0)), tokens(torch.eye(3)))
    assert few["top5"].item() == 1.0


def scalars(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_reads_the_log(undisturbed):
    found = scalars(undisturbed.last.parent / "tensorboard")
    assert [step for step, _ in found["train/total"]] == [1, 2, 3, 4]
    assert [step for step, _ in found["epoch/valid/total"]] == [2, 4]
    for row in undisturbed.history:
        steps = [value for step, value in found["train/total"] if row["step"] - 2 < step <= row["step"]]
        assert np.mean(steps) == pytest.approx(row["train/total"], rel=1e-6)
        assert dict(found["epoch/valid/total"])[row["step"]] == pytest.approx(row["valid/total"], rel=1e-6)


# ---- masked words first


MLM = {"mlm_epochs": 2, "text_rate_factor": 0.5}


@pytest.fixture(scope="module")
def read_first(small, tmp_path_factory):
    """A run whose report encoder fills in masked words first, for four steps."""
    return pretrain(tiny_config(**MLM), small, tmp_path_factory.mktemp("mlm") / "run", seed=3)


def test_a_run_begins_with_the_encoder_that_has_read(small, tmp_path, monkeypatch):
    config, out = tiny_config(**MLM), tmp_path / "run"
    begins_with = {}

    def first_step(model, *_, **__):
        begins_with.update({name: value.clone() for name, value in model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_optimiser_step", first_step)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, small, out, seed=3)
    train, valid = (report_texts(small.split(name)) for name in ("train", "valid"))
    tokenizer = train_tokenizer(sorted(set(train)), vocabulary=config.model.text_vocabulary)
    model = build_model(config, tokenizer, seed=3)
    untrained = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"learning_rate": config.training.learning_rate, "max_pieces": config.model.max_pieces, "seed": 3}
    history = train_masked_language(
        model.report_encoder, tokenizer, train, valid, epochs=2, batch_size=8, accelerator=Accelerator(), **settings
    )
    assert json.loads((out / "masked_language.json").read_text()) == history
    for name, value in model.state_dict().items():
        assert torch.equal(begins_with[name], value), name
        if not name.startswith("report_encoder."):
            assert torch.equal(value, untrained[name]), name
    assert not torch.equal(
        *(
            weights["report_encoder.model.encoder.layer.0.attention.self.query.weight"]
            for weights in (begins_with, untrained)
        )
    )


# Four steps fill in words, four align.
@pytest.mark.parametrize("step", [2, 4, 5, 7])
def test_killed_while_reading_or_after(small, read_first, tmp_path, step):
    def killed(out):
        die_at(torch.optim.AdamW, "step", step)
        pretrain(tiny_config(**MLM), small, out, seed=3, resume=True)

    out = tmp_path / "run"
    assert in_child(killed, out) == -signal.SIGKILL
    assert_same_run(pretrain(tiny_config(**MLM), small, out, seed=3, resume=True), read_first)
    assert (out / "masked_language.json").read_bytes() == (read_first.last.parent / "masked_language.json").read_bytes()
    assert not (out / "reading").exists()


@pytest.fixture
def killed_while_reading(small, tmp_path):
    """A run that died in its second pass over the reports."""

    def killed(out):
        die_at(torch.optim.AdamW, "step", 4)
        pretrain(tiny_config(**MLM), small, out, seed=3)

    out = tmp_path / "run"
    assert in_child(killed, out) == -signal.SIGKILL
    assert sorted(path.name for path in out.iterdir()) == ["reading"]
    return out


def test_passes_over_the_reports_are_not_made_twice(small, killed_while_reading, monkeypatch):
    made, begun = [], []
    original = module.train_masked_language

    def recorded(*arguments, begin, keep, **more):
        begun.append(len(begin.history))
        return original(*arguments, begin=begin, keep=lambda reading: made.append(len(reading.history)), **more)

    monkeypatch.setattr(module, "train_masked_language", recorded)
    pretrain(tiny_config(**MLM), small, killed_while_reading, seed=3, resume=True)
    assert (begun, made) == ([1], [2])


def test_a_run_that_is_reading_is_a_run(small, killed_while_reading):
    with pytest.raises(PretrainError, match="already holds a run; use --resume"):
        pretrain(tiny_config(**MLM), small, killed_while_reading, seed=3)
    with pytest.raises(PretrainError, match="holds a run with other seed"):
        pretrain(tiny_config(**MLM), small, killed_while_reading, seed=4, resume=True)
    with pytest.raises(PretrainError, match="holds a run with other settings.*mlm_epochs: 2, now 3"):
        pretrain(tiny_config(**MLM | {"mlm_epochs": 3}), small, killed_while_reading, seed=3, resume=True)


@pytest.mark.parametrize("part", ["model.safetensors", "state.safetensors", "state.json", "text/tokenizer.json"])
def test_a_part_of_the_reading_is_missing(small, killed_while_reading, part):
    (killed_while_reading / "reading" / part).unlink()
    with pytest.raises((CheckpointError, PretrainError)) as caught:
        pretrain(tiny_config(**MLM), small, killed_while_reading, seed=3, resume=True)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def cut(tensor):
    return tensor[:-1].clone()


@pytest.mark.parametrize(
    ("name", "change", "problem"),
    [
        ("head.predictions.bias", None, "'head.predictions.bias' is missing or of another shape"),
        ("head.predictions.bias", cut, "'head.predictions.bias' is missing or of another shape"),
        ("optimizer.0.exp_avg", cut, "'0.exp_avg' is .*, this architecture has"),
        ("optimizer.0.exp_avg", None, r"holds only \['exp_avg_sq', 'step'\] of parameter 0"),
        ("random.masks", None, "schedule or random generators cannot be put back"),
        ("random.cpu", cut, "schedule or random generators cannot be put back"),
    ],
)
def test_a_state_of_the_reading_that_does_not_fit(small, killed_while_reading, name, change, problem):
    path = killed_while_reading / "reading/state.safetensors"
    tensors = load_file(path)
    kept = tensors.pop(name)
    save_file(tensors if change is None else tensors | {name: change(kept)}, path)
    with pytest.raises(CheckpointError, match=f"^{path}: .*{problem}") as caught:
        pretrain(tiny_config(**MLM), small, killed_while_reading, seed=3, resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"history": []}, {"history": 2, "schedule": {}}, {"history": [], "schedule": {}}])
def test_counters_of_the_reading_that_do_not_fit(small, killed_while_reading, content):
    (killed_while_reading / "reading/state.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="is not what passes over the reports leave|cannot be put back"):
        pretrain(tiny_config(**MLM), small, killed_while_reading, seed=3, resume=True)


# Two passes over the reports are three renames (the first is new: 1, then 2); then masked_language.json, and "last".
@pytest.mark.parametrize("number", range(1, 7))
def test_killed_at_a_rename_while_reading(small, read_first, tmp_path, number):
    def killed(out):
        die_at(os, "replace", number)
        pretrain(tiny_config(**MLM), small, out, seed=3)

    out = tmp_path / "run"
    assert in_child(killed, out) == -signal.SIGKILL
    assert_same_run(pretrain(tiny_config(**MLM), small, out, seed=3, resume=True), read_first)
    names = ["best", "finished.json", "history.json", "last", "masked_language.json", "tensorboard"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert (out / "masked_language.json").read_bytes() == (read_first.last.parent / "masked_language.json").read_bytes()


def test_too_few_pairs_are_noticed_before_any_pass(small, tmp_path):
    with pytest.raises(PretrainError, match="do not fill one step"):
        pretrain(tiny_config(**MLM, accumulation=50), small, tmp_path / "run", seed=3)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_report_is_noticed_before_any_pass(small, tmp_path, split):
    part = small.split(split)
    row = int(np.flatnonzero(small.table["image_id"] == part.table["image_id"].iat[1])[0])
    with pytest.raises(DatasetError, match=rf"image '{split}001' \(row 1\) has no report to pair it with"):
        pretrain(tiny_config(**MLM), with_cell(small, row, "sentences", ["", ""]), tmp_path / "run", seed=3)
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize("side", ["train", "valid"])
def test_a_pass_over_the_reports_that_ends_in_no_number(small, tmp_path, monkeypatch, side):
    """The pass before it stays what the run would go on from."""
    original = module.train_masked_language

    def poisoned(*arguments, keep, **more):
        def spoil(reading):
            newest = reading.history[-1]
            spoilt = newest | ({side: float("nan")} if newest["epoch"] == 2 else {})
            keep(replace(reading, history=[*reading.history[:-1], spoilt]))

        return original(*arguments, keep=spoil, **more)

    monkeypatch.setattr(module, "train_masked_language", poisoned)
    with pytest.raises(PretrainError, match=rf"^pass 2 over the reports: the {side} masked-word loss is nan\. "):
        pretrain(tiny_config(**MLM), small, tmp_path / "run", seed=3)
    assert len(json.loads((tmp_path / "run/reading/state.json").read_text())["history"]) == 1


def test_a_name_of_upstream_that_meant_less_is_another_run(small, tmp_path):
    identity = run_identity(tiny_config(upstream="vit"), small, 3, 1)
    assert identity["switches"]["separator_word"] is True
    older = {name: value for name, value in identity.items() if name != "switches"}
    (tmp_path / "finished.json").write_text(json.dumps({"identity": older, "history": []}))
    with pytest.raises(PretrainError, match="holds a run with other switches"):
        pretrain(tiny_config(upstream="vit"), small, tmp_path, seed=3, resume=True)
    plain = {name: value for name, value in run_identity(tiny_config(), small, 3, 1).items() if name != "switches"}
    (tmp_path / "finished.json").write_text(json.dumps({"identity": plain, "history": []}))
    assert not pretrain(tiny_config(), small, tmp_path, seed=3, resume=True).trained


# ---- kill and resume


def half_a_file(tensors, path):
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def killed_run(studies, out, owner, name, number, halfway=None):
    die_at(owner, name, number, halfway=halfway)
    pretrain(tiny_config(), studies, out, seed=3, resume=True)


# A run of four steps calls os.replace 13 times: four checkpoints of "last" (the first one is new: 1, then 2 each), one
# of "best", history.json beside each "last" and at the end, and finished.json. A second "best" makes it 15.
RENAMES = 14
SOME = {1, 5, 11, 12, 14}


def counting_run(studies, out, calls):
    original = os.replace

    def counted(source, target):
        calls.value += 1
        original(source, target)

    os.replace = counted
    pretrain(tiny_config(), studies, out, seed=3)


def test_the_kills_below_cover_every_rename(small, tmp_path):
    calls = multiprocessing.get_context("fork").Value("i", 0)
    assert in_child(counting_run, small, tmp_path / "run", calls) == 0
    assert calls.value in (RENAMES, RENAMES + 2)


KILLS = [(os, "replace", number, None) for number in sorted(SOME)]
KILLS += [(checkpoint, "save_file", number, half_a_file) for number in (1, 4, 8)]
KILLS += [(torch.optim.AdamW, "step", number, None) for number in (1, 2, 3, 4)]
KILLS += [(module, "evaluate", 2, None)]
MORE = [(os, "replace", number, None) for number in range(1, RENAMES + 1) if number not in SOME]


def kill_and_resume(small, undisturbed, out, kill):
    assert in_child(killed_run, small, out, *kill) == -signal.SIGKILL
    assert not (out / "finished.json").exists()
    for path in (out / "tensorboard").iterdir():
        # TensorBoard reads logs in the order of their names, which begin with the second of their making.
        path.rename(path.with_name(path.name.replace(path.name.split(".")[3], "1000000000")))
    assert_same_run(pretrain(tiny_config(), small, out, seed=3, resume=True), undisturbed)
    leftovers = [path.name for path in out.rglob("*") if path.name.endswith((".part", ".old"))]
    assert leftovers == []
    found = scalars(out / "tensorboard")
    assert [step for step, _ in found["train/total"]] == [1, 2, 3, 4]
    assert [step for step, _ in found["epoch/valid/total"]] == [2, 4]


@pytest.mark.parametrize("kill", KILLS, ids=[f"{name} {number}" for _, name, number, _ in KILLS])
def test_killed_and_resumed_equals_undisturbed(small, undisturbed, tmp_path, kill):
    kill_and_resume(small, undisturbed, tmp_path / "run", kill)


@pytest.mark.slow
@pytest.mark.parametrize("kill", MORE, ids=[f"{name} {number}" for _, name, number, _ in MORE])
def test_killed_at_any_rename(small, undisturbed, tmp_path, kill):
    kill_and_resume(small, undisturbed, tmp_path / "run", kill)


def test_killed_again_and_again(small, undisturbed, tmp_path):
    """Every attempt gets one step further, whatever happens to it."""
    codes = [in_child(killed_run, small, tmp_path / "run", torch.optim.AdamW, "step", 2) for _ in range(3)]
    assert codes == [-signal.SIGKILL] * 3
    assert_same_run(pretrain(tiny_config(), small, tmp_path / "run", seed=3, resume=True), undisturbed)


@pytest.mark.slow
def test_the_command_line_killed_and_resumed(small, undisturbed, tmp_path):
    """The same from outside: a real process, kill -9, --resume."""
    words = [sys.executable, "-m", "mgca_lib.pretrain", *command_words(tiny_config(), small.root, tmp_path / "run", 3)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "run/last").is_dir():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    resumed = subprocess.run([*words, "--resume"], capture_output=True, text=True, check=True)
    assert f"best checkpoint: {tmp_path / 'run/best'}" in resumed.stdout
    for name in ("best/model.safetensors", "last/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed.last.parent / name).read_bytes()


def test_a_resumed_run_needs_no_text_model_but_its_own(small, tmp_path, monkeypatch):
    """A vocabulary trained anew, by another version perhaps, could number the pieces otherwise."""
    out = tmp_path / "run"
    assert in_child(killed_run, small, out, torch.optim.AdamW, "step", 3) == -signal.SIGKILL

    def forbidden(*_, **__):
        raise AssertionError("the tokenizer was trained again")

    monkeypatch.setattr(module, "train_tokenizer", forbidden)
    assert pretrain(tiny_config(), small, out, seed=3, resume=True).trained


def test_a_finished_run_is_returned_untouched(small, undisturbed):
    out = undisturbed.last.parent
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.rglob("*")}
    again = pretrain(tiny_config(), small, out, seed=3, resume=True)
    assert not again.trained
    assert replace(again, trained=True) == undisturbed
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in out.rglob("*")} == before


@pytest.mark.parametrize("totals", [[3.0, 2.0], [3.0, 4.0]], ids=["all epochs", "early stop"])
def test_a_run_that_died_before_its_mark_reads_nothing_more(small, tmp_path, monkeypatch, totals):
    """All its steps are done, or patience is at an end: no loader, and so no process of one, is started again."""
    config = tiny_config(epochs=2 + (totals[1] > totals[0]), patience=1, workers=1)
    measured = iter(totals)
    parts = {"instance": 1.0, "token": 1.0, "prototype": 1.0}
    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate", lambda *_: parts | {"total": next(measured)})
        patch.setattr(Keeper, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(config, small, tmp_path / "run", seed=3)
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", interrupted)
    run = pretrain(config, small, tmp_path / "run", seed=3, resume=True)
    assert [row["valid/total"] for row in run.history] == totals
    assert json.loads((tmp_path / "run/finished.json").read_text())["history"] == run.history


def interrupted(*_, **__):
    raise KeyboardInterrupt


def test_a_run_from_before_a_setting_existed_is_the_same_run(small, undisturbed, tmp_path):
    """Settings that came later had no say in it, so their defaults are taken; any other value is another run."""
    out = tmp_path / "older"
    shutil.copytree(undisturbed.last.parent, out)
    content = json.loads((out / "finished.json").read_text())
    for part in ("model", "training"):
        settings = content["identity"]["settings"][part]
        content["identity"]["settings"][part] = {key: value for key, value in settings.items() if key not in LATER}
    (out / "finished.json").write_text(json.dumps(content))
    assert not pretrain(tiny_config(), small, out, seed=3, resume=True).trained
    with pytest.raises(PretrainError, match=r"other settings; .* \(local_stride: 16, now 8\)"):
        pretrain(tiny_config(local_stride=8), small, out, seed=3, resume=True)


def test_another_run_s_folder_is_refused(small, studies, undisturbed, tmp_path):
    out = undisturbed.last.parent
    with pytest.raises(PretrainError, match="already holds a run; use --resume"):
        pretrain(tiny_config(), small, out, seed=3)
    for match, config, data, seed in (
        ("other seed", tiny_config(), small, 4),
        ("other settings", tiny_config(joint_dim=8), small, 3),
        ("other data", tiny_config(), studies, 3),
    ):
        with pytest.raises(PretrainError, match=f"holds a run with {match}; choose another folder"):
            pretrain(config, data, out, seed=seed, resume=True)
    assert in_child(killed_run, small, tmp_path / "open", torch.optim.AdamW, "step", 3) == -signal.SIGKILL
    with pytest.raises(PretrainError, match="already holds a run"):
        pretrain(tiny_config(), small, tmp_path / "open", seed=3)
    with pytest.raises(PretrainError, match="other seed"):
        pretrain(tiny_config(), small, tmp_path / "open", seed=4, resume=True)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"identity": 3}'])
def test_a_damaged_marker_is_named(small, tmp_path, content):
    (tmp_path / "finished.json").write_text(content)
    with pytest.raises(PretrainError, match="its run cannot be read"):
        pretrain(tiny_config(), small, tmp_path, seed=3, resume=True)


# ---- what can go wrong


def test_a_loss_that_is_no_number_ends_the_run(small, tmp_path, monkeypatch):
    original = module.build_model

    def poisoned(*arguments, **settings):
        model = original(*arguments, **settings)
        model.image_global.layers[0].weight.data[0, 0] = float("nan")
        return model

    monkeypatch.setattr(module, "build_model", poisoned)
    with pytest.raises(PretrainError, match=r"^step 0: the instance loss is nan\. .* lower learning_rate"):
        pretrain(tiny_config(), small, tmp_path / "run", seed=1)
    assert not (tmp_path / "run/last").exists()


def test_a_validation_loss_that_is_no_number_ends_the_run(small, tmp_path, monkeypatch):
    bad = {"instance": 1.0, "token": 1.0, "prototype": float("inf"), "total": float("inf")}
    monkeypatch.setattr(module, "evaluate", lambda *_: bad)
    with pytest.raises(PretrainError, match=r"^step 2: the prototype loss is inf"):
        pretrain(tiny_config(), small, tmp_path / "run", seed=1)
    assert not (tmp_path / "run/finished.json").exists()


@pytest.mark.parametrize(
    ("sizes", "settings", "problem"),
    [
        ({"train": 7}, {}, "7 training pairs do not fill one step of 8; lower batch_size"),
        ({"train": 16}, {"accumulation": 3}, "16 training pairs do not fill one step of 24"),
        ({"train": 16}, {"max_train_pairs": 5}, "5 training pairs do not fill one step of 8"),
        ({"valid": 1}, {}, "1 validation pairs; every process, and each of its local_groups, needs 2"),
        ({"valid": 3}, {"gather": False, "local_groups": 2}, "3 validation pairs; every process"),
    ],
)
def test_too_few_pairs(tmp_path, sizes, settings, problem):
    studies = tiny_studies(tmp_path / "data", **({"train": 8, "valid": 4, "test": 2} | sizes))
    with pytest.raises(PretrainError, match=problem):
        pretrain(tiny_config(**settings), studies, tmp_path / "run", seed=1)


def test_few_validation_pairs_make_one_small_batch(tmp_path):
    studies = tiny_studies(tmp_path / "data", train=8, valid=3, test=2)
    row = pretrain(tiny_config(epochs=1), studies, tmp_path / "run", seed=1).history[0]
    assert row["valid/top5"] == 1.0
    assert math.isfinite(row["valid/total"])


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_missing_split(tmp_path, split):
    table = tiny_table(tmp_path, train=8, valid=4, test=2)
    write_studies(tmp_path, table[table["split"] != split], restricted=False, **CARD)
    with pytest.raises(DatasetError, match=f"split '{split}' holds no image"):
        pretrain(tiny_config(), module.load_studies(tmp_path), tmp_path / "run", seed=1)


def test_published_weights_without_network(small, tmp_path):
    with pytest.raises(EncoderError, match="set backbone_weights to false"):
        pretrain(tiny_config(backbone_weights=True), small, tmp_path / "run", seed=1)


def command(small, out, *more):
    words = ["--data", str(small.root), "--out", str(out), "--profile", "smoke", "--stored_size", "36"]
    words += ["--image_size", "32", "--batch_size", "8", "--epochs", "1", "--text_layers", "1", "--hidden_dim", "24"]
    return [*words, *more]


def test_the_command_line(small, tmp_path, capsys):
    assert main(command(small, tmp_path / "run")) == 0
    assert capsys.readouterr().out == f"trained 1 epochs; best checkpoint: {tmp_path / 'run/best'}\n"
    assert load_checkpoint(tmp_path / "run/best")[2]["seed"] == 42
    assert main(command(small, tmp_path / "run", "--resume")) == 0
    assert capsys.readouterr().out.startswith("already trained 1 epochs")


def test_a_list_of_the_profile_can_be_emptied(small, tmp_path, monkeypatch):
    """Profile demo has channels of its own; its backbone may be had as published, or another that has none."""
    configs, nothing = [], Pretraining(best=tmp_path, last=tmp_path, history=[], trained=True)
    monkeypatch.setattr(module, "pretrain", lambda config, *_, **__: configs.append(config) or nothing)
    for more in ([], ["--backbone_channels"], ["--backbone_channels", "8", "16"]):
        assert main(["--data", str(small.root), "--out", str(tmp_path / "run"), *more, "--profile", "demo"]) == 0
    assert [config.model.backbone_channels for config in configs] == [[32, 64, 128, 256], [], [8, 16]]


def test_restricted_data_stay_out_of_git(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    studies = tiny_studies(tmp_path / "data", restricted=True, train=8, valid=4, test=2)
    subprocess.run(["git", "init", "-q", str(tmp_path / "project")], check=True)
    (tmp_path / "project/.gitignore").write_text("/runs/\n")
    with pytest.raises(PretrainError, match="weights: 'tiny' is restricted, so its outputs must lie in a folder"):
        pretrain(tiny_config(), studies, tmp_path / "project/weights", seed=1)
    assert not (tmp_path / "project/weights").exists()
    assert pretrain(tiny_config(epochs=1), studies, tmp_path / "project/runs/vit", seed=1).trained


def test_errors_on_the_command_line_are_one_line(small, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "full/last").mkdir(parents=True)
    (tmp_path / "full/last/model.safetensors").write_text("")
    for more, problem in (
        (["--profile", "laptop"], "no profile called 'laptop'"),
        (["--learning_rate", "-1"], "learning_rate = -1.0: must be positive"),
        (["--bogus", "3"], "unknown option '--bogus'"),
        (["--data", str(tmp_path)], "is not a prepared dataset"),
        (["--batch_size", "17"], "do not fill one step"),
        (["--backbone", "nonet"], "backbone 'nonet'"),
        (["--chunk_size", "4"], "chunk_size = 4: backbone 'test_resnet' has BatchNorm"),
        (["--backbone_weights"], "set backbone_weights to false"),
        (["--text_model", "no/such"], "hf download no/such"),
        (["--out", str(tmp_path / "file")], "file: cannot be made"),
        (["--out", str(tmp_path / "full")], "already holds a run"),
        (["--out", str(tmp_path / "full"), "--resume"], "its run cannot be read"),
    ):
        assert main(command(small, tmp_path / "run", *more)) == 2, more
        shown = capsys.readouterr()
        assert shown.err.startswith("error: "), more
        assert shown.err.count("\n") == 1, shown.err
        assert problem in shown.err


@pytest.mark.parametrize(
    "words", [["--out", "x"], ["--epochs", "many"], ["--precision", "fp8"], ["--data"]], ids=" ".join
)
def test_malformed_options_exit_with_2(small, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as caught:
        main(words if "--out" in words else command(small, tmp_path / "run", *words))
    assert caught.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_unreadable_image_is_one_line_with_its_row(tmp_path, capsys, workers):
    studies = tiny_studies(tmp_path / "data", train=8, valid=4, test=2)
    studies.image_path(5).write_bytes(b"broken")
    assert main(command(studies, tmp_path / "run", "--workers", workers)) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert "train005.png: image 'train005' (row 5) cannot be read" in shown


def test_validation_is_the_mean_over_batches(tmp_path):
    studies = tiny_studies(tmp_path / "data", train=8, valid=16, test=2)
    run = pretrain(tiny_config(epochs=1), studies, tmp_path / "run", seed=3)
    model, tokenizer, _ = load_checkpoint(run.last)
    pairs = PairImages(studies.split("valid"), tokenizer, ImageTransform(36, 32), max_pieces=112, seed=0)
    batches = EpochBatches(size=16, batch_size=8, seed=3, shuffle=False)
    with torch.no_grad():
        totals = [model.eval()(pairs.collate([pairs[key] for key in keys]))[0].total.item() for keys in batches]
    assert len(totals) == 2
    assert totals[0] != pytest.approx(totals[1], rel=1e-3)
    assert run.history[0]["valid/total"] == pytest.approx(np.mean(totals), rel=1e-5)


def test_a_resumed_run_knows_how_long_it_went_without_gain(small, tmp_path, monkeypatch):
    """Best after two epochs, patience two: the run ends after four, wherever it was interrupted."""
    totals = iter([3.0, 2.0, 2.5, 2.6, 1.0])
    parts = dict.fromkeys(("instance", "token", "prototype"), 1.0)
    monkeypatch.setattr(module, "evaluate", lambda *_: parts | {"total": next(totals)})
    step, calls = module._optimiser_step, []

    def stopping(*arguments, **settings):
        calls.append(1)
        if len(calls) == 7:  # the first step of epoch four
            raise KeyboardInterrupt
        return step(*arguments, **settings)

    monkeypatch.setattr(module, "_optimiser_step", stopping)
    config = tiny_config(epochs=5, patience=2)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config, small, tmp_path / "run", seed=1)
    assert len(pretrain(config, small, tmp_path / "run", seed=1, resume=True).history) == 4
