"""Random numbers that belong to an image: the same on any device, in any process, and in any order of the images.

A number is a hash of the seed, the epoch, the index of the image and a counter, and no generator has a state. So it
does not matter which process, worker or batch draws for an image, how far ahead a loader reads, or where a run was
resumed. The hash is SplitMix64 ("Fast Splittable Pseudorandom Number Generators", Steele et al., 2014), in operations
on int64 tensors, which wrap around.
"""

import math

import torch

_GAMMA = -0x61C8864680B583EB  # 0x9e3779b97f4a7c15, 2**64 divided by the golden ratio, as a signed number
_FACTORS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # 0xbf58476d1ce4e5b9 and 0x94d049bb133111eb
_BITS = 64


def image_keys(seed: int, epoch: int, indices: torch.Tensor) -> torch.Tensor:
    """One key for each image, from which [`uniform`] and [`normal`] draw.

    Args:
        seed: any integer of 64 bits.
        epoch: counted from 0.
        indices: the indices of the images in the data set, `(batch_size,)`, int64.

    Returns:
        int64 `(batch_size,)`, on the device of `indices`.
    """
    start = torch.tensor(_signed(seed))
    for number in (epoch, 0):
        start = _hash(start + _GAMMA) + number
    return _hash(start.to(indices.device) + indices * _GAMMA)


def uniform(keys: torch.Tensor, count: int, stream: int = 0) -> torch.Tensor:
    """Uniform random numbers from 0 to below 1, in steps of 2**-24, exactly the same on all devices.

    Args:
        keys: of [`image_keys`], `(batch_size,)`.
        count: how many numbers to draw for each image. The first ones do not depend on it.
        stream: from 0 to 2**31 - 1. Numbers of different streams are independent.

    Returns:
        float32 `(batch_size, count)`, on the device of `keys`.
    """
    return _bits(keys, count, stream, 24).float() * 2**-24


def normal(keys: torch.Tensor, count: int, stream: int = 0) -> torch.Tensor:
    """Standard normal random numbers, from -5.3 to 5.3. Arguments and shape are those of [`uniform`].

    Devices may differ in the last digit, since they compute the inverse of the error function differently.
    """
    centred = _bits(keys, count, stream, 23).float() * 2**-22 + (2**-23 - 1)  # odd multiples of 2**-23, so never 1
    return torch.erfinv(centred) * math.sqrt(2)


def _bits(keys: torch.Tensor, count: int, stream: int, bits: int) -> torch.Tensor:
    """Random integers from 0 to 2**bits - 1, `(batch_size, count)`."""
    # XOR, since torch.compile would work out a sum in symbols, and its product with _GAMMA has more than 64 bits.
    counters = torch.arange(1, count + 1, device=keys.device) ^ (stream << 32)
    return _right(_hash(keys[:, None] + counters * _GAMMA), _BITS - bits)


def _hash(numbers: torch.Tensor) -> torch.Tensor:
    """The output function of SplitMix64, by which each bit depends on all bits of the argument."""
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        numbers = (numbers ^ _right(numbers, shift)) * factor
    return numbers ^ _right(numbers, 31)


def _right(numbers: torch.Tensor, shift: int) -> torch.Tensor:
    """Shift right and fill with zeros: torch's own shift repeats the sign."""
    return (numbers >> shift) & ((1 << (_BITS - shift)) - 1)


def _signed(number: int) -> int:
    """The lowest 64 bits of an integer, as the signed number that an int64 tensor holds."""
    return (number + 2**63) % 2**64 - 2**63
