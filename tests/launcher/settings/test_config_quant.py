"""The config's own sections: presets, rules, repairs, tags; errors say how to fix them."""

from dataclasses import fields
from typing import Any

import pytest

from dq.quant.ptq.settings import Mixed
from dq.quant.recipes.presets import PRESETS, preset
from launcher.config import quant_settings, tracking
from launcher.sections import SECTIONS, check_section


def test_nothing_said_is_int8_with_channel_scales_and_bias_correction() -> None:
    settings = quant_settings(None)
    assert settings.recipe == preset("int8")
    assert settings.repair.steps == ("channel_scales", "bias")
    assert settings.repair.mixed is None


@pytest.mark.parametrize("repairs", [None, [], ()])
def test_no_repair_can_be_asked_for(repairs: Any) -> None:
    assert quant_settings({"repairs": repairs}).repair.steps == ()


@pytest.mark.parametrize("name", PRESETS)
def test_16_bits_need_no_repair(name: str) -> None:
    found = quant_settings({"preset": name}).repair.steps
    assert found == (() if PRESETS[name].activation.bits > 8 else ("channel_scales", "bias"))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_recipe_of_that_name(name: str) -> None:
    assert quant_settings({"preset": name}).recipe == PRESETS[name]


def test_what_is_said_beside_a_preset_changes_only_that() -> None:
    recipe = quant_settings(
        {
            "preset": "w4a8",
            "observer": "percentile",
            "percentile": 99.9,
            "activation": {"bits": 6},
            "rules": [
                {"position": "first", "bits": 16},
                {"type": "Linear", "weight": {"bits": 8}},
                {"module": "bbox_head.*", "quantize": False},
            ],
        }
    ).recipe
    assert (recipe.weight.bits, recipe.activation.bits) == (4, 6)
    assert recipe.weight_range == "mse"
    assert (recipe.observer, recipe.percentile) == ("percentile", 99.9)
    first = recipe.activation_spec("img", positions=("first",))
    assert first is not None
    assert first.bits == 16
    linear = recipe.weight_spec("fc", "Linear")
    assert linear is not None
    assert (linear.bits, linear.symmetric, linear.narrow) == (8, True, True)
    assert recipe.weight_spec("bbox_head.conv", "Conv2d") is None


def bits_of(name: str, *where: str) -> tuple[int, int]:
    """Return a recipe's bits of weight and activation at this place of a network."""
    recipe = quant_settings({"recipe": name}).recipe
    weight = recipe.weight_spec("m", "M", where)
    activation = recipe.activation_spec("m", "M", where)
    assert weight is not None
    assert activation is not None
    return weight.bits, activation.bits


def test_recipes_of_4_bits_have_8_bits_in_first_and_last_layers() -> None:
    for name, between in (("qat-w4a8", (4, 8)), ("qat-w4a4", (4, 4))):
        assert bits_of(name) == between
        assert bits_of(name, "first") == bits_of(name, "last") == (8, 8)


def test_the_recipe_for_4_bit_activations_has_8_bits_in_depthwise_layers_and_around_them() -> None:
    assert bits_of("qat-w4a4", "last_input") == bits_of("qat-w4a4", "depthwise_input") == (4, 8)
    assert bits_of("qat-w4a4", "depthwise") == (8, 8)
    # A depthwise layer that another one or a last layer reads has 8 bits in its weight too.
    assert bits_of("qat-w4a4", "depthwise", "depthwise_input") == (8, 8)
    assert bits_of("qat-w4a4", "depthwise", "last_input") == (8, 8)
    # With 8-bit activations depthwise layers are like all others.
    assert bits_of("qat-w4a8", "depthwise") == bits_of("qat-w4a8", "depthwise_input") == (4, 8)


def test_repairs_and_mixed_precision_are_read() -> None:
    settings = quant_settings(
        {
            "repairs": ["equalize", "bias"],
            "mixed": {"max_raised": 3, "target_sqnr": 25.0},
            "repair_images": 16,
            "rounding_steps": 10,
        }
    )
    assert settings.repair.steps == ("equalize", "bias")
    assert settings.repair.mixed == Mixed(max_raised=3, target_sqnr=25.0)
    assert (settings.repair.images, settings.repair.rounding_steps) == (16, 10)
    assert settings.recipe.free_clips
    assert quant_settings({"repairs": "adaround"}).repair.steps == ("adaround",)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"preset": "int_8"}, "did you mean int8"),
        ({"presett": "int8"}, "quant.presett is not a setting; did you mean preset?"),
        ({"observer": "mean_square"}, "observer 'mean_square' does not exist"),
        ({"repairs": ["equalise"]}, "did you mean equalize"),
        ({"mixed": {"max_rised": 2}}, "quant.mixed.max_rised is not a setting; did you mean max_r"),
        ({"mixed": 5}, "quant.mixed must be a dict"),
        ("int8", "quant must be a dict such as .*, not 'int8'"),
        ({"schedule": 5}, "quant.schedule must be a dict"),
        ({"rules": {"module": "*", "bits": 16}}, "quant.rules must be a list of dicts"),
        ({"repairs": 5}, "quant.repairs must be a list of names"),
        ({"repairs": [5]}, "quant.repairs must be a list of names"),
        ({"target": ["tidl"]}, r"quant.target \['tidl'\] does not exist"),
        ({"passes": 0.5}, "quant.passes is a setting of a training recipe, and none is named"),
        ({"recipe": "qat-int8", "ema": True}, "quant.ema must be a dict or None, not True"),
        ({"rules": [{"bits": 16}]}, r"quant.rules\[0\] needs module="),
        ({"rules": [{"position": "lsat"}]}, r"quant.rules\[0\]: .* did you mean last"),
        ({"rules": [{"module": "*", "bit": 4}]}, r"quant.rules\[0\].bit is not a setting"),
        ({"raised": "a"}, "quant.raised must be a list of names of quantizers, not 'a'"),
    ],
)
def test_mistakes_are_refused_with_the_mend(section: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quant_settings(section)


def test_tags_of_a_run_are_a_text_or_a_list() -> None:
    assert tracking({"tags": "night"}).tags == ("night",)
    assert tracking({"tags": ["a", "b"]}).tags == ("a", "b")
    with pytest.raises(ValueError, match=r"tracking.tags must be a list of texts, not 5"):
        tracking({"tags": 5})


def bools() -> list[tuple[str, str]]:
    """Return the section and the key of each setting that is True or False."""
    return [
        (section, key)
        for section, settings in SECTIONS.items()
        for key, setting in settings.items()
        if {f.name: f.type for f in fields(setting.kind)}.get(setting.field) == "bool"
    ]


@pytest.mark.parametrize(("section", "key"), bools())
def test_a_text_is_not_true_or_false(section: str, key: str) -> None:
    with pytest.raises(ValueError, match=rf"{section}\.{key} is 'no'; use True or False"):
        check_section({key: "no"}, section)
    check_section({key: False}, section)


def test_settings_that_are_true_or_false_are_many() -> None:
    assert ("quant", "zero_points") in bools()
    assert len({section for section, _ in bools()}) > 3
