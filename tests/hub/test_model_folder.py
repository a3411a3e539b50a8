"""A model in a folder is self-contained, and comes back bit by bit."""

from __future__ import annotations

import shutil

import pytest
import timm
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

from mimic_pl import MIMIC, Entity, Mention, Processor
from mimic_pl.encoders import CLIPEncoder, TextVisionEncoder
from mimic_pl.encoders.configuration_files import save_tokenizer
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.model_folder import save_folder
from mimic_pl.processor import AliasTable, BM25Lexicon
from mimic_pl.ranking import IndexBuilder, Ranker
from mimic_pl.units import GlobalCosine, Lexical, WeightedMatcher, flat
from tests import tiny
from tests.encoders import checkpoints
from tests.training import UNITS

MENTIONS = [
    {"mention": "jaguar", "sentence": "the jaguar is fast", "image": "picture"},
    {"mention": "jaguar", "sentence": "a fast car, today and since winter again"},
]
ENTITIES = [
    {"id": "Q1", "name": "Jaguar", "attr": "a cat", "images": ["picture"]},
    {"id": "Q2", "name": "Jaguar Cars", "attr": "makes cars"},
    {"id": "Q3", "name": "mercury", "attr": ""},
]
BERT = {
    **{"model_type": "bert", "hidden_size": 24, "intermediate_size": 32},
    **{"num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 44},
}
T5 = {"model_type": "t5", "d_model": 24, "d_kv": 12, "d_ff": 32, "num_layers": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.effect_noise((50, 40), 90).convert("RGB").save(path)
    return str(path)


def states(model, picture):
    """All states of the records above, with the picture's path."""

    def placed(record):
        return {**record, **({"image": picture} if "image" in record else {})} | (
            {"images": [picture]} if record.get("images") else {}
        )

    return flat(model.encode_mentions(map(placed, MENTIONS))) | {
        f"entity {name}": tensor for name, tensor in flat(model.encode_entities(map(placed, ENTITIES))).items()
    }


def require_equal_weights(model, again):
    state = again.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]) and tensor.dtype == state[name].dtype, name


def require_equal(model, again, picture):
    require_equal_weights(model, again)
    expected, found = states(model, picture), states(again, picture)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def save_bert(folder, sizes=BERT):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(tiny.WORDS)
    folder.mkdir(parents=True)
    save_tokenizer(tokenizer, folder)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    AutoModel.from_config(AutoConfig.for_model(**sizes, **ids)).save_pretrained(folder)
    return folder


def save_vision(folder):
    """A timm checkpoint with statistics and arguments of its own."""
    torch.manual_seed(0)
    vision = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, embed_dim=24, num_heads=2)
    vision.pretrained_cfg.update(mean=(0.1, 0.2, 0.3), crop_pct=0.8, interpolation="bilinear")
    timm.models.save_for_hf(vision, folder, model_args={"img_size": 32, "depth": 1, "embed_dim": 24, "num_heads": 2})
    return folder


ENCODERS = {
    "clip from sizes": lambda folder: CLIPEncoder(**tiny.ENCODER),
    **{
        kind: lambda folder, kind=kind: CLIPEncoder(str(checkpoints.save(kind, folder)), image_dim=12, text_length=16)
        for kind in checkpoints.CONFIGS
        if kind not in ("siglip", "siglip2")
    },
    **{
        kind: lambda folder, kind=kind: CLIPEncoder(str(checkpoints.save(kind, folder)))
        for kind in ("siglip", "siglip2")
    },
    "the model's own preprocessing": lambda folder: CLIPEncoder(
        str(checkpoints.save("siglip", folder)), image_resize="model", freeze=True, frozen_features=None
    ),
    "two towers from sizes": lambda folder: TextVisionEncoder(
        text_config=BERT, vocabulary=tiny.WORDS, text_length=16, vision="test_resnet", vision_pretrained=False
    ),
    "two towers from checkpoints": lambda folder: TextVisionEncoder(
        str(save_bert(folder / "bert")),
        text_pooling="mean",
        text_dim=20,
        vision=f"local-dir:{save_vision(folder / 'vit')}",
        image_resize="model",
    ),
    "an encoder of an encoder-decoder": lambda folder: TextVisionEncoder(
        str(save_bert(folder / "t5", T5)),
        text_pooling="mean",
        vision="vit_tiny_patch16_224",
        vision_pretrained=False,
        vision_args={"img_size": 32, "depth": 1},
    ),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_comes_back_without_its_checkpoint(tmp_path, picture, encoder):
    source = tmp_path / "checkpoint"
    source.mkdir()
    torch.manual_seed(1)
    model = MIMIC(ENCODERS[encoder](source), units=UNITS).eval()
    model.save_pretrained(tmp_path / "saved")
    before = states(model, picture)
    saved = shutil.move(tmp_path / "saved", tmp_path / "moved")
    shutil.rmtree(source)
    assert not [name for name, content in contents(saved).items() if str(tmp_path).encode() in content], "a path leaks"
    torch.manual_seed(2)
    again = MIMIC.from_pretrained(saved)
    assert not again.training
    require_equal_weights(model, again)
    for name, tensor in states(again, picture).items():
        assert torch.equal(tensor, before[name]), name
    again.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(saved), "saving what was loaded gives the same bytes"


def make_model(**options):
    torch.manual_seed(0)
    processor = Processor("{mention}: {sentence}", image_policy="drop", features={"lexical": BM25Lexicon(k1=1.2)})
    units = {"text": UNITS["text"], "plain": lambda dims: GlobalCosine(dims, modality="text")}
    return MIMIC(CLIPEncoder(**tiny.ENCODER), processor, units, WeightedMatcher, ranker=Ranker(top_k=3), **options)


def test_settings_come_back_and_those_of_this_machine_do_not(tmp_path):
    index = IndexBuilder(dtype="bfloat16", storage="disk", folder=str(tmp_path / "index"))
    model = make_model(index=index, compile_encoder=False)
    again = MIMIC.from_pretrained(model.save_pretrained(tmp_path / "saved"))
    assert isinstance(again.matcher, WeightedMatcher) and again.ranker.top_k == 3
    assert again.processor.describe() == model.processor.describe()
    assert again.processor.mention_template.template == "{mention}: {sentence}"
    assert (again.index_builder.dtype, again.index_builder.storage, again.index_builder.folder) == (
        *("bfloat16", "device"),
        None,
    )
    assert MIMIC.from_pretrained(tmp_path / "saved", ranker=Ranker(top_k=7)).ranker.top_k == 7


def test_weights_keep_their_dtypes_and_devices_are_chosen(tmp_path, picture):
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), units=UNITS).eval()
    model.encoder.clip.to(torch.bfloat16)
    again = MIMIC.from_pretrained(model.save_pretrained(tmp_path / "saved"), device="meta")
    assert {parameter.device.type for parameter in again.parameters()} == {"meta"}
    again = MIMIC.from_pretrained(tmp_path / "saved", device=torch.device("cpu"))
    assert {name: own.dtype for name, own in again.state_dict().items()} == {
        name: own.dtype for name, own in model.state_dict().items()
    }
    assert all(torch.equal(own, again.state_dict()[name]) for name, own in model.state_dict().items())


class Tied(GlobalCosine):
    """A unit with two names for one parameter."""

    def __init__(self, dims):
        super().__init__(dims)
        self.first = torch.nn.Linear(4, 4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight


@pytest.mark.parametrize("max_shard", [5_000_000_000, 10_000], ids=["one file", "several files"])
def test_shared_weights_are_stored_once_and_stay_shared(tmp_path, picture, max_shard):
    torch.manual_seed(0)
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), units={**UNITS, "tied": Tied}).eval()
    folder = save_folder(model, tmp_path / "saved", max_shard=max_shard)
    files = sorted(folder.glob("model*.safetensors"))
    assert (len(files) == 1) == (max_shard > 10_000)
    stored = [key for path in files for key in safe_open(path, "pt").keys()]  # noqa: SIM118
    tied = {f"matcher.units.tied.{name}.weight" for name in ("first", "second")}
    assert len(tied & set(stored)) == 1
    again = MIMIC.from_pretrained(folder, trust_remote_code=True)
    require_equal(model, again, picture)
    assert again.matcher.units["tied"].first.weight is again.matcher.units["tied"].second.weight


def test_a_model_of_another_package_needs_trust(tmp_path):
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), units={"tied": Tied})
    folder = model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"names tests\.hub\.test_model_folder\.Tied.*trust_remote_code=True"):
        MIMIC.from_pretrained(folder)
    assert isinstance(MIMIC.from_pretrained(folder, trust_remote_code=True).matcher.units["tied"], Tied)


class OwnModel(MIMIC):
    """A subclass."""


def test_the_class_that_loads_must_be_the_saved_one_or_a_base(tmp_path):
    model = OwnModel(CLIPEncoder(**tiny.ENCODER))
    folder = model.save_pretrained(tmp_path / "saved")
    assert isinstance(MIMIC.from_pretrained(folder, trust_remote_code=True), OwnModel)
    plain = MIMIC(CLIPEncoder(**tiny.ENCODER)).save_pretrained(tmp_path / "plain")
    with pytest.raises(Exception, match="contains a MIMIC, not a OwnModel"):
        OwnModel.from_pretrained(plain)


class Narrow(CLIPEncoder):
    """An encoder whose constructor hides arguments of its base."""

    def __init__(self):
        super().__init__(**tiny.ENCODER)


class Wide(CLIPEncoder):
    """An encoder that hands on what it does not know."""

    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale


def test_custom_encoders(tmp_path, picture):
    with pytest.raises(ConfigError, match=r"Narrow .*lacks the arguments pretrained, load_weights"):
        MIMIC(Narrow()).save_pretrained(tmp_path / "narrow")
    assert not (tmp_path / "narrow").exists()
    model = MIMIC(Wide(scale=2.0, **tiny.ENCODER), units=UNITS).eval()
    again = MIMIC.from_pretrained(model.save_pretrained(tmp_path / "wide"), trust_remote_code=True)
    assert again.encoder.scale == 2.0
    require_equal(model, again, picture)


def test_what_plain_values_cannot_describe_is_refused(tmp_path):
    class Losses(torch.nn.Module):
        """A loss that is not recorded."""

    with pytest.raises(ConfigError, match="cannot describe its losses"):
        MIMIC(CLIPEncoder(**tiny.ENCODER), losses={"own": Losses()}).save_pretrained(tmp_path / "saved")


def test_training_goes_on_from_a_loaded_model(tmp_path, tiny_set):
    from mimic_pl import MELDataModule
    from tests.training import make_trainer

    folder = MIMIC(CLIPEncoder(**tiny.ENCODER), units=UNITS).save_pretrained(tmp_path / "saved")
    model = MIMIC.from_pretrained(folder)
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(model, MELDataModule(str(tiny_set), name="Tiny", num_workers=0, batch_size=8))
    trainer.save_checkpoint(tmp_path / "more.ckpt")
    again = MIMIC.load_from_checkpoint(tmp_path / "more.ckpt")
    assert all(torch.equal(own, again.state_dict()[name]) for name, own in model.state_dict().items())
    again.save_pretrained(folder)
    loaded = MIMIC.from_pretrained(folder)
    assert all(torch.equal(own, loaded.state_dict()[name]) for name, own in model.state_dict().items())


def test_an_alias_table_comes_along(tmp_path, picture):
    table = tmp_path / "counts.jsonl"
    table.write_text('{"alias": "amazon", "id": "Q1", "prior": 0.75}')
    processor = Processor(features={"aliases": AliasTable(str(table), max_entities=3)})
    unit = {"prior": lambda dims: Lexical(dims, feature="aliases")}
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), processor, unit).eval()
    folder = model.save_pretrained(tmp_path / "saved")
    table.unlink()
    again = MIMIC.from_pretrained(folder)
    require_equal(model, again, picture)
    mention = [Mention("", "Amazon", "")]
    expected, found = (own.processor.features["aliases"].mentions(mention, [""]) for own in (model, again))
    assert found["weights"].tolist() == [[0.75, 0.0, 0.0]] and torch.equal(found["ids"], expected["ids"])
    saved = contents(folder)
    assert "features/aliases/aliases.jsonl" in saved and str(table) not in saved["config.json"].decode()
    again.save_pretrained(folder)  # the table that it reads is replaced by itself
    assert contents(folder) == saved
    with pytest.raises(ConfigError, match=r"counts\.jsonl no longer exists"):
        model.save_pretrained(tmp_path / "another")


def test_document_frequencies_come_along(tmp_path, picture):
    processor = Processor(features={"lexical": BM25Lexicon(k1=1.2)})
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), processor, {"lexical": lambda dims: Lexical(dims, scale=2.0)}).eval()
    folder = model.save_pretrained(tmp_path / "saved")
    assert not (folder / "statistics.safetensors").exists(), "there are none before it was fitted"
    model.processor = model.processor.fit([Entity.of(record) for record in ENTITIES])
    model.save_pretrained(folder)
    again = MIMIC.from_pretrained(folder)
    assert again.processor.describe() == model.processor.describe()
    require_equal(model, again, picture)
    again.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    content = bytearray((folder / "statistics.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "statistics.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"statistics\.safetensors is damaged"):
        MIMIC.from_pretrained(folder)
