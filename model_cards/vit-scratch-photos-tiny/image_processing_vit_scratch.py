"""Image processor: converts an image of any mode and size to the `pixel_values` of a [`ViTScratchModel`]."""

import numpy as np
from PIL import Image, ImageOps
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs
from transformers.utils.versions import require_version

require_version("transformers>=5.4")  # before an import that older versions do not have
from transformers.image_processing_backends import PilBackend  # noqa: E402

from .digits_vit_scratch import clearest_digit  # noqa: E402


class ViTScratchImageProcessorKwargs(ImagesKwargs, total=False):
    """num_channels (`int`, defaults to 3): 1 for grey, 3 for RGB. do_center_digit (`bool`): see below."""

    num_channels: int
    do_center_digit: bool


class ViTScratchImageProcessor(PilBackend):
    """Convert to grey or RGB, resize, crop, scale to [0, 1], normalize with mean and standard deviation 0.5.

    Accepts a PIL image, a path or URL, a numpy array or a tensor, or a list of these, with values from 0 to 255, and
    returns `pixel_values` of shape `(batch_size, num_channels, height, width)`. PIL images and files are converted by
    [`convert_image`]. Arrays and tensors have one channel or `num_channels`, as `(height, width)`, channels first or
    last; values from 0 to 1 are refused unless `do_rescale=False` says that they are scaled already. With
    `do_center_digit`, PIL images and files are drawn as MNIST has digits: the clearest one, or black without any.
    Other arguments are those of transformers (`size`, `do_center_crop`, `resample`, `image_mean`, ...).
    """

    _auto_class = "AutoImageProcessor"
    valid_kwargs = ViTScratchImageProcessorKwargs
    num_channels = 3
    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = image_std = 0.5
    do_resize = do_rescale = do_normalize = True
    do_center_digit = False

    def fetch_images(self, image_url_or_urls):
        """As in transformers, and add the channel axis, which the base class expects, to a `(height, width)` array."""
        images = super().fetch_images(image_url_or_urls)
        return images[None] if getattr(images, "ndim", None) == 2 else images

    def process_image(self, image, num_channels, do_center_digit=False, **kwargs) -> np.ndarray:
        """One image as an array `(num_channels, height, width)`, 0 to 255; ValueError if its channels do not fit."""
        if isinstance(image, Image.Image):
            image = convert_image(image, 3 if do_center_digit else num_channels)
            image = clearest_digit(image, self.size["height"]) if do_center_digit else image
        array = super().process_image(image, **kwargs)
        if array.shape[0] not in (1, num_channels):
            problem = f"expected an image with {num_channels} channels, got {array.shape[0]} (shape {array.shape})"
            raise ValueError(f"{problem}: PIL images are converted to 1 or 3 channels, arrays are not.")
        if array.dtype != np.uint8 and kwargs.get("do_rescale") and kwargs.get("rescale_factor") == 1 / 255:
            if not 0 <= array.min() <= array.max() <= 255 or 0 < array.max() <= 1:
                problem = f"expected an image with values from 0 to 255, got {array.min()} to {array.max()}"
                raise ValueError(f"{problem}: scale it, or pass do_rescale=False for values from 0 to 1.")
        return np.repeat(array, num_channels // array.shape[0], axis=0)


def convert_image(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert a PIL image to "L" (1 channel) or "RGB" (3), upright by its EXIF data. A transparent image is laid on
    white, or on black if white hides nearly all of it; 16 and 32 bits (0 to 65535) are scaled, others a ValueError."""
    image, mode = ImageOps.exif_transpose(image), "L" if num_channels == 1 else "RGB"
    if image.mode[0] in "IF":  # PIL would clip values at 255 instead of scaling them
        low, high = (array := np.asarray(image)).min(), array.max()
        if not 0 <= low <= high <= 65535 or image.mode == "F" and 0 < high <= 1:
            raise ValueError(f"expected pixels from 0 to 255 or to 65535, got {low} to {high} (mode {image.mode})")
        if image.mode.startswith("I;16") or high > 255:
            image = Image.fromarray((array // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        laid = [Image.alpha_composite(Image.new("RGBA", image.size, c), image) for c in ("white", "black")]
        white, black = (np.asarray(one.convert(mode)) for one in laid)  # percentiles: a few specks do not count
        image = laid[bool(np.ptp(np.percentile(white, (2, 98))) < 16 and 4 * white.std() < black.std())]
    return image.convert(mode)
