"""Every shipped configuration builds its model and trains a step, on small stand-ins for its data and checkpoint."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, BertConfig, BertModel, CLIPConfig, CLIPImageProcessor, CLIPModel

from mimic_pl.cli import main
from mimic_pl.data import demo
from mimic_pl.encoders.clip import PUBLISHED_LENGTH
from mimic_pl.encoders.wordpiece import build_tokenizer
from tests import tiny
from tests.encoders.checkpoints import save
from tests.slow import some_slow

CONFIGS = Path(__file__).parents[1] / "cli_configs"
FILE_STEMS = {"wikimel": "WIKIMEL", "richpedia": "RichpediaMEL", "wikidiverse": "wiki_diverse", "emojimel": "EmojiMEL"}
PUBLISHED = ("wikimel", "richpedia", "wikidiverse")


@pytest.fixture(autouse=True)
def random_state():
    """Restore the global random state, which the configurations seed."""
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


@pytest.fixture(scope="module")
def clip_checkpoint(tmp_path_factory):
    """A small CLIP in place of the one that the configurations would download."""
    folder = tmp_path_factory.mktemp("clip")
    tokenizer = build_tokenizer(tiny.WORDS)
    tokenizer.save_pretrained(folder)
    sizes = tiny.ENCODER["config"]
    ids = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = {**sizes["text_config"], **ids, "max_position_embeddings": 40}
    CLIPModel(CLIPConfig(**{**sizes, "text_config": text})).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)
    return str(folder)


def test_every_configuration_is_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*FILE_STEMS, "demo", "zero_shot", "lexical"}


@pytest.mark.parametrize("name", FILE_STEMS)
def test_a_step_of_training_and_validation(name, clip_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_set(tmp_path / "set", FILE_STEMS[name])
    options = ["--data.root", str(tmp_path / "set"), "--model.encoder.pretrained", clip_checkpoint]
    options += ["--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "true", "--data.num_workers", "0"]
    main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *options])


def test_a_step_of_the_demo(tmp_path, monkeypatch):
    """On an eighth of its mentions: they take seconds to draw."""
    monkeypatch.chdir(tmp_path)
    design = demo.design_demo(0)
    some = {split: mentions[::8] for split, mentions in design.mentions.items()}
    monkeypatch.setattr(demo, "design_demo", lambda seed: replace(design, mentions=some))
    main(["fit", "--config", str(CONFIGS / "demo.yaml"), "--trainer.fast_dev_run", "true", "--data.num_workers", "0"])
    assert (tmp_path / "data" / "Demo" / "kb_entity.json").is_file()


@pytest.mark.parametrize("trained", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_linking_without_training_and_training_from_there(trained, clip_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_set(tmp_path / "set", FILE_STEMS["emojimel"])
    options = ["--data.root", str(tmp_path / "set"), "--model.encoder.text", small_bert(clip_checkpoint)]
    options += ["--model.encoder.vision", "resnet10t", "--model.encoder.vision_pretrained", "false"]
    options += ["--model.encoder.image_size", "32", "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    options += ["--model.units.image.init_args.projection", "8"]  # not 512: there are some 40 images
    configs = ["zero_shot.yaml", *(["recipes/best.yaml"] if trained else [])]
    if trained:
        options += ["--trainer.max_epochs", "2", "--model.lr_scheduler.init_args.T_max", "2"]
        options += ["--trainer.check_val_every_n_epoch", "1"]
    main(["fit", *(word for name in configs for word in ("--config", str(CONFIGS / name))), *options])
    main(["test"])
    run = tmp_path / "lightning_logs" / "version_0"
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {"overall", "lexical", "text", "image"}
    weights = torch.load(next((run / "checkpoints").glob("*.ckpt")), weights_only=True)["state_dict"]
    scales = {name: float(weights[f"matcher.units.{name}.log_scale"].exp()) for name in ("lexical", "text", "image")}
    assert (scales == {"lexical": 1, "text": pytest.approx(2), "image": pytest.approx(20)}) is not trained
    assert len(set(weights["matcher.raw_weights"].tolist())) == 3, "but the weights are fitted"


def test_linking_by_words_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_set(tmp_path / "set", FILE_STEMS["richpedia"])
    options = ["--data.root", str(tmp_path / "set"), "--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    main(["fit", "--config", str(CONFIGS / "lexical.yaml"), *options])
    checkpoint = next((tmp_path / "lightning_logs" / "version_0" / "checkpoints").glob("*.ckpt"))
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert [float(weights[f"matcher.units.{name}.log_scale"]) for name in ("lexical", "names")] == [0, 0]
    assert len(set(weights["matcher.raw_weights"].tolist())) == 2, "only the weights are fitted"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyperparameters(name):
    """Luo et al. 2023, section 4.1, and the authors' configuration files."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert config["seed_everything"] == 43
    assert (config["trainer"]["max_epochs"], config["trainer"]["check_val_every_n_epoch"]) == (20, 2)
    assert config["early_stopping"]["patience"] == 3
    model = config["model"]["init_args"]
    assert model["encoder"]["init_args"] == {"pretrained": "openai/clip-vit-base-patch32", "image_dim": 96}
    assert PUBLISHED_LENGTH == 40
    assert all(unit["init_args"] == {"hidden_dim": 96} for unit in model["units"].values())
    assert model["optimizer"]["init_args"] == {"lr": 1e-5, "betas": [0.9, 0.999], "eps": 1e-4, "weight_decay": 1e-4}
    assert config["data"]["init_args"]["batch_size"] == 128


OVERLAYS = sorted(
    path
    for folder in ("experiments", "recipes")
    for path in (CONFIGS / folder).glob("*.yaml")
    if not path.stem.startswith(("cross_to_", "low_resource_", "cross_encoder", "best"))  # these have their own tests
)


ALIKE = {
    *("lr_1e-5", "lr_2e-5", "small_lr_1e-3", "small_lr_2.5e-4", "small_lr_5e-4", "no_text_loss", "no_vision_loss"),
    *("text_unit_only", "vision_unit_only", "cross_to_wikimel", "cross_to_wikidiverse"),
    *("assignment", "ema", "learned_temperature", "overall_loss_only", "sentence_encoder"),
    "from_scratch",  # tested with its run below
}
"""Overlays that differ from others in a number or a name, or whose parts have tests of their own: training is slow."""


def small_weights(overlay, clip_checkpoint):
    """Options that replace the pretrained weights of an overlay by small ones."""
    if overlay.stem == "siglip2":
        return ["--model.encoder.pretrained", str(save("siglip2", Path(clip_checkpoint).parent / "siglip2"))]
    if overlay.stem != "sentence_encoder":
        return ["--model.encoder.pretrained", clip_checkpoint]
    # One layer in its image tower: bfloat16 is slow on most CPUs.
    small_vision = ["--model.encoder.vision_args", '{"img_size": 112, "depth": 1}']
    return ["--model.encoder.text", small_bert(clip_checkpoint), *small_vision]


def small_bert(clip_checkpoint):
    """A random BERT with the tokenizer of the small CLIP."""
    folder = Path(clip_checkpoint).parent / "bert"
    if not folder.is_dir():
        AutoTokenizer.from_pretrained(clip_checkpoint).save_pretrained(folder)
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        BertModel(BertConfig(vocab_size=len(AutoTokenizer.from_pretrained(folder)), **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", some_slow((path.stem for path in OVERLAYS), ALIKE))
def test_a_step_with_every_overlay(name, clip_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (overlay,) = (path for path in OVERLAYS if path.stem == name)
    tiny.write_set(tmp_path / "set", "RichpediaMEL")
    options = ["--data.root", str(tmp_path / "set"), *small_weights(overlay, clip_checkpoint)]
    options += ["--trainer.accelerator", "cpu", "--data.num_workers", "0"]
    short = [
        "--trainer.max_epochs",
        "2",
        "--trainer.limit_train_batches",
        "1",
        "--trainer.check_val_every_n_epoch",
        "1",
    ]
    # fast_dev_run disables callbacks, and some recipes are callbacks.
    options += short if overlay.parent.name == "recipes" else ["--trainer.fast_dev_run", "true"]
    main(["fit", "--config", str(CONFIGS / "richpedia.yaml"), "--config", str(overlay), *options])


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_overlay_starts_with_what_it_changes(overlay):
    first, *rest = overlay.read_text().splitlines()
    assert first.startswith("# ") and first.endswith("."), "the first line is a sentence"
    assert set(yaml.safe_load("\n".join(rest))) <= {"trainer", "model", "data"}


@pytest.mark.parametrize("overlay", some_slow((f"cross_to_{name}" for name in PUBLISHED), ALIKE))
def test_a_step_across_data_sets(overlay, clip_checkpoint, tmp_path, monkeypatch):
    """Training on the other two sets, with the model of any published configuration."""
    monkeypatch.chdir(tmp_path)
    folders = {"wikimel": "WikiMEL", "richpedia": "RichpediaMEL", "wikidiverse": "WikiDiverse"}
    for name, folder in folders.items():
        tiny.write_set(tmp_path / "data" / folder, FILE_STEMS[name])
    text = (CONFIGS / "experiments" / f"{overlay}.yaml").read_text()
    target = overlay.removeprefix("cross_to_")
    data = yaml.safe_load(text)["data"]["init_args"]
    assert data["test"]["init_args"]["root"] == f"data/{folders[target]}"
    assert {part["init_args"]["root"] for part in data["train"]} == {
        f"data/{folder}" for name, folder in folders.items() if name != target
    }
    (tmp_path / "alone.yaml").write_text(text.replace("num_workers: 8", "num_workers: 0"))
    options = ["--model.encoder.pretrained", clip_checkpoint, "--trainer.accelerator", "cpu"]
    files = ["--config", str(CONFIGS / "richpedia.yaml"), "--config", "alone.yaml"]
    main(["fit", *files, *options, "--trainer.fast_dev_run", "true"])


@pytest.mark.parametrize(("percent", "mentions"), [(10, 2), pytest.param(20, 4, marks=pytest.mark.slow)])
def test_a_low_resource_run(percent, mentions, clip_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_set(tmp_path / "set", FILE_STEMS["wikimel"])
    overlay = CONFIGS / "experiments" / f"low_resource_{percent}.yaml"
    options = ["--data.root", str(tmp_path / "set"), "--model.encoder.pretrained", clip_checkpoint]
    options += ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--data.batch_size", "1"]
    options += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1", "--checkpoint.save_last", "true"]
    main(["fit", "--config", str(CONFIGS / "wikimel.yaml"), "--config", str(overlay), *options])
    last = tmp_path / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == mentions  # of 20 mentions, one per batch


@pytest.mark.parametrize("kind", ["clip", "siglip2"])
def test_a_run_that_starts_from_zero_shot_scores(kind, tmp_path, monkeypatch, caplog):
    """With the encoder of the configuration, and with SigLIP 2: small checkpoints in the formats of the hub's."""
    monkeypatch.chdir(tmp_path)
    tiny.write_set(tmp_path / "set", "RichpediaMEL")
    names = ["richpedia", "recipes/zero_shot_units", *(["recipes/siglip2"] if kind == "siglip2" else [])]
    files = [word for name in names for word in ("--config", str(CONFIGS / f"{name}.yaml"))]
    options = ["--data.root", str(tmp_path / "set"), "--model.encoder.pretrained", str(save(kind, tmp_path / kind))]
    options += ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--trainer.max_epochs", "2"]
    main(["fit", *files, *options])
    main(["test"])
    run = tmp_path / "lightning_logs" / "version_0"
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    published = {"text", "vision", "cross_modal"}
    assert set(metrics) == {"overall", "lexical", "text_cosine", "image_cosine", *published}
    checkpoint = torch.load(next((run / "checkpoints").glob("*.ckpt")), weights_only=True)
    assert set(checkpoint["callbacks"]["FailureMonitor"]["before_training"]) == set(metrics) - {"overall"}
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]
    assert config["matcher"]["init_args"]["initial"] == dict.fromkeys(published, 0)


def test_a_run_of_the_recipe_from_scratch_is_tested_from_its_folder(clip_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_set(tmp_path / "set", "RichpediaMEL")
    options = ["--data.root", str(tmp_path / "set"), "--model.encoder.pretrained", clip_checkpoint]
    options += ["--trainer.accelerator", "cpu", "--data.num_workers", "0", "--trainer.max_epochs", "2"]
    files = ["--config", str(CONFIGS / "richpedia.yaml"), "--config", str(CONFIGS / "recipes" / "from_scratch.yaml")]
    main(["fit", *files, *options])
    main(["test"])
    metrics = json.loads((tmp_path / "lightning_logs" / "version_0" / "metrics.json").read_text())["metrics"]
    assert set(metrics) == {"overall", "text", "vision", "cross_modal", "image", "lexical"}
