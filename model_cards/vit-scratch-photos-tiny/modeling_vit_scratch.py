"""The Vision Transformer of "An Image is Worth 16x16 Words" (Dosovitskiy et al., arXiv 2010.11929), by hand.

The file follows the forward pass from top to bottom: patch and position embeddings (equation 1), blocks of multi-head
self-attention (equation 2, appendix A) and MLP (equation 3), final norm and pooling (equation 4), head. Symbols in the
shapes: B images, C channels, N patches, T tokens (N + 1 with a class token, N without), D hidden_size.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_vit_scratch import ViTScratchConfig
from .image_processing_vit_scratch import ViTScratchImageProcessor


class ViTScratchConvStem(nn.Sequential):
    """The hybrid of section 3.1: a CNN whose feature map is the input sequence, one position per patch.

    `log2(patch_size)` convolutions of 3x3 and stride 2 halve the image. Their channels double up to `stem_width`; the
    last has `hidden_size`. `stem_depth - 1` convolutions of 3x3 and stride 1 precede each. GroupNorm, as in the
    paper's ResNets, and the activation follow every 3x3 convolution. The final 1x1 convolution is E of equation 1.
    `(B, C, height, width)` -> `(B, D, rows, columns)`.
    """

    def __init__(self, config: ViTScratchConfig):
        layers, channels = [], config.num_channels
        half, halvings = config.stem_width or config.hidden_size // 2, int(math.log2(config.patch_size))
        widths = [max(8, half >> step) for step in reversed(range(halvings))] + [config.hidden_size]
        for before, after in zip(widths[:-1], widths[1:], strict=True):
            for out, stride in [(before, 1)] * (config.stem_depth - 1) + [(after, 2)]:
                convolution = nn.Conv2d(channels, out, kernel_size=3, stride=stride, padding=1, bias=False)
                layers += [convolution, nn.GroupNorm(1, out, config.layer_norm_eps), ACT2FN[config.hidden_act]]
                channels = out
        super().__init__(*layers, nn.Conv2d(channels, config.hidden_size, kernel_size=1))


class ViTScratchEmbeddings(nn.Module):
    """Equation 1: z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos. `(B, C, height, width)` -> `(B, T, D)`."""

    def __init__(self, config: ViTScratchConfig):
        super().__init__()
        self.config = config
        if config.stem == "conv":
            self.patch_embeddings = ViTScratchConvStem(config)
        else:
            patch = config.patch_size
            self.patch_embeddings = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if config.pooling == "cls" else None
        if config.position_embedding == "learned":
            self.position_embeddings = nn.Parameter(torch.zeros(1, config.num_tokens, config.hidden_size))
        elif config.position_embedding == "sincos2d":
            positions = sincos2d_positions(*config.grid_size, config.hidden_size)
            self.register_buffer("position_embeddings", self.with_class_position(positions), persistent=False)
        else:
            self.register_parameter("position_embeddings", None)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def with_class_position(self, patch_positions: torch.Tensor) -> torch.Tensor:
        """(1, N, D) -> (1, T, D): zeros are the fixed position of the class token, if there is one."""
        return patch_positions if self.cls_token is None else nn.functional.pad(patch_positions, (0, 0, 1, 0))

    def interpolate_pos_encoding(self, rows: int, columns: int) -> torch.Tensor:
        """Position embeddings (1, T, D) for another grid of patches; learned ones are interpolated (section 3.2)."""
        if (rows, columns) == self.config.grid_size:
            return self.position_embeddings
        if self.config.position_embedding == "sincos2d":
            positions = sincos2d_positions(rows, columns, self.config.hidden_size)
            return self.with_class_position(positions).to(self.position_embeddings)
        split = self.config.num_tokens - math.prod(self.config.grid_size)
        class_position, patch_positions = self.position_embeddings[:, :split], self.position_embeddings[:, split:]
        grid = patch_positions.unflatten(1, self.config.grid_size).permute(0, 3, 1, 2)  # (1, D, rows, columns)
        grid = nn.functional.interpolate(grid, size=(rows, columns), mode="bicubic", align_corners=False)
        return torch.cat((class_position, grid.flatten(2).transpose(1, 2)), dim=1)

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        if pixel_values.dim() != 4 or pixel_values.shape[1] != self.config.num_channels:
            expected = f"expected (batch_size, {self.config.num_channels} channels, height, width)"
            raise ValueError(f"{expected}, got {tuple(pixel_values.shape)}.")
        height, width = pixel_values.shape[2:]
        if (height, width) != self.config.image_height_width and not interpolate_pos_encoding:
            expected = "expected images of {}x{} pixels (height x width)".format(*self.config.image_height_width)
            raise ValueError(f"{expected}, got {height}x{width}: resize them, or pass interpolate_pos_encoding=True.")
        if height % self.config.patch_size or width % self.config.patch_size:
            raise ValueError(f"image size {height}x{width} is not a multiple of patch_size {self.config.patch_size}.")
        # Channels last: the order of memory in which a stem is fastest.
        patches = self.patch_embeddings(pixel_values.contiguous(memory_format=torch.channels_last))
        rows, columns = patches.shape[-2:]  # (B, D, rows, columns)
        tokens = patches.flatten(2).transpose(1, 2)  # (B, N, D)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(tokens.shape[0], -1, -1), tokens), dim=1)  # (B, T, D)
        if self.position_embeddings is not None:
            # A model that is loaded in half precision keeps its buffers in float32, and fixed positions are a buffer.
            tokens = tokens + self.interpolate_pos_encoding(rows, columns).to(pixel_values.dtype)
        return self.dropout(tokens)


def sincos2d_positions(rows: int, columns: int, hidden_size: int) -> torch.Tensor:
    """Fixed 2D positions (1, rows * columns, hidden_size): sine and cosine of the column, then of the row."""
    frequencies = 10000 ** -(torch.arange(hidden_size // 4, dtype=torch.float64) / (hidden_size // 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    angles = [position.flatten()[:, None] * frequencies for position in (column, row)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)[None].float()


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Equation 7: SA(z) = softmax(q k^T / sqrt(D_h)) v. `(B, heads, T, head_dim)` -> `(B, T, heads, head_dim)`."""
    weights = (query * scaling) @ key.transpose(-2, -1)  # (B, heads, T, T)
    weights = weights.softmax(dim=-1, dtype=torch.promote_types(weights.dtype, torch.float32)).to(value.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class ViTScratchAttention(nn.Module):
    """Multi-head self-attention, appendix A. `(B, T, D)` -> `(B, T, D)`, and eager weights `(B, heads, T, T)`."""

    def __init__(self, config: ViTScratchConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=config.qkv_bias)
        self.qkv.num_matrices = 3  # for _init_weights
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, num_outputs: int | None = None, **kwargs) -> tuple:
        # Equation 6, all heads at once: (B, T, 3D) -> (B, T, 3, heads, head_dim) -> 3 x (B, heads, T, head_dim)
        qkv = self.qkv(hidden_states).view(*hidden_states.shape[:2], 3, -1, self.head_dim)
        query, key, value = (each.transpose(1, 2) for each in qkv.unbind(2))
        query = query[:, :, :num_outputs]  # only the first num_outputs tokens; None: all
        # Only eager attention returns its weights, so output_attentions selects it.
        shown = kwargs.get("output_attentions", self.config.output_attentions)
        implementation = "eager" if shown else self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        context, weights = attention(self, query, key, value, None, scaling=self.scaling, dropout=dropout, **kwargs)
        return self.proj(context.flatten(2)), weights  # equation 8


class ViTScratchMLP(nn.Module):
    """Two dense layers with an activation between them (section 3.1). `(B, T, D)` -> `(B, T, D)`."""

    def __init__(self, config: ViTScratchConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation(self.fc1(hidden_states))))


class ViTScratchDropPath(nn.Dropout):
    """Stochastic depth (arXiv 1603.09382): drops the residual branch of random images of a batch, in training only."""

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if self.p == 0.0 or not self.training:
            return branch
        return branch * super().forward(branch.new_ones(branch.shape[0], 1, 1))


class ViTScratchLayer(GradientCheckpointingLayer):
    """A pre-norm block, equations 2 and 3. `(B, T, D)` -> `(B, T, D)`, or its first tokens `(B, num_outputs, D)`."""

    def __init__(self, config: ViTScratchConfig, drop_path_rate: float):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTScratchAttention(config)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTScratchMLP(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = ViTScratchDropPath(drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, num_outputs: int | None = None, **kwargs) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), num_outputs, **kwargs)
        hidden_states = hidden_states[:, :num_outputs] + self.drop_path(self.dropout(attended))
        return hidden_states + self.drop_path(self.dropout(self.mlp(self.layernorm_after(hidden_states))))


class ViTScratchPreTrainedModel(PreTrainedModel):
    """Base class of the models: initialization, saving, and the features of transformers that they support."""

    config_class = ViTScratchConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["ViTScratchEmbeddings", "ViTScratchLayer"]
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ViTScratchLayer, "attentions": ViTScratchAttention}
    _input_embed_layer = "patch_embeddings"

    def __init__(self, config: ViTScratchConfig, *args, **kwargs):
        config.validate()  # a field may have been changed after the config was created
        # sdpa, the default of transformers, is slow backwards for short sequences on a CPU.
        if config._attn_implementation is None and config.num_tokens <= 150 and not torch.accelerator.is_available():
            config._attn_implementation = "eager"
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module):
        std = self.config.initializer_range
        if std == 0 and isinstance(module, (nn.Linear, nn.Conv2d)):
            # Glorot's uniform bound, as in the paper's code. The patch convolution maps a whole patch to a token.
            fan_out, fan_in = module.weight.flatten(1).shape
            fan_out //= getattr(module, "num_matrices", 1)  # qkv stacks three matrices
            bound = math.sqrt(6 / (fan_in + fan_out))
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)
        if isinstance(module, ViTScratchEmbeddings):
            if module.cls_token is not None:
                init.trunc_normal_(module.cls_token, std=std or 0.02)
            if self.config.position_embedding == "learned":
                init.trunc_normal_(module.position_embeddings, std=std or 0.02)
            elif self.config.position_embedding == "sincos2d":
                positions = sincos2d_positions(*self.config.grid_size, hidden_size=self.config.hidden_size)
                init.copy_(module.position_embeddings, module.with_class_position(positions))

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As in transformers, and name the class for each Auto class. A subclass counts once it registers itself."""
        autos = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor")
        own = (ViTScratchConfig, ViTScratchModel, ViTScratchForImageClassification, ViTScratchImageProcessor)
        names = [f"{each.__module__.rpartition('.')[2]}.{each.__name__}" for each in own]
        self.config.auto_map = dict(zip(autos, names, strict=True))
        super().save_pretrained(save_directory, *args, **kwargs)


class ViTScratchModel(ViTScratchPreTrainedModel):
    """The encoder without a head: from the pixels to y, equations 1 to 4."""

    def __init__(self, config: ViTScratchConfig):
        super().__init__(config)
        self.embeddings = ViTScratchEmbeddings(config)
        depth = config.num_hidden_layers
        rates = [config.drop_path_rate * index / max(1, depth - 1) for index in range(depth)]
        self.layers = nn.ModuleList([ViTScratchLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def _is_watched(self) -> bool:
        """Whether a hook sees the tokens of the last block or the final norm, as those of Grad-CAM do."""
        names = [f"_{kind}_hooks" for kind in ("forward", "forward_pre", "backward", "backward_pre")]
        hooks = [getattr(each, name) for each in (self, self.layernorm, *self.layers[-1].modules()) for name in names]
        hooks += [getattr(nn.modules.module, f"_global{name}") for name in names]
        blind = ("transformers.utils.output_capturing", "torch.utils.module_tracker")  # they record and count
        return any(hook.__module__ not in blind for registered in hooks for hook in registered.values())

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool = False,
        only_pooler_output: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(batch_size, num_channels, height, width)`): normalized images.
            interpolate_pos_encoding (`bool`, defaults to `False`): accept images of another size than
                `config.image_size`, and interpolate the position embeddings (section 3.2).
            only_pooler_output (`bool`, defaults to `False`): if y is the class token and no hook sees the others,
                compute no other token in the last block. `last_hidden_state` is then `(batch_size, 1, D)`.
            output_attentions, output_hidden_states (`bool`, default to the config's): also return `attentions`, one
                `(batch_size, num_heads, T, T)` per layer, and `hidden_states`, z_0 to z_L, each `(batch_size, T, D)`.

        Returns:
            `last_hidden_state`: the tokens after the final norm, `(batch_size, T, D)`. `pooler_output`: y of equation
            4, `(batch_size, D)`, which is the class token or the mean of the patch tokens, after the final norm.

        Raises:
            ValueError: size or number of channels of the images differ from the config's.
        """
        stem = self.embeddings.patch_embeddings  # its dtype, since replicas of nn.DataParallel do not know their own
        dtype = (stem if self.config.stem == "patch" else stem[0]).weight.dtype
        hidden_states = self.embeddings(pixel_values.to(dtype), interpolate_pos_encoding)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, **kwargs)
        spared = only_pooler_output and self.config.pooling == "cls" and not self._is_watched()
        hidden_states = self.layernorm(self.layers[-1](hidden_states, 1 if spared else None, **kwargs))
        pooled = hidden_states[:, 0] if self.config.pooling == "cls" else hidden_states.mean(dim=1)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)


class ViTScratchForImageClassification(ViTScratchPreTrainedModel):
    """The encoder with a linear classification head on y, as in the paper's fine-tuning (section 3.2)."""

    def __init__(self, config: ViTScratchConfig):
        super().__init__(config)
        self.loss_type = "ForImageClassification"  # transformers derives it from the name of the class
        self.vit = ViTScratchModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """
        Args:
            labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): class indices. With them, the output
                has a `loss`, the cross-entropy. The other arguments are those of [`ViTScratchModel`].

        Returns:
            `logits` `(batch_size, num_labels)`; `loss` with labels; `hidden_states` and `attentions` if requested.
        """
        shown = any(kwargs.get(f"output_{n}", getattr(self.config, f"output_{n}")) for n in self._can_record_outputs)
        outputs = self.vit(pixel_values, interpolate_pos_encoding, only_pooler_output=not shown, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = self.loss_function(labels, logits, self.config, **kwargs) if labels is not None else None
        return ImageClassifierOutput(loss, logits, outputs.hidden_states, outputs.attentions)
