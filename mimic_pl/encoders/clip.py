"""CLIP-like dual encoders from transformers (the published model's encoder)."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerBase

from mimic_pl.encoders.base import Encoder
from mimic_pl.encoders.configuration_files import save_model_config, save_tokenizer
from mimic_pl.encoders.dual_encoder import image_outputs, image_size, text_outputs
from mimic_pl.encoders.image_preprocessing import ImageResize, transformers_preprocessing
from mimic_pl.encoders.loading_errors import building, loading
from mimic_pl.encoders.pretrained import (
    load_image_processor,
    load_tokenizer,
    load_tower,
    require_one_start,
)
from mimic_pl.encoders.text_probe import TextProbe
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import ConfigError
from mimic_pl.features import IMAGE_PRETRAINED, TEXT_PRETRAINED, FeatureDims, Features
from mimic_pl.processor import ImageProcessor, TextTokenizer
from mimic_pl.ranges import COUNT, in_range, one_of

PUBLISHED_LENGTH = 40
"""Tokens per text in the published settings."""

_ANY_SIZE = 64
"""Side of the image with which a convolutional network, which takes any size, is tried."""

_log = logging.getLogger(__name__)


class CLIPEncoder(Encoder):
    """A CLIP-like dual encoder with pooled embeddings and hidden states of both towers (paper section 3.2).

    Text features are the normalised text embedding and the last hidden states; image features are linear projections
    of the normalised image embedding and of the last hidden states, including CLS if there is one. Both embeddings are
    those of the model's own ``get_text_features`` and ``get_image_features``; any checkpoint whose model has them
    works: CLIP, SigLIP, SigLIP 2 (NaFlex models too, on square images), MetaCLIP 2, ChineseCLIP, AltCLIP, ALIGN, ...

    Args:
        pretrained: Checkpoint folder or hub name, for example ``openai/clip-vit-base-patch32``.
        config: Instead of ``pretrained``: sizes of a new :class:`transformers.CLIPConfig` (``projection_dim``,
            ``text_config``, ``vision_config``) with random weights.
        vocabulary: With ``config``: the words of its tokenizer
            (see :func:`~mimic_pl.encoders.wordpiece.build_tokenizer`).
        text_length: Tokens per text: by default 40, as published. A model that was trained on texts padded to one
            length, of which it pools the last position, has that length by default (SigLIP: 64). With any other length
            it pools a position that it was not trained to pool: its text embeddings are poor until it is trained.
        image_dim: Width of the image features after projection (the paper's d_V).
        image_resize: ``square`` as published, or the interpolation and crop of the ``model`` (see
            :data:`~mimic_pl.encoders.image_preprocessing.ImageResize`).
        freeze: Freeze the towers; the projections are still trained.
        frozen_features: Folder that caches the outputs of frozen towers, so that each record is encoded once: ``auto``
            for the user's cache folder, ``None`` for no cache.
        gradient_checkpointing: Recompute the towers' activations in the backward pass to save memory.
        load_weights: Load the weights of ``pretrained``. If not, they are random, and only its configuration, tokenizer
            and image preprocessing are used: for weights that come from elsewhere, as those of an exported model.

    Raises:
        ConfigError: Both or neither of ``pretrained`` and ``config`` are given, ``text_length`` exceeds the model's
            positions, or the model is not a dual encoder.

    Example:
        >>> encoder = CLIPEncoder("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> features = encoder(input_ids=ids, attention_mask=mask, pixel_values=pixels)  # doctest: +SKIP
    """

    @in_range(text_length=COUNT, image_dim=COUNT, image_resize=one_of(ImageResize))
    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        vocabulary: list[str] | None = None,
        text_length: int | None = None,
        image_dim: int = 96,
        freeze: bool = False,
        gradient_checkpointing: bool = False,
        frozen_features: str | None = "auto",
        image_resize: ImageResize = "square",
        load_weights: bool = True,
    ) -> None:
        super().__init__(freeze, frozen_features)
        require_one_start(pretrained, config, "CLIPEncoder")
        self.pretrained = pretrained
        self.image_resize: ImageResize = image_resize
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if pretrained is not None:
            self.started_from = (pretrained,) if load_weights else ()
            if vocabulary is not None:
                raise ConfigError("CLIPEncoder: 'vocabulary' needs 'config'; a checkpoint has its own tokenizer.")
            self.clip = load_tower(pretrained, "dual encoder", load_weights)
        else:
            self.tokenizer = build_tokenizer(vocabulary or [])
            with building("CLIPEncoder's config"):
                self.clip = CLIPModel(_clip_config(config or {}, self.tokenizer, text_length or PUBLISHED_LENGTH))
            self.clip.train(False)

        # The configurations name the widths differently, so they are those of a forward pass.
        text = self._probe_text(text_length)
        side = image_size(self.clip) or _ANY_SIZE
        with torch.no_grad():
            image = self._vision_tower(torch.zeros(1, 3, side, side))
        text_width, text_dim = text["tokens"].shape[-1], text["pooled"].shape[-1]
        self.text_local: nn.Module = nn.Identity() if text_width == text_dim else nn.Linear(text_width, text_dim)
        self.image_global = nn.Linear(image["pooled"].shape[-1], image_dim)
        self.image_local = nn.Linear(image["tokens"].shape[-1], image_dim)

        self.dims = FeatureDims(text_dim, image_dim, text_dim, image["pooled"].shape[-1])
        if gradient_checkpointing:
            self.clip.activation_checkpointing_enable()
        # MIMIC does not use the scale and bias of the contrastive logits; DDP would wait for their gradients.
        for name, parameter in self.clip.named_parameters():
            if name in ("logit_scale", "logit_bias"):
                parameter.requires_grad_(False)
        self.add_towers(self.clip)

    def build_tokenizer(self) -> TextTokenizer:
        """The checkpoint's tokenizer; see :meth:`Encoder.build_tokenizer`."""
        vocabulary_size = getattr(self.clip.config.text_config, "vocab_size", None)
        return TextTokenizer(self._own_tokenizer(), self.text_length, vocabulary_size)

    def build_image_processor(self) -> ImageProcessor:
        """The checkpoint's image size and statistics; see :meth:`Encoder.build_image_processor`."""
        processor = self._own_image_processor()
        with loading(f"The image processor of {self.pretrained or 'CLIP'}"):
            return transformers_preprocessing(processor, image_size(self.clip), self.image_resize)

    def save_config(self, folder: Path) -> None:
        """Write a checkpoint in transformers' format without weights; see :meth:`Encoder.save_config`."""
        save_model_config(self.clip.config, folder)
        save_tokenizer(self._own_tokenizer(), folder)
        self._own_image_processor().save_pretrained(folder)

    @classmethod
    def config_arguments(cls, folder: Path) -> dict[str, Any]:
        """The folder in place of a checkpoint or of sizes; see :meth:`Encoder.config_arguments`."""
        return {"pretrained": str(folder), "load_weights": False, "config": None, "vocabulary": None}

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, image_key: Tensor | None = None
    ) -> Features:
        """Encode one side; see :meth:`Encoder.forward`."""
        if self.reads_padding and input_ids.shape[1] != self.text_length:
            raise ConfigError(
                f"The text tower pools the last of {self.text_length} positions, but these texts are padded to "
                f"{input_ids.shape[1]} tokens. Pad them with the encoder's tokenizer, and do not cut them."
            )
        tokens = (input_ids,) if self.reads_padding else (input_ids, attention_mask)
        text_key = None if image_key is None else torch.cat(tokens, dim=1)
        text = self.run_tower("text", self._text_tower, tokens, text_key)
        image = self.run_tower("vision", self._vision_tower, (pixel_values,), image_key)
        pooled_text, pooled_image = (nn.functional.normalize(side["pooled"], dim=-1) for side in (text, image))
        return Features(
            text_global=pooled_text,
            text_local=self.text_local(text["tokens"]),
            image_global=self.image_global(pooled_image),
            image_local=self.image_local(image["tokens"]),
            text_mask=attention_mask,
            extra={TEXT_PRETRAINED: pooled_text, IMAGE_PRETRAINED: pooled_image},
        )

    def _own_tokenizer(self) -> PreTrainedTokenizerBase:
        return self.tokenizer or load_tokenizer(str(self.pretrained))

    def _own_image_processor(self) -> Any:
        if self.pretrained is not None:
            return load_image_processor(self.pretrained)
        size = image_size(self.clip)
        return CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size=size)

    def _text_tower(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        return text_outputs(self.clip, input_ids, attention_mask)

    def _vision_tower(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return image_outputs(self.clip, pixel_values)

    def _probe_text(self, text_length: int | None) -> dict[str, Tensor]:
        """Set the text length, given or the model's own, and return the text tower's outputs for one such text."""
        name = self.pretrained or "this text tower"
        probe = TextProbe(self._text_tower, self.clip.config.text_config, name)
        self.reads_padding = probe.pools_padding()
        trained = probe.positions if self.reads_padding else None
        self.text_length = PUBLISHED_LENGTH if text_length is None else text_length
        if trained is not None and text_length is None:
            self.text_length = trained
        outputs = probe.outputs(self.text_length)
        if trained not in (None, self.text_length):
            _log.warning(
                f"{name} was trained on texts padded to {trained} tokens, of which it pools the last, but text_length "
                f"is {text_length}: its text embeddings differ from those it was trained to produce. For "
                f"those, omit text_length, or set it to {trained}."
            )
        return outputs


def _clip_config(sizes: dict[str, Any], tokenizer: PreTrainedTokenizerBase, text_length: int) -> CLIPConfig:
    """Configuration of a new CLIP whose text tower fits the tokenizer."""
    unknown = set(sizes) - {"projection_dim", "text_config", "vision_config"}
    if unknown:
        raise ConfigError(
            f"CLIPEncoder's config has unknown keys {sorted(unknown)}; it takes projection_dim, text_config and "
            "vision_config (the fields of transformers' CLIPTextConfig and CLIPVisionConfig)."
        )
    text = {"max_position_embeddings": text_length, **sizes.get("text_config", {})}
    text |= {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    return CLIPConfig(**{**sizes, "text_config": text})
