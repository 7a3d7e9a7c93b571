"""Predictions with the features that they were made from, their picture in two dimensions, and mistakes."""

from collections.abc import Iterable

import numpy as np
import torch
from transformers import PreTrainedModel


@torch.inference_mode()
def predict(model: PreTrainedModel, batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, np.ndarray]:
    """Logits `(num_images, num_labels)` and features `(num_images, hidden_size)`, both float32 on the CPU.

    The features are y of equation 4, the input of the head.

    Args:
        model: a [`ViTScratchForImageClassification`] in evaluation mode.
        batches: normalized images, each `(batch_size, num_channels, height, width)`.
    """
    logits, features = [], []
    for batch in batches:
        pooled = model.base_model(batch.to(model.device), only_pooler_output=True).pooler_output
        logits.append(model.classifier(pooled).float().cpu())
        features.append(pooled.float().cpu())
    return torch.cat(logits), torch.cat(features).numpy()


def project(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two dimensions that keep neighbours together: 30 principal components, then t-SNE.

    t-SNE (van der Maaten and Hinton 2008) keeps who is close to whom. Distances between groups, and the sizes of
    groups, mean nothing.

    Args:
        features: `(num_images, hidden_size)`, of at least 10 images.
        seed: of t-SNE.

    Returns:
        `(num_images, 2)`.

    Raises:
        ValueError: there are fewer than 10 images.
    """
    if len(features) < 10:
        raise ValueError(f"expected at least 10 images, got {len(features)}.")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not np.ptp(features, axis=0).any():  # t-SNE crashes on images that are all the same
        return np.zeros((len(features), 2))
    features = np.pad(features, ((0, 0), (0, max(0, 2 - features.shape[1]))))
    components = PCA(min(30, *features.shape), random_state=seed).fit_transform(features)
    neighbours = min(30.0, (len(features) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=neighbours, max_iter=500, angle=0.8, random_state=seed)
    # Its threads wait for each other thousands of times: with two, 2,000 images take 18 s of CPU time in place of 3.
    with threadpool_limits(1):
        return tsne.fit_transform(components)


def confused_pairs(labels: np.ndarray, predicted: np.ndarray, most: int = 6) -> np.ndarray:
    """The classes that are most often taken for others.

    Args:
        labels, predicted: true and predicted classes, `(num_images,)`.
        most: most pairs to return.

    Returns:
        Integers `(pairs, 3)`: true class, predicted class, number of images. The most frequent pair is first; pairs
        of the same number are in the order of their classes.
    """
    wrong = labels != predicted
    pairs, counts = np.unique(np.column_stack([labels[wrong], predicted[wrong]]), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return np.column_stack([pairs, counts])[order]
