"""Convolutional networks: the fair one that the data study holds beside the ViT, and the one that teaches a ViT."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

# Three stages of two convolutions each, at full, half and quarter resolution. At 28x28 and with 10 classes that makes
# 0.30 million parameters and 36 MFLOP; digits-tiny has 0.31 and 29, with a stem of depth 2 0.34 and 37.
WIDTHS = (16, 32, 160)


def _convolution(before: int, width: int, size: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(before, width, size, stride, padding, bias=False), nn.BatchNorm2d(width), nn.ReLU()]


class ConvNet(PreTrainedModel):
    """3x3 convolutions, batch norm and ReLU; halved by max pooling between stages; the maximum over positions; a head.

    Nothing is downsampled before two convolutions have seen every pixel, which is what small images want. Called as
    the ViT is: `pixel_values` `(batch_size, num_channels, height, width)` and, for the loss, `labels` `(batch_size,)`;
    gives logits `(batch_size, num_labels)`.

    Args:
        num_channels (`int`): of the images.
        num_labels (`int`): number of classes.
        widths (tuple of `int`): channels of each stage.
    """

    def __init__(self, num_channels: int, num_labels: int, widths: tuple[int, ...] = WIDTHS):
        super().__init__(PretrainedConfig())  # which the Trainer asks for
        layers, before = [], num_channels
        for stage, width in enumerate(widths):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(2):
                layers += _convolution(before, width, 3, padding=1)
                before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, num_labels)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        # On a CPU convolutions are a good deal faster with the channels last in memory.
        features = self.features(pixel_values.contiguous(memory_format=torch.channels_last))
        # Not amax: its gradient, compiled in bf16, looks for the maximum among values that are rounded otherwise,
        # finds it nowhere, and divides by 0.
        logits = self.head(features.flatten(2).max(dim=2).values)
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class StridedConvNet(ConvNet):
    """Two stages of two 3x3 convolutions and one 5x5 of stride 2, then one 4x4; dropout after each; a head.

    Nothing but the 5x5 convolutions is padded, so that 28x28 ends in one position. Of larger images the maximum over
    positions is taken, smaller ones get a border. After the Kaggle notebook "25 Million Images! [0.99757] MNIST".
    Called as [`ConvNet`] is.

    Args:
        num_channels (`int`), num_labels (`int`): as there.
        dropout (`float`, defaults to 0.4): after each stage.
    """

    def __init__(self, num_channels: int, num_labels: int, dropout: float = 0.4):
        super().__init__(num_channels, num_labels, widths=(128,))  # for the head of 128 features
        layers, before = [], num_channels
        for width in (32, 64):
            for size, stride, padding in ((3, 1, 0), (3, 1, 0), (5, 2, 2)):
                layers += _convolution(before, width, size, stride, padding)
                before = width
            layers.append(nn.Dropout(dropout))
        self.features = nn.Sequential(*layers, *_convolution(before, 128, 4), nn.Dropout(dropout))

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> ImageClassifierOutput:
        below, right = (max(0, 28 - side) for side in pixel_values.shape[-2:])
        return super().forward(F.pad(pixel_values, (0, right, 0, below)), labels)


def widths_for(parameters: int, num_channels: int, num_labels: int) -> tuple[int, ...]:
    """`WIDTHS`, made wider or narrower, in steps of 8, for about so many parameters; FLOPs go with them."""
    own = sum(parameter.numel() for parameter in ConvNet(num_channels, num_labels).parameters())
    return tuple(max(8, 8 * round(width * math.sqrt(parameters / own) / 8)) for width in WIDTHS)
