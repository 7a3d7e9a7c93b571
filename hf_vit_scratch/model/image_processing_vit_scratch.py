"""Image processor: converts an image of any mode and size to the `pixel_values` of a [`ViTScratchModel`]."""

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import ImagesKwargs


class ViTScratchImageProcessorKwargs(ImagesKwargs, total=False):
    """num_channels (`int`, defaults to 3): 1 for grey images, 3 for RGB. PIL images of other modes are converted."""

    num_channels: int


class ViTScratchImageProcessor(PilBackend):
    """Convert to grey or RGB, resize, crop, scale to [0, 1], normalize with mean and standard deviation 0.5.

    Accepts a PIL image, a path or URL, a numpy array or a tensor, or a list of these, with values from 0 to 255, and
    returns `pixel_values` of shape `(batch_size, num_channels, height, width)`. PIL images and files are rotated by
    their EXIF orientation, put on a white background if transparent, and converted to `num_channels`. Arrays and
    tensors have one channel or `num_channels`, as `(height, width)`, channels first or channels last. Arguments are
    the same as in transformers (`size`, `crop_size`, `do_center_crop`, `resample`, `image_mean`, `image_std`, ...).
    """

    valid_kwargs = ViTScratchImageProcessorKwargs
    num_channels = 3
    size = {"height": 224, "width": 224}
    resample = PILImageResampling.BICUBIC
    image_mean = 0.5
    image_std = 0.5
    do_resize = True
    do_rescale = True
    do_normalize = True

    def fetch_images(self, image_url_or_urls):
        """As in transformers, and add the channel axis, which the base class expects, to a `(height, width)` array."""
        images = super().fetch_images(image_url_or_urls)
        return images[None] if getattr(images, "ndim", None) == 2 else images

    def process_image(self, image, num_channels, **kwargs) -> np.ndarray:
        """One image as an array `(num_channels, height, width)`, 0 to 255; ValueError if its channels do not fit."""
        if isinstance(image, Image.Image):
            image = convert_image(image, num_channels)
        array = super().process_image(image, **kwargs)
        if array.shape[0] not in (1, num_channels):
            raise ValueError(
                f"expected an image with {num_channels} channels, got {array.shape[0]} (shape {array.shape}): "
                "PIL images are converted to 1 or 3 channels, arrays are not."
            )
        return np.repeat(array, num_channels // array.shape[0], axis=0)


def convert_image(image: Image.Image, num_channels: int) -> Image.Image:
    """Convert a PIL image to "L" (1 channel) or "RGB" (3), upright by its EXIF data, on a white background."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # PIL would clip 16-bit values at 255 instead of scaling them
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if num_channels == 1 else "RGB")


ViTScratchImageProcessor.register_for_auto_class("AutoImageProcessor")
