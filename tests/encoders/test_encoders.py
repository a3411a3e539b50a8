"""Encoders on small checkpoints created by the tests, against calling the towers directly."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPImageProcessor, CLIPModel

from mimic_pl.encoders import CLIPEncoder, TextVisionEncoder
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import CheckpointError, ConfigError

WORDS = ["jaguar", "car", "cat", "sep", "fast"]
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
THIRDS_OF_8 = ((0, 3), (2, 6), (5, 8))
"""Overlapping thirds, as torch's adaptive pooling divides."""
VISION = {**TEXT, "hidden_size": 24, "image_size": 32, "patch_size": 8}
CLIP_SIZES = {"projection_dim": 16, "text_config": TEXT, "vision_config": VISION}
BERT = {"model_type": "bert", **TEXT, "max_position_embeddings": 40}


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    """A CLIP folder as `from_pretrained` expects it, its weights stored in half precision."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(folder)
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    sizes = {**CLIP_SIZES, "text_config": {**TEXT, **ids, "max_position_embeddings": 12}}
    CLIPModel(CLIPConfig(**sizes)).to(torch.float16).save_pretrained(folder)
    CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = build_tokenizer(WORDS)
    tokenizer.save_pretrained(folder)
    sizes = {key: value for key, value in BERT.items() if key != "model_type"}
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    return str(folder)


def encode(encoder, texts=("jaguar [SEP] a fast car", "cat"), seed=0):
    torch.manual_seed(seed)
    ids, mask = encoder.build_tokenizer()(list(texts))
    size = encoder.build_image_processor().image_size
    return encoder(input_ids=ids, attention_mask=mask, pixel_values=torch.randn(len(texts), 3, size, size)), ids, mask


def test_clip_features_are_those_of_the_checkpoint(clip_checkpoint):
    encoder = CLIPEncoder(clip_checkpoint, text_length=12, image_dim=10)
    encoder.eval()
    features, ids, mask = encode(encoder)
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 32, 32)
    clip = CLIPModel.from_pretrained(clip_checkpoint, dtype=torch.float32).eval()
    output = clip(input_ids=ids, attention_mask=mask, pixel_values=pixels)
    torch.testing.assert_close(features.text_global, output.text_embeds)
    torch.testing.assert_close(features.text_local, output.text_model_output.last_hidden_state)
    torch.testing.assert_close(features.image_global, encoder.image_global(output.image_embeds))
    image_tokens = output.vision_model_output.last_hidden_state
    assert image_tokens.shape[1] == 17, "CLS and 4 x 4 patches"
    torch.testing.assert_close(features.image_local, encoder.image_local(image_tokens))
    assert features.dims == encoder.dims == (16, 10, 16, 16)
    torch.testing.assert_close(features.extra["text_pretrained"], output.text_embeds)
    torch.testing.assert_close(features.extra["image_pretrained"], output.image_embeds)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_preprocessing_comes_from_the_checkpoint(clip_checkpoint):
    encoder = CLIPEncoder(clip_checkpoint, text_length=12)
    tokenizer, images = encoder.build_tokenizer(), encoder.build_image_processor()
    ids, mask = tokenizer(["jaguar car"])
    theirs = AutoTokenizer.from_pretrained(clip_checkpoint)(["jaguar car"], padding="max_length", max_length=12)
    assert ids.tolist() == theirs["input_ids"]
    assert mask.tolist() == theirs["attention_mask"]

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    pixels = images.pixels(image)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)
    processor = CLIPImageProcessor.from_pretrained(clip_checkpoint)
    square = image.resize((32, 32), Image.Resampling.LANCZOS)
    expected = processor(square, do_resize=False, do_center_crop=False, return_tensors="pt")["pixel_values"]
    normalized = images.normalize(pixels[None].repeat(2, 1, 1, 1), torch.tensor([True, False]))
    torch.testing.assert_close(normalized[:1], expected, rtol=1e-5, atol=1e-5)
    assert normalized[1].abs().max() == 0, "a missing image is zeros after normalisation"


def test_text_is_truncated_and_padded_to_its_length(clip_checkpoint):
    tokenizer = CLIPEncoder(clip_checkpoint, text_length=6).build_tokenizer()
    ids, mask = tokenizer(["jaguar " * 20, ""])
    assert ids.shape == mask.shape == (2, 6)
    assert ids[0, -1] == tokenizer.tokenizer.eos_token_id, "a truncated text still ends in its end token"
    assert mask.sum(dim=1).tolist() == [6, 2]


def test_clip_from_a_config_needs_no_files_and_splits_unknown_words():
    encoder = CLIPEncoder(config=CLIP_SIZES, vocabulary=WORDS, text_length=20, image_dim=10)
    tokenizer = encoder.build_tokenizer().tokenizer
    assert tokenizer.tokenize("Jaguar [SEP] zeb!") == ["jaguar", "[", "sep", "]", "z", "##e", "##b", "!"]
    features, _, _ = encode(encoder)
    other, _, _ = encode(encoder, texts=("jaguar [SEP] a fast cat", "cat"))
    assert not torch.allclose(features.text_global[0], other.text_global[0], atol=1e-3), "the end token sees the text"
    assert torch.equal(features.text_global[1], other.text_global[1])


def test_text_vision_features_are_those_of_the_towers(bert_checkpoint):
    encoder = TextVisionEncoder(
        text=bert_checkpoint, vision="resnet10t", vision_pretrained=False, text_length=12, image_dim=10
    ).eval()
    features, ids, mask = encode(encoder)
    tokens = BertModel.from_pretrained(bert_checkpoint).eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(features.text_local, tokens)
    torch.testing.assert_close(features.text_global, tokens[:, 0])

    torch.manual_seed(0)
    size = encoder.build_image_processor().image_size
    feature_map = encoder.vision.forward_features(torch.randn(2, 3, size, size))  # [batch, channels, height, width]
    patch = encoder.image_local(feature_map[:, :, 1, 2])
    torch.testing.assert_close(features.image_local[:, 1 * feature_map.shape[-1] + 2], patch)
    torch.testing.assert_close(features.image_global, encoder.image_global(feature_map.mean(dim=(2, 3))))


def test_stages_are_the_maps_of_the_vision_model_averaged_over_a_grid():
    encoder = TextVisionEncoder(
        text_config=BERT, vocabulary=WORDS, vision="resnet10t", vision_pretrained=False, image_size=64,
        image_stages=[2, 4], image_grid=3,
    ).eval()  # fmt: skip
    pixels, maps = torch.randn(2, 3, 64, 64), []
    for layer in (encoder.vision.layer2, encoder.vision.layer4):
        layer.register_forward_hook(lambda _, __, output: maps.append(output))
    ids = torch.ones(2, 12, dtype=torch.int64)
    features = encoder(ids, ids, pixels)
    early, last = maps  # 8 x 8 and 2 x 2
    cells = [early[:, :, a:b, c:d].mean(dim=(2, 3)) for a, b in THIRDS_OF_8 for c, d in THIRDS_OF_8]
    parts = [last.mean(dim=(2, 3)), torch.stack(cells, dim=2).flatten(1), last.flatten(1)]
    expected = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], dim=1)
    torch.testing.assert_close(features.extra["image_pretrained"], expected)
    assert features.dims == encoder.dims

    plain = TextVisionEncoder(text_config=BERT, vocabulary=WORDS, vision="resnet10t", vision_pretrained=False).eval()
    plain.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(plain(ids, ids, pixels).image_local, features.image_local)


def test_a_stage_that_the_vision_model_does_not_have_is_an_error():
    with pytest.raises(ConfigError, match=r"image_stages \[7\]"):
        TextVisionEncoder(
            text_config=BERT, vocabulary=WORDS, vision="resnet10t", vision_pretrained=False, image_stages=[7]
        )


def test_mean_pooling_ignores_padding(bert_checkpoint):
    arguments = {"text": bert_checkpoint, "vision": "resnet10t", "vision_pretrained": False, "text_pooling": "mean"}
    short, long = (TextVisionEncoder(**arguments, text_length=n).eval() for n in (10, 30))
    torch.testing.assert_close(encode(short)[0].text_global, encode(long)[0].text_global, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("vision", "vision_args", "tokens"),
    [
        ("vit_tiny_patch16_224", {"img_size": 64}, 17),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "depths": (1, 1, 1, 1)}, 4),
    ],
)
def test_any_timm_layout_yields_tokens(vision, vision_args, tokens):
    encoder = TextVisionEncoder(
        text_config=BERT, vocabulary=WORDS, vision=vision, vision_pretrained=False, vision_args=vision_args, text_dim=20
    )
    features, _, _ = encode(encoder)
    assert encoder.build_image_processor().image_size == 64
    assert features.image_local.shape == (2, tokens, 96)
    assert features.dims[:2] == encoder.dims[:2] == (20, 96)
    assert features.dims == encoder.dims


def make(kind, **options):
    if kind == "clip":
        return CLIPEncoder(config=CLIP_SIZES, vocabulary=WORDS, text_length=12, **options)
    return TextVisionEncoder(
        text_config=BERT,
        vocabulary=WORDS,
        vision="vit_tiny_patch16_224",
        vision_pretrained=False,
        vision_args={"img_size": 32, "depth": 2},
        text_length=12,
        **options,
    )


def gradients(encoder):
    features, _, _ = encode(encoder)
    sum(field.float().square().sum() for field in features[:4]).backward()
    return {name: p.grad for name, p in encoder.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["clip", "text_vision"])
def test_every_trainable_parameter_gets_a_gradient(kind):
    """A parameter without one makes DDP complain."""
    missing = [name for name, gradient in gradients(make(kind)).items() if gradient is None]
    assert missing == []


@pytest.mark.parametrize("kind", ["clip", "text_vision"])
def test_a_frozen_encoder_trains_its_projections_only(kind):
    encoder = make(kind, freeze=True)
    trained = {name for name, gradient in gradients(encoder).items() if gradient is not None}
    assert trained == {f"image_{what}.{part}" for what in ("global", "local") for part in ("weight", "bias")}
    encoder.train()
    towers = [encoder.clip] if kind == "clip" else [encoder.text, encoder.vision]
    assert encoder.training
    assert not any(tower.training for tower in towers), "dropout stays off in frozen towers"


@pytest.mark.parametrize("kind", ["clip", "text_vision"])
def test_gradient_checkpointing_changes_no_gradient(kind):
    plain, saving = make(kind), make(kind, gradient_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    for encoder in (plain, saving):
        for module in encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    expected = gradients(plain)
    for name, gradient in gradients(saving).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


def test_a_new_encoder_is_in_training_mode(clip_checkpoint):
    """transformers returns models in evaluation mode, which would disable dropout in fit."""
    assert all(module.training for module in CLIPEncoder(clip_checkpoint, text_length=12).modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"pretrained": "a/b", "config": CLIP_SIZES}, "exactly one"),
        ({"pretrained": "./no/such/folder"}, "does not exist"),
        ({"config": {"projection": 3}}, "unknown keys"),
        ({"config": {"text_config": {**TEXT, "max_position_embeddings": 10}, "vision_config": VISION}}, "10 positions"),
    ],
)
def test_invalid_configurations_say_what_to_do(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CLIPEncoder(**arguments)


@pytest.mark.parametrize(
    ("vision", "arguments", "message"),
    [("vit_tiny_patch16_225", {}, "vit_tiny_patch16_224"), ("resnet10t", {"no_such": 1}, "no_such")],
)
def test_an_unknown_vision_model_or_argument_is_named(vision, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TextVisionEncoder(
            text_config=BERT, vocabulary=WORDS, vision=vision, vision_pretrained=False, vision_args=arguments
        )


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_damaged_weights_are_a_checkpoint_error(clip_checkpoint, tmp_path, damage):
    folder = tmp_path / "clip"
    shutil.copytree(clip_checkpoint, folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(CheckpointError, match="damaged"):
        CLIPEncoder(str(folder), text_length=12)


def test_a_folder_that_is_not_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="config.json"):
        CLIPEncoder(str(tmp_path))


def test_a_checkpoint_without_a_tokenizer_encodes_prepared_inputs_only(tmp_path):
    sizes = {**CLIP_SIZES, "text_config": {**TEXT, "vocab_size": 50, "max_position_embeddings": 12}}
    CLIPModel(CLIPConfig(**sizes)).save_pretrained(tmp_path)
    encoder = CLIPEncoder(str(tmp_path), text_length=12)
    ids = torch.randint(3, 40, (2, 12))
    assert encoder(ids, torch.ones_like(ids), torch.zeros(2, 3, 32, 32)).text_global.shape == (2, 16)
    with pytest.raises(ConfigError, match="tokenizer"):
        encoder.build_tokenizer()
        encoder.build_image_processor()


def test_a_siglip_checkpoint_is_a_dual_encoder_too(tmp_path):
    from transformers import SiglipConfig, SiglipModel

    config = SiglipConfig(
        text_config={**TEXT, "vocab_size": 50, "max_position_embeddings": 12, "projection_size": 24},
        vision_config={**VISION, "hidden_size": 24},
    )
    SiglipModel(config).save_pretrained(tmp_path)
    encoder = CLIPEncoder(str(tmp_path), text_length=12, image_dim=10)
    ids = torch.randint(3, 40, (2, 12))
    features = encoder(ids, torch.ones_like(ids), torch.zeros(2, 3, 32, 32))
    assert features.dims == encoder.dims
    assert features.text_local.shape == (2, 12, encoder.dims.text)
