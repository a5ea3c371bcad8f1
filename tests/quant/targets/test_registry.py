"""Every target is a preset and has a source; wrong names are refused."""

from dataclasses import replace

import pytest

from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe
from dq.quant.targets.registry import MODULES, TARGETS, target_of
from launcher.config import quant_settings


def test_every_target_is_a_preset_with_its_formats() -> None:
    assert len(TARGETS) == len(MODULES)
    for name, target in TARGETS.items():
        recipe = preset(name)
        assert recipe.engine is target
        assert (recipe.weight, recipe.activation) == (target.weight, target.activation)
        assert recipe.outputs is target.outputs
        assert len(target.source) > 20


def test_target_and_preset_combine() -> None:
    recipe = quant_settings({"preset": "w4a8", "target": "openvino"}).recipe
    assert (recipe.weight.bits, recipe.activation.bits) == (4, 8)
    assert recipe.engine is TARGETS["openvino"]
    assert not recipe.outputs
    assert quant_settings({"target": "openvino", "outputs": True}).recipe.outputs
    assert quant_settings({"preset": "tidl"}).recipe.engine is TARGETS["tidl"]
    assert quant_settings({}).recipe == preset("int8")


@pytest.mark.parametrize("name", ["onnx_runtime", "as_written", 3])
def test_unknown_target_is_refused_with_the_closest_name(name: object) -> None:
    with pytest.raises(ValueError, match=r"quant\.target .* does not exist; "):
        quant_settings({"target": name})


def test_a_recipe_of_a_checkpoint_may_be_from_before_there_were_targets() -> None:
    assert not target_of("as_written").finds_functions
    with pytest.raises(ValueError, match="did you mean openvino"):
        Recipe(target="openvin")


def test_a_targets_observer_is_the_default_and_a_chosen_one_stays() -> None:
    assert preset("int8").observer == "weighted_mse"
    assert preset("onnxruntime").observer == "mse"
    assert preset("int8").for_target("onnxruntime").observer == "mse"
    assert preset("onnxruntime").for_target("openvino").observer == "weighted_mse"
    chosen = replace(preset("int8"), observer="percentile")
    assert chosen.for_target("onnxruntime").observer == "percentile"
