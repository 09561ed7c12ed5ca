"""The benchmarks run in quick mode and write whole results; the committed results are whole, too."""

import importlib
import json
import math
import platform
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as everything
from benchmarks import baseline, harness, losses, step_gpu, steps
from benchmarks.synthetic import make_batch
from mgca_lib.alignment import instance_alignment_loss, prototype_alignment_loss, token_alignment_loss

WRITES = {
    "data_loader": ("data_loader",),
    "data_memory": ("data_memory",),
    "data_reading": ("data_reading",),
    "losses": ("losses", "losses_memory"),
    "prepare_images": ("prepare_images",),
    "probe": ("probe",),
    "step_cpu": ("step_cpu", "step_cpu_rate"),
}
ON_A_GPU = ("step_gpu_144", "step_gpu_largest", "step_gpu_losses")
COMMITTED = sorted(harness.RESULTS.rglob("*.json"))


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def check(path: Path) -> dict:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert set(harness.KEYS) <= set(result)
    assert result["claim"].endswith(".")
    assert math.isfinite(result["ratio"])
    assert result["target"] > 0
    assert result["medians"]
    assert result["repeats"] >= 1
    assert {"processor", "cores", "memory_gb", "gpu", "threads", "load"} <= set(result["hardware"])
    assert "torch" in result["versions"]
    assert isinstance(result["commit"], str)
    return result


@pytest.mark.parametrize("script", WRITES)
def test_runs_in_quick_mode(script, tmp_path, capsys):
    module = importlib.import_module(f"benchmarks.{script}")
    assert module.main(["--quick", "--out", str(tmp_path), "--threads", "1"]) == 0
    assert tuple(sorted(path.stem for path in tmp_path.glob("*"))) == WRITES[script]
    for name in WRITES[script]:
        assert check(tmp_path / f"{name}.json")["quick"]
    # The ratio comes last.
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert any(last.startswith(f"{name}: ratio ") for name in WRITES[script])


def test_without_a_gpu_one_line_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    module = importlib.import_module("benchmarks.step_gpu")
    assert module.main(["--out", str(tmp_path)]) == harness.NOT_HERE
    assert capsys.readouterr().out == ("step_gpu: torch sees no GPU on this computer, so there is nothing to measure\n")
    assert not list(tmp_path.iterdir())


def test_every_script_is_run_by_make_bench():
    helpers = {"__init__", "__main__", "baseline", "harness", "steps", "synthetic"}
    scripts = {path.stem for path in harness.RESULTS.parent.glob("*.py")} - helpers
    assert scripts == set(everything.SCRIPTS) == set(WRITES) | {"step_gpu"}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: "-".join(path.relative_to(harness.RESULTS).parts))
def test_committed_results_are_whole_and_name_no_computer(path):
    result = check(path)
    assert not result["quick"]
    assert result["repeats"] >= (1 if "memory" in path.stem else 3)
    assert set(result["hardware"]) == {"processor", "cores", "memory_gb", "gpu", "threads", "load"}
    text = path.read_text(encoding="utf-8")
    assert platform.node() not in text
    assert not re.search(r"(?<![\w ])/\w", text)
    assert path.stem in {*ON_A_GPU, *(name for names in WRITES.values() for name in names)}


def test_quick_figures_never_take_the_place_of_real_ones():
    with pytest.raises(SystemExit):
        harness.parse_options("A benchmark.", ["--quick"])


def test_sides_take_turns_and_the_first_round_does_not_count(monkeypatch):
    calls = []
    durations = iter([9.0, 9.0, 1.0, 10.0, 3.0, 30.0, 2.0, 20.0])
    monkeypatch.setattr(harness, "_time", lambda call, device: (call(), (next(durations), 0.0))[1])
    options = harness.Options(quick=False, repeats=3, threads=1, clock="wall", out=Path())
    found = harness.time_in_turn({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, options)
    assert calls == ["a", "b"] * 4
    assert (found["a"].wall, found["b"].wall) == (2.0, 20.0)


def test_peak_memory_counts_what_lives_together():
    def call():
        first = torch.ones(1000, 1000)  # 4 MB
        second = first + 1
        del first
        third = second * 2
        return second, third

    peak = harness.peak_memory(call, large=4_000_000)
    assert peak.large == 2
    assert peak.bytes == pytest.approx(8e6, rel=0.01)


def test_at_most_and_at_least():
    assert harness.verdict(2.0, 1.0, at_most=True) == ("at most 1", "missed")
    assert harness.verdict(2.0, 1.0, at_most=False) == ("at least 1", "reached")


def test_the_table_quotes_the_results(tmp_path, capsys):
    options = harness.Options(quick=False, repeats=3, threads=2, clock="wall", out=tmp_path)
    harness.write_result("b", options, claim="B.", ratio=0.5, target=1.0, medians={"x": 1.0})
    harness.write_result("a", options, claim="A.", ratio=12.345, target=3.0, medians={"x": 1.0}, repeats=1)
    assert check(tmp_path / "a.json")["repeats"] == 1
    assert check(tmp_path / "b.json")["repeats"] == 3
    other = replace(options, out=tmp_path / "another-computer")
    harness.write_result("a", other, claim="A.", ratio=2.5, target=3.0, medians={"x": 1.0})
    rows = harness.results_table(tmp_path).splitlines()
    assert len(rows) == 4  # one a claim, below the head
    first, second = rows[2].removeprefix("| A. | at least 3 | ").split("<br>")
    assert (first[:9], first.rpartition(": ")[2]) == ("**12.35**", "reached")
    assert (second[:7], second.rpartition(": ")[2]) == ("**2.5**", "missed |")
    assert rows[3].startswith("| B. | at least 1 | **0.5** on ")
    assert capsys.readouterr().out.splitlines()[-1] == "a: ratio 2.5 (target: at least 3; missed)"


def test_names_pick_scripts_and_options_reach_them(monkeypatch, capsys):
    commands = []

    def run(command, check):
        commands.append(command[2:])
        return subprocess.CompletedProcess(command, harness.NOT_HERE if "step_gpu" in command[2] else 1)

    monkeypatch.setattr(everything.subprocess, "run", run)
    assert everything.main(["probe", "step_gpu", "--repeats", "3"]) == 1
    assert commands == [["benchmarks.probe", "--repeats", "3"], ["benchmarks.step_gpu", "--repeats", "3"]]
    assert capsys.readouterr().err == "benchmarks.probe failed\n"
    assert everything.main(["prob"]) == 2
    assert everything.main([]) == len(everything.SCRIPTS) - 1


def test_the_largest_batch_is_found(monkeypatch):
    tried = []

    def one_size(size, *_):
        tried.append(size)
        if size > 500:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        if size > 300:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return {"seconds of a step": float(size)}

    monkeypatch.setattr(step_gpu, "_one_size", one_size)
    options = harness.Options(quick=False, repeats=3, threads=1, clock="wall", out=Path())
    assert list(step_gpu._fitting(144, None, options, None)) == [18, 36, 72, 144, 288]
    assert tried == [18, 36, 72, 144, 288, 576, 432]


def test_an_error_that_is_not_about_memory_is_not_taken_for_a_full_card(monkeypatch):
    def one_size(*_):
        raise RuntimeError("expected all tensors on one device")

    monkeypatch.setattr(step_gpu, "_one_size", one_size)
    with pytest.raises(RuntimeError, match="one device"):
        step_gpu._try(18, None, None, None)


def test_a_large_batch_repeats_the_pairs_of_a_smaller_one(monkeypatch):
    monkeypatch.setattr(step_gpu, "PUBLISHED_BATCH", 3)
    config, device = steps.paper_config(quick=True), torch.device("cpu")
    batch, drawn = step_gpu._batch(7, config, device), step_gpu._batch(3, config, device)
    assert (len(batch), len(drawn), batch.num_words) == (7, 3, drawn.num_words)
    for name in ("images", "pieces", "piece_keep", "word_ids"):
        assert torch.equal(getattr(batch, name), getattr(drawn, name)[[0, 1, 2, 0, 1, 2, 0]])


def test_what_runs_on_a_gpu_runs_on_a_cpu_too(tmp_path):
    options = harness.Options(quick=True, repeats=1, threads=1, clock="wall", out=tmp_path)
    config, device = steps.paper_config(quick=True), torch.device("cpu")
    curve = {size: {"seconds of a step": size / 9, "memory, GB": 1.0 + size} for size in (2, 4)}
    step_gpu._rate("step_gpu_144", 4, config, options, device, baseline=True)
    step_gpu._rate("step_gpu_largest", 4, config, options, device, curve=curve)
    step_gpu._losses(4, 8, config, options, device)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["step_gpu_curve.png", *(f"{name}.json" for name in ON_A_GPU)]
    )
    hours = next(value for name, value in check(tmp_path / "step_gpu_144.json")["medians"].items() if "hours" in name)
    assert hours > 0
    assert check(tmp_path / "step_gpu_largest.json")["medians"]["against batch size"]["2 pairs"]["memory, GB"] == 3.0


def test_token_alignment_never_holds_the_logits_of_all_studies():
    batch_size, square = 8, 8 * losses.PATCHES**2 * 4
    _, baseline_call, token = losses._sides(batch_size)
    assert harness.peak_memory(token, large=square).large == 0
    assert harness.peak_memory(baseline_call, large=square).large >= 4


def test_losses_alone_are_the_losses_of_the_step(tmp_path):
    config = steps.paper_config(quick=True).override(text_dropout=0.0)
    batch = make_batch(tmp_path, config.model, 4)
    model = steps.build(config)
    seen = []
    monitored = model.token_alignment.register_forward_hook(lambda *parts: seen.append(parts[-1].item()))
    steps.losses_alone(model, batch, bf16=False)()
    monitored.remove()
    assert seen == [pytest.approx(model(batch)[0].token.item(), rel=1e-5)]
    assert model.prototypes.grad.abs().sum() > 0
    assert next(model.image_encoder.parameters()).grad is None  # the encoders are left out


def test_the_baseline_computes_the_published_losses():
    """Against the library in its published mode, whose parity with the published code has its own test."""
    torch.manual_seed(0)
    image, report, patches, words, prototypes = (
        torch.nn.functional.normalize(torch.randn(*shape), dim=-1)
        for shape in ((4, 8), (4, 8), (4, 9, 8), (4, 6, 8), (5, 8))
    )
    keep = torch.arange(6)[None] < torch.tensor([6, 3, 5, 4])[:, None]
    word_attention, patch_attention = torch.rand(4, 6) * keep, torch.rand(4, 9)
    found = baseline.baseline_losses(
        image,
        report,
        patches,
        words,
        torch.nn.Parameter(prototypes),
        empty=~keep,
        word_attention=word_attention,
        patch_attention=patch_attention,
    )
    expected = (
        instance_alignment_loss(image, report)
        + prototype_alignment_loss(image, report, prototypes)
        + token_alignment_loss(
            words,
            patches,
            word_keep=keep,
            word_weight=baseline._clipped(word_attention),
            patch_weight=baseline._clipped(patch_attention),
            upstream="vit",
        )
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_ratio_says_how_many_times_faster_ours_is(tmp_path, monkeypatch):
    def twice(sides, *_, **__):
        return {name: harness.Seconds(2.0 if name == "baseline" else 1.0, 1.0) for name in sides}

    monkeypatch.setattr(losses, "time_in_turn", twice)
    losses.main(["--quick", "--out", str(tmp_path), "--threads", "1"])
    assert json.loads((tmp_path / "losses.json").read_text())["ratio"] == 2.0
