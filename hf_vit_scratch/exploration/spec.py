"""The description of one training of an exploration."""

import dataclasses
import json

PLAIN, STEM, CNN = "plain ViT", "ViT with convolutional stem", "CNN"


@dataclasses.dataclass(frozen=True)
class Spec:
    """Description of one training.

    Args:
        family: "ViT" in a search and in the study of sizes; `PLAIN`, `STEM` or `CNN` in the study of data.
        fields: fields of the config, or the widths of the CNN.
        learning_rate: peak learning rate of the schedule.
        seed: seed of the weights, the order of the images, the augmentation, and which fraction of the images is used.
        fraction: fraction of the training images to use.
        augmented: whether to use the augmentation of the recipe.
        confirming: whether to measure on the rows for confirming, on which no choice is made.
    """

    family: str
    fields: dict
    learning_rate: float
    seed: int = 0
    fraction: float = 1.0
    augmented: bool = True
    confirming: bool = False

    @property
    def key(self) -> str:
        """A string that is equal for equal specs."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)
