"""CLIP-like dual encoders from transformers (the published model's encoder)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerBase
from transformers.utils.constants import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from mimic_pl.encoders.base import Encoder
from mimic_pl.encoders.pretrained import image_statistics, load_tokenizer, load_tower, require_one_start
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims, Features
from mimic_pl.processor import ImageProcessor, TextTokenizer
from mimic_pl.ranges import COUNT, in_range


class CLIPEncoder(Encoder):
    """A CLIP-like dual encoder with pooled embeddings and hidden states of both towers (paper section 3.2).

    Text features are the normalised text embedding and the last hidden states; image features are linear projections
    of the normalised image embedding and of the last hidden states, including CLS. Any checkpoint whose model has
    ``get_text_features`` and ``get_image_features`` works (CLIP, SigLIP, ...).

    Args:
        pretrained: Checkpoint folder or hub name, for example ``openai/clip-vit-base-patch32``.
        config: Instead of ``pretrained``: sizes of a new :class:`transformers.CLIPConfig` (``projection_dim``,
            ``text_config``, ``vision_config``) with random weights.
        vocabulary: With ``config``: the words of its tokenizer
            (see :func:`~mimic_pl.encoders.wordpiece.build_tokenizer`).
        text_length: Tokens per text.
        image_dim: Width of the image features after projection (the paper's d_V).
        freeze: Freeze the towers; the projections are still trained.
        frozen_features: Folder that caches the outputs of frozen towers, so that each record is encoded once: ``auto``
            for the user's cache folder, ``None`` for no cache.
        gradient_checkpointing: Recompute the towers' activations in the backward pass to save memory.

    Raises:
        ConfigError: Both or neither of ``pretrained`` and ``config`` are given, or ``text_length`` exceeds the model's
            positions.

    Example:
        >>> encoder = CLIPEncoder("openai/clip-vit-base-patch32")  # doctest: +SKIP
        >>> features = encoder(input_ids=ids, attention_mask=mask, pixel_values=pixels)  # doctest: +SKIP
    """

    @in_range(text_length=COUNT, image_dim=COUNT)
    def __init__(
        self,
        pretrained: str | None = None,
        config: dict[str, Any] | None = None,
        vocabulary: list[str] | None = None,
        text_length: int = 40,
        image_dim: int = 96,
        freeze: bool = False,
        gradient_checkpointing: bool = False,
        frozen_features: str | None = "auto",
    ) -> None:
        super().__init__(freeze, frozen_features)
        require_one_start(pretrained, config, "CLIPEncoder")
        self.pretrained = pretrained
        self.text_length = text_length
        self.tokenizer: PreTrainedTokenizerBase | None = None
        if pretrained is not None:
            if vocabulary is not None:
                raise ConfigError("CLIPEncoder: 'vocabulary' needs 'config'; a checkpoint has its own tokenizer.")
            self.clip = load_tower(pretrained)
        else:
            self.tokenizer = build_tokenizer(vocabulary or [])
            self.clip = CLIPModel(_clip_config(config or {}, self.tokenizer, text_length))

        text, vision = self.clip.config.text_config, self.clip.config.vision_config
        if text_length > text.max_position_embeddings:
            raise ConfigError(
                f"text_length is {text_length}, but this text tower has only {text.max_position_embeddings} positions. "
                "Lower text_length or choose another checkpoint."
            )
        # CLIP projects both pooled embeddings to the same width; SigLIP projects only the text embedding.
        joint = getattr(self.clip.config, "projection_dim", None)
        text_dim = joint or getattr(text, "projection_size", None) or text.hidden_size
        image_global_dim = joint or vision.hidden_size
        self.text_local: nn.Module = (
            nn.Identity() if text.hidden_size == text_dim else nn.Linear(text.hidden_size, text_dim)
        )
        self.image_global = nn.Linear(image_global_dim, image_dim)
        self.image_local = nn.Linear(vision.hidden_size, image_dim)

        self.dims = FeatureDims(text_dim, image_dim)
        if gradient_checkpointing:
            self.clip.activation_checkpointing_enable()
        # MIMIC does not use the scale and bias of the contrastive logits; DDP would wait for their gradients.
        for name, parameter in self.clip.named_parameters():
            if name in ("logit_scale", "logit_bias"):
                parameter.requires_grad_(False)
        self.add_towers(self.clip)

    def build_tokenizer(self) -> TextTokenizer:
        """The checkpoint's tokenizer; see :meth:`Encoder.build_tokenizer`."""
        return TextTokenizer(self.tokenizer or load_tokenizer(str(self.pretrained)), self.text_length)

    def build_image_processor(self) -> ImageProcessor:
        """The checkpoint's image size and statistics; see :meth:`Encoder.build_image_processor`."""
        size = self.clip.config.vision_config.image_size
        if self.pretrained is None:
            return ImageProcessor(size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
        return ImageProcessor(size, *image_statistics(self.pretrained))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor, image_key: Tensor | None = None
    ) -> Features:
        """Encode one side; see :meth:`Encoder.forward`."""
        text_key = None if image_key is None else torch.cat([input_ids, attention_mask], dim=1)
        text = self.run_tower("text", self._text_tower, (input_ids, attention_mask), text_key)
        image = self.run_tower("vision", self._vision_tower, (pixel_values,), image_key)
        return Features(
            text_global=nn.functional.normalize(text["pooled"], dim=-1),
            text_local=self.text_local(text["tokens"]),
            image_global=self.image_global(nn.functional.normalize(image["pooled"], dim=-1)),
            image_local=self.image_local(image["tokens"]),
            text_mask=attention_mask,
        )

    def _text_tower(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        text = self.clip.get_text_features(input_ids=input_ids, attention_mask=attention_mask)
        return {"pooled": text.pooler_output, "tokens": text.last_hidden_state}

    def _vision_tower(self, pixel_values: Tensor) -> dict[str, Tensor]:
        image = self.clip.get_image_features(pixel_values=pixel_values)
        return {"pooled": image.pooler_output, "tokens": image.last_hidden_state}


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
