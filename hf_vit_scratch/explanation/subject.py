"""What is explained: a model, its images, and what it predicts for them."""

from dataclasses import dataclass

import numpy as np
import torch

from ..data.batches import PixelValues
from ..evaluation.classifier import Classifier, class_scores
from .images import Pictures


@dataclass(frozen=True)
class Subject:
    """What is explained: a model, its images, and what it predicts for them.

    Args:
        name: public name of the model.
        classifier: the model and its processor.
        pictures: the images.
        logits: `(num_images, num_labels)`.
        features: `(num_images, hidden_size)`.
        shown: number of images with maps, the first of `pictures`.
    """

    name: str
    classifier: Classifier
    pictures: Pictures
    logits: torch.Tensor
    features: np.ndarray
    shown: int

    @property
    def classes(self) -> list[str]:
        """Names of the outputs of the model."""
        config = self.classifier.model.config
        return [config.id2label[index] for index in range(config.num_labels)]

    @property
    def chooses(self) -> bool:
        """Whether the model chooses one of several classes."""
        config = self.classifier.model.config
        other = config.problem_type in ("regression", "multi_label_classification")
        return config.num_labels > 1 and not other

    @property
    def labels(self) -> np.ndarray | None:
        """The classes of the images, `(num_images,)`, if they are known and are those of the model."""
        known = self.pictures.labels is not None and self.pictures.classes == self.classes
        return self.pictures.labels if known and self.chooses else None

    @property
    def why_no_labels(self) -> str:
        """A sentence that says why there are no mistakes to show."""
        if not self.chooses:
            return "The model does not choose one of several classes, so this part is left out."
        if self.pictures.labels is None:
            return "The images have no labels, so this part is left out."
        return "The labels of the data are not the classes of the model, so this part is left out."

    @property
    def predicted(self) -> np.ndarray:
        """The output with the highest logit of each image, `(num_images,)`."""
        return self.logits.argmax(dim=-1).numpy()

    @property
    def confidence(self) -> np.ndarray:
        """The score of the predicted output of each image, `(num_images,)`."""
        return class_scores(self.logits.double(), self.classifier.model.config).max(dim=-1).values.numpy()

    @property
    def black(self) -> torch.Tensor:
        """A black image, normalized, `(num_channels, height, width)`."""
        config = self.classifier.model.config
        return PixelValues(self.classifier.processor)(torch.zeros(config.num_channels, *config.image_height_width))

    def images(self, indices: list[int]) -> np.ndarray:
        """Images as the model takes them, uint8, `(len(indices), height, width, channels)`."""
        return self.pictures.pixels(indices).permute(0, 2, 3, 1).numpy()
