"""Whatever goes wrong is one clear line, what was written before stays valid, and the run goes on from there."""

import errno
import json
import os
import random
import shutil
import signal
import time

import pytest
import torch
from helpers import tiny_config, tiny_studies
from run_helpers import (
    assert_same_run,
    command_words,
    die_at,
    in_child,
    killed_after,
    processor_seconds,
    refusal,
    start_child,
)
from safetensors.torch import load_file, save_file

from mgca_lib import checkpoint, training_state
from mgca_lib.checkpoint import load_checkpoint
from mgca_lib.data.pairs import EpochBatches
from mgca_lib.pretrain import main, pretrain

SEED = 3


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two steps an epoch."""
    return tiny_studies(tmp_path_factory.mktemp("small"), train=16, valid=4, test=4)


@pytest.fixture(scope="module")
def undisturbed(small, tmp_path_factory):
    return pretrain(tiny_config(), small, tmp_path_factory.mktemp("undisturbed") / "run", seed=SEED)


def whole_run(studies, out):
    pretrain(tiny_config(), studies, out, seed=SEED, resume=True)


def stopped_run(studies, out):
    """Killed in its third step of four, so that ``last/`` is of the second."""
    die_at(torch.optim.AdamW, "step", 3)
    whole_run(studies, out)


@pytest.fixture
def stopped(small, tmp_path):
    assert in_child(stopped_run, small, tmp_path / "run") == -signal.SIGKILL
    return tmp_path / "run"


def words(studies, out):
    return command_words(tiny_config(), studies.root, out, SEED, "--resume")


def assert_goes_on(small, out, undisturbed):
    assert_same_run(pretrain(tiny_config(), small, out, seed=SEED, resume=True), undisturbed)


def one_line(capfd):
    shown = capfd.readouterr().err
    assert shown.startswith("error: "), shown
    assert shown.count("\n") == 1, shown
    return shown


# ---- kill -9


def kill_at_random(small, undisturbed, out, moments):
    """Kill a run at random moments, resume each time, and let it finish."""
    whole = processor_seconds(whole_run, small, out / "timed")
    for number, moment in enumerate(moments):
        seconds = moment * whole
        while not killed_after(seconds, whole_run, small, out / str(number)):  # it was faster this time
            shutil.rmtree(out / str(number))
            seconds /= 2
        assert_goes_on(small, out / str(number), undisturbed)


def test_killed_at_random_moments(small, undisturbed, tmp_path):
    kill_at_random(small, undisturbed, tmp_path, [0.3, 0.55, 0.8])


@pytest.mark.slow
def test_killed_at_twenty_random_moments(small, undisturbed, tmp_path):
    draw = random.Random(20)
    moments = [(number + draw.random()) / 20 for number in range(20)]
    kill_at_random(small, undisturbed, tmp_path, moments)


# ---- the disk


@pytest.mark.parametrize(("limit", "named"), [(20, "tensorboard: "), (20_000, "last: ")], ids=["log", "weights"])
def test_a_full_disk(small, undisturbed, stopped, limit, named):
    before = (stopped / "last/model.safetensors").read_bytes()
    shown = refusal(main, words(small, stopped), file_size=limit)
    assert named + "cannot be written" in shown
    assert "File too large" in shown
    assert (stopped / "last/model.safetensors").read_bytes() == before
    assert load_checkpoint(stopped / "last")[2]["step"] == 2
    assert not (stopped / "last.part").exists()
    assert_goes_on(small, stopped, undisturbed)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_space_at_a_rename(small, undisturbed, stopped, capfd, monkeypatch, number):
    """The old checkpoint's stepping aside, the new one's taking its place, and the history's."""
    calls, replace = [], os.replace

    def failing(source, target):
        calls.append(target)
        return no_space() if len(calls) == number else replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        assert main(words(small, stopped)) == 2
    assert "No space left on device" in one_line(capfd)
    assert load_checkpoint(stopped / "last")[2]["step"] == (3 if number == 3 else 2)
    assert_goes_on(small, stopped, undisturbed)


def test_a_tokenizer_that_cannot_be_written(small, undisturbed, stopped, capfd, monkeypatch):
    """The tokenizers package raises a bare Exception then."""

    def failing(*_, **__):
        raise Exception("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", failing)
        assert main(words(small, stopped)) == 2
    assert "last: cannot be written (No space left on device (os error 28)); what was there before" in one_line(capfd)
    assert not (stopped / "last.part").exists()
    assert_goes_on(small, stopped, undisturbed)


def test_a_first_checkpoint_that_cannot_be_written(small, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(checkpoint, "save_file", no_space)
    assert main(words(small, tmp_path / "run")) == 2
    assert "No space left on device" in one_line(capfd)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["tensorboard"]


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_that_cannot_be_a_folder(small, tmp_path, capfd, out):
    (tmp_path / "file").write_text("precious")
    assert main(words(small, tmp_path / out)) == 2
    assert f"{out}: cannot be made" in one_line(capfd)
    assert (tmp_path / "file").read_text() == "precious"


def test_a_read_only_folder(small, undisturbed, stopped, tmp_path):
    new = tmp_path / "new"
    new.mkdir(mode=0o555)
    assert "new/tensorboard: cannot be written (Permission denied)" in refusal(
        main, words(small, new), privileges=False
    )
    assert list(new.iterdir()) == []
    stopped.chmod(0o555)
    assert "Permission denied" in refusal(main, words(small, stopped), privileges=False)
    stopped.chmod(0o755)
    assert load_checkpoint(stopped / "last")[2]["step"] == 2
    assert_goes_on(small, stopped, undisturbed)


def busy_run(studies, out):
    """Never gets beyond its first step."""
    torch.optim.AdamW.step = lambda *_, **__: time.sleep(600)
    whole_run(studies, out)


def test_a_second_run_in_the_same_folder(small, undisturbed, tmp_path, capfd, monkeypatch):
    """Both would write the same checkpoint at once. A killed one holds nothing."""
    out = tmp_path / "run"
    busy = start_child(busy_run, small, out)
    try:
        while not (out / "tensorboard").is_dir():
            assert busy.is_alive()
            time.sleep(0.02)
        monkeypatch.setattr(training_state, "_LINGERING_SECONDS", 0.1)
        capfd.readouterr()
        for more in ([], ["--resume", "False"]):
            assert main([*words(small, out), *more]) == 2
            assert "run: another process trains there; wait for it, or choose another folder" in one_line(capfd)
    finally:
        busy.kill()
        busy.join()
    assert_goes_on(small, out, undisturbed)


# ---- the numbers


@pytest.mark.parametrize(
    ("more", "problem"),
    [([], "step 3: a weight is no finite number any more"), (["--checkpoint_steps", "50"], "loss is nan")],
    ids=["weights", "loss"],
)
def test_numbers_that_are_none(small, undisturbed, stopped, capfd, monkeypatch, more, problem):
    """One ruinous update: it is found before a checkpoint is written, or in the next loss."""

    def ruinous(optimizer, *_, **__):
        with torch.no_grad():
            optimizer.param_groups[0]["params"][-1].fill_(torch.nan)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", ruinous)
        assert main([*words(small, stopped), *more]) == 2
    assert problem in one_line(capfd)
    assert load_checkpoint(stopped / "last")[2]["step"] == 2
    assert_goes_on(small, stopped, undisturbed)


# ---- the data


def spoiled_run(studies, arguments, path):
    """One image turns to noise when training is under way."""
    step = torch.optim.AdamW.step
    calls = []

    def spoiling(*inputs, **settings):
        calls.append(1)
        if len(calls) == 3:
            path.write_bytes(b"no image any more")
        return step(*inputs, **settings)

    torch.optim.AdamW.step = spoiling
    os._exit(main(arguments))


def test_a_corrupt_image_in_the_middle_of_an_epoch(tmp_path, capfd):
    """The run stops, names the file, and goes on bit for bit when the image is back."""
    studies = tiny_studies(tmp_path / "data", train=16, valid=4, test=4)
    config = tiny_config(keep_images=False)
    undisturbed = pretrain(config, studies, tmp_path / "undisturbed", seed=SEED)
    last_batch = list(EpochBatches(size=16, batch_size=8, seed=SEED, epoch=1))[1]
    row = last_batch[0][0]
    path = studies.split("train").image_path(row)
    content = path.read_bytes()
    out = tmp_path / "run"
    arguments = command_words(config, studies.root, out, SEED, "--resume")
    capfd.readouterr()
    assert in_child(spoiled_run, studies, arguments, path) == 2
    assert f"{path.name}: image 'train{row:03d}' (row {row}) cannot be read" in one_line(capfd)
    assert load_checkpoint(out / "last")[2]["step"] == 3
    assert main(arguments) == 2  # and again, at once
    path.write_bytes(content)
    assert_same_run(pretrain(config, studies, out, seed=SEED, resume=True), undisturbed)


# ---- the checkpoint

PARTS = ["config.json", "model.safetensors", "state.json", "state.safetensors"]
PARTS += ["text/tokenizer.json", "text/tokenizer_config.json", "text/config.json"]


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part(small, undisturbed, stopped, tmp_path, capfd, part):
    (stopped / "last" / part).rename(tmp_path / "aside")
    assert main(words(small, stopped)) == 2
    assert part.rpartition("/")[2] in one_line(capfd)
    (tmp_path / "aside").rename(stopped / "last" / part)
    assert_goes_on(small, stopped, undisturbed)


@pytest.mark.parametrize("part", PARTS)
def test_half_a_part(small, undisturbed, stopped, capfd, part):
    path = stopped / "last" / part
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    if part != "text/tokenizer_config.json":  # may be valid, or not needed
        assert main(words(small, stopped)) == 2
        assert str(stopped) in one_line(capfd)
    path.write_bytes(content)
    assert_goes_on(small, stopped, undisturbed)


def test_weights_of_another_architecture(small, stopped, tmp_path, capfd):
    other = pretrain(tiny_config(hidden_dim=20, epochs=1), small, tmp_path / "other", seed=SEED)
    shutil.copy(other.last / "model.safetensors", stopped / "last/model.safetensors")
    assert main(words(small, stopped)) == 2
    assert "weight 'image_global.layers.0.bias' is (20,), this architecture has (24,)" in one_line(capfd)
    assert main(words(small, tmp_path / "other")) == 2
    assert "other: holds a run with other settings" in one_line(capfd)


def renamed(state):
    return {f"9999{name}": tensor for name, tensor in state.items()}


def reshaped(state):
    return {name: tensor[:1] if tensor.ndim else tensor for name, tensor in state.items()}


def without(name):
    return lambda state: {key: tensor for key, tensor in state.items() if not key.endswith(name)}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (renamed, "is unknown to this architecture"),
        (reshaped, "this architecture has"),
        (without("exp_avg_sq"), "holds only ['exp_avg', 'step'] of parameter 0"),
    ],
    ids=["names", "shapes", "missing"],
)
def test_an_optimiser_of_another_architecture(small, stopped, capfd, change, problem):
    path = stopped / "last/state.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)
    assert main(words(small, stopped)) == 2
    shown = one_line(capfd)
    assert problem in shown
    assert "state.safetensors" in shown


def test_counters_of_another_version(small, stopped, capfd):
    path = stopped / "last/state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"moon": 3}))
    assert main(words(small, stopped)) == 2
    assert "its training state is of another version" in one_line(capfd)
