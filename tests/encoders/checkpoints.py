"""Small checkpoints of dual encoders in the hub's format, with a tokenizer and an image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPImageProcessorPil,
    EfficientNetImageProcessorPil,
    PreTrainedTokenizerFast,
    Siglip2ImageProcessorPil,
    Siglip2Tokenizer,
    SiglipImageProcessorPil,
)

from mimic_pl.encoders.wordpiece import build_tokenizer

WORDS = ["jaguar", "car", "cat", "sep", "fast"]
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TEXT, "hidden_size": 24, "image_size": 32, "patch_size": 8}
MEAN, STD = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
SIGLIP_LENGTH = 20
"""Positions of the SigLIP models here (64 in the published ones)."""

_PATCHES = {**{name: size for name, size in VISION.items() if name != "image_size"}, "num_patches": 16}
_JOINT: dict[str, Any] = {"projection_dim": 16, "vision_config": VISION}
_BLOCKS = {"kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 20], "strides": [1, 2]}

CONFIGS: dict[str, dict[str, Any]] = {
    "clip": _JOINT,
    "siglip": {"vision_config": VISION, "text_config": {"projection_size": 24}},
    "siglip2": {"vision_config": _PATCHES, "text_config": {"projection_size": 24}},  # NaFlex
    "metaclip_2": _JOINT,
    "chinese_clip": _JOINT,
    "altclip": {**_JOINT, "text_config": {"project_dim": 16, "max_position_embeddings": 44, "pad_token_id": 0}},
    "clipseg": _JOINT,
    "groupvit": {
        **_JOINT,
        "projection_intermediate_dim": 16,
        "vision_config": {
            **{**VISION, "num_hidden_layers": 4, "depths": [2, 1, 1]},
            "num_group_tokens": [8, 4, 0],
            "num_output_groups": [8, 4, 4],
        },
    },
    "owlvit": {**_JOINT, "text_config": {"max_position_embeddings": 16}},
    "owlv2": {**_JOINT, "text_config": {"max_position_embeddings": 16}},
    "align": {
        "projection_dim": 16,
        "vision_config": {
            **{**_BLOCKS, "image_size": 32, "num_block_repeats": [1, 1], "expand_ratios": [1, 6]},
            **{"depthwise_padding": [], "hidden_dim": 40},
        },
    },
    "flava": {
        **{"projection_dim": 16, "hidden_size": 16, "image_config": VISION, "multimodal_config": TEXT},
        "image_codebook_config": {"hidden_size": 8, "num_groups": 1, "vocab_size": 8},
    },
    "blip": {**_JOINT, "text_config": {"projection_dim": 16, "encoder_hidden_size": 24}},
    "aimv2": _JOINT,
    "tipsv2": {"vision_config": {**VISION, "hidden_size": 16}},
    "vision-text-dual-encoder": {
        "projection_dim": 16,
        "text_config": {"model_type": "bert"},
        "vision_config": {"model_type": "vit", **VISION},
    },
}
"""Configurations by model type, to be completed by the tokenizer's sizes."""


def save(kind: str, folder: Path) -> Path:
    """Save a checkpoint with random weights."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(kind)
    tokenizer.save_pretrained(folder)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    positions = SIGLIP_LENGTH if kind.startswith("siglip") else 44
    given = CONFIGS[kind]
    text = {**TEXT, **ids, "max_position_embeddings": positions, **given.get("text_config", {})}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**given, "text_config": text}))
    model.save_pretrained(folder)
    _image_processor(kind).save_pretrained(folder)
    return folder


def _tokenizer(kind: str) -> Any:
    if kind == "siglip2":  # Gemma's, which pads on the left by default, and has no mask by the hub's configuration
        words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *(chr(code) for code in range(33, 127))]
        return Siglip2Tokenizer({word: id_ for id_, word in enumerate(words)}, [], model_input_names=["input_ids"])
    if kind == "siglip":  # pads with the end token, and returns no mask
        words = ["[UNK]", "</s>", "[", "]", *WORDS, "a"]
        plain = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token="[UNK]"))
        plain.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        plain.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
        special = {"unk_token": "[UNK]", "pad_token": "</s>", "eos_token": "</s>"}
        return PreTrainedTokenizerFast(tokenizer_object=plain, model_input_names=["input_ids"], **special)
    return build_tokenizer(WORDS)


def _image_processor(kind: str) -> Any:
    statistics = {"image_mean": MEAN, "image_std": STD}
    if kind == "siglip":
        return SiglipImageProcessorPil(size={"height": 32, "width": 32}, **statistics)
    if kind == "siglip2":
        return Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16, **statistics)
    if kind == "align":  # values from -1 to 1 without a normalisation
        size = {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}
        scale = {"rescale_factor": 1 / 127.5, "rescale_offset": True, "do_normalize": False}
        return EfficientNetImageProcessorPil(**size, **scale)
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, **statistics)
