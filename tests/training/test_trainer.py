import pytest

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification
from hf_vit_scratch.training.trainer import ViTScratchTrainer


@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_weight_decay_leaves_out_biases_norms_and_embeddings(stem):
    config = ViTScratchConfig.from_size("digits-tiny", num_hidden_layers=1, stem=stem)
    model = ViTScratchForImageClassification(config)
    decayed = set(ViTScratchTrainer.get_decay_parameter_names(None, model))
    shapes = dict(model.named_parameters())
    assert decayed <= shapes.keys()
    left_out = shapes.keys() - decayed
    assert {"vit.embeddings.cls_token", "vit.embeddings.position_embeddings"} <= left_out
    assert all(shapes[name].dim() in (2, 4) for name in decayed)
    assert all(shapes[name].dim() == 1 or "embeddings" in name for name in left_out)
    assert "vit.layers.0.attention.qkv.weight" in decayed
