"""What a model sees: its attention, its filters, its mistakes, as arrays and as one HTML page."""

from .attention import attention_distance, attention_rollout, output_map, record_attentions, rollout_map
from .gradients import gradient_map, randomization_check
from .parameters import patch_filters, position_similarity
from .predictions import confused_pairs, predict, project

__all__ = [
    "attention_distance",
    "attention_rollout",
    "confused_pairs",
    "gradient_map",
    "output_map",
    "patch_filters",
    "position_similarity",
    "predict",
    "project",
    "randomization_check",
    "record_attentions",
    "rollout_map",
]
