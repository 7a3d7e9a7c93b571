"""One training of an exploration, described."""

import dataclasses
import json

PLAIN, STEM, CNN = "plain ViT", "ViT with convolutional stem", "CNN"


@dataclasses.dataclass(frozen=True)
class Spec:
    """One training of a study.

    Args:
        family: "ViT" in a search and in the study of sizes; in that of data also which one, or the CNN.
        fields: of the config; of the CNN its widths.
        learning_rate: peak of the schedule.
        seed: of the weights, the order of images, the augmentation, and which images a part consists of.
        fraction: of the training images.
        augmented: as the recipe says, or not at all.
        confirming: measured on the rows that no choice was made on.
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
        """The same for equal specs."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)
