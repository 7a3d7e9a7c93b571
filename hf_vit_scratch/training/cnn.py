"""Convolutional networks: the baseline of the data study, and the teacher for distillation."""

import math

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

# Channels of three stages with two convolutions each, at full, half and quarter resolution. For 28x28 grey images and
# 10 classes this is 0.30 million parameters and 36 MFLOP per image. digits-tiny has 0.31 million and 29 MFLOP, or 0.34
# million and 37 MFLOP with a convolutional stem of depth 2.
WIDTHS = (16, 32, 160)

_FIRST_WIDTH = 24  # channels of the first layer of [`PooledConvNet`]


class _BatchNorm(nn.BatchNorm2d):
    """Batch norm that takes a single value, which has no variance, by its running statistics. torch refuses it.

    The last batch of an epoch may be one image, of which the last convolution leaves one position.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training and features.numel() == self.num_features:
            return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(features)


def _convolution(before: int, width: int, size: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(before, width, size, stride, padding, bias=False), _BatchNorm(width), nn.ReLU()]


class ConvNet(PreTrainedModel):
    """A CNN for small images: 3x3 convolutions with batch norm and ReLU, max pooling between stages, a linear head.

    Each stage has two convolutions, and the first stage keeps the full resolution. The head reads the maximum over all
    positions. The network is called like the ViT, with `pixel_values` `(batch_size, num_channels, height, width)` and,
    for the loss, `labels` `(batch_size,)`. It returns logits `(batch_size, num_labels)`.

    Args:
        num_channels (`int`): number of image channels.
        num_labels (`int`): number of classes.
        widths (tuple of `int`): channels of each stage.

    As a teacher it is trained with `learning_rate`, and with Muon for the filters of all convolutions if
    `muon_learning_rate` is not None.
    """

    learning_rate: float = 3e-3
    muon_learning_rate: float | None = None
    smallest_side = 4  # of an image, in pixels; smaller ones are padded with the value 0

    def __init__(self, num_channels: int, num_labels: int, widths: tuple[int, ...] = WIDTHS):
        super().__init__(PretrainedConfig())  # the Trainer requires a config
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
        below, right = (max(0, self.smallest_side - side) for side in pixel_values.shape[-2:])
        pixel_values = F.pad(pixel_values, (0, right, 0, below)) if below or right else pixel_values
        # Convolutions on a CPU are faster in the channels-last memory format.
        features = self.features(pixel_values.contiguous(memory_format=torch.channels_last))
        # Not amax: compiled in bf16, its gradient compares the maximum with values that are rounded differently, finds
        # no match, and divides by 0.
        logits = self.head(features.flatten(2).max(dim=2).values)
        return ImageClassifierOutput(loss=None if labels is None else F.cross_entropy(logits, labels), logits=logits)


class StridedConvNet(ConvNet):
    """The CNN of the Kaggle notebook "25 Million Images! [0.99757] MNIST", which is called like [`ConvNet`].

    Two stages of two 3x3 convolutions and a 5x5 convolution of stride 2, then a 4x4 convolution, with dropout after
    each stage, and a linear head. Only the 5x5 convolutions are padded, so that a 28x28 image ends in one position.
    For larger images the head reads the maximum over positions; smaller images are padded to 28x28.

    Args:
        num_channels (`int`): number of image channels.
        num_labels (`int`): number of classes.
        dropout (`float`, defaults to 0.4): dropout probability after each stage.
    """

    smallest_side = 28

    def __init__(self, num_channels: int, num_labels: int, dropout: float = 0.4):
        super().__init__(num_channels, num_labels, widths=(128,))  # for a head with 128 features
        layers, before = [], num_channels
        for width in (32, 64):
            for size, stride, padding in ((3, 1, 0), (3, 1, 0), (5, 2, 2)):
                layers += _convolution(before, width, size, stride, padding)
                before = width
            layers.append(nn.Dropout(dropout))
        self.features = nn.Sequential(*layers, *_convolution(before, 128, 4), nn.Dropout(dropout))


class PooledConvNet(ConvNet):
    """A CNN for small photographs after cifar10-airbench ("94% on CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv
    2404.00498), which is called like [`ConvNet`].

    A 2x2 convolution, then for each width a 3x3 convolution, 2x2 max pooling and a second 3x3 convolution, with batch
    norm and GELU, and a linear head on the maximum over all positions. Differences to the original: the first layer is
    learned, batch norm has a scale, and Muon trains all convolutions. For 32x32 images in RGB and 10 classes the
    default widths mean 1.97 million parameters and 236 MFLOP per image.

    Args:
        num_channels (`int`): number of image channels.
        num_labels (`int`): number of classes.
        widths (tuple of `int`): channels of each stage.
    """

    muon_learning_rate, smallest_side = 3e-3, 9

    def __init__(self, num_channels: int, num_labels: int, widths: tuple[int, ...] = (64, 256, 256)):
        super().__init__(num_channels, num_labels, widths[-1:])  # for the head
        layers, before = [nn.Conv2d(num_channels, _FIRST_WIDTH, 2), _gelu()], _FIRST_WIDTH
        for width in widths:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.MaxPool2d(2), _BatchNorm(width), _gelu()]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), _BatchNorm(width), _gelu()]
            before = width
        self.features = nn.Sequential(*layers)


def _gelu() -> nn.Module:
    return nn.GELU(approximate="tanh")  # which is faster on a CPU


# The CNNs that can be a teacher, by the names of the flag `teacher_network`.
NETWORKS: dict[str, type[ConvNet]] = {"strided": StridedConvNet, "pooled": PooledConvNet}


def widths_for(parameters: int, num_channels: int, num_labels: int) -> tuple[int, ...]:
    """`WIDTHS`, scaled in steps of 8 to about this number of parameters. FLOPs scale in proportion."""
    own = sum(parameter.numel() for parameter in ConvNet(num_channels, num_labels).parameters())
    return tuple(max(8, 8 * round(width * math.sqrt(parameters / own) / 8)) for width in WIDTHS)
