"""Cached pixels equal decoded ones, whatever happens to files, processes and disks."""

from __future__ import annotations

import logging
import os
import pickle
import random
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm.auto import tqdm

from mimic_pl.data import MELDataModule, image_cache
from mimic_pl.data.file_keys import digest, digests
from mimic_pl.data.image_cache import ImageCache
from mimic_pl.data.pixels import PixelSource
from mimic_pl.errors import DataError, StoreError
from mimic_pl.processor.decoding import decode
from mimic_pl.processor.images import MAX_PIXELS, ImageFolder
from tests.data.conftest import BatchRecorder, Folder, SmallImages
from tests.launch import FORK, needs_fork
from tests.test_key_value_store import exchanged
from tests.training import make_trainer


class Square(SmallImages):
    """Resizes images to 8 x 8."""

    image_size = 8

    def pixels(self, image):
        square = image.resize((8, 8), Image.Resampling.LANCZOS)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()


def wait_for_new_mtime():
    """Wait until another change would alter a file's modification time."""
    time.sleep(0.12)


def draw_noise(path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options) -> Path:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    Image.fromarray(noise, "RGBA" if mode == "RGBA" else None).convert(mode).save(path, **options)
    return path


def draw_images(folder: Path, count: int) -> list[str]:
    folder.mkdir(exist_ok=True)
    names = [draw_noise(folder / f"{seed}.jpg", seed).name for seed in range(count)]
    wait_for_new_mtime()
    return names


def filled(root: Path, folder: Path, names: list[str], reduced: bool = False, **options) -> ImageCache:
    cache = ImageCache(root, Square(), reduced, **options)
    cache.fill(lambda: [(ImageFolder(folder, "blank"), (name,)) for name in names])
    return cache


def pixels_of(cache: ImageCache, path: Path) -> torch.Tensor:
    found = cache.load(path, MAX_PIXELS)
    assert isinstance(found, torch.Tensor)
    return found


def stored(cache: ImageCache) -> int:
    return cache.store.count("pixels")


def check(cache: ImageCache, paths: list[Path]) -> None:
    """Assert that all of these images are in the cache with the right pixels."""
    for path in paths:
        assert torch.equal(pixels_of(cache, path), decode(path, Square()))


def test_pixels_of_every_kind_of_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    draw_noise(tmp_path / "plain.jpg")
    draw_noise(tmp_path / "rotated.jpg", 1, exif=exif)
    draw_noise(tmp_path / "cmyk.jpg", 2, mode="CMYK")
    draw_noise(tmp_path / "alpha.png", 3, mode="RGBA")
    draw_noise(tmp_path / "grey.png", 4, mode="L")
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animated.gif", save_all=True, append_images=frames[1:])
    wait_for_new_mtime()
    paths = sorted(tmp_path.iterdir())
    cache = filled(tmp_path / "cache", tmp_path, [path.name for path in paths])
    assert stored(cache) == 6
    check(cache, paths)


def test_nothing_is_decoded_twice(folder, tmp_path, monkeypatch):
    def batches(**options):
        module = folder.module(image_cache=str(tmp_path / "cache"), **options)
        module.setup("fit")
        module.setup("test")
        loaders = [module.train_dataloader(), module.test_dataloader(), module.entity_dataloader()]
        return [batch for loader in loaders for batch in loader]

    wait_for_new_mtime()
    first = batches()
    original_open = Image.open

    def open_nothing_but_the_probe(path, **options):
        return original_open(path, **options) if path.name == "pattern.jpg" else pytest.fail(f"{path} was opened")

    monkeypatch.setattr(Image, "open", open_nothing_but_the_probe)
    assert_same(first, batches())
    assert_same(first, batches(num_workers=2))


def assert_same(first, second):
    """Assert that batches are identical, including their failed images."""
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys() and one["failures"] == other["failures"]
        for side in {"mentions", "entities"} & one.keys():
            assert one[side].keys() == other[side].keys()
            assert all(torch.equal(tensor, other[side][name]) for name, tensor in one[side].items())
        assert all(torch.equal(one[name], other[name]) for name in {"gold", "index"} & one.keys())


def test_an_image_that_changed(tmp_path):
    """Even if size and modification time are the same."""
    names = draw_images(tmp_path / "images", 3)
    path = tmp_path / "images" / names[1]
    Image.new("RGB", (8, 8), "red").save(path.with_suffix(".bmp"))
    path.with_suffix(".bmp").replace(path)
    wait_for_new_mtime()
    cache = filled(tmp_path / "cache", tmp_path / "images", names)
    status, before = path.stat(), pixels_of(cache, path)
    content = path.read_bytes()
    path.write_bytes(content[:-192] + bytes(192))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size and path.stat().st_mtime_ns == status.st_mtime_ns
    assert cache.load(path, MAX_PIXELS) is None
    source = PixelSource(ImageFolder(tmp_path / "images", "blank"), Square(), cache=cache)
    pixels, has_image, _ = source.batch([(names[0],), (names[1],), ()])
    assert has_image.tolist() == [True, True, False]
    assert not pixels[1:].any() and pixels[0].any()  # black now
    wait_for_new_mtime()
    again = filled(tmp_path / "cache", tmp_path / "images", names)
    assert not torch.equal(pixels_of(again, path), before)
    check(again, [tmp_path / "images" / name for name in names])


def test_equal_files_are_stored_once(tmp_path):
    names = draw_images(tmp_path / "images", 4)
    shutil.copytree(tmp_path / "images", tmp_path / "moved")
    shutil.copy(tmp_path / "images" / names[0], tmp_path / "images" / "twin.jpg")
    wait_for_new_mtime()
    filled(tmp_path / "cache", tmp_path / "images", [*names, "twin.jpg"])
    cache = filled(tmp_path / "cache", tmp_path / "moved", names)
    assert stored(cache) == 4
    check(cache, [tmp_path / folder / name for folder in ("images", "moved") for name in names])


def test_one_fill_decodes_every_image_once(tmp_path, monkeypatch):
    """Also if it takes many transactions."""
    monkeypatch.setattr(image_cache, "_TRANSACTION_SIZE", 3)
    decoded = []
    monkeypatch.setattr(image_cache, "decode", lambda path, *rest: decoded.append(path) or decode(path, *rest))
    names = draw_images(tmp_path / "images", 20)
    cache = filled(tmp_path / "cache", tmp_path / "images", names)
    assert sorted(decoded) == sorted(tmp_path / "images" / name for name in names) and stored(cache) == 20


def test_a_file_that_may_still_change_is_not_cached_by_its_times(tmp_path):
    path = draw_noise(tmp_path / "x.jpg")
    os.utime(path, ns=(0, time.time_ns() + 10**12))
    cache = filled(tmp_path / "cache", tmp_path, ["x.jpg"])
    assert cache.load(path, MAX_PIXELS) is None and stored(cache) == 1


def test_reduced_decoding_has_a_cache_of_its_own(tmp_path):
    large = draw_noise(tmp_path / "large.jpg", size=(200, 120))
    drawn = draw_noise(tmp_path / "large.png", size=(200, 120))
    wait_for_new_mtime()
    plain = filled(tmp_path / "cache", tmp_path, ["large.jpg", "large.png"])
    reduced = filled(tmp_path / "cache", tmp_path, ["large.jpg", "large.png"], reduced=True)
    assert plain.folder != reduced.folder and plain.folder.parent == reduced.folder.parent
    pixels = [pixels_of(cache, path) for cache in (plain, reduced) for path in (large, drawn)]
    assert torch.equal(pixels[0], decode(large, Square()))
    assert torch.equal(pixels[2], decode(large, Square(), reduced=True))
    assert not torch.equal(pixels[0], pixels[2]) and torch.equal(pixels[1], pixels[3])
    assert (pixels[0].float() - pixels[2].float()).abs().mean() < 20  # the same image all the same


def test_the_cache_key_depends_on_the_preprocessing(tmp_path):
    class Mirrored(Square):
        def pixels(self, image):
            return super().pixels(image).flip(-1)

    assert ImageCache(tmp_path, Mirrored()).folder != ImageCache(tmp_path, Square()).folder
    assert ImageCache(tmp_path, Square()).folder == ImageCache(tmp_path, Square()).folder


def test_max_pixels_is_checked_on_every_load(tmp_path):
    path = draw_noise(tmp_path / "x.png", size=(40, 30))
    wait_for_new_mtime()
    for bound, found in ((1200, None), (1199, "oversized"), (10**6, None)):
        cache = ImageCache(tmp_path / "cache", Square())
        cache.fill(lambda bound=bound: [(ImageFolder(tmp_path, "blank", bound), ("x.png",))])
        loaded = cache.load(path, bound)
        assert loaded == found if found else torch.equal(loaded, decode(path, Square()))
    assert stored(cache) == 1


def fill_slowly(root: Path, folder: Path, names: list[str], begin) -> None:
    torch.set_num_threads(1)  # a fork has no copies of the threads of its parent
    begin.wait()
    filled(root, folder, names)


@needs_fork
def test_two_processes_at_once(tmp_path):
    names = draw_images(tmp_path / "images", 90)
    begin = FORK.Barrier(2)
    arguments = [(tmp_path / "cache", tmp_path / "images", own, begin) for own in (names[:60], names[30:])]
    processes = [FORK.Process(target=fill_slowly, args=own) for own in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    cache = ImageCache(tmp_path / "cache", Square())
    assert stored(cache) == 90
    check(cache, [tmp_path / "images" / name for name in names])


def fill_until_stopped(root: Path, folder: Path, names: list[str], permits) -> None:
    """Fill the cache, but block when the permits, one per image, are used up."""
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # tqdm's default lock is shared with the parent, and a kill could leave it locked
    original_decode = image_cache.decode

    def decode_with_permit(*arguments):
        permits.acquire()
        return original_decode(*arguments)

    image_cache.decode = decode_with_permit  # in this process only
    filled(root, folder, names)


@needs_fork
def test_a_fill_that_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "_TRANSACTION_SIZE", 8)
    names = draw_images(tmp_path / "images", 120)
    rng = random.Random(0)
    left = []
    for trial in range(6):
        root = tmp_path / str(trial)
        cache = ImageCache(root, Square())
        permits = FORK.Semaphore(rng.randrange(40, 110))
        process = FORK.Process(target=fill_until_stopped, args=(root, tmp_path / "images", names, permits))
        process.start()
        if trial % 2:  # at any moment, which may be before the first row
            time.sleep(rng.uniform(0, 0.3))
        else:  # when something has been written
            deadline = time.monotonic() + 60
            while not stored(cache):
                assert time.monotonic() < deadline, "nothing was written"
                time.sleep(0.002)
        process.kill()
        process.join()
        source = PixelSource(ImageFolder(tmp_path / "images", "error"), Square(), cache=ImageCache(root, Square()))
        expected = torch.stack([decode(tmp_path / "images" / name, Square()) for name in names])
        assert torch.equal(source.batch([(name,) for name in names]).pixels, expected)
        left.append(stored(cache))
        cache = filled(root, tmp_path / "images", names)
        assert stored(cache) == 120
        check(cache, [tmp_path / "images" / name for name in names])
    assert all(0 < count < 120 for count in left[::2]), left


def damage_images(folder: Folder) -> None:
    """Damage images of mentions, and of entities with and without other images, in every way."""
    (folder.root / "mention_images" / "train2.jpg").write_bytes(b"no image")
    (folder.root / "mention_images" / "dev1.jpg").unlink()
    (folder.root / "kb_image" / "Q2_0.png").write_bytes(b"?")
    (folder.root / "kb_image" / "Q4_0.png").unlink()
    Image.new("RGB", (50, 50)).save(folder.root / "kb_image" / "Q5_0.png")


@pytest.mark.parametrize("policy", ["blank", "drop"])
def test_policies_and_reports_are_the_same_with_and_without_a_cache(folder, tmp_path, caplog, policy):
    damage_images(folder)
    wait_for_new_mtime()
    seen, messages = [], []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        module = folder.module(image_policy=policy, image_cache=cache, max_pixels=2000, entity_batch_size=6)
        caplog.clear()
        module.setup("fit")
        seen.append([*module.train_dataloader(), *module.val_dataloader(), *module.entity_dataloader()])
        assert any(batch["failures"] for batch in seen[-1])
        for batch in seen[-1]:
            module.processor.report.add(batch["failures"])
        module.teardown("fit")
        messages.append([record.message for record in caplog.records])
    assert_same(seen[0], seen[1])
    assert_same(seen[0], seen[2])
    assert messages[0] == messages[1] == messages[2]
    assert "5 images could not be used (2 missing, 1 oversized, 2 unreadable)" in messages[0][-1]


def test_policy_error_fails_alike_with_and_without_a_cache(folder, tmp_path):
    damage_images(folder)
    wait_for_new_mtime()
    errors = []
    for cache in (None, str(tmp_path / "cache"), str(tmp_path / "cache")):
        module = folder.module(image_policy="error", image_cache=cache, max_pixels=2000)
        module.setup("test")  # only images that are used can fail
        list(module.test_dataloader())
        with pytest.raises(DataError) as raised:
            list(module.entity_dataloader())
        errors.append(str(raised.value))
    assert errors[0] == errors[1] == errors[2] and "Q2_0.png is unreadable" in errors[0]


def test_a_repaired_image_is_read_again(folder, tmp_path):
    damage_images(folder)
    wait_for_new_mtime()
    options = {"image_cache": str(tmp_path / "cache"), "entity_batch_size": 6}
    for colour in ((80, 100, 7), (9, 9, 9)):  # the second image of Q2, until the first is repaired
        module = folder.module(**options)
        module.setup("test")
        (batch,) = module.entity_dataloader()
        assert tuple(batch["entities"]["pixels"][2, :, 1, 1].tolist()) == colour
        folder.image("kb_image/Q2_0.png", (9, 9, 9))
        (changed,) = module.entity_dataloader()
        assert tuple(changed["entities"]["pixels"][2, :, 1, 1].tolist()) == (9, 9, 9)


def test_another_version_of_pillow_tries_failed_images_again(tmp_path, monkeypatch):
    (tmp_path / "x.jpg").write_bytes(b"a format of the future")
    wait_for_new_mtime()
    cache = filled(tmp_path / "cache", tmp_path, ["x.jpg"])
    assert cache.load(tmp_path / "x.jpg", MAX_PIXELS) == "unreadable"
    monkeypatch.setattr(image_cache, "_FAILURES", {b"unreadable 99.0": "unreadable"})
    assert cache.load(tmp_path / "x.jpg", MAX_PIXELS) is None
    monkeypatch.setattr(image_cache, "_CODES", {"unreadable": b"unreadable 99.0"})
    cache.fill(lambda: [(ImageFolder(tmp_path, "blank"), ("x.jpg",))])
    assert cache.load(tmp_path / "x.jpg", MAX_PIXELS) == "unreadable"


def test_fallback_images_are_cached(folder, tmp_path):
    damage_images(folder)
    wait_for_new_mtime()
    module = folder.module(image_cache=str(tmp_path / "cache"))
    module.setup("test")
    assert isinstance(module._cache.load(folder.root / "kb_image" / "Q2_1.png", MAX_PIXELS), torch.Tensor)
    assert module._cache.load(folder.root / "kb_image" / "Q2_0.png", MAX_PIXELS) == "unreadable"
    assert module._cache.load(folder.root / "kb_image" / "Q5_1.png", MAX_PIXELS) is None  # not needed


def test_the_trainer_gets_identical_batches(folder, tmp_path):
    damage_images(folder)
    folder.write()
    wait_for_new_mtime()
    seen = []
    for cache in (None, str(tmp_path / "cache")):
        for workers in (0, 2):
            model = BatchRecorder()
            module = MELDataModule(str(folder.root), name="Set", batch_size=4, num_workers=workers, image_cache=cache)
            make_trainer(tmp_path, max_epochs=2).fit(model, module)
            assert len(model.batches) == 6
            seen.append([{**batch, "failures": None} for batch in model.batches])
    for other in seen[1:]:
        assert_same(seen[0], other)


def test_the_size_is_announced(tmp_path, caplog):
    names = draw_images(tmp_path / "images", 3)
    with caplog.at_level(logging.INFO):
        cache = filled(tmp_path / "cache", tmp_path / "images", names)
        filled(tmp_path / "cache", tmp_path / "images", names)
    (record,) = (record for record in caplog.records if "decoded images" in record.message)
    assert f"in {cache.folder}" in record.message and "--data.image_cache null" in record.message
    announced = float(re.search(r"Caching 3 decoded images, up to ([\d.]+) kB", record.message).group(1)) * 1000
    assert 3 * 8 * 8 * 3 < (cache.folder / "data.mdb").stat().st_size <= announced + 2**16


def test_a_full_disk_or_an_unwritable_folder_disables_the_cache(tmp_path, caplog):
    names = draw_images(tmp_path / "images", 2)
    without_space = filled(tmp_path / "cache", tmp_path / "images", names, disk_fraction=0.0)
    (tmp_path / "file").write_text("")
    nowhere = filled(tmp_path / "file" / "cache", tmp_path / "images", names)
    first, second = (record.message for record in caplog.records)
    assert "decoded in every epoch" in first and "Choose a folder with more space" in first
    assert "decoded in every epoch" in second and "cannot be written" in second
    for cache in (without_space, nowhere):
        source = PixelSource(ImageFolder(tmp_path / "images", "error"), Square(), cache=cache)
        pixels = source.batch([(name,) for name in names]).pixels
        assert torch.equal(pixels, torch.stack([decode(tmp_path / "images" / name, Square()) for name in names]))


def test_a_truncated_cache_file(tmp_path):
    names = draw_images(tmp_path / "images", 20)
    cache = filled(tmp_path / "cache", tmp_path / "images", names)
    data = cache.folder / "data.mdb"
    whole = data.read_bytes()
    for size in (len(whole) - 4096, len(whole) // 2, 5000, 10):
        copy = tmp_path / f"cut{size}" / cache.folder.name
        copy.mkdir(parents=True)
        (copy / "data.mdb").write_bytes(whole[:size])
        with pytest.raises(StoreError, match="Delete the folder"):
            ImageCache(copy.parent, Square()).fill(lambda: [(ImageFolder(tmp_path / "images", "blank"), (names[0],))])


def test_a_flipped_byte_in_cached_pixels_is_detected_and_the_image_decoded(tmp_path):
    """Never the pixels of another image, and never zeros."""
    names = draw_images(tmp_path / "images", 3)
    cache = filled(tmp_path / "cache", tmp_path / "images", names)
    path = tmp_path / "images" / names[1]
    whole = (cache.folder / "data.mdb").read_bytes()
    place = whole.index(decode(path, Square()).numpy().tobytes())
    copy = tmp_path / "copy" / cache.folder.name
    copy.mkdir(parents=True)
    (copy / "data.mdb").write_bytes(whole[: place + 50] + bytes([whole[place + 50] ^ 4]) + whole[place + 51 :])
    damaged = ImageCache(tmp_path / "copy", Square())
    assert damaged.load(path, MAX_PIXELS) is None
    source = PixelSource(ImageFolder(tmp_path / "images", "error"), Square(), cache=damaged)
    pixels = source.batch([(name,) for name in names]).pixels
    assert torch.equal(pixels, torch.stack([decode(tmp_path / "images" / name, Square()) for name in names]))


class Large(Square):
    """Pixels that LMDB stores in pages of their own."""

    image_size = 48

    def pixels(self, image):
        return torch.from_numpy(np.array(image.resize((48, 48)))).permute(2, 0, 1).contiguous()


def test_a_page_that_leads_to_another_image_is_detected(tmp_path):
    names = draw_images(tmp_path / "images", 3)
    paths = [tmp_path / "images" / name for name in names]
    cache = ImageCache(tmp_path / "cache", Large())
    cache.fill(lambda: [(ImageFolder(tmp_path / "images", "blank"), (name,)) for name in names])
    data = cache.folder / "data.mdb"
    damaged = exchanged(data.read_bytes(), digest(paths[0]), digest(paths[1]))
    (tmp_path / "damaged" / cache.folder.name).mkdir(parents=True)
    (tmp_path / "damaged" / cache.folder.name / "data.mdb").write_bytes(damaged)
    other = ImageCache(tmp_path / "damaged", Large())
    assert [other.load(path, MAX_PIXELS) is None for path in paths] == [True, False, False]
    source = PixelSource(ImageFolder(tmp_path / "images", "error"), Large(), cache=other)
    assert torch.equal(
        source.batch([(name,) for name in names]).pixels, torch.stack([decode(path, Large()) for path in paths])
    )


def test_hashes_of_files_that_did_not_change_are_not_computed_again(tmp_path, monkeypatch):
    names = draw_images(tmp_path / "images", 5)
    folder = ImageFolder(tmp_path / "images", "blank")
    cache = filled(tmp_path / "cache", tmp_path / "images", names[:2])  # the others are not needed as pixels
    (tmp_path / "images" / "broken.jpg").write_bytes(b"?")
    wait_for_new_mtime()
    names += ["broken.jpg", "missing.jpg"]
    read: list[str] = []
    monkeypatch.setattr(
        image_cache, "digests", lambda paths: read.extend(path.name for path in paths) or digests(paths)
    )

    def hashes():
        read.clear()
        found = list(PixelSource(folder, Square(), cache=cache).digests(names))
        assert found == list(PixelSource(folder, Square()).digests(names))
        return found

    before = hashes()
    assert read == ["2.jpg", "3.jpg", "4.jpg", "broken.jpg"]
    assert len(set(before)) == 7 and before[-1] is None
    assert hashes() == before and read == []
    draw_noise(tmp_path / "images" / "3.jpg", 99)
    wait_for_new_mtime()
    after = hashes()
    assert read == ["3.jpg"]
    assert [one == other for one, other in zip(before, after, strict=True)] == [n != 3 for n in range(7)]


def test_an_open_store_survives_forks_and_pickling(tmp_path):
    names = draw_images(tmp_path / "images", 3)
    cache = filled(tmp_path / "cache", tmp_path / "images", names)
    check(pickle.loads(pickle.dumps(cache)), [tmp_path / "images" / name for name in names])
    if FORK is not None:
        process = FORK.Process(target=check, args=(cache, [tmp_path / "images" / name for name in names]))
        process.start()
        process.join()
        assert process.exitcode == 0
    check(cache, [tmp_path / "images" / name for name in names])


def test_the_default_cache_folder(folder, tmp_path, monkeypatch):
    wait_for_new_mtime()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    folder.module(image_cache=None).setup("test")
    assert not (tmp_path / "caches").exists()
    folder.module().setup("test")
    (found,) = (tmp_path / "caches" / "mimic_pl" / "images").iterdir()
    assert found.name.startswith("4px-") and (found / "data.mdb").is_file()
