"""Checkpoints of another kind or with too few positions are named; the encoders of encoder-decoders are used."""

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModel

from mimic_pl.cli import main
from mimic_pl.encoders import CLIPEncoder, TextVisionEncoder
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import ConfigError
from tests import tiny
from tests.encoders.checkpoints import TEXT, VISION, WORDS

SIZES = {"bart": {"d_model": 16}, "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}}
SIZES["bart"] |= {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
SIZES["bart"] |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
SIZES["gpt2"] = {"n_embd": 16, "n_layer": 1, "n_head": 2}
SIZES["llama"] = {**TEXT, "num_key_value_heads": 2}
SIZES["vit"] = SIZES["dinov2"] = VISION
SIZES["clip"] = {"vision_config": VISION, "text_config": TEXT, "projection_dim": 16}
SIZES["xclip"] = SIZES["clip"]
SIZES["blip-2"] = {"vision_config": VISION, "qformer_config": TEXT, "text_config": {**TEXT, "model_type": "opt"}}
SIZES["vilt"] = {**TEXT, "image_size": 32, "patch_size": 8}
SIZES["llava"] = {"vision_config": {**VISION, "model_type": "clip_vision_model"}, "text_config": {**TEXT}}
SIZES["llava"]["text_config"] |= {"model_type": "llama", "num_key_value_heads": 2}
# Padding tokens have the id 1 here, so that the first position of a text is the third.
SIZES |= {kind: {**TEXT, "pad_token_id": 1} for kind in ("roberta", "xlm-roberta", "camembert", "mpnet")}
SIZES["longformer"] = {**SIZES["roberta"], "attention_window": [8, 8]}


def checkpoint(folder, kind, **sizes):
    tokenizer = build_tokenizer(WORDS)
    given = {**SIZES.get(kind, TEXT), **sizes}
    if "text_config" in given:
        given["text_config"] = {"vocab_size": len(tokenizer), **given["text_config"]}
    else:
        given.setdefault("vocab_size", len(tokenizer))
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, **given)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def text_vision(text, **options):
    return TextVisionEncoder(text=text, vision="test_vit", vision_pretrained=False, **options)


@pytest.mark.parametrize(
    ("kind", "build", "found", "advice"),
    [
        ("bert", CLIPEncoder, "text model (bert)", "TextVisionEncoder"),
        ("t5", CLIPEncoder, "text model (t5)", "TextVisionEncoder"),
        ("vit", CLIPEncoder, "vision model (vit)", "TextVisionEncoder"),
        ("xclip", CLIPEncoder, "without an image tower (xclip)", "openai/clip-vit-base-patch32"),
        ("llava", CLIPEncoder, "vision-language model without separate towers (llava)", "openai/clip-vit-base-patch32"),
        ("clip", text_vision, "dual encoder (clip)", "CLIPEncoder"),
        ("dinov2", text_vision, "vision model (dinov2)", "the timm model of this architecture"),
        ("blip-2", text_vision, "vision-language model without separate towers (blip-2)", "cannot be used"),
        ("vilt", text_vision, "vision-language model without separate towers (vilt)", "bert-base-uncased"),
        ("gpt2", text_vision, "(gpt2) is a decoder", "text_pooling to 'mean'"),
        ("llama", text_vision, "(llama) is a decoder", "bert-base-uncased"),
    ],
)
def test_another_kind_of_model_is_named_with_what_to_use(tmp_path, kind, build, found, advice):
    with pytest.raises(ConfigError) as caught:
        build(checkpoint(tmp_path, kind))
    message = str(caught.value)
    assert found in message and advice in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_encoder_of_an_encoder_decoder_is_used(tmp_path, kind):
    folder = checkpoint(tmp_path, kind)
    encoder = text_vision(folder, text_pooling="mean", text_length=12).eval()
    ids, mask = encoder.build_tokenizer()(["jaguar [SEP] a fast car", "cat"])
    features = encoder(ids, mask, torch.zeros(2, 3, 160, 160))
    theirs = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().get_encoder()
    torch.testing.assert_close(features.text_local, theirs(input_ids=ids, attention_mask=mask).last_hidden_state)
    assert not [name for name, _ in encoder.named_parameters() if "decoder" in name]
    with (
        pytest.raises(ConfigError, match="text_length is 41, but .* has only 40 positions") if kind == "bart" else _no()
    ):
        text_vision(folder, text_length=41)


class _no:
    def __enter__(self):
        return None

    def __exit__(self, *_):
        return False


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "camembert", "mpnet", "longformer"])
def test_positions_that_are_counted_from_the_padding_token(tmp_path, kind):
    """As roberta-base, whose 514 positions hold 512 tokens."""
    folder = checkpoint(tmp_path, kind, max_position_embeddings=18)
    assert text_vision(folder, text_length=16).text_length == 16
    for length in (17, 18, 40):
        with pytest.raises(ConfigError, match=f"text_length is {length}, but .* has only 16 positions"):
            text_vision(folder, text_length=length)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CLIPEncoder("vit_base_patch16_224"), "name of a timm vision model"),
        (lambda: text_vision("resnet50"), "name of a timm vision model"),
        (lambda: CLIPEncoder("openai/clip-vit-base-patch32"), "Without network access the model must already be"),
        (lambda: vision("resnet_50"), "Similar names: resnet50"),
        (lambda: vision("google/vit-base-patch16-224"), "Similar names: vit_base_patch16_224.*hf-hub:NAME"),
        (lambda: vision("resnet10t.nope"), "Its tags: resnet10t.c3_in1k"),
        (lambda: vision("resnet10t", pretrained=True), "Without network access the model must already be"),
        (lambda: vision("test_vit", {"img_size": 65}), "divisible by patch size"),
        (lambda: vision("resnet10t", {"in_chans": 1}), "to have 1 channels"),
        (lambda: TextVisionEncoder(text_config={"model_type": "brt"}), "Unrecognized model identifier: brt"),
        (lambda: TextVisionEncoder(text_config={"model_type": "clip"}), "text_config is a dual encoder"),
        (lambda: CLIPEncoder(config={"text_config": {"num_attention_heads": 5}}), "not a multiple"),
        (lambda: CLIPEncoder(config={}, image_resize="modle"), "'modle'; it must be one of: square, model"),
    ],
)
def test_names_and_sizes_that_do_not_fit(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def vision(name, args=None, pretrained=False):
    bert = {"model_type": "bert", **TEXT}
    return TextVisionEncoder(text_config=bert, vision=name, vision_pretrained=pretrained, vision_args=args)


def test_a_transformers_folder_in_place_of_a_timm_one(tmp_path):
    with pytest.raises(ConfigError, match="is not a timm checkpoint: its config.json lacks 'architecture'"):
        vision(f"local-dir:{checkpoint(tmp_path, 'vit')}", pretrained=True)


def test_the_home_folder_in_the_path_of_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    checkpoint(tmp_path / "models" / "bert", "bert")
    assert text_vision("~/models/bert").build_tokenizer().words(torch.tensor([2])) == ["[CLS]"]


def test_another_kind_of_model_on_the_command_line(tmp_path, tiny_set, capsys, monkeypatch):
    config = tiny.config(tiny_set, tmp_path)
    config["model"]["init_args"]["encoder"] = {"class_path": "mimic_pl.encoders.CLIPEncoder"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "bert", "bert")
    with pytest.raises(SystemExit) as end:
        main(["fit", "--config", "c.yaml", "--model.encoder.pretrained", "./bert"])
    (message,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))
    assert end.value.code == 3
    assert message.startswith("error: './bert' is a text model (bert); expected a model with a text and an image tower")
