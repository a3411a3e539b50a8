"""A text model from transformers and a vision model from timm (the paper's BERT + ViT)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from timm.data.config import resolve_data_config
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, normalize
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerBase

from mimic_pl.encoders.base import Encoder
from mimic_pl.encoders.configuration_files import save_model_config, save_tokenizer, save_vision_config
from mimic_pl.encoders.image_preprocessing import ImageResize, timm_preprocessing
from mimic_pl.encoders.loading_errors import building
from mimic_pl.encoders.pretrained import (
    create_vision,
    load_tokenizer,
    load_tower,
    require_kind,
    require_one_start,
)
from mimic_pl.encoders.text_probe import TextProbe
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import ConfigError
from mimic_pl.features import IMAGE_PRETRAINED, TEXT_PRETRAINED, FeatureDims, Features
from mimic_pl.processor import ImageProcessor, TextTokenizer
from mimic_pl.ranges import COUNT, NATURAL, in_range, one_of

Pooling = Literal["cls", "mean"]
"""``cls``: the first token, as in BERT; ``mean``: the mean of the real tokens, as in sentence encoders."""


class TextVisionEncoder(Encoder):
    """Two separately pretrained towers: any text model from transformers and any ViT or CNN from timm.

    Args:
        text: Checkpoint folder or hub name of the text model, for example ``bert-base-uncased``; of an encoder-decoder
            such as T5, the encoder is used.
        text_pretrained: Load the weights of ``text``. If not, they are random, and only its configuration and tokenizer
            are used: for weights that come from elsewhere, as those of an exported model.
        text_config: Instead of ``text``: configuration of a new text model, with ``model_type`` (``bert``, ...).
        vocabulary: With ``text_config``: the words of its tokenizer.
        text_pooling: Pooling of the text model's hidden states: ``cls`` (first token, as in BERT) or ``mean`` (over the
            real tokens, as in sentence encoders; also for encoders without such a token, as in T5).
        vision: Name of the timm model, for example ``vit_base_patch16_224`` or ``resnet50``; a timm checkpoint folder
            or hub name is written ``local-dir:PATH`` or ``hf-hub:NAME``.
        vision_pretrained: Load timm's pretrained weights; otherwise they are random.
        vision_args: Additional arguments of :func:`timm.create_model`, for example ``{img_size: 64}`` of a ViT.
        image_size: Side of the images, in pixels, for a model that takes any size, such as a CNN: smaller ones are
            encoded faster. By default it is the size that the model was trained on.
        text_length: Tokens per text.
        text_dim: Width to which text features are projected; no projection by default.
        image_dim: Width of the image features after projection (the paper's d_V).
        freeze: Freeze both towers; the projections are still trained.
        frozen_features: Folder that caches the outputs of frozen towers, so that each record is encoded once: ``auto``
            for the user's cache folder, ``None`` for no cache.
        gradient_checkpointing: Recompute the towers' activations in the backward pass to save memory.
        image_resize: ``square`` as published, or the interpolation and crop of the vision ``model`` (see
            :data:`~mimic_pl.encoders.image_preprocessing.ImageResize`).
        image_stages: Earlier stages of the vision model (or blocks of a ViT) that ``image_pretrained`` also contains,
            numbered from 0 as in timm's ``forward_intermediates``. The pooled features tell what a picture shows;
            earlier stages, how it is drawn, and where: for symbols, flags or products.
        image_grid: A stage's feature map is averaged to at most this many rows and columns.

    Raises:
        ConfigError: Both or neither of ``text`` and ``text_config`` are given, ``text_length`` exceeds the model's
            positions, ``text`` is not a text model or is a decoder whose first token would be pooled, or the vision
            model has no local features, or not these stages.
    """

    @in_range(
        text_pooling=one_of(Pooling),
        text_length=COUNT,
        text_dim=COUNT,
        image_dim=COUNT,
        image_size=COUNT,
        image_resize=one_of(ImageResize),
        image_stages=NATURAL,
        image_grid=COUNT,
    )
    def __init__(
        self,
        text: str | None = None,
        text_config: dict[str, Any] | None = None,
        vocabulary: list[str] | None = None,
        text_pooling: Pooling = "cls",
        vision: str = "vit_base_patch16_224",
        vision_pretrained: bool = True,
        vision_args: dict[str, Any] | None = None,
        text_length: int = 40,
        text_dim: int | None = None,
        image_dim: int = 96,
        freeze: bool = False,
        gradient_checkpointing: bool = False,
        frozen_features: str | None = "auto",
        image_resize: ImageResize = "square",
        image_size: int | None = None,
        text_pretrained: bool = True,
        image_stages: list[int] | None = None,
        image_grid: int = 4,
    ) -> None:
        super().__init__(freeze, frozen_features)
        require_one_start(text, text_config, "TextVisionEncoder's text model")
        self.text_length = text_length
        self.text_name = text
        named = ((text, text_pretrained), (vision, vision_pretrained))
        self.started_from = tuple(name for name, pretrained in named if name is not None and pretrained)
        if text is not None:
            self.text = load_tower(text, "text model", text_pretrained)
            self.tokenizer: PreTrainedTokenizerBase | None = None
        else:
            tokenizer = self.tokenizer = build_tokenizer(vocabulary or [])
            ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
            sizes: dict[str, Any] = {"model_type": "none", **(text_config or {}), **ids}
            with building("text_config"):
                config = AutoConfig.for_model(**sizes)
                require_kind(config, "text model", "text_config")
                self.text = AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]
        self.text_config = self.text.config  # an encoder taken out of an encoder-decoder has another one
        if self.text.config.is_encoder_decoder:
            self.text = self.text.get_encoder()
        hidden = self._check_text(text or "this text model", text_pooling)
        self.text_pooling = text_pooling
        # timm models have attributes beyond nn.Module: forward_features, forward_head, num_features, ...
        self.vision = cast(Any, create_vision(vision, vision_pretrained, vision_args or {}))
        # timm's pretrained configuration ignores a requested image size.
        requested = {"img_size": image_size or (vision_args or {}).get("img_size")}
        self.image_resize: ImageResize = image_resize
        with building(f"the vision model {vision!r} with vision_args {vision_args}, image_size {image_size}"):
            self.image_settings = resolve_data_config(requested, model=self.vision)  # type: ignore[no-untyped-call]
        self._channels_last = _channels_last(self.vision, self.image_settings["input_size"], vision)
        self.image_stages = tuple(image_stages or ())
        self.image_grid = image_grid
        if sum(isinstance(part, nn.Conv2d) for part in self.vision.modules()) > 1:
            self.steady_batch = 16  # a CNN: oneDNN convolves fewer images by another algorithm

        text_dim = text_dim or hidden
        self.text_global: nn.Module = nn.Identity() if text_dim == hidden else nn.Linear(hidden, text_dim)
        self.text_local: nn.Module = nn.Identity() if text_dim == hidden else nn.Linear(hidden, text_dim)
        self.image_global = nn.Linear(self.vision.head_hidden_size, image_dim)
        self.image_local = nn.Linear(self.vision.num_features, image_dim)
        self.dims = FeatureDims(text_dim, image_dim, hidden, self._pretrained_width(vision))
        if gradient_checkpointing:
            self.text.activation_checkpointing_enable()
            self.vision.set_grad_checkpointing()
        # Neither pooling uses BERT's pooler head; DDP would wait for its gradient.
        for name, parameter in self.text.named_parameters():
            if name.startswith("pooler."):
                parameter.requires_grad_(False)
        self.add_towers(self.text, self.vision)

    def build_tokenizer(self) -> TextTokenizer:
        """The text model's tokenizer; see :meth:`Encoder.build_tokenizer`."""
        return TextTokenizer(self._own_tokenizer(), self.text_length, getattr(self.text.config, "vocab_size", None))

    def build_image_processor(self) -> ImageProcessor:
        """The vision model's image size and statistics; see :meth:`Encoder.build_image_processor`."""
        return timm_preprocessing(self.image_settings, self.image_resize)

    def save_config(self, folder: Path) -> None:
        """Write two checkpoints without weights, ``text`` and ``vision``; see :meth:`Encoder.save_config`."""
        text, vision = folder / "text", folder / "vision"
        for own in (text, vision):
            own.mkdir()
        save_model_config(self.text_config, text)
        save_tokenizer(self._own_tokenizer(), text)
        save_vision_config(self.vision, self.image_settings["input_size"], vision)

    @classmethod
    def config_arguments(cls, folder: Path) -> dict[str, Any]:
        """The folders in place of checkpoints or of sizes; see :meth:`Encoder.config_arguments`."""
        text = {"text": str(folder / "text"), "text_pretrained": False, "text_config": None, "vocabulary": None}
        return {**text, "vision": f"local-dir:{folder / 'vision'}", "vision_pretrained": False}

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer or load_tokenizer(str(self.text_name))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, image_key: Tensor | None = None
    ) -> Features:
        """Encode one side; see :meth:`Encoder.forward`."""
        text_key = None if image_key is None else torch.cat([input_ids, attention_mask], dim=1)
        tokens = self.run_tower("text", self._text_tower, (input_ids, attention_mask), text_key)["tokens"]
        if image_key is not None and self.image_stages:
            settings = image_key.new_tensor([self.image_grid, *self.image_stages])
            image_key = torch.cat([image_key, settings.expand(len(image_key), -1)], dim=1)
        image = self.run_tower("vision", self._vision_tower, (pixel_values,), image_key)
        if self.text_pooling == "mean":
            weight = attention_mask.unsqueeze(-1).to(tokens.dtype)
            pooled_text = (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
        else:
            pooled_text = tokens[:, 0]
        return Features(
            text_global=self.text_global(pooled_text),
            text_local=self.text_local(tokens),
            image_global=self.image_global(image["pooled"]),
            image_local=self.image_local(self._as_tokens(image["map"])),
            text_mask=attention_mask,
            extra={TEXT_PRETRAINED: pooled_text, IMAGE_PRETRAINED: image.get("stages", image["pooled"])},
        )

    def _check_text(self, name: str, pooling: str) -> int:
        """Check that the text tower works with these settings, and return the width of its hidden states."""
        probe = TextProbe(self._text_tower, self.text.config, name)
        width = probe.outputs(self.text_length)["tokens"].shape[-1]
        if pooling == "cls" and probe.is_causal():
            raise ConfigError(
                f"{name} ({self.text.config.model_type}) is a decoder: its first token, which text_pooling 'cls' takes "
                "as the text, sees nothing of the text. Choose an encoder, such as 'bert-base-uncased', or set "
                "text_pooling to 'mean'."
            )
        return width

    def _text_tower(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"tokens": self.text(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state}

    def _vision_tower(self, pixel_values: Tensor) -> dict[str, Tensor]:
        # timm does not cast its inputs if the whole model is in half or double precision; transformers does.
        pixel_values = pixel_values.to(next(self.vision.parameters()).dtype)
        if not self.image_stages:
            feature_map = self.vision.forward_features(pixel_values)
            return {"map": feature_map, "pooled": self.vision.forward_head(feature_map, pre_logits=True)}
        feature_map, stages = self.vision.forward_intermediates(pixel_values, indices=list(self.image_stages))
        pooled = self.vision.forward_head(feature_map, pre_logits=True)
        return {"map": feature_map, "pooled": pooled, "stages": self._joined_stages(pooled, stages)}

    def _joined_stages(self, pooled: Tensor, stages: list[Tensor]) -> Tensor:
        """Pooled features and maps ``[batch, channels, height, width]``, each of length 1: ``[batch, width]``."""
        grids = ((min(self.image_grid, stage.shape[2]), min(self.image_grid, stage.shape[3])) for stage in stages)
        maps = [adaptive_avg_pool2d(stage, grid).flatten(1) for stage, grid in zip(stages, grids, strict=True)]
        return torch.cat([normalize(part, dim=-1) for part in (pooled, *maps)], dim=-1)

    def _pretrained_width(self, vision: str) -> int:
        """Width of ``image_pretrained``."""
        if not self.image_stages:
            return int(self.vision.head_hidden_size)
        size = self.image_settings["input_size"]
        with torch.no_grad(), building(f"the vision model {vision!r} with image_stages {list(self.image_stages)}"):
            return self._vision_tower(torch.zeros(1, *size))["stages"].shape[-1]

    def _as_tokens(self, feature_map: Tensor) -> Tensor:
        """Flatten a vision model's features to ``[batch, image_tokens, width]``."""
        if feature_map.ndim == 3:
            return feature_map
        return feature_map.flatten(1, 2) if self._channels_last else feature_map.flatten(2).transpose(1, 2)


def _channels_last(vision: Any, input_size: tuple[int, int, int], name: str) -> bool:
    """Determine by one forward pass whether a vision model's feature map is channels-last."""
    vision.eval()
    with torch.no_grad(), building(f"the vision model {name!r} for images of {input_size} (channels, height, width)"):
        features = vision.forward_features(torch.zeros(1, *input_size))
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    width = vision.num_features
    if len(shape) == 3 and shape[-1] == width:
        return False
    if len(shape) == 4 and width in (shape[1], shape[-1]):
        return shape[1] != width
    raise ConfigError(
        f"The vision model {name!r} returns features of shape {shape}, which is neither tokens nor a feature map of "
        f"width {width}. Choose a ViT or CNN with local features."
    )
