import datasets
import numpy as np
import pytest
import torch
from helpers import blocks, competition_zip, photo_folder
from PIL import Image

from hf_vit_scratch import data
from hf_vit_scratch.data.augmentation import PhotoAugmentation
from hf_vit_scratch.data.batches import ImageBatches, PixelValues
from hf_vit_scratch.data.random_numbers import image_keys
from hf_vit_scratch.data.sampling import Drawn
from hf_vit_scratch.model.configuration_vit_scratch import ViTScratchConfig
from hf_vit_scratch.model.image_processing_vit_scratch import ViTScratchImageProcessor
from hf_vit_scratch.model.modeling_vit_scratch import ViTScratchForImageClassification
from hf_vit_scratch.settings.flags import parse_arguments
from hf_vit_scratch.training.assembly import build_config, build_processor, build_trainer

DIGITS = ViTScratchConfig.from_size("digits-tiny")


def small_photos(folder) -> None:
    """Twelve RGB images of 16x16 pixels, of two classes."""
    for index, image in enumerate(np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)):
        file = folder / f"class{index % 2}" / f"{index:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    competition_zip(folder / "digits.zip")
    return data.load(folder / "digits.zip")


def test_a_batch_is_what_the_processor_makes_of_the_same_images(splits):
    processor = build_processor(DIGITS)
    batches, rows = ImageBatches(splits["train"], processor), [5, 0, 171]
    batch = batches.__getitems__(rows)
    assert batch["pixel_values"].dtype == torch.uint8
    expected = processor([splits["train"][row]["image"] for row in rows], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(PixelValues(processor)(batch["pixel_values"]), expected)
    assert batch["labels"].tolist() == [splits["train"][row]["label"] for row in rows]


def test_the_unlabelled_test_split_keeps_its_order_and_has_no_labels(splits):
    batch = ImageBatches(splits["test"], build_processor(DIGITS)).__getitems__([2, 40])
    labels = (np.arange(50) * 7 + 3) % 10
    assert "labels" not in batch
    np.testing.assert_array_equal(batch["pixel_values"][:, 0].numpy(), blocks(labels, seed=2)[[2, 40]])


def test_images_of_another_size_or_other_channels_are_brought_to_the_models(splits):
    processor = ViTScratchImageProcessor(num_channels=3, size={"height": 32, "width": 36})
    batches = ImageBatches(splits["train"], processor)
    images = batches.__getitems__([3])["pixel_values"]
    expected = splits["train"][3]["image"].convert("RGB").resize((36, 32), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(images[0].permute(1, 2, 0).numpy(), np.asarray(expected))


def test_images_of_the_size_of_the_model_come_whole_and_are_cropped_on_the_device(tmp_path):
    """So a batch of small photographs is one gather, and the trainer still crops it."""
    small_photos(tmp_path / "small")
    flags = ["--data", str(tmp_path / "small"), "--augmentation", "photos", "--validation_size", "0"]
    sizes = ["--patch_size", "8", "--hidden_size", "8", "--num_attention_heads", "1", "--min_crop_area", "0.4"]
    settings = parse_arguments([*flags, *sizes, "--num_hidden_layers", "1", "--eval_strategy", "no"])
    splits = settings.data.load_splits()
    config = build_config(settings, splits)
    trainer = build_trainer(ViTScratchForImageClassification(config), build_processor(config), splits, settings)
    rows = list(range(12))
    batch = trainer.train_dataset.__getitems__(Drawn(rows, image_keys(0, 0, torch.tensor(rows)).numpy(), 1.0))
    whole = np.stack([np.asarray(row["image"]) for row in splits["train"]])
    np.testing.assert_array_equal(batch["pixel_values"].permute(0, 2, 3, 1).numpy(), whole)
    shown = trainer.to_pixel_values.augmented(batch["pixel_values"], batch["keys"]) / 2 + 0.5
    wanted = PhotoAugmentation(0.4)(batch["pixel_values"] / 255, batch["keys"])
    torch.testing.assert_close(shown, wanted, atol=1e-5, rtol=0)
    assert (shown - PhotoAugmentation()(batch["pixel_values"] / 255, batch["keys"])).abs().mean() > 0.05


@pytest.mark.parametrize(
    ("kind", "flags", "amounts"),
    [
        ("small", ["--augmentation", "photos", "--min_crop_area", "0.4"], {"min_crop_area": 0.4, "shift_pixels": 0}),
        ("sizes", ["--augmentation", "photos", "--min_crop_area", "0.4"], {"min_crop_area": 1, "shift_pixels": 0}),
        ("sizes", ["--augmentation", "photos", "--shift_pixels", "3"], {"min_crop_area": 1, "shift_pixels": 3}),
        (
            "stream",
            ["--augmentation", "photos", "--min_crop_area", "0.4", "--streaming", "true"],
            {"min_crop_area": 1},
        ),
        ("small", ["--augmentation", "digits"], {"shift_pixels": 2}),
    ],
)
def test_an_image_is_cropped_once_and_shifted_as_its_augmentation_says(kind, flags, amounts, tmp_path):
    if kind == "small":
        small_photos(tmp_path / "data")
    else:
        photo_folder(tmp_path / "data")
    if kind == "stream":
        data.write_shards(data.load(tmp_path / "data"), tmp_path / "shards")
    source = tmp_path / ("shards" if kind == "stream" else "data")
    model = ["--patch_size", "8", "--hidden_size", "8", "--num_attention_heads", "1", "--num_hidden_layers", "1"]
    settings = parse_arguments(["--data", str(source), *flags, *model, "--image_size", "16", "--eval_strategy", "no"])
    splits = settings.data.load_splits()
    config = build_config(settings, splits)
    trainer = build_trainer(ViTScratchForImageClassification(config), build_processor(config), splits, settings)
    found = vars(trainer.to_pixel_values.augmentation)
    assert {name: found[name] for name in amounts} == amounts
    assert trainer.train_dataset.min_crop_area == (0.4 if "0.4" in flags else 0.35 if "photos" in flags else None)


def test_without_crops_photographs_are_what_the_processor_makes_of_them(tmp_path):
    photo_folder(tmp_path / "photos")
    flags = ["--data", str(tmp_path / "photos"), "--recipe", "photos-small", "--min_crop_area", "1"]
    settings = parse_arguments([*flags, *("--image_size", "32", "--patch_size", "8"), "--eval_strategy", "no"])
    splits = settings.data.load_splits()
    config = build_config(settings, splits)
    processor = build_processor(config, settings.data.crop_fraction)
    trainer = build_trainer(ViTScratchForImageClassification(config), processor, splits, settings)
    trained = trainer.train_dataset.__getitems__([2, 5])["pixel_values"]
    assert torch.equal(trained, ImageBatches(splits["train"], processor).__getitems__([2, 5])["pixel_values"])


def test_photographs_are_cropped_at_random_in_training_and_in_the_middle_in_evaluation(tmp_path):
    photo_folder(tmp_path / "photos")
    splits = data.load(tmp_path / "photos")
    arguments = parse_arguments(["--recipe", "photos-small", "--data", "x"]).data
    config = ViTScratchConfig(image_size=32, patch_size=16, hidden_size=8, num_attention_heads=1)
    processor = build_processor(config, arguments.crop_fraction)
    rows = list(range(len(splits["train"])))
    training = ImageBatches(splits["train"], processor, min_crop_area=0.35)
    drawn = [Drawn(rows, image_keys(0, epoch, torch.tensor(rows)).numpy(), 1.0) for epoch in (0, 1, 0)]
    once, other, again = (training.__getitems__(one)["pixel_values"] for one in drawn)
    assert once.shape == (len(rows), 3, 32, 32)
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert torch.equal(once[[3, 1]], training.__getitems__(Drawn([3, 1], drawn[0].keys[[3, 1]], 1.0))["pixel_values"])
    evaluation = ImageBatches(splits["validation"], processor).__getitems__([1])["pixel_values"][0].permute(1, 2, 0)
    image = splits["validation"][1]["image"]
    # The shorter side becomes 37 pixels, of which the middle 32 are taken.
    resized = image.resize(
        [37 if side == min(image.size) else int(side * 37 / min(image.size)) for side in image.size], 3
    )
    left, top = (resized.width - 32) // 2, (resized.height - 32) // 2
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)), dtype=float)
    assert np.abs(evaluation.numpy() - expected).mean() < 3


def test_small_images_of_one_size_are_cropped_too_where_the_processor_says_so(splits):
    """Although their pixels lie there ready, in the size of the crop."""
    processor = build_processor(DIGITS, crop_fraction=0.875)
    batch = ImageBatches(splits["train"], processor).__getitems__([3, 9])
    expected = processor([splits["train"][row]["image"] for row in (3, 9)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(PixelValues(processor)(batch["pixel_values"]), expected)


def test_an_image_that_cannot_be_decoded_is_refused_not_skipped():
    rows = {"image": [{"bytes": b"no image", "path": "broken.png"}] * 2}
    split = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(data.DataError, match="cannot be decoded"):
        ImageBatches(split, build_processor(DIGITS)).__getitems__([0])


def test_the_mode_for_digits_leaves_rows_alone_and_turns_other_pictures_of_their_size(tmp_path):
    """Rows as MNIST has them are bit for bit what they were; a folder of dark ink on paper is not read as it is."""
    import datasets

    from hf_vit_scratch.data.pixels import cache_images

    light = np.zeros((4, 28, 28), np.uint8)
    light[:, 6:22, 12:16] = np.random.default_rng(0).integers(128, 256, (4, 16, 4))
    features = datasets.Features({"image": datasets.Image()})
    size = {"height": 28, "width": 28}
    for pixels, same in ((light, True), (255 - light, False)):
        rows = datasets.Dataset.from_dict({"image": [Image.fromarray(one) for one in pixels]}, features=features)
        rows = cache_images({"train": rows}, "rows", str(tmp_path))["train"]
        processor = ViTScratchImageProcessor(size=size, num_channels=1, do_center_digit=True)
        batch = ImageBatches(rows, processor).__getitems__([0, 1, 2, 3])["pixel_values"][:, 0].numpy()
        assert (batch == pixels).all() == same
        assert batch[:, 0].max() == 0 and batch[:, 10:18, 13:15].min() > 100
