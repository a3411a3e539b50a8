"""Degraded mentions: what each kind does, and that the result depends on the mention alone."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from rapidfuzz.distance import OSA

from mimic_pl.data import MELDataModule, Mention
from mimic_pl.data.degradation import (
    KINDS,
    Blur,
    Downscaling,
    ImageDegradation,
    Jpeg,
    MissingSentence,
    NoImage,
    Occlusion,
    OtherImage,
    Redrawn,
    Truncation,
    Typos,
)
from mimic_pl.data.degradation import Noise as NoiseKind
from mimic_pl.errors import ConfigError, DataError
from tests.data.conftest import SmallImages

PIXEL_KINDS = [kind for kind in KINDS if issubclass(kind, ImageDegradation)]


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth shapes with some noise, like a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = rng.integers(-12, 13, (height, width, 3))
    return Image.fromarray((np.asarray(coarse, int) + grain).clip(0, 255).astype(np.uint8))


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.float64)


def split_of(count: int) -> list[Mention]:
    """Mentions of seven entities, each with its own image except for every tenth, which has none."""
    return [
        Mention(str(i), f"name {i}", f"in sentence number {i}", (f"Q{i % 7}",), None if i % 10 == 9 else f"{i}.jpg")
        for i in range(count)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_changes_nothing(kind):
    degradation = kind(0)
    split = split_of(20)
    assert degradation.mentions(split) == split
    if isinstance(degradation, ImageDegradation):
        for size in ((90, 60), (1, 1), (3, 200)):
            image = textured(*size)
            assert np.array_equal(array(degradation.image(image, Random(0))), array(image))


@pytest.mark.parametrize("kind", KINDS)
def test_strengths_out_of_range_are_rejected(kind):
    for strength in (-0.1, kind.largest * 1.01, float("nan"), True):
        with pytest.raises(ConfigError, match=f"{kind.__name__}: strength is .*from 0 to {kind.largest:g}"):
            kind(strength)
    kind(kind.largest)


@pytest.mark.parametrize("kind", PIXEL_KINDS)
def test_images_get_worse_with_strength(kind):
    """The error at the input size of the model grows with each grade, and the input image is not modified."""
    image = textured(300, 200)
    before = array(image)
    errors = []
    for strength in (0, *kind.grades, kind.largest):
        degraded = kind(strength).image(image, Random("same"))
        assert degraded.mode == "RGB"
        errors.append(np.square(array(degraded.resize((64, 64))) - array(image.resize((64, 64)))).mean())
    assert errors == sorted(errors) and len({*errors}) == len(errors)
    assert np.array_equal(array(image), before)


@pytest.mark.parametrize("kind", [Blur, Downscaling, NoiseKind, Occlusion, Redrawn])
def test_strengths_mean_the_same_for_images_of_any_size(kind):
    """An image of 72 pixels and the same at 1,440 look alike at the input size of the model, degraded or not."""
    small = textured(72, 72)
    large = small.resize((1440, 1440), Image.Resampling.NEAREST)
    for strength in kind.grades:
        degraded = [array(kind(strength).image(p, Random("same")).resize((32, 32))) for p in (small, large)]
        effect = np.abs(degraded[1] - array(large.resize((32, 32)))).mean()
        assert np.abs(degraded[0] - degraded[1]).mean() < 0.45 * effect + 1.5


def test_blur_spreads_a_point_as_a_gaussian_does():
    point = np.zeros((201, 301, 3), np.uint8)
    point[100, 150] = 255
    blurred = array(Blur(1.5).image(Image.fromarray(point), Random()))[..., 0]
    across = np.arange(301) - 150
    sigma = 0.015 * 201
    peak = 255 / (2 * np.pi * sigma**2)
    expected = peak * np.exp(-(np.square(across)[None] + np.square(np.arange(201) - 100)[:, None]) / (2 * sigma**2))
    assert np.abs(blurred - expected).max() < 1.5


def test_the_strongest_jpeg_compression_leaves_uniform_blocks():
    grain = np.random.default_rng(0).integers(118, 139, (64, 96, 1), np.uint8).repeat(3, axis=2)
    worst = array(Jpeg(99).image(Image.fromarray(grain), Random()))
    blocks = worst.reshape(8, 8, 12, 8, 3).swapaxes(1, 2).reshape(96, 64, 3)
    assert np.ptp(blocks, axis=1).max() == 0
    fine = array(Jpeg(5).image(Image.fromarray(grain), Random()))
    assert np.abs(fine - grain).mean() < 2


def test_an_image_too_large_for_a_jpeg():
    assert Jpeg(50).image(Image.new("RGB", (70_000, 2)), Random()).width <= 65_535


def test_downscaling_counts_pixels():
    assert Downscaling(4).image(textured(1500, 1000), Random()).size == (38, 25)
    assert Downscaling(4).image(textured(50, 100), Random()).size == (25, 50)
    assert Downscaling(4).image(textured(20, 25), Random()).size == (20, 25)  # it has fewer pixels already
    assert Downscaling(100).image(textured(30, 90), Random()).size == (1, 3)


@pytest.mark.parametrize("size", [(640, 256), (48, 64)])
def test_noise_has_the_given_standard_deviation(size):
    noisy = array(NoiseKind(8).image(Image.new("RGB", size, (128, 128, 128)), Random(1))) - 128
    assert noisy.std() == pytest.approx(0.08 * 255, rel=0.03)
    assert abs(noisy.mean()) < 0.6


def test_occlusion_covers_its_share_and_nothing_else():
    image = textured(120, 80)
    image = Image.fromarray(np.where(array(image) == 128, 127, array(image)).astype(np.uint8))
    before = None
    for strength in (0.1, 0.25, 0.5, 0.75, 1.0):
        degraded = array(Occlusion(strength).image(image, Random(5)))
        hidden = (degraded == 128).all(axis=2)
        assert hidden.mean() == pytest.approx(strength, abs=0.01)
        assert np.array_equal(degraded[~hidden], array(image)[~hidden])
        rows, columns = hidden.any(axis=1), hidden.any(axis=0)
        assert hidden.sum() == rows.sum() * columns.sum()  # one rectangle
        # A larger rectangle contains a smaller one, up to rounding at the edges.
        assert before is None or (before & ~hidden).mean() < 0.01
        before = hidden
    starts = {tuple(np.argwhere(array(Occlusion(0.1).image(image, Random(i))) == 128)[0]) for i in range(5)}
    assert len(starts) > 1


def test_redrawing_changes_color_outline_size_and_turn():
    """A red bar on white: what is left of it is still reddish, smaller, turned, and has a dark outline."""
    white = Image.new("RGB", (200, 100), "white")
    bar = white.copy()
    bar.paste((220, 40, 40), (20, 30, 180, 70))
    assert np.array_equal(array(Redrawn(1).image(white, Random(3))), array(white))
    tops = set()
    for seed in range(8):
        redrawn = Redrawn(1).image(bar, Random(seed))
        assert redrawn.size == bar.size
        pixels = array(redrawn)
        drawn = pixels.min(axis=2) < 200
        assert 0.3 < drawn.sum() / (160 * 40) < 0.95
        assert pixels[drawn].sum(axis=1).min() < 150, "dark outline"
        hues = array(redrawn.convert("HSV"))[drawn & (pixels.max(axis=2) > 150), 0]
        turned = np.median((hues + 128) % 256) - 128
        assert 3 <= abs(turned) <= 16, "at least half of 20 degrees, and red still"
        edge = drawn.argmax(axis=0)[drawn.any(axis=0)]
        slope = np.polyfit(np.arange(len(edge)), edge, 1)[0]
        assert 0.05 < abs(slope) < 0.4
        tops.add(int(edge.min()))
    assert len(tops) > 2, "somewhere in the frame"


@pytest.mark.parametrize("kind", [OtherImage, NoImage, MissingSentence])
def test_strength_is_the_share_of_degraded_mentions(kind):
    split = split_of(1000)
    expected = {
        OtherImage: lambda old, new: (
            new.image not in (None, old.image) and (int(new.image.split(".")[0]) - int(old.id)) % 7 != 0
        ),
        NoImage: lambda old, new: new.image is None,
        MissingSentence: lambda old, new: new.sentence == "",
    }[kind]
    field = "sentence" if kind is MissingSentence else "image"
    weaker: set[int] = set()
    for strength in (0.25, 0.5, 0.75):
        degraded = kind(strength).mentions(split)
        changed = {i for i, (old, new) in enumerate(zip(split, degraded, strict=True)) if old != new}
        assert all(expected(split[i], degraded[i]) for i in changed)
        assert all(
            replace(new, **{field: getattr(old, field)}) == old for old, new in zip(split, degraded, strict=True)
        )
        eligible = len([m for m in split if kind is not NoImage or m.image])
        assert len(changed) / eligible == pytest.approx(strength, abs=0.05)
        assert weaker <= changed
        weaker = changed
    assert all(expected(old, new) for old, new in zip(split, kind(1).mentions(split), strict=True))
    assert kind(0.5, seed=1).mentions(split) != kind(0.5, seed=2).mentions(split)
    assert kind(0.5, seed=1).mentions(split) == kind(0.5, seed=1).mentions(split)


def test_no_other_image():
    split = [Mention("a", "m", "s", ("Q1",), "a.jpg"), Mention("b", "m", "s", ("Q1",), "b.jpg")]
    with pytest.raises(DataError, match="no unrelated image for mention 'a'.*none of the 2 mentions"):
        OtherImage(1).mentions(split)


@pytest.mark.parametrize(("strength", "left"), [(0.25, 15), (0.5, 10), (0.9, 2), (1, 0)])
def test_truncation_keeps_the_beginning(strength, left):
    (degraded,) = Truncation(strength).mentions([Mention("1", "name", "twenty characters ok")])
    assert degraded.sentence == "twenty characters ok"[:left] and degraded.mention == "name"


def test_the_share_of_typos_equals_the_strength():
    """Each typo is one edit (a swap, a deletion or a doubling), counted by an edit distance."""
    rng = Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    text = "".join(rng.choice(letters) for _ in range(4000))
    (mention,) = Typos(0).mentions([Mention("1", "name", text)])
    assert mention.sentence == text
    distances = []
    for strength in (0.02, 0.05, 0.1, 0.2):
        (degraded,) = Typos(strength).mentions([Mention("1", "name", text)])
        distances.append(OSA.distance(text, degraded.sentence) / len(text))
        assert 0.75 * strength < distances[-1] < 1.15 * strength
        assert set(degraded.sentence) <= set(letters)
    assert distances == sorted(distances)
    (all_edited,) = Typos(1).mentions([Mention("1", "name", text)])
    assert OSA.distance(text, all_edited.sentence) <= len(text)


def test_typos_change_letters_only_in_sentence_and_name():
    (degraded,) = Typos(1).mentions([Mention("1", "a name", "... - , !", image="p.jpg")])
    assert degraded.sentence == "... - , !" and degraded.mention != "a name" and degraded.image == "p.jpg"
    assert Typos(1).mentions([Mention("1", "", "")])[0].mention == ""


# ---- in the data module -----------------------------------------------------------------------------------------


@pytest.fixture
def seen(folder):
    """A data set with textured test images, and a function that loads all test items in order."""
    for i in range(7):
        textured(40 + i, 30, i).save(folder.root / "mention_images" / f"test{i}.jpg")

    def items(**options) -> tuple[MELDataModule, dict[str, torch.Tensor]]:
        module = folder.module(**{"image_cache": None, **options})
        module.setup("test")
        batches = list(module.test_dataloader())
        sides = {name: torch.cat([b["mentions"][name] for b in batches]) for name in batches[0]["mentions"]}
        return module, {**sides, **{name: torch.cat([b[name] for b in batches]) for name in ("gold", "index")}}

    return folder, items


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_items_are_degraded_whatever_the_batches_and_workers(seen, kind):
    folder, items = seen
    strength = kind.grades[-1]
    _, plain = items()
    _, unchanged = items(degradation=kind(0))
    assert equal(plain, unchanged)
    module, degraded = items(degradation=kind(strength))
    changed = {name for name in plain if not torch.equal(plain[name], degraded[name])}
    assert changed <= ({"pixels", "has_image"} if kind.side == "image" else {"input_ids", "attention_mask"})
    assert changed
    _, workers = items(degradation=kind(strength), eval_batch_size=2, num_workers=1)
    assert equal(degraded, workers)
    if isinstance(module.degradation, ImageDegradation):
        # The original image is degraded before it is resized.
        image = Image.open(folder.root / "mention_images" / "test3.jpg")
        expected = SmallImages().pixels(module.degradation.image(image, module.degradation.rng(3)))
        assert torch.equal(degraded["pixels"][3], expected)


def test_training_and_the_knowledge_base_are_not_degraded(folder):
    sides = []
    for degradation in (None, OtherImage(1), Occlusion(1)):
        module = folder.module(degradation=degradation)
        module.setup("fit")
        (entities,) = [torch.cat([b["entities"]["pixels"] for b in module.entity_dataloader()])]
        training = [batch["mentions"]["pixels"] for batch in module.train_dataloader()]
        validation = torch.cat([batch["mentions"]["pixels"] for batch in module.val_dataloader()])
        sides.append((entities, torch.cat(training), validation, module.describe_entities()))
    for entities, training, validation, description in sides[1:]:
        assert torch.equal(entities, sides[0][0]) and torch.equal(training, sides[0][1])
        assert not torch.equal(validation, sides[0][2])
        assert description == sides[0][3]  # an index on disk stays valid


@pytest.mark.parametrize("kind", [Blur, OtherImage])
def test_the_cache_never_holds_degraded_pixels(seen, tmp_path, kind):
    _, items = seen
    cache = str(tmp_path / "cache")
    time.sleep(0.12)  # files that may still change are not cached

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}

    _, plain = items()
    _, degraded = items(degradation=kind(kind.largest))
    assert not torch.equal(plain["pixels"], degraded["pixels"])
    # The cache is filled by a degraded run and read by a clean one, and the other way round.
    assert equal(items(degradation=kind(kind.largest), image_cache=cache)[1], degraded)
    filled = files()
    assert filled
    assert equal(items(image_cache=cache)[1], plain)
    assert equal(items(degradation=kind(kind.largest), image_cache=cache)[1], degraded)
    assert files() == filled


def test_the_image_policy_applies_to_degraded_images(seen):
    folder, items = seen
    (folder.root / "mention_images" / "test2.jpg").write_bytes(b"no image")
    _, degraded = items(degradation=Blur(4))
    assert degraded["has_image"].tolist() == [True, True, False, True, True, True, True]
    assert not degraded["pixels"][2].any()
    with pytest.raises(DataError, match=r"test2.jpg is unreadable.*--model.processor.image_policy blank or drop"):
        items(degradation=Blur(4), image_policy="error")


def test_failures_are_reported_once_over_all_evaluations(seen, caplog):
    folder, items = seen
    (folder.root / "mention_images" / "test2.jpg").write_bytes(b"no image")
    module, _ = items()
    for degradation in (None, Blur(1), Blur(2)):
        module.degradation = degradation
        for batch in module.test_dataloader():
            module.processor.finish(batch)
        module.teardown("test")
    assert sum("could not be used" in record.message for record in caplog.records) == 1
