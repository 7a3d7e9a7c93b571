"""The images that are explained: files, or rows of a data set, with what is known of their labels and their origin."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_type_hints

import datasets
import numpy as np
import torch
from transformers.utils import cached_file

from ..data.batches import ImageBatches, PixelValues
from ..data.digit_recognizer import COMPETITION, SAMPLE
from ..data.image_folder import file_names
from ..data.pixels import label_array, row_numbers
from ..data.shards import Stream
from ..data.sources import source_name
from ..evaluation.classifier import Classifier
from ..image_files import process_file
from ..model.configuration_vit_scratch import ViTScratchConfig
from ..output_folder import RESULTS_NAME, SETTINGS_NAME, read_json
from ..settings.flags import DataArguments, complete_settings

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ImageSource:
    """Where the images come from: `files`, or `data` as for [`data.load`].

    Args:
        files: image files.
        data: a data source.
        split: train, validation or test. Default: a labelled test split, else the validation split, else the
            unlabelled test split, else train.
        image_column, label_column: names of the columns of `data`. Default: those of the run that trained the model
            on `data`, else image and label.
    """

    files: tuple[str, ...] = ()
    data: str = ""
    split: str | None = None
    image_column: str | None = None
    label_column: str | None = None


@dataclass(frozen=True)
class Pictures:
    """Images of the size of a model.

    Args:
        pixels: returns uint8 images `(len(indices), num_channels, height, width)` for a list of indices.
        names: a name of each image.
        origin: one or two sentences: what the images are, and whether the model was trained on them.
        seen: whether the model was, or probably was, trained on them.
        labels: class of each image `(num_images,)`, or None if it is not known.
        classes: names of the classes of the labels.
    """

    pixels: Callable[[list[int]], torch.Tensor]
    names: list[str]
    origin: str
    seen: bool
    labels: np.ndarray | None
    classes: list[str]

    def batches(self, to_pixel_values: PixelValues, batch_size: int) -> Iterator[torch.Tensor]:
        """All images, normalized, each batch `(batch_size, num_channels, height, width)`."""
        indices = list(range(len(self.names)))
        for start in range(0, len(indices), batch_size):
            yield to_pixel_values(self.pixels(indices[start : start + batch_size]))


def read_pictures(name: str, classifier: Classifier, source: ImageSource, most: int) -> Pictures:
    """The images of a source; of a data set a random selection, which is always the same.

    Args:
        name: folder or repository of the model, whose settings say which rows it was trained on.
        classifier: the model, loaded.
        source: what to read.
        most: most rows of a data set.

    Raises:
        ValueError: in one line, if a file, the data or the split cannot be read.
    """
    if not source.data:
        return _read_files(source.files, classifier)
    return _read_split(name, classifier, source, most)


def _read_files(files: tuple[str, ...], classifier: Classifier) -> Pictures:
    options = {"do_rescale": False, "do_normalize": False, "return_tensors": "np"}
    process = functools.partial(classifier.processor, **options)
    arrays = [process_file(file, process)["pixel_values"][0] for file in files]
    if classifier.processor.do_center_digit:
        blank = [file for file, array in zip(files, arrays, strict=True) if not array.any()]
        if blank:
            raise ValueError(f"no digit was found in {', '.join(blank)}: leave out what holds none.")
    pixels = torch.from_numpy(np.stack(arrays).astype(np.uint8))
    names = [os.path.basename(file) for file in files]
    count = "1 image file" if len(files) == 1 else f"{len(files):,} image files"
    origin = f"{count}, without labels. Whether the model was trained on them is not known."
    return Pictures(lambda indices: pixels[indices], names, origin, False, None, [])


def _read_split(name: str, classifier: Classifier, source: ImageSource, most: int) -> Pictures:
    recorded, num_train = _recorded(name, source.data)
    settings = dataclasses.replace(recorded or DataArguments(), data=source.data)
    settings.image_column = source.image_column or settings.image_column
    settings.label_column = source.label_column or settings.label_column
    splits = settings.load_splits()
    # Other rows under the name of the data that the model was trained on: what was held out is not known.
    is_recorded = num_train == len(splits["train"])
    split_name = source.split or _best_split(splits)
    if split_name not in splits:
        raise ValueError(f"{source.data} has no split {split_name}. Its splits: {', '.join(splits)}.")
    whole = splits[split_name]
    if isinstance(whole, Stream):
        raise ValueError(
            f"{source.data}: no images are drawn from the stream train. Choose --split validation or test."
        )
    chosen = np.random.default_rng(0).permutation(len(whole))[:most]
    split = whole.select(chosen, keep_in_memory=True)
    batches = ImageBatches(split, classifier.processor)
    names = file_names(split) or [f"row {row + 1:,}" for row in row_numbers(split).tolist()]
    sentence, seen = _whether_seen(split_name, source_name(source.data), classifier.model.config, is_recorded)
    count = f"{len(split):,} images" + (f", drawn at random from {len(whole):,}," if len(split) < len(whole) else "")
    labelled = "with" if "label" in split.column_names else "without"
    origin = f"{count} of the {split_name} split of {source_name(source.data)}, {labelled} labels. {sentence}"
    classes, labels = splits["train"].features["label"].names, label_array(split)
    return Pictures(lambda rows: batches.__getitems__(rows)["pixel_values"], names, origin, seen, labels, classes)


def _best_split(splits: datasets.DatasetDict) -> str:
    if "test" in splits and "label" in splits["test"].column_names:
        return "test"
    return next(name for name in ("validation", "test", "train") if name in splits)


def _recorded(name: str, data: str) -> tuple[DataArguments | None, int]:
    """The data settings of the run that trained a model on this data, and its number of training images.

    Without a record, or if it was other data: None, and 0.
    """
    try:
        files = [
            cached_file(name, file, _raise_exceptions_for_missing_entries=False)
            for file in (SETTINGS_NAME, RESULTS_NAME)
        ]
        settings, results = (read_json(file) for file in files if file)
        recorded = complete_settings(settings)["data"]
        kinds = get_type_hints(DataArguments)
        fits = all(isinstance(recorded[key], kind | int if kind is float else kind) for key, kind in kinds.items())
        if fits and recorded["data"] == source_name(data):
            return DataArguments(**{key: recorded[key] for key in kinds}), int(results["train_images"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none, or damaged
        pass
    return None, 0


def _whether_seen(split: str, data: str, config: ViTScratchConfig, recorded: bool) -> tuple[str, bool]:
    """A sentence on whether a model was trained on a split, and whether it was, or probably was."""
    trained_on = config.training_data or []
    both = {SAMPLE, COMPETITION}
    if data in both and (both - {data}) & set(trained_on):
        return "Both these data and the data that the model was trained on are parts of MNIST: it has seen many.", True
    if data not in trained_on and not recorded:
        if not trained_on:
            return "The model does not say what it was trained on: it may have been trained on these images.", False
        return f"The model was trained on {', '.join(trained_on)}.", False
    if split == "train" and recorded:
        return "The model was trained on these images: it does better on them than on new ones.", True
    if split == "test":
        return "The model was not trained on this split.", False
    if recorded:
        return "The model was not trained on these images, which were held out.", False
    return "The model was trained on these data, and which rows were held out is not recorded.", True
