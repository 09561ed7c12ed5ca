"""Checkpoints: bit-equal, whole or absent, never unpickled, and clear about every kind of damage."""

import ast
import json
import shutil

import pytest
import torch
from helpers import tiny_batch, tiny_config, tiny_studies, tiny_tokenizer
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from mgca_lib import checkpoint as module
from mgca_lib.checkpoint import (
    CheckpointError,
    find_checkpoint,
    load_checkpoint,
    read_config,
    read_state,
    save_checkpoint,
)
from mgca_lib.model import build_model

FILES = ["config.json", "model.safetensors", "state.json", "state.safetensors", "text"]


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return tiny_studies(tmp_path_factory.mktemp("checkpoint"), train=12, valid=4, test=4).split("train")


@pytest.fixture(scope="module")
def tokenizer(studies):
    return tiny_tokenizer(studies)


def model_of(tokenizer, seed=1, **settings):
    return build_model(tiny_config(**settings), tokenizer, seed=seed)


def save(folder, tokenizer, seed=1, **settings):
    model = model_of(tokenizer, seed, **settings)
    state = {"0.exp_avg": torch.randn(3, 2), "0.step": torch.tensor(5.0)}
    save_checkpoint(
        folder, model, tokenizer, provenance={"seed": seed}, state=state, counters={"step": 5, "best_loss": 0.1 + 0.2}
    )
    return model, state


def weights_equal(one, two):
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_round_trip_is_bit_equal(tmp_path, studies, tokenizer):
    model, state = save(tmp_path / "best", tokenizer)
    model.eval()
    loaded, again, provenance = load_checkpoint(tmp_path / "best")
    assert weights_equal(model, loaded)
    assert not loaded.training
    assert loaded.config == model.config
    assert provenance == {"seed": 1}
    assert again.get_vocab() == tokenizer.get_vocab()
    batch = tiny_batch(studies, [0, 1, 2])
    with torch.no_grad():
        one, two = model(batch)[0], loaded(batch)[0]
    assert torch.equal(one.total, two.total)
    tensors, counters = read_state(tmp_path / "best")
    assert counters == {"step": 5, "best_loss": 0.1 + 0.2}
    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


def test_the_same_model_gives_the_same_bytes(tmp_path, tokenizer):
    save(tmp_path / "a", tokenizer)
    torch.manual_seed(0)
    save(tmp_path / "b", tokenizer)
    for name in ("model.safetensors", "config.json", "text/tokenizer.json", "text/config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_nothing_in_the_folder_needs_unpickling(tmp_path, tokenizer):
    save(tmp_path / "best", tokenizer)
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == FILES
    for path in (tmp_path / "best").rglob("*"):
        if path.is_file():
            assert path.suffix in (".json", ".safetensors")
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            else:
                length = int.from_bytes(path.read_bytes()[:8], "little")
                json.loads(path.read_bytes()[8 : 8 + length])  # a safetensors header, no pickle's opcodes


PICKLERS = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
READERS = {("torch", "load"), ("torch", "save"), ("pd", "read_pickle"), ("pandas", "read_pickle")}
READERS |= {("accelerator", "load_state"), ("accelerator", "save_state")}


def unpickling(source):
    """Name what a module would unpickle with: pickle and its kin, and the functions that call it quietly.

    Torch's weights-only reader is allowed, and the name of the error that it raises.
    """
    found, weights_only = [], []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] != ["UnpicklingError"]:
            names = [(node.module or "").split(".")[0]]
            found += [alias.name for alias in node.names if (node.module, alias.name) in READERS]
        found += [name for name in names if name in PICKLERS]
        if isinstance(node, ast.Call) and any(
            keyword.arg == "weights_only" and getattr(keyword.value, "value", None) is True for keyword in node.keywords
        ):
            weights_only.append(node.func)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node not in weights_only:
            found += [node.attr] * ((node.value.id, node.attr) in READERS)
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += ["allow_pickle"] * (getattr(node.value, "value", True) is not False)
    return found


def test_no_module_unpickles(repository):
    folders = ("mgca_lib", "data_scripts", "notebooks", "benchmarks")
    paths = sorted(path for folder in folders for path in (repository / folder).rglob("*.py"))
    assert len(paths) > 80
    found = {path.name: unpickling(path.read_text(encoding="utf-8")) for path in paths}
    assert {name: names for name, names in found.items() if names} == {}


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib import load", ["joblib"]),
        ("from pickle import UnpicklingError, loads", ["pickle"]),
        ("from torch import Tensor, load", ["load"]),
        ("torch.load(path)", ["load"]),
        ("torch.load(path, weights_only=False)", ["load"]),
        ("torch.load(path, weights_only=flag)", ["load"]),
        ("read = torch.load", ["load"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle"]),
        ("pd.read_pickle(path)", ["read_pickle"]),
        ("torch.load(path, weights_only=True); np.load(path); from pickle import UnpicklingError", []),
    ],
)
def test_unpickling_is_recognised(source, named):
    assert unpickling(source) == named


def test_replacing_leaves_no_trace(tmp_path, tokenizer):
    save(tmp_path / "last", tokenizer, seed=1)
    new, _ = save(tmp_path / "last", tokenizer, seed=2)
    assert weights_equal(load_checkpoint(tmp_path / "last")[0], new)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


class Killed(BaseException):
    """Stands for the kill signal: nothing after it runs."""


def test_a_link_to_a_checkpoint_is_replaced_like_one(tmp_path, tokenizer):
    """Somebody has moved it to a larger disk; what lies there stays."""
    save(tmp_path / "disk/last", tokenizer, seed=1)
    (tmp_path / "last").symlink_to(tmp_path / "disk/last")
    for seed in (2, 3):
        save(tmp_path / "last", tokenizer, seed=seed)
        assert weights_equal(load_checkpoint(tmp_path / "last")[0], model_of(tokenizer, seed=seed))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "last"]
    assert weights_equal(load_checkpoint(tmp_path / "disk/last")[0], model_of(tokenizer, seed=1))


def die_at_call(monkeypatch, name, number, owner=None):
    """Let the function ``name`` die instead of its ``number``-th call."""
    owner = owner or module
    original, calls = getattr(owner, name), []

    def dying(*arguments, **settings):
        calls.append(name)
        if len(calls) == number:
            raise Killed
        return original(*arguments, **settings)

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    ("owner", "name", "number", "survivor"),
    [
        (module, "save_file", 1, "last"),
        (module, "save_file", 2, "last"),
        (module.os, "replace", 1, "last"),
        (module.os, "replace", 2, "last.old"),  # the old one stepped aside, the new one is not in place
    ],
)
def test_a_kill_while_replacing_leaves_the_old_one(tmp_path, tokenizer, monkeypatch, owner, name, number, survivor):
    folder = tmp_path / "last"
    old, _ = save(folder, tokenizer, seed=1)
    die_at_call(monkeypatch, name, number, owner)
    with pytest.raises(Killed):
        save(folder, tokenizer, seed=2)
    monkeypatch.undo()
    assert find_checkpoint(folder) == tmp_path / survivor
    assert weights_equal(load_checkpoint(folder)[0], old)
    new, _ = save(folder, tokenizer, seed=3)
    assert find_checkpoint(folder) == folder
    assert weights_equal(load_checkpoint(folder)[0], new)
    save(folder, tokenizer, seed=3)
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_kill_after_replacing_leaves_the_new_checkpoint(tmp_path, tokenizer, monkeypatch):
    folder = tmp_path / "last"
    save(folder, tokenizer, seed=1)
    die_at_call(monkeypatch, "rmtree", 2, module.shutil)  # the first one clears ".old"
    with pytest.raises(Killed):
        save(folder, tokenizer, seed=2)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "last.old"]
    assert load_checkpoint(folder)[2] == {"seed": 2}


def test_a_kill_during_the_first_writing_leaves_nothing(tmp_path, tokenizer, monkeypatch):
    folder = tmp_path / "last"
    die_at_call(monkeypatch, "save_file", 2)
    with pytest.raises(Killed):
        save(folder, tokenizer)
    monkeypatch.undo()
    assert find_checkpoint(folder) is None
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_checkpoint(folder)


def test_all_is_on_the_disk_before_the_old_checkpoint_steps_aside(tmp_path, tokenizer, monkeypatch):
    save(tmp_path / "last", tokenizer, seed=1)
    synced, replace = set(), module.os.replace
    monkeypatch.setattr(module.os, "fsync", lambda descriptor: synced.add(module.os.fstat(descriptor).st_ino))

    def checked(source, target):
        written = {path.stat().st_ino for path in (tmp_path / "last.part").rglob("*") if path.is_file()}
        assert written <= synced
        assert len(written) > 3
        synced.add(target)
        monkeypatch.setattr(module.os, "replace", replace)
        return replace(source, target)

    monkeypatch.setattr(module.os, "replace", checked)
    save(tmp_path / "last", tokenizer, seed=2)
    assert tmp_path / "last.old" in synced  # the check was reached


@pytest.fixture
def folder(tmp_path, tokenizer):
    save(tmp_path / "best", tokenizer)
    return tmp_path / "best"


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def drop_weight(path):
    weights = load_file(path)
    weights.pop("image_global.layers.0.weight")
    save_file(weights, path)


def change_model(folder, change):
    change_json(folder / "config.json", lambda content: change(content["config"]["model"]))


DAMAGE = [
    (lambda f: (f / "model.safetensors").unlink(), "no checkpoint (model.safetensors is missing)"),
    (lambda f: shutil.rmtree(f), "no checkpoint"),
    (lambda f: (f / "config.json").unlink(), "config.json: cannot be read (No such file or directory)"),
    (lambda f: shutil.rmtree(f / "text"), "text/tokenizer.json: missing"),
    (lambda f: (f / "text/tokenizer.json").unlink(), "text/tokenizer.json: missing"),
    (lambda f: (f / "text/tokenizer_config.json").unlink(), "text/tokenizer_config.json: missing"),
    (lambda f: (f / "text/config.json").unlink(), "text/config.json: missing"),
    (lambda f: cut(f / "text/config.json", 20), "text: not a readable tokenizer and configuration"),
    (lambda f: (f / "text/config.json").write_text("{}"), "text: not a readable tokenizer and configuration"),
    (lambda f: cut(f / "text/tokenizer.json", 20), "text: not a readable tokenizer and configuration"),
    (lambda f: cut(f / "model.safetensors", 1000), "model.safetensors: not a readable safetensors file"),
    (lambda f: cut(f / "model.safetensors", -1), "model.safetensors: not a readable safetensors file"),
    (lambda f: cut(f / "model.safetensors", 0), "model.safetensors: not a readable safetensors file"),
    (lambda f: drop_weight(f / "model.safetensors"), "weight 'image_global.layers.0.weight' is missing"),
    (lambda f: cut(f / "config.json", 50), "config.json: not the configuration of a checkpoint"),
    (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json: not the configuration of a checkpoint"),
    (lambda f: (f / "config.json").write_text("[]"), "config.json: not the configuration of a checkpoint"),
    (lambda f: change_json(f / "config.json", lambda c: c.pop("provenance")), "not the configuration"),
    (lambda f: change_model(f, lambda model: model.update(depth=3)), "setting model.depth is unknown"),
    (lambda f: change_model(f, lambda model: model.pop("joint_dim")), "setting model.joint_dim is missing"),
    (lambda f: change_json(f / "config.json", lambda c: c["config"]["training"].update(epochs=0)), "epochs = 0"),
    (
        lambda f: change_model(f, lambda model: model.update(backbone="nonet")),
        "config.json: backbone 'nonet': timm",
    ),
    (
        lambda f: change_model(f, lambda model: model.update(hidden_dim=25)),
        "model.safetensors: weight 'image_global.layers.0.bias' is (24,), this architecture has (25,)",
    ),
    (
        lambda f: change_model(f, lambda model: model.update(backbone="test_vit")),
        "weight 'image_encoder.trunk.blocks.0.attn.proj.bias' is missing",
    ),
]


@pytest.mark.parametrize(("damage", "problem"), DAMAGE, ids=[str(n) for n in range(len(DAMAGE))])
def test_damage_is_named(folder, damage, problem):
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert problem in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda f: (f / "state.json").unlink(), "state.json: missing, so training cannot go on"),
        (lambda f: cut(f / "state.json", 5), "state.json: not JSON"),
        (lambda f: (f / "state.json").write_bytes(b"\xff"), "state.json: not JSON"),
        (lambda f: (f / "state.safetensors").unlink(), "state.safetensors: not a readable safetensors file"),
        (lambda f: cut(f / "state.safetensors", -4), "state.safetensors: not a readable safetensors file"),
    ],
)
def test_damaged_training_state_is_named(folder, damage, problem):
    damage(folder)
    with pytest.raises(CheckpointError, match=problem):
        read_state(folder)


def test_a_checkpoint_without_training_state(tmp_path, tokenizer):
    save_checkpoint(tmp_path / "best", model_of(tokenizer), tokenizer, provenance={})
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == ["config.json", "model.safetensors", "text"]
    with pytest.raises(CheckpointError, match="training cannot go on"):
        read_state(tmp_path / "best")
    assert read_config(tmp_path / "best") == (tiny_config(), {})


def test_loading_needs_neither_the_network_nor_the_original_text_model(tmp_path, studies, tokenizer):
    """The paper's checkpoint must load where Bio_ClinicalBERT and timm's weights are out of reach."""
    text = tmp_path / "clinical"
    sizes = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=112,
    )
    BertModel(sizes, add_pooling_layer=False).save_pretrained(text)
    tokenizer.save_pretrained(text)
    model, _ = save(tmp_path / "best", tokenizer, text_model=str(text), text_layers=2)
    shutil.rmtree(text)
    # As if the image encoder had come from the hub, too.
    change_model(tmp_path / "best", lambda model: model.update(backbone_weights=True))
    loaded, _, _ = load_checkpoint(tmp_path / "best")
    assert weights_equal(model, loaded)
    assert len(loaded.report_encoder.model.encoder.layer) == 2
    batch = tiny_batch(studies, [0, 1])
    with torch.no_grad():
        assert torch.equal(model.eval().encode_report(batch).local, loaded.encode_report(batch).local)


def test_channels_last_weights_survive(tmp_path, tokenizer):
    model, _ = save(tmp_path / "best", tokenizer)
    loaded, _, _ = load_checkpoint(tmp_path / "best")
    kernels = [weight for weight in loaded.image_encoder.parameters() if weight.ndim == 4 and weight.shape[2] > 1]
    assert kernels
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    assert weights_equal(model, loaded)
