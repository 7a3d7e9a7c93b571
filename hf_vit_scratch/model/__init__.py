"""The model: three files that travel to the Hub with every checkpoint, registered here with the Auto classes.

Python runs this file before any of the three, so that whichever class is imported, `AutoModel.from_pretrained` and the
other Auto classes know all of them. The copies that travel with a checkpoint are registered by transformers.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from .configuration_vit_scratch import ViTScratchConfig
from .image_processing_vit_scratch import ViTScratchImageProcessor
from .modeling_vit_scratch import ViTScratchForImageClassification, ViTScratchModel

__all__ = ["ViTScratchConfig", "ViTScratchForImageClassification", "ViTScratchImageProcessor", "ViTScratchModel"]

# A notebook may reload the module, hence exist_ok.
AutoConfig.register(ViTScratchConfig.model_type, ViTScratchConfig, exist_ok=True)
AutoModel.register(ViTScratchConfig, ViTScratchModel, exist_ok=True)
AutoModelForImageClassification.register(ViTScratchConfig, ViTScratchForImageClassification, exist_ok=True)
AutoImageProcessor.register(ViTScratchConfig, image_processor_classes={"pil": ViTScratchImageProcessor}, exist_ok=True)
