import numpy as np
import pytest
import torch

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.explanation import confused_pairs, predict, project


def test_confused_pairs_by_hand():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])
    predicted = np.array([0, 1, 1, 0, 1, 0, 1, 0, 2])
    assert confused_pairs(labels, predicted).tolist() == [[0, 1, 2], [2, 0, 2], [1, 0, 1], [2, 1, 1]]
    assert confused_pairs(labels, predicted, most=1).tolist() == [[0, 1, 2]]
    assert confused_pairs(labels, labels).shape == (0, 3)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_predict_returns_what_the_head_takes_and_gives(pooling):
    torch.manual_seed(0)
    config = ViTScratchConfig.from_size("digits-tiny", num_labels=4, pooling=pooling)
    model = ViTScratchForImageClassification(config).eval()
    images = torch.randn(5, 1, 28, 28)
    logits, features = predict(model, [images[:3], images[3:]])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(images).logits)
        pooled = model.vit(images).pooler_output
    np.testing.assert_allclose(features, pooled.numpy(), atol=1e-5)


def test_project_keeps_groups_together_and_is_the_same_twice():
    random = np.random.default_rng(0)
    groups = np.arange(60) % 3
    features = random.normal(size=(60, 40)) + 30 * np.eye(3, 40)[groups]
    points = project(features)
    assert points.shape == (60, 2)
    distances = np.linalg.norm(points[:, None] - points, axis=-1) + 1e9 * np.eye(60)
    assert (groups[distances.argmin(axis=1)] == groups).all()
    np.testing.assert_array_equal(project(features), points)
    with pytest.raises(ValueError, match="at least 10 images, got 9"):
        project(features[:9])


@pytest.mark.parametrize("features", [np.ones((12, 8)), np.eye(12, 8) > 2, np.eye(12, 1), np.eye(12, 8)], ids=range(4))
def test_project_of_images_that_are_hardly_different(features):
    points = project(features.astype(np.float32))
    assert points.shape == (12, 2) and np.isfinite(points).all()
