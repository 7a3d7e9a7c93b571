import math

import pytest
from helpers import REPOSITORY
from transformers import TrainingArguments

from hf_vit_scratch import ViTScratchConfig
from hf_vit_scratch.exploration.arguments import parse_size
from hf_vit_scratch.settings.flags import complete_settings, given_fields, parse_arguments


def test_an_older_record_of_photographs_has_the_shift_that_they_had():
    """All records had shift_pixels 2.0, and photographs were not shifted."""
    older = {"augmentation": {"augmentation": "photos", "shift_pixels": 2.0}}
    now = parse_arguments(["--augmentation", "photos"]).augmentation
    assert complete_settings(older)["augmentation"]["shift_pixels"] == now.shift_pixels == 0
    older["augmentation"]["augmentation"] = "digits"
    now = parse_arguments(["--augmentation", "digits"]).augmentation
    assert complete_settings(older)["augmentation"]["shift_pixels"] == now.shift_pixels == 2
    newer = {"augmentation": {"augmentation": "photos", "shift_pixels": 3.0, "cutout_pixels": 0.0}}
    assert complete_settings(newer)["augmentation"]["shift_pixels"] == 3


def test_a_flag_wins_over_the_recipe_and_the_recipe_over_the_defaults(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("size: digits-small\nhidden_size: 48\nlearning_rate: 1e-3\nimage_size: [28, 20]\nbf16: false\n")
    settings = parse_arguments(["--recipe", str(recipe), "--hidden_size", "96"])
    run, model, training = settings.run, settings.model, settings.training
    assert (run.size, model.hidden_size, model.image_size) == ("digits-small", 96, [28, 20])
    assert (training.learning_rate, training.bf16) == (0.001, False)
    assert model.num_hidden_layers is None  # not given: the size says it
    assert training.output_dir == "output/mine"


def test_every_field_of_the_config_is_a_flag_of_its_name():
    flags = {
        "image_size": "56", "patch_size": "8", "num_channels": "3", "hidden_size": "24", "num_hidden_layers": "3",
        "num_attention_heads": "2", "intermediate_size": "40", "hidden_act": "relu", "hidden_dropout_prob": "0.1",
        "attention_probs_dropout_prob": "0.2", "layer_norm_eps": "1e-5", "initializer_range": "0.03",
        "qkv_bias": "false", "position_embedding": "sincos2d", "pooling": "mean", "stem": "conv",
        "stem_depth": "2", "stem_width": "12", "drop_path_rate": "0.3",
    }  # fmt: skip
    assert flags.keys() == ViTScratchConfig.__annotations__.keys() - {"training_data"}
    model = parse_arguments([part for name, value in flags.items() for part in (f"--{name}", value)]).model
    fields = {**vars(model), "image_size": model.image_size[0]}
    config = ViTScratchConfig(**fields)
    for name, value in flags.items():
        assert str(getattr(config, name)).lower() == value or math.isclose(getattr(config, name), float(value))


RECIPES = REPOSITORY / "hf_vit_scratch" / "settings" / "recipes"


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_of_the_package_can_be_read(recipe):
    settings = parse_arguments(["--recipe", recipe])
    run, model, training = settings.run, settings.model, settings.training
    fields = {name: value for name, value in vars(model).items() if value is not None and name != "image_size"}
    config = ViTScratchConfig.from_size(
        run.size or "B/16", **fields, **({"image_size": model.image_size[0]} if model.image_size else {})
    )
    assert config.num_hidden_layers > 0
    assert isinstance(training, TrainingArguments)


@pytest.mark.parametrize("recipe", ["digits-small", "photos-tiny"])
def test_a_plain_stem_takes_the_place_of_all_that_a_recipe_says_of_its_stem(recipe):
    model = parse_arguments(["--recipe", recipe, "--stem=patch"]).model
    assert ViTScratchConfig(**given_fields(model)).stem == "patch"
    told = parse_arguments(["--recipe", recipe, "--stem", "patch", "--stem_width", "20"]).model
    with pytest.raises(ValueError, match="stem_depth and stem_width need stem 'conv', got stem 'patch'"):
        ViTScratchConfig(**given_fields(told))
    plain = parse_size(["--recipe", recipe, "--stem", "patch"])
    assert (plain.stem, plain.stem_depth, plain.stem_width) == ("patch", 1, None)
