"""The models that a user would take instead, each built at the size of a config of this package."""

from copy import deepcopy

import torch
from torch import nn

from hf_vit_scratch import ViTScratchConfig, ViTScratchForImageClassification


class Logits(nn.Module):
    """A model of transformers as the others are: images in, logits out."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values).logits


class TorchEncoder(nn.Module):
    """What people write around `nn.TransformerEncoder`: patches, class token, positions, encoder, head."""

    def __init__(self, config: ViTScratchConfig):
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patches = nn.Conv2d(config.num_channels, width, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, config.num_tokens, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, config.num_attention_heads, config.intermediate_size, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, config.num_hidden_layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.head = nn.Linear(width, config.num_labels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(pixel_values).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])


def ours(config: ViTScratchConfig, attention: str) -> nn.Module:
    # A copy: a model writes its attention into the config that it is given.
    return Logits(ViTScratchForImageClassification._from_config(deepcopy(config), attn_implementation=attention))


def transformers_vit(config: ViTScratchConfig, attention: str) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    names = (
        "image_size patch_size num_channels hidden_size num_hidden_layers num_attention_heads intermediate_size "
        "num_labels"
    ).split()
    fields = {name: getattr(config, name) for name in names}
    return Logits(ViTForImageClassification._from_config(ViTConfig(**fields), attn_implementation=attention))


def timm_vit(config: ViTScratchConfig, attention: str) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        in_chans=config.num_channels,
        num_classes=config.num_labels,
        embed_dim=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        mlp_ratio=config.intermediate_size / config.hidden_size,
    )
    for block in model.blocks:
        block.attn.fused_attn = attention == "sdpa"
    return model


def vit_pytorch(config: ViTScratchConfig, attention: str) -> nn.Module:
    from vit_pytorch import ViT

    return ViT(
        image_size=config.image_size,
        patch_size=config.patch_size,
        channels=config.num_channels,
        num_classes=config.num_labels,
        dim=config.hidden_size,
        depth=config.num_hidden_layers,
        heads=config.num_attention_heads,
        dim_head=config.hidden_size // config.num_attention_heads,
        mlp_dim=config.intermediate_size,
    )


def torch_encoder(config: ViTScratchConfig, attention: str) -> nn.Module:
    return TorchEncoder(config)


# Name: how it is built, and the kinds of attention it has, the first as it comes.
PEERS = {
    "transformers": (transformers_vit, ("sdpa", "eager")),
    "timm": (timm_vit, ("sdpa", "eager")),
    "vit-pytorch": (vit_pytorch, ("eager",)),
    "nn.TransformerEncoder": (torch_encoder, ("sdpa",)),
}
