"""Variants: every one fits every profile, changes what it says and nothing else, and reaches the model."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from helpers import tiny_batch, tiny_config, tiny_studies, tiny_tokenizer

from mgca_lib.config import PROFILES, TOKEN_SWITCHES, ConfigError, load_profile
from mgca_lib.model import build_model
from mgca_lib.variants import GROUPS, VARIANTS, Variant, variant_config


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return tiny_studies(tmp_path_factory.mktemp("variants"), train=8, valid=2, test=2).split("train")


def flat(config):
    content = config.to_dict()
    return {name: value for part in ("model", "alignment", "training") for name, value in content[part].items()}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_changes_its_settings_and_no_other(profile, name):
    before, after = load_profile(profile), variant_config(load_profile(profile), name)
    settings = flat(before) | dict(VARIANTS[name].settings)
    assert flat(after) == settings
    assert after.profile == profile
    if name != "all":
        assert after != before


def test_no_two_variants_are_the_same():
    configs = [flat(variant_config(load_profile("demo"), name)) for name in VARIANTS]
    assert all(one != two for number, one in enumerate(configs) for two in configs[:number])


def test_the_table_is_in_order():
    for name, variant in VARIANTS.items():
        assert variant.name == name
        assert variant.group in GROUPS
        assert variant.changes.endswith(".")
        assert "\n" not in variant.changes
    assert {variant.group for variant in VARIANTS.values()} == set(GROUPS)
    assert VARIANTS["all"].settings == {}


def test_every_switch_of_the_published_code_has_a_variant_of_its_own():
    alone = [dict(variant.settings) for variant in VARIANTS.values()]
    assert [name for name in TOKEN_SWITCHES if {name: True} not in alone] == []
    together = variant_config(load_profile("demo"), "upstream-vit").alignment.spelled_out()
    assert all(getattr(together, name) for name in TOKEN_SWITCHES)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        variant_config(load_profile("smoke"), "quirks")
    assert str(caught.value) == f"no variant called 'quirks'; use one of {', '.join(VARIANTS)}"


def test_variants_cannot_be_changed_behind_one_s_back():
    given = {"epochs": 1}
    variant = Variant("short", "quirks", given, "Short.")
    given["epochs"] = 2
    assert variant.settings == {"epochs": 1}
    with pytest.raises(TypeError):
        variant.settings["epochs"] = 3
    with pytest.raises(TypeError):
        VARIANTS["short"] = variant
    with pytest.raises(FrozenInstanceError):
        variant.name = "long"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_takes_a_training_step(studies, name):
    """Built, run and differentiated; another loss than that of ``all`` wherever a first step can tell."""
    batch, tokenizer = tiny_batch(studies, list(range(8))), tiny_tokenizer(studies)
    losses = {}
    for one in ("all", name):
        model = build_model(variant_config(tiny_config(), one), tokenizer, seed=3)
        losses[one] = model(batch)[0].total
        losses[one].backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    # The queue is still empty, and no report of this dataset is full; tiny_config has one text layer already.
    later = ("queue", "quirk-lost-word", "quirk-one-text-layer", "all")
    assert torch.equal(losses[name], losses["all"]) is (name in later)
