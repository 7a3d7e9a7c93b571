"""Images and labels from files or the Hub, as a `datasets.DatasetDict` and as batches of tensors."""

from .errors import DataError
from .pixels import image_shape, label_array, pixel_array, row_numbers
from .shards import load_stream, write_shards
from .sources import load, source_name

__all__ = [
    "DataError",
    "image_shape",
    "label_array",
    "load",
    "load_stream",
    "pixel_array",
    "row_numbers",
    "source_name",
    "write_shards",
]
