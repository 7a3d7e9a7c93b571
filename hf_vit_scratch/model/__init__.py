"""The model: the four files that every checkpoint carries, registered here with transformers' Auto classes.

Python runs this file before any of the three. Importing any of their classes therefore makes `AutoModel` and the other
Auto classes load checkpoints of this package. transformers itself registers the copies that a checkpoint carries.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING

from .configuration_vit_scratch import ViTScratchConfig
from .image_processing_vit_scratch import ViTScratchImageProcessor
from .modeling_vit_scratch import ViTScratchForImageClassification, ViTScratchModel

__all__ = ["ViTScratchConfig", "ViTScratchForImageClassification", "ViTScratchImageProcessor", "ViTScratchModel"]

# exist_ok, since a notebook may reload the module.
AutoConfig.register(ViTScratchConfig.model_type, ViTScratchConfig, exist_ok=True)
AutoModel.register(ViTScratchConfig, ViTScratchModel, exist_ok=True)
AutoModelForImageClassification.register(ViTScratchConfig, ViTScratchForImageClassification, exist_ok=True)
AutoImageProcessor.register(ViTScratchConfig, image_processor_classes={"pil": ViTScratchImageProcessor}, exist_ok=True)
# There is no video processor. Without this line a pipeline looks for one by the name of the image processor, and asks
# whether to run the code of the checkpoint.
VIDEO_PROCESSOR_MAPPING.register(ViTScratchConfig, {}, exist_ok=True)
