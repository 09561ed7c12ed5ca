"""Restart: a run that was stopped and started again ends with the same files as one that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from raw_trees import make_chexpert, make_covidx, make_mimic, make_rsna, replace, write_picture
from run_helpers import killed_after, processor_seconds, refusal

import data_scripts.conversion
import data_scripts.preparation
from data_scripts import prepare_chexpert, prepare_covidx, prepare_mimic_cxr, prepare_rsna
from data_scripts.conversion import _convert_one
from data_scripts.images import read_radiograph, write_image
from mgca_lib.data.studies import DatasetError, load_studies

OPTIONS = {"size": 32, "quiet": True, "workers": 2}


def contents(folder):
    """Every file below a folder with its bytes."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_kill_9_and_run_again(tmp_path, repository):
    raw = tmp_path / "raw"
    names = []
    for seed in range(4):
        write_picture(tmp_path / f"{seed}.png", width=900, height=1000, seed=seed)
    for part, count in (("train", 150), ("test", 10)):
        (raw / part).mkdir(parents=True)
        lines = []
        for number in range(count):
            os.link(tmp_path / f"{number % 4}.png", raw / part / f"{part}{number}.png")
            lines.append(f"{part}{number} {part}{number}.png normal rsna\n")
        (raw / f"{part}_COVIDx9A.txt").write_text("".join(lines))
        names += lines
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    command = [sys.executable, "-m", "data_scripts.prepare_covidx", "--raw", raw, "--out", out, "--workers", "1"]
    process = subprocess.Popen([*command, "--size", "200"], cwd=repository, start_new_session=True)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and len(list(out.glob("images/*.jpg"))) < 20:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = (out / "preparation/journal.jsonl").read_bytes().count(b"{")
    assert 10 <= finished < len(names)  # a few images may be written but not yet noted
    assert not (out / "card.json").exists()
    with pytest.raises(DatasetError):
        load_studies(out)
    summary = prepare_covidx.prepare(raw, out, size=200, quiet=True)
    assert summary.reused >= finished - 1  # the last line may have been cut
    assert summary.reused + summary.converted == len(names)
    prepare_covidx.prepare(raw, undisturbed, size=200, quiet=True, workers=1)
    assert contents(out) == contents(undisturbed)


def prepared(raw, out):
    prepare_covidx.prepare(raw, out, **OPTIONS)


def kill_preparation(tmp_path, rounds, seed):
    """Kill at a random moment, and what goes on from there, too; then let it finish."""
    raw, undisturbed = tmp_path / "raw", tmp_path / "undisturbed"
    write_picture(tmp_path / "0.png", width=500, height=600, seed=0)
    write_picture(tmp_path / "1.png", width=400, height=700, seed=1)
    for part, count in (("train", 40), ("test", 10)):
        (raw / part).mkdir(parents=True)
        names = [f"{part}{number}" for number in range(count)]
        for number, name in enumerate(names):
            os.link(tmp_path / f"{number % 2}.png", raw / part / f"{name}.png")
        lines = [f"{name} {name}.png normal rsna\n" for name in names]
        (raw / f"{part}_COVIDx9A.txt").write_text("".join(lines))
    whole = processor_seconds(prepared, raw, undisturbed)
    draw = random.Random(seed)
    for number in range(rounds):
        out = tmp_path / str(number)
        seconds = draw.random() * whole
        while not killed_after(seconds, prepared, raw, out):  # it was faster this time
            shutil.rmtree(out)
            seconds /= 2
        killed_after(draw.random() * whole, prepared, raw, out)
        summary = prepare_covidx.prepare(raw, out, **OPTIONS)
        assert summary.reused + summary.converted == 50
        assert contents(out) == contents(undisturbed)
        assert load_studies(out).table["image_id"].is_unique


def test_preparation_killed_at_random_moments(tmp_path):
    kill_preparation(tmp_path, 3, seed=1)


@pytest.mark.slow
def test_preparation_killed_at_twenty_random_moments(tmp_path):
    kill_preparation(tmp_path, 20, seed=2)


@pytest.mark.parametrize(
    ("script", "make"),
    [
        (prepare_mimic_cxr, make_mimic),
        (prepare_chexpert, make_chexpert),
        (prepare_rsna, make_rsna),
        (prepare_covidx, make_covidx),
    ],
    ids=["mimic_cxr", "chexpert", "rsna", "covidx"],
)
def test_interrupt_and_run_again(tmp_path, monkeypatch, capsys, script, make):
    raw = make(tmp_path / "raw")
    arguments = ["--raw", str(raw), "--out", str(tmp_path / "out"), "--size", "32", "--workers", "1"]
    done = []

    def interrupted(candidate, journal):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(candidate)
        return _convert_one(candidate, journal)

    with monkeypatch.context() as patch:
        patch.setattr(data_scripts.conversion, "_convert_one", interrupted)
        assert script.main(arguments) == 130
    assert "goes on where it stopped" in capsys.readouterr().err
    assert not (tmp_path / "out/card.json").exists()
    assert script.main(arguments) == 0
    assert ", 3 reused" in capsys.readouterr().out
    script.prepare(raw, tmp_path / "undisturbed", size=32, workers=2, quiet=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


def test_a_finished_run_is_repeated_without_converting(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    before = contents(tmp_path / "out")
    summary = prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    assert (summary.converted, summary.reused) == (0, 26)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize("damage", ["truncated", "changed", "deleted"])
def test_a_damaged_stored_image_is_made_again(tmp_path, damage):
    raw = make_covidx(tmp_path / "raw")
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    before = contents(tmp_path / "out")
    image = tmp_path / "out" / load_studies(tmp_path / "out").table["image"][4]
    content = image.read_bytes()
    if damage == "deleted":
        image.unlink()
    else:
        image.write_bytes(content[:-20] if damage == "truncated" else content[:-20] + bytes(20))
    summary = prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    assert summary.converted == 1
    assert contents(tmp_path / "out") == before


def test_a_changed_source_is_read_again(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    write_picture(raw / "train/train3.jpg", width=64, height=20, seed=99)
    assert prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS).converted == 1
    row = load_studies(tmp_path / "out").table.set_index("image_id").loc["train3.jpg"]
    assert (row["width"], row["height"]) == (32, 10)


@pytest.mark.parametrize("changed", [{"size": 48}, {"image_format": "png"}])
def test_other_image_settings_are_refused_or_start_again(tmp_path, changed):
    raw = make_covidx(tmp_path / "raw")
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    before = contents(tmp_path / "out")
    with pytest.raises(DatasetError, match="--overwrite"):
        prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS | changed)
    assert contents(tmp_path / "out") == before
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS | changed, overwrite=True)
    prepare_covidx.prepare(raw, tmp_path / "new", **OPTIONS | changed)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_other_table_options_reuse_the_images(tmp_path):
    raw = make_chexpert(tmp_path / "raw")
    prepare_chexpert.prepare(raw, tmp_path / "out", **OPTIONS)
    summary = prepare_chexpert.prepare(raw, tmp_path / "out", uncertain="zeros", limit=3, **OPTIONS)
    assert (summary.converted, summary.reused) == (0, 8)
    prepare_chexpert.prepare(raw, tmp_path / "new", uncertain="zeros", limit=3, **OPTIONS)
    assert contents(tmp_path / "out") == contents(tmp_path / "new")


def test_an_interrupted_update_is_not_loadable(tmp_path, monkeypatch):
    raw = make_covidx(tmp_path / "raw")
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    write_picture(raw / "train/train3.jpg", width=64, height=20, seed=99)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(data_scripts.preparation, "write_studies", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    with pytest.raises(DatasetError, match=r"card\.json"):
        load_studies(tmp_path / "out")


def test_a_line_cut_by_a_kill_spoils_no_other(tmp_path, monkeypatch):
    raw = make_covidx(tmp_path / "raw")
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    with (tmp_path / "out/preparation/journal.jsonl").open("a") as stream:
        stream.write('{"image": "images/tr')
    write_picture(raw / "train/train3.jpg", width=64, height=20, seed=99)
    with monkeypatch.context() as patch:
        patch.setattr(data_scripts.preparation, "write_studies", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    assert prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS).converted == 0


def test_left_over_temporary_files_are_removed(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    before = contents(tmp_path / "out")
    (tmp_path / "out/images/.half.jpg.123.part").write_bytes(b"x")
    (tmp_path / "out/images/old").mkdir()
    write_image(tmp_path / "out/images/old/image.jpg", np.zeros((4, 4), dtype="uint8"))
    with (tmp_path / "out/preparation/journal.jsonl").open("a") as stream:
        stream.write('{"image": "images/tr')
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    assert contents(tmp_path / "out") == before


def test_a_foreign_folder_is_left_alone(tmp_path):
    raw = make_covidx(tmp_path / "raw")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("precious")
    with pytest.raises(DatasetError, match=r"chapter\.tex"):
        prepare_covidx.prepare(raw, tmp_path / "thesis", **OPTIONS)
    assert contents(tmp_path / "thesis") == {"chapter.tex": b"precious"}
    prepare_covidx.prepare(raw, tmp_path / "out", **OPTIONS)
    with pytest.raises(DatasetError, match="holds the dataset covidx"):
        prepare_rsna.prepare(make_rsna(tmp_path / "rsna"), tmp_path / "out", **OPTIONS)


def test_number_of_workers_changes_nothing(tmp_path):
    raw = make_mimic(tmp_path / "raw", images=30)
    replace(raw / "mimic-cxr-2.0.0-split.csv", "d0003,", "d9999,")
    prepare_mimic_cxr.prepare(raw, tmp_path / "one", size=32, workers=1)
    prepare_mimic_cxr.prepare(raw, tmp_path / "many", size=32, workers=7)
    assert contents(tmp_path / "one") == contents(tmp_path / "many")
    journal = (tmp_path / "many/preparation/journal.jsonl").read_text().splitlines()
    images = load_studies(tmp_path / "many").table["image"].tolist()
    assert [json.loads(line)["image"] for line in journal] == images


@pytest.fixture(scope="module")
def covidx(tmp_path_factory):
    """Raw films whose prepared images have some 10,000 bytes, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("covidx")
    for part in ("train", "test"):
        (folder / "raw" / part).mkdir(parents=True)
        names = [f"{part}{number}" for number in range(6)]
        for number, name in enumerate(names):
            write_picture(folder / "raw" / part / f"{name}.png", width=300, height=280, seed=number)
        lines = [f"{name} {name}.png normal rsna\n" for name in names]
        (folder / "raw" / f"{part}_COVIDx9A.txt").write_text("".join(lines))
    prepare_covidx.prepare(folder / "raw", folder / "undisturbed", quiet=True)
    return folder


@pytest.mark.parametrize("suffix", ["jpeg", "png"])
@pytest.mark.parametrize("file_size", [20, 1000], ids=["settings", "images"])
def test_a_full_disk(covidx, tmp_path, file_size, suffix):
    """No image is taken for finished that is cut off, and the run goes on where it stopped."""
    out, options = tmp_path / "out", ["--quiet", "--image-format", suffix]
    shown = refusal(
        prepare_covidx.main, ["--raw", str(covidx / "raw"), "--out", str(out), *options], file_size=file_size
    )
    assert "File too large" in shown
    assert not (out / "card.json").exists()
    assert not [path for path in out.rglob("*") if path.suffix in (".jpg", ".png")]
    prepare_covidx.prepare(covidx / "raw", out, quiet=True, image_format=suffix)
    if suffix == "jpeg":
        assert contents(out) == contents(covidx / "undisturbed")
    for path in load_studies(out).table["image"]:
        assert read_radiograph(out / path).pixels.shape == (239, 256)


def test_a_full_disk_at_the_table(covidx, tmp_path, monkeypatch):
    """All images are written; what comes after does not fit."""
    out = tmp_path / "out"
    shutil.copytree(covidx / "undisturbed", out)
    (out / "card.json").unlink()
    shown = refusal(prepare_covidx.main, ["--raw", str(covidx / "raw"), "--out", str(out), "--quiet"], file_size=3000)
    assert "File too large" in shown
    assert not (out / "card.json").exists()
    summary = prepare_covidx.prepare(covidx / "raw", out, quiet=True)
    assert (summary.reused, summary.converted) == (12, 0)
    assert contents(out) == contents(covidx / "undisturbed")


def test_a_folder_that_may_not_be_written(covidx, tmp_path):
    out = tmp_path / "out"
    out.mkdir(mode=0o555)
    words = ["--raw", str(covidx / "raw"), "--out", str(out), "--quiet"]
    assert "Permission denied" in refusal(prepare_covidx.main, words, privileges=False)
    assert list(out.iterdir()) == []
    shutil.rmtree(out)
    shutil.copytree(covidx / "undisturbed", out)
    (out / "images").chmod(0o555)
    next(out.glob("images/*.jpg")).write_bytes(b"")  # to be made again
    assert "Permission denied" in refusal(prepare_covidx.main, words, privileges=False)
    (out / "images").chmod(0o755)
    prepare_covidx.prepare(covidx / "raw", out, quiet=True)
    assert contents(out) == contents(covidx / "undisturbed")


def test_an_impossible_output_is_one_line(tmp_path, capsys):
    raw = make_covidx(tmp_path / "raw")
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/below"):
        assert prepare_covidx.main(["--raw", str(raw), "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert str(tmp_path / "file") in error
        assert error.count("\n") == 1
    shutil.rmtree(raw)
