"""Settings: unknown ones and bad values raise, and every one of them is reachable, explained and read."""

import ast
import json
from dataclasses import MISSING, fields

import pytest
from transformers import HfArgumentParser

from mgca_lib.config import (
    LATER,
    PROFILES,
    TOKEN_SWITCHES,
    AlignmentConfig,
    Config,
    ConfigError,
    ModelConfig,
    TrainingConfig,
    load_profile,
)
from mgca_lib.pretrain import PretrainArguments, main

PARTS = {"model": ModelConfig, "alignment": AlignmentConfig, "training": TrainingConfig}
SETTINGS = [(part, item.name) for part, kind in PARTS.items() for item in fields(kind)]

BAD_VALUES = [
    ("image_size", 0),
    ("stored_size", 1),  # smaller than image_size
    ("upsample_to", -1),
    ("backbone", 3),
    ("backbone_weights", 1),
    ("backbone_channels", (32, 64)),
    ("backbone_channels", [32, 0]),
    ("backbone_channels", [32.0]),
    ("stem_width", 16.5),
    ("stem_width", 3),
    ("stem_width", -4),
    ("local_stride", 1),
    ("local_stride", 8.5),
    ("text_layers", 0),
    ("text_width", 0),
    ("text_width", 191),  # prime
    ("text_heads", 0),
    ("word_window", -1),
    ("word_window", 4.0),
    ("mlm_epochs", -1),
    ("mlm_epochs", 2.0),
    ("text_rate_factor", 0.0),
    ("text_dropout", 1.0),
    ("text_dropout", -0.1),
    ("text_vocabulary", 5),
    ("max_pieces", 2),
    ("hidden_dim", 0),
    ("joint_dim", -128),
    ("joint_dim", 128.0),
    ("instance_weight", -1.0),
    ("token_weight", float("nan")),
    ("prototype_weight", float("inf")),
    ("instance_temperature", 0.0),
    ("token_temperature", "0.1"),
    ("prototype_temperature", -0.2),
    ("sinkhorn_epsilon", 0),
    ("sinkhorn_iterations", 0),
    ("num_prototypes", 1),
    ("freeze_prototypes_epochs", -1),
    ("gather", "yes"),
    ("local_groups", 0),
    ("local_groups", 2),  # needs gather off
    ("mask_same_text", 1),
    ("skip_denied_words", 1),
    ("skip_denied_words", True),  # demo's token term contrasts the words of one report
    *((name, 1) for name in TOKEN_SWITCHES),
    ("upstream", "convnext"),
    ("upstream", None),
    ("epochs", 0),
    ("epochs", "3"),
    ("epochs", 2.5),
    ("epochs", True),
    ("batch_size", 1),
    ("accumulation", 0),
    ("learning_rate", 0.0),
    ("learning_rate", float("inf")),
    ("weight_decay", -0.01),
    ("warmup_fraction", 1.0),
    ("warmup_fraction", -0.1),
    ("clip_norm", -1.0),
    ("patience", -1),
    ("precision", "fp16"),
    ("workers", -1),
    ("checkpoint_steps", 0),
    ("max_train_pairs", -5),
    ("chunk_size", -1),
    ("sync_batchnorm", 1),
    ("queue_size", -1),
    ("queue_size", 1.5),
]


@pytest.mark.parametrize(("name", "value"), BAD_VALUES)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ConfigError) as caught:
        load_profile("demo", **{name: value})
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{name} = {value!r}: ")


def test_edges_of_the_ranges_are_allowed():
    load_profile("demo", warmup_fraction=0.0, text_dropout=0.0, patience=0, clip_norm=0, instance_weight=0)
    load_profile("demo", stored_size=64, image_size=64, max_pieces=3, batch_size=2, num_prototypes=2, text_vocabulary=6)
    load_profile("demo", learning_rate=1, upsample_to=0, backbone_channels=[])  # a whole number is a number


def test_at_least_one_term_must_have_weight():
    with pytest.raises(ConfigError, match="one of the three weights"):
        load_profile("demo", instance_weight=0.0, token_weight=0.0, prototype_weight=0.0)


@pytest.mark.parametrize("name", TOKEN_SWITCHES)
def test_token_switches_are_refused_where_nothing_reads_them(name):
    load_profile("demo", **{name: True})
    for others, problem in (
        ({"upstream": "vit"}, "upstream = 'vit' decides it already"),
        ({"token_weight": 0.0}, "token_weight is 0"),
    ):
        with pytest.raises(ConfigError, match=f"^{name} = True: {problem}"):
            load_profile("demo", **{name: True}, **others)
    if name in ("lost_last_word", "padded_batchnorm"):
        load_profile("demo", **{name: True}, token_form="gloria")
    else:
        with pytest.raises(ConfigError, match=f"^{name} = True: token_form gloria does not read it"):
            load_profile("demo", **{name: True}, token_form="gloria")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mask_same_text": True, "instance_weight": 0.0}, "mask_same_text = True: instance_weight is 0"),
        (
            {"skip_denied_words": True, "token_form": "gloria", "token_weight": 0.0},
            "skip_denied_words = True: needs a token term that contrasts pairs",
        ),
        ({"upstream": "vit", "token_weight": 0.0}, "upstream = 'vit': token_weight is 0"),
        ({"local_groups": 2}, "local_groups = 2: needs gather off"),
        (
            {"local_groups": 2, "gather": False, "token_form": "gloria"},
            "local_groups = 2: token_form gloria contrasts the whole batch",
        ),
        (
            {"local_groups": 2, "gather": False, "instance_weight": 0.0, "prototype_weight": 0.0},
            "local_groups = 2: ITA and CPA have no weight",
        ),
        ({"local_groups": 5, "gather": False}, "local_groups = 5: must divide batch_size = 48"),
        ({"local_groups": 48, "gather": False}, "local_groups = 48: .* shares of at least 2 pairs"),
    ],
)
def test_contradictions_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=f"^{problem}"):
        load_profile("demo", **settings)


def test_upstream_spells_itself_out():
    corrected = AlignmentConfig(num_prototypes=7)
    assert corrected.spelled_out() is corrected
    resnet = AlignmentConfig(num_prototypes=7, upstream="resnet").spelled_out()
    vit = AlignmentConfig(num_prototypes=7, upstream="vit").spelled_out()
    assert [getattr(resnet, name) for name in TOKEN_SWITCHES] == [True, True, True, True, False, True]
    assert all(getattr(vit, name) for name in TOKEN_SWITCHES)
    assert (resnet.upstream, vit.upstream, vit.num_prototypes) == ("", "", 7)


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match="no profile called 'laptop'"):
        load_profile("laptop")
    with pytest.raises(ConfigError, match="unknown setting 'epoch'"):
        load_profile("demo", epoch=3)
    with pytest.raises(ConfigError, match="unknown setting 'profile'"):
        load_profile("demo", profile="paper")


def test_override_changes_that_one_setting_of_that_one_copy():
    before = PROFILES["demo"].to_dict()
    after = load_profile("demo", num_prototypes=7, epochs=3, joint_dim=9).to_dict()
    assert PROFILES["demo"].to_dict() == before
    changed = {(part, key): after[part][key] for part in PARTS for key in before[part] if after[part] != before[part]}
    differing = {name: value for name, value in changed.items() if before[name[0]][name[1]] != value}
    assert differing == {("alignment", "num_prototypes"): 7, ("training", "epochs"): 3, ("model", "joint_dim"): 9}


def test_no_two_parts_share_a_name():
    names = [name for _, name in SETTINGS] + [item.name for item in fields(PretrainArguments)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("profile", ["smoke", "demo", "full_width", "paper"])
def test_round_trip_through_json(profile):
    config = load_profile(profile, epochs=4)
    again = Config.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.profile == profile


def test_from_dict_refuses_what_to_dict_did_not_write():
    content = load_profile("smoke").to_dict()
    with pytest.raises(ConfigError, match="expected the keys"):
        Config.from_dict({**content, "optimiser": {}})
    with pytest.raises(ConfigError, match="expected the keys"):
        Config.from_dict({key: value for key, value in content.items() if key != "training"})
    with pytest.raises(ConfigError, match="model.depth is unknown"):
        Config.from_dict({**content, "model": {**content["model"], "depth": 3}})
    rest = {key: value for key, value in content["model"].items() if key != "hidden_dim"}
    with pytest.raises(ConfigError, match="model.hidden_dim is missing"):
        Config.from_dict({**content, "model": rest})
    older = {part: {k: v for k, v in content[part].items() if k not in LATER} for part in PARTS}
    assert set(LATER) == {key for part in older for key in set(content[part]) - set(older[part])}
    assert Config.from_dict({**content, **older}) == load_profile("smoke", **LATER)
    with pytest.raises(ConfigError, match="epochs = 0"):
        Config.from_dict({**content, "training": {**content["training"], "epochs": 0}})


# What the first checkpoints name. Whoever adds a setting says in LATER what was done before there was one.
FIRST = """
backbone backbone_weights backbone_channels stored_size image_size upsample_to text_model text_layers text_width
text_heads text_dropout text_vocabulary max_pieces hidden_dim joint_dim instance_weight token_weight prototype_weight
instance_temperature token_temperature prototype_temperature num_prototypes sinkhorn_epsilon sinkhorn_iterations
queue_size freeze_prototypes_epochs gather token_form local_groups mask_same_text upstream shifted_word_weights
lost_last_word padded_batchnorm padded_softmax unnormalized_context epochs batch_size accumulation sync_batchnorm
learning_rate weight_decay warmup_fraction clip_norm patience precision workers keep_images checkpoint_steps
max_train_pairs
"""


def test_the_first_checkpoints_can_still_be_read():
    assert {name for _, name in SETTINGS} - set(FIRST.split()) == set(LATER)
    content = load_profile("smoke").to_dict()
    first = {part: {key: value for key, value in content[part].items() if key in FIRST.split()} for part in PARTS}
    assert Config.from_dict({**content, **first}) == load_profile("smoke")


def test_paper_profile_is_the_published_recipe():
    """Values of facts about the published repository, typed here a second time."""
    paper = load_profile("paper")
    assert (paper.model.backbone, paper.model.text_layers, paper.model.max_pieces) == ("deit_base_patch16_224", 6, 112)
    assert (paper.model.stored_size, paper.model.image_size) == (256, 224)
    assert (paper.model.hidden_dim, paper.model.joint_dim) == (2048, 128)
    alignment = paper.alignment
    assert (alignment.instance_weight, alignment.token_weight, alignment.prototype_weight) == (1, 1, 1)
    assert (alignment.instance_temperature, alignment.token_temperature) == (0.07, 0.1)
    assert (alignment.prototype_temperature, alignment.num_prototypes) == (0.2, 500)
    assert (alignment.sinkhorn_epsilon, alignment.sinkhorn_iterations) == (0.05, 3)
    training = paper.training
    assert (training.epochs, training.batch_size, training.learning_rate) == (50, 72, 2e-5)
    assert (training.weight_decay, training.warmup_fraction, training.patience) == (0.05, 0.4, 5)


def test_full_width_has_the_published_sizes():
    ours, paper = load_profile("full_width").model, load_profile("paper").model
    started_from_nothing = {"text_model", "backbone_weights", "text_vocabulary"}
    differing = {item.name for item in fields(ours) if getattr(ours, item.name) != getattr(paper, item.name)}
    assert differing == started_from_nothing


@pytest.mark.parametrize("profile", ["smoke", "demo", "full_width"])
def test_small_profiles_download_nothing(profile):
    model = load_profile(profile).model
    assert model.text_model == ""
    assert model.backbone_weights is False


def parser() -> HfArgumentParser:
    return HfArgumentParser((PretrainArguments, *PARTS.values()))


def test_every_option_is_explained(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in (PretrainArguments, *PARTS.values()):
        for item in fields(part):
            assert f"--{item.name}" in shown
            assert len(item.metadata["help"]) > 10
            assert " ".join(item.metadata["help"].split()) in shown.replace("- ", "-"), item.name
    assert "--no-gather switch off --gather" in shown


@pytest.mark.parametrize(("part", "name"), SETTINGS)
def test_every_option_reaches_its_setting(part, name):
    """An option on the command line changes its own setting and no other."""
    kind = next(item for item in fields(PARTS[part]) if item.name == name)
    default = kind.default_factory() if kind.default is MISSING else kind.default
    if name == "skip_denied_words":
        words, value = ["--skip_denied_words", "--token_form", "gloria"], True  # the published form does not read it
    elif isinstance(default, bool):
        words, value = ([f"--no_{name}"] if default else [f"--{name}"]), not default
    elif name == "precision":
        words, value = ["--precision", "bf16"], "bf16"
    elif name == "token_form":
        words, value = ["--token_form", "gloria"], "gloria"
    elif name == "upstream":
        words, value = ["--upstream", "vit"], "vit"
    elif name == "local_groups":
        words, value = ["--local_groups", "2", "--no_gather"], 2  # one contradicts the other
    elif name == "stem_width":
        words, value = ["--stem_width", "16"], 16
    elif isinstance(default, list):
        words, value = [f"--{name}", "8", "16"], [8, 16]
    elif isinstance(default, str):
        words, value = [f"--{name}", "other"], "other"
    elif name in ("text_heads", "image_size"):
        words, value = [f"--{name}", "6"], 6
    elif name == "text_width":
        words, value = [f"--{name}", "24"], 24
    elif isinstance(default, int):
        words, value = [f"--{name}", str(default + 1)], default + 1
    else:
        words, value = [f"--{name}", "0.25"], 0.25
    _, *parts = parser().parse_args_into_dataclasses(["--data", "d", "--out", "o", *words])
    found = dict(zip(PARTS, parts, strict=True))
    assert getattr(found[part], name) == value
    differing = [(p, n) for p, n in SETTINGS if getattr(found[p], n) != getattr(PARTS[p](), n)]
    together = {"local_groups": {(part, "gather")}, "skip_denied_words": {(part, "token_form")}}
    assert set(differing) == {(part, name)} | together.get(name, set())


def test_every_setting_is_read_somewhere(repository):
    """A setting that no code reads would be a promise that nobody keeps."""
    read = set()
    for path in (repository / "mgca_lib").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if path.name == "config.py":  # only the method that turns one setting into others
            tree = next(node for node in ast.walk(tree) if getattr(node, "name", "") == "spelled_out")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert [name for _, name in SETTINGS if name not in read] == []
