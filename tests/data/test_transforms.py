"""Augmentation and modality dropout depend on seed, epoch and item, and change nothing else."""

import pytest
import torch
from torch import nn
from torchvision.transforms import v2

from mimic_pl.data import BM25Lexicon
from mimic_pl.errors import ConfigError


def epoch(module, number=0):
    """All batches of an epoch, concatenated in the order of the mentions."""
    loader = module.train_dataloader()
    loader.sampler.set_epoch(number)
    batches = list(loader)
    order = torch.cat([batch["index"] for batch in batches]).argsort()
    return {
        side: {name: torch.cat([batch[side][name] for batch in batches])[order] for name in batches[0][side]}
        for side in ("mentions", "entities")
    }


def loaded(folder, **options):
    module = folder.module(**options)
    module.setup("fit")
    return module


JITTER = v2.Compose([v2.RandomAffine(30, fill=255), v2.ColorJitter(0.5, 0.5)])


def test_images_are_drawn_by_seed_epoch_and_item(folder):
    plain = epoch(loaded(folder))
    first = epoch(loaded(folder, augmentation=JITTER))
    torch.rand(7)  # the global random state has no effect
    # Neither have batch size and workers.
    for options in ({}, {"batch_size": 3}, {"num_workers": 2}):
        again = epoch(loaded(folder, augmentation=JITTER, **options))
        for side, item in first.items():
            for name, tensor in item.items():
                assert torch.equal(tensor, again[side][name]), (side, name, options)
    for side, item in first.items():
        changed = (item["pixels"] != plain[side]["pixels"]).flatten(1).any(dim=1)
        assert torch.equal(changed, item["has_image"]), "all images are changed, and no blank ones"
        assert torch.equal(item["input_ids"], plain[side]["input_ids"])
    assert not torch.equal(
        first["mentions"]["pixels"], epoch(loaded(folder, augmentation=JITTER), 1)["mentions"]["pixels"]
    )
    assert not torch.equal(
        first["mentions"]["pixels"], epoch(loaded(folder, augmentation=JITTER, seed=1))["mentions"]["pixels"]
    )


def test_a_number_of_versions_recurs(folder):
    module = loaded(folder, augmentation=JITTER, augmentation_versions=2)
    first, second, third = (epoch(module, number)["mentions"]["pixels"] for number in range(3))
    assert torch.equal(first, third) and not torch.equal(first, second)
    assert torch.equal(first, epoch(loaded(folder, augmentation=JITTER))["mentions"]["pixels"])


def test_evaluation_images_are_not_augmented(folder):
    changed, plain = loaded(folder, augmentation=JITTER, modality_dropout=1.0), loaded(folder)
    for one, other in zip(changed.val_dataloader(), plain.val_dataloader(), strict=True):
        assert torch.equal(one["mentions"]["pixels"], other["mentions"]["pixels"])
        assert torch.equal(one["mentions"]["input_ids"], other["mentions"]["input_ids"])


def test_a_transform_must_keep_the_size(folder):
    module = loaded(folder, augmentation=v2.Resize((2, 2)))
    with pytest.raises(ConfigError, match="must keep size and type"):
        next(iter(module.train_dataloader()))


def test_the_global_random_state_is_not_changed(folder):
    module = loaded(folder, augmentation=JITTER)
    batches = iter(module.train_dataloader())
    state = torch.random.get_rng_state()
    next(batches)
    assert torch.equal(state, torch.random.get_rng_state())


def test_mentions_lose_one_modality_or_none(folder):
    folder.splits["train"] = folder.splits["train"] * 40
    for number, row in enumerate(folder.splits["train"]):
        folder.splits["train"][number] = {**row, "id": f"train-{number}"}
    options = {"features": {"lexical": BM25Lexicon()}, "batch_size": 44}
    plain, dropped = epoch(loaded(folder, **options)), epoch(loaded(folder, **options, modality_dropout=0.5))
    for name, tensor in dropped["entities"].items():
        assert torch.equal(tensor, plain["entities"][name])
    mentions = dropped["mentions"]
    without_image = ~mentions["has_image"]
    without_text = mentions["attention_mask"].sum(dim=1) == 0
    assert not (without_image & without_text).any()
    for lost in (without_image, without_text):
        assert 0.15 < lost.float().mean() < 0.35
    assert not mentions["pixels"][without_image].any()
    assert not mentions["lexical.weights"][without_text].any()
    kept = ~without_image & ~without_text
    for name, tensor in mentions.items():
        assert torch.equal(tensor[kept], plain["mentions"][name][kept]), name


@pytest.mark.parametrize("modalities", ["text", "images"])
def test_a_model_may_see_one_modality_only(folder, modalities):
    plain, alone = loaded(folder), loaded(folder, modalities=modalities)
    for make in ("train_dataloader", "val_dataloader", "entity_dataloader"):
        for one, other in zip(getattr(alone, make)(), getattr(plain, make)(), strict=True):
            for side in {"mentions", "entities"} & one.keys():
                texts = (one[side]["input_ids"] != 0).any()
                assert bool(texts) is (modalities == "text")
                assert bool(one[side]["has_image"].any()) is (modalities == "images")
                kept = "input_ids" if modalities == "text" else "pixels"
                assert torch.equal(one[side][kept], other[side][kept])


def test_any_module_may_change_images(folder):
    class Invert(nn.Module):
        def forward(self, image):
            return 255 - image

    plain, inverted = epoch(loaded(folder)), epoch(loaded(folder, augmentation=Invert()))
    for side in plain:
        there = plain[side]["has_image"]
        assert torch.equal(inverted[side]["pixels"][there], 255 - plain[side]["pixels"][there])
