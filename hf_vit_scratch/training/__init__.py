"""Training: `train.py` from its settings to a finished output folder."""

from .job import main, train

__all__ = ["main", "train"]
