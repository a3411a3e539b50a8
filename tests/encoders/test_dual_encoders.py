"""The global features of every dual encoder of transformers are the model's own embeddings."""

import logging
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.units import TGLU
from tests.encoders.checkpoints import CONFIGS, SIGLIP_LENGTH, save
from tests.training import UNITS, make_trainer

TEXTS = ["jaguar [SEP] a fast car", "cat", ""]
PADDED = [kind for kind in CONFIGS if kind.startswith("siglip")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folders = {}

    def saved(kind):
        if kind not in folders:
            folders[kind] = str(save(kind, tmp_path_factory.mktemp(kind)))
        return folders[kind]

    return saved


def images(seed=0, size=(3, 50, 70, 3)):
    return [Image.fromarray(rows) for rows in np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)]


def encode(encoder, texts, images):
    ids, mask = encoder.build_tokenizer()(texts)
    processor = encoder.build_image_processor()
    pixels = torch.stack([processor.pixels(image) for image in images])
    values = processor.normalize(pixels, torch.ones(len(pixels), dtype=torch.bool))
    with torch.no_grad():
        return encoder.eval()(ids, mask, values)


def first(pooled):
    return pooled[:, 0] if pooled.ndim == 3 else pooled  # FLAVA's own comparison of texts and images takes the first


@pytest.mark.parametrize("kind", CONFIGS)
def test_global_features_are_the_models_own_embeddings(checkpoints, kind):
    folder = checkpoints(kind)
    length = {"owlvit": 16, "owlv2": 16}.get(kind)
    encoder = CLIPEncoder(folder, text_length=length, image_dim=10)
    features = encode(encoder, TEXTS, images())
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert encoder.text_length == (length or (SIGLIP_LENGTH if kind in PADDED else 40))
    # As the model's page says: with what its tokenizer returns by default.
    padded = {"padding": "max_length", "padding_side": "right", "truncation": True}
    inputs = tokenizer(TEXTS, **padded, max_length=encoder.text_length, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    assert ("attention_mask" in inputs) == (kind not in PADDED)
    # Their image processor on squares, since images are resized to squares by default.
    size = encoder.build_image_processor().image_size
    squares = [image.resize((size, size), Image.Resampling.LANCZOS) for image in images()]
    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    resized = {} if kind == "siglip2" else {"do_resize": False, "do_center_crop": False}
    resized_images = processor(squares, return_tensors="pt", **resized)
    with torch.no_grad():
        text, image = model.get_text_features(**inputs), model.get_image_features(**resized_images)
    torch.testing.assert_close(features.text_global, normalize(first(text.pooler_output), dim=-1))
    expected = encoder.image_global(normalize(first(image.pooler_output), dim=-1))
    torch.testing.assert_close(features.image_global, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.text_local, encoder.text_local(text.last_hidden_state))
    tokens = image.last_hidden_state
    tokens = tokens.flatten(2).transpose(1, 2) if tokens.ndim == 4 else tokens
    torch.testing.assert_close(features.image_local, encoder.image_local(tokens), rtol=1e-4, atol=1e-5)
    assert features.dims == encoder.dims


def test_images_of_a_siglip_have_no_cls_token(checkpoints):
    shapes = {
        kind: encode(CLIPEncoder(checkpoints(kind)), ["cat"], images()[:1]).image_local.shape
        for kind in ("clip", "siglip", "siglip2")
    }
    assert shapes == {"clip": (1, 17, 96), "siglip": (1, 16, 96), "siglip2": (1, 16, 96)}


@pytest.mark.parametrize("kind", PADDED)
def test_the_mask_shows_the_real_tokens_although_the_tower_reads_padding(checkpoints, kind):
    encoder = CLIPEncoder(checkpoints(kind))
    ids, mask = encoder.build_tokenizer()(["cat", "a fast car"])
    real = AutoTokenizer.from_pretrained(checkpoints(kind))(["cat", "a fast car"])["input_ids"]
    assert mask.sum(dim=1).tolist() == [len(own) for own in real]
    assert [row[: len(own)] for row, own in zip(ids.tolist(), real, strict=True)] == real
    features = encode(encoder, ["cat", "a fast car"], images()[:2])
    assert torch.equal(features.text_mask, mask)


@pytest.mark.parametrize("kind", PADDED)
def test_another_text_length_logs_a_warning(checkpoints, kind, caplog):
    with caplog.at_level(logging.WARNING):
        encoder = CLIPEncoder(checkpoints(kind), text_length=8)
        CLIPEncoder(checkpoints(kind), text_length=SIGLIP_LENGTH)
        CLIPEncoder(checkpoints("clip"), text_length=8)
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("mimic_pl")]
    assert f"padded to {SIGLIP_LENGTH} tokens" in warning and "text_length is 8" in warning
    assert encode(encoder, TEXTS, images()).text_local.shape[1] == 8


def test_cut_texts_are_rejected_by_a_tower_that_pools_the_last_position(checkpoints):
    encoder = CLIPEncoder(checkpoints("siglip"))
    ids = torch.ones(2, 7, dtype=torch.int64)
    with pytest.raises(ConfigError, match=f"last of {SIGLIP_LENGTH} positions"):
        encoder(ids, ids, torch.zeros(2, 3, 32, 32))


def test_more_tokens_than_positions(checkpoints):
    with pytest.raises(ConfigError, match="only 16 positions"):
        CLIPEncoder(checkpoints("owlvit"))
    with pytest.raises(ConfigError, match="only 43 positions"):  # 44, of which the padding token has one
        CLIPEncoder(checkpoints("altclip"), text_length=44)


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "flava"])
def test_every_trained_parameter_of_a_frozen_one_gets_a_gradient(checkpoints, kind):
    encoder = CLIPEncoder(checkpoints(kind), freeze=True, image_dim=4)
    ids, mask = encoder.build_tokenizer()(TEXTS)
    features = encoder(ids, mask, torch.rand(3, 3, 32, 32))
    sum(field.float().square().sum() for field in features[:4]).backward()
    trained = {name for name, weight in encoder.named_parameters() if weight.requires_grad}
    assert trained and all(encoder.get_parameter(name).grad is not None for name in trained)
    assert not any(name.startswith("clip.") for name in trained)


def test_a_cached_feature_of_a_siglip_is_its_own(checkpoints, tmp_path):
    """Also beside one of the same weights that was computed with a mask, as by earlier versions."""
    plain = MIMIC(CLIPEncoder(checkpoints("siglip"), freeze=True, frozen_features=None))
    kept = MIMIC(CLIPEncoder(checkpoints("siglip"), freeze=True, frozen_features=str(tmp_path)))
    kept.load_state_dict(plain.state_dict())
    records = [{"mention": "jaguar", "sentence": "a fast car"}, {"mention": "cat", "sentence": ""}]
    for _ in range(2):
        for name, state in plain.encode_mentions(records)["text"].items():
            torch.testing.assert_close(kept.encode_mentions(records)["text"][name], state)
    assert any(tmp_path.rglob("data.mdb"))


@pytest.mark.parametrize("mask_padding", [False, True])
def test_a_siglip_trains_and_ranks(checkpoints, tiny_set, tmp_path, mask_padding):
    """With masked padding, entities are otherwise cut to the longest of a batch, which would move the last position."""
    seed_everything(0)
    encoder = CLIPEncoder(checkpoints("siglip"), image_dim=8)
    units = {**UNITS, "text": partial(TGLU, hidden_dim=8, mask_padding=mask_padding)}
    model = MIMIC(encoder, units=units, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.05))
    before = {name: weight.clone() for name, weight in encoder.named_parameters()}
    data = MELDataModule(str(tiny_set), name="Tiny", batch_size=8, entity_batch_size=4, num_workers=0)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, data)
    assert not torch.equal(before["clip.text_model.head.weight"], encoder.clip.text_model.head.weight)
    seen = {}
    kept = model.entity_states
    model.entity_states = lambda inputs: seen.setdefault(len(seen), kept(inputs))
    trainer.test(model, data, verbose=False)
    model.entity_states = kept
    ranked = torch.cat([states["text"]["global"] for states in seen.values()])
    encoded = model.eval().encode_entities(list(data.entities))["text"]["global"]
    torch.testing.assert_close(ranked.sort(dim=0).values, encoded.sort(dim=0).values, rtol=1e-4, atol=1e-5)

    trainer.save_checkpoint(tmp_path / "siglip.ckpt")
    again = MIMIC.load_from_checkpoint(tmp_path / "siglip.ckpt")
    assert again.encoder.text_length == SIGLIP_LENGTH and again.encoder.reads_padding
    torch.testing.assert_close(again.encode_entities(list(data.entities))["text"]["global"], encoded)
