"""Images resized as the model was trained, against transformers' and timm's own preprocessing."""

import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from transformers import AutoImageProcessor

from mimic_pl import MIMIC, Processor
from mimic_pl.encoders import CLIPEncoder, TextVisionEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.processor.decoding import fingerprint
from tests.encoders.checkpoints import MEAN, STD, TEXT, WORDS, save

SHAPES = [(50, 70), (70, 50), (40, 40), (33, 200), (20, 30)]


def noise(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((shape[1] * 2, shape[0] * 2), Image.Resampling.BICUBIC)


def preprocessed(encoder, image):
    processor = pickle.loads(pickle.dumps(encoder.build_image_processor()))  # as in a loader process
    return processor.normalize(processor.pixels(image)[None], torch.tensor([True]))[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["clip", "siglip", "align"])
def test_the_resizing_of_transformers(tmp_path_factory, kind, shape):
    folder = save(kind, tmp_path_factory.mktemp(kind))
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")(noise(shape), return_tensors="pt")
    ours = preprocessed(CLIPEncoder(str(folder), image_resize="model"), noise(shape))
    torch.testing.assert_close(ours, theirs["pixel_values"][0].float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("vision", "args"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64, "depth": 1}),  # bicubic, 0.9
        ("test_resnet", {}),
        ("test_vit", {"pretrained_cfg_overlay": {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}}),
        ("test_vit2", {"pretrained_cfg_overlay": {"crop_mode": "border", "crop_pct": 0.8}}),
    ],
)
def test_the_resizing_of_timm(vision, args, shape):
    encoder = TextVisionEncoder(
        text_config={"model_type": "bert", **TEXT, "max_position_embeddings": 40},
        **{"vocabulary": WORDS, "vision": vision, "vision_pretrained": False, "vision_args": args},
        image_resize="model",
    )
    model = timm.create_model(vision, pretrained=False, **args)
    settings = resolve_data_config({"img_size": args.get("img_size")}, model=model)
    theirs = create_transform(**settings, is_training=False)(noise(shape))
    torch.testing.assert_close(preprocessed(encoder, noise(shape)), theirs, rtol=1e-5, atol=1e-5)


def test_the_default_is_the_published_square_and_has_another_cache(tmp_path):
    folder = save("clip", tmp_path)
    square, own = (CLIPEncoder(str(folder), **options) for options in ({}, {"image_resize": "model"}))
    image = noise((50, 70))
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS), np.float32).transpose(2, 0, 1) / 255
    expected = (pixels - np.reshape(MEAN, (3, 1, 1))) / np.reshape(STD, (3, 1, 1))
    assert np.abs(preprocessed(square, image).numpy() - expected).max() < 1e-5
    prints = {fingerprint(encoder.build_image_processor(), reduced=False) for encoder in (square, own)}
    assert len(prints) == 2


def test_a_model_whose_own_preprocessing_gives_no_squares(tmp_path):
    """NaFlex keeps the aspect ratio, so that images have different shapes."""
    encoder = CLIPEncoder(str(save("siglip2", tmp_path)), image_resize="model")
    with pytest.raises(ConfigError, match="Set image_resize to 'square'"):
        encoder.build_image_processor()


def test_an_index_depends_on_the_resizing(tmp_path):
    folder = save("clip", tmp_path)
    described = [
        MIMIC(CLIPEncoder(str(folder), **options)).processor.describe()["image resizing"]
        for options in ({}, {"image_resize": "model"})
    ]
    assert described == [Processor().describe()["image resizing"], "as the model was trained"]
