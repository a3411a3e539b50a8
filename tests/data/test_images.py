"""Images of every format are converted to RGB, and unusable ones are classified by failure."""

from __future__ import annotations

import pickle
import struct
import threading
import time

import numpy as np
import pytest
from PIL import Image

from mimic_pl.data.doctor import examine
from mimic_pl.data.image_scan import failures, scan
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.images import ImageError, ImageFolder, open_image
from mimic_pl.processor.pixel_budget import PixelBudget
from tests.data.image_bytes import chunk, png, tiff


def pixel(path, at=(0, 0)):
    image = open_image(path)
    assert image.mode == "RGB"
    return image.getpixel(at)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees clockwise
    image.save(tmp_path / "x.png", exif=exif)
    assert open_image(tmp_path / "x.png").size == (2, 4)
    assert pixel(tmp_path / "x.png", (1, 0)) == (255, 0, 0)


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
    red, green, blue = pixel(tmp_path / "x.jpg")
    assert red > 200 and green < 60 and blue < 60


@pytest.mark.parametrize(
    ("mode", "colour", "seen"),
    [
        ("RGBA", (255, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (9, 255), (9, 9, 9)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
    ],
)
def test_alpha_is_composited_on_white(tmp_path, mode, colour, seen):
    Image.new(mode, (3, 3), colour).save(tmp_path / "x.png")
    assert pixel(tmp_path / "x.png") == seen


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png", transparency=0)
    assert pixel(tmp_path / "x.png") == (255, 255, 255)
    assert pixel(tmp_path / "x.png", (1, 0)) == (0, 0, 255)


WORDS = np.array([[0, 0x00FF, 0x0100, 0x7FFF], [0x8000, 0xABCD, 0xFF00, 0xFFFF]], np.uint16)
RAMP = np.array([[0, 1, 2, 3], [4, 5, 6, 10]])


def grey(source) -> list[list[int]]:
    """The values of a grey image, which are equal in all channels."""
    values = np.asarray(open_image(source))
    assert (values == values[:, :, :1]).all()
    return values[:, :, 0].tolist()


@pytest.mark.parametrize(
    "file",
    [
        png(WORDS),
        tiff(WORDS),
        tiff(WORDS, ">"),
        tiff(0xFFFF - WORDS, photometric=0),
        b"P5 4 2 65535\n" + WORDS.astype(">u2").tobytes(),
        png(np.stack([WORDS] * 3, axis=-1)),
        png(np.stack([WORDS, np.full_like(WORDS, 0xFFFF)], axis=-1)),
    ],
    ids=["png", "tiff", "tiff-big-endian", "tiff-white-is-zero", "pgm", "png-rgb", "png-alpha"],
)
def test_of_16_bits_the_high_byte_remains(file):
    assert grey(file) == (WORDS // 256).tolist()


def test_a_constant_image_of_16_bits_keeps_its_grey():
    assert grey(png(np.full((1, 2), 0x4321, np.uint16))) == [[0x43, 0x43]]


def test_12_bits_are_scaled_from_their_range():
    assert grey(b"P5 3 1 4095\n" + np.array([0, 2048, 4095], ">u2").tobytes()) == [[0, 128, 255]]
    packed = bytes([0x10, 0x0F, 0xFF])  # 0x100 and 0xFFF
    file = tiff(np.zeros((1, 3), np.uint8))
    file = file[:-3].replace(struct.pack("<HHII", 258, 4, 1, 8), struct.pack("<HHII", 258, 4, 1, 12)) + packed
    assert grey(file.replace(struct.pack("<HHII", 256, 4, 1, 3), struct.pack("<HHII", 256, 4, 1, 2))) == [[0x10, 0xFF]]


def test_a_transparent_grey_of_16_bits_is_white():
    assert grey(png(WORDS, chunk(b"tRNS", struct.pack(">H", 0x8000))))[1] == [255, 0xAB, 0xFF, 0xFF]


@pytest.mark.parametrize(
    "values",
    [
        (RAMP * 3000 - 9000).astype(np.int16),
        (RAMP * 200_000_000 - 1_000_000_000).astype(np.int32),
        (RAMP * 429_496_729).astype(np.uint32),  # above 2 ** 31, Pillow's values are negative
        (RAMP / 10).astype(np.float32),
        (RAMP * 1e-6 + 7).astype(np.float32) - np.float32(7),
        (RAMP * 6e37 - 3e38).astype(np.float32),
    ],
    ids=["int16", "int32", "uint32", "unit", "tiny", "huge"],
)
def test_other_ranges_are_stretched_to_black_and_white(values):
    low, high = values.min().astype(float), values.max().astype(float)
    expected = np.rint((values.astype(float) - low) * 255 / (high - low)).astype(int)
    assert grey(tiff(values)) == expected.tolist()
    if values.dtype != np.uint32:
        assert grey(tiff(values, ">")) == expected.tolist()
        assert (
            grey(Image.fromarray(values.astype(np.float32 if values.dtype.kind == "f" else np.int32)))
            == expected.tolist()
        )


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 0.5, np.nan], "not finite"),
        ([0, 0.5, np.inf], "not finite"),
        ([0.5, 0.5, 0.5], "all of its values are 0.5"),
        ([-3.4e38, 0, 1], "outliers that leave only black and white"),
    ],
)
def test_values_without_a_range_are_unreadable(values, words):
    with pytest.raises(ImageError, match=f"is unreadable: .*{words}"):
        open_image(tiff(np.array([values], np.float32)))


@pytest.mark.parametrize(
    "mode", ["1", "CMYK", "HSV", "L", "LA", "LAB", "La", "P", "PA", "RGBA", "RGBX", "RGBa", "YCbCr"]
)
def test_every_mode_of_pillow_is_converted(mode):
    image = Image.new(mode, (3, 2))
    if mode in ("La", "RGBa"):  # white, half transparent, premultiplied
        image = Image.new(mode, (3, 2), (128,) * len(image.getbands()))
    converted = open_image(image)
    assert converted.mode == "RGB" and converted.size == (3, 2)
    if mode in ("La", "RGBa"):
        assert min(converted.getpixel((0, 0))) >= 254


def test_the_callers_image_is_unchanged(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2), "white").save(tmp_path / "x.jpg", exif=exif)
    with Image.open(tmp_path / "x.jpg") as image:
        assert open_image(image).size == (2, 4)
        assert image.size == (4, 2) and image.getexif()[0x0112] == 6
        assert open_image(image).size == (2, 4)


@pytest.mark.parametrize("source", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint16), np.zeros(4, np.uint8), 5, None])
def test_an_object_that_is_no_image_is_an_error_under_every_policy(source):
    with pytest.raises(DataError, match="An image is"):
        open_image(source)


def test_an_image_without_pixels():
    with pytest.raises(ImageError, match="no pixels"):
        open_image(np.zeros((0, 4, 3), np.uint8))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "x.gif") == (255, 0, 0)


def test_failures_by_kind(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.jpg")
    content = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_bytes(b"<html>404</html>")
    Image.new("1", (200, 200)).save(tmp_path / "large.png")
    folder = ImageFolder(tmp_path, "error", max_pixels=200 * 200 - 1)
    names = ["whole.jpg", "cut.jpg", "empty.jpg", "text.jpg", "large.png", "none.jpg", "x" * 300, "none.jpg"]
    seen = scan(folder, names, "test")
    assert [image.failure for image in seen.values()] == [
        None,
        *("unreadable", "unreadable", "unreadable", "oversized", "missing"),
        "unreadable",  # too long for a file name
    ]
    assert len(failures(seen)) == 6
    assert seen["whole.jpg"].digest and not seen["none.jpg"].digest


def test_a_decompression_bomb_is_not_decoded(tmp_path):
    Image.new("1", (20_000, 20_000)).save(tmp_path / "x.png")  # 50 kB on disk, 1.2 GB as RGB
    with pytest.raises(ImageError, match="oversized"):
        open_image(tmp_path / "x.png")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's warnings about corrupted TIFF files
def test_corrupted_bytes_are_unreadable_or_oversized(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("x.png", "x.jpg", "x.gif", "x.bmp", "x.webp", "x.tiff"):
        path = tmp_path / name
        Image.effect_noise((24, 24), 50).save(path)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            damaged = whole.copy()
            damaged[rng.integers(len(whole), size=8)] = rng.integers(256, size=8)
            path.write_bytes(damaged.tobytes())
            try:
                assert open_image(path).mode == "RGB"
            except ImageError as error:
                assert error.kind in ("unreadable", "oversized")


def test_the_next_readable_image_is_used(tmp_path):
    Image.new("RGB", (2, 2), "red").save(tmp_path / "good.png")
    image, failed = ImageFolder(tmp_path, "blank").first_readable(["none.png", "good.png", "never.png"])
    assert image is not None and image.getpixel((0, 0)) == (255, 0, 0)
    assert failed == [(str(tmp_path / "none.png"), "missing")]
    with pytest.raises(DataError, match="none.png is missing"):
        ImageFolder(tmp_path, "error").first_readable(["none.png", "good.png"])


def images_in(folder, *names):
    """Images of different colours; returns the colour of each."""
    colours = {}
    for number, name in enumerate(names):
        colours[name] = (20 * number, 255 - 20 * number, 9)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), colours[name]).save(folder / name, "PNG")
    return colours


def test_mention_images_are_found_as_jpg(tmp_path):
    images_in(tmp_path, "a.jpg", "b.png", "b.jpg", "c.svg.jpg", "c.jpg")
    names = ["http://site/a.svg.png", "b.png", "c.svg.png"]
    folder = ImageFolder(tmp_path, "blank", names=lambda: names)
    assert folder.path(names[0]) == tmp_path / "a.jpg"  # up to the first dot, as in the published code
    assert folder.path("b.png").name == "b.png"  # the literal name takes precedence
    assert folder.path("c.svg.png").name == "c.svg.jpg"  # the last dot takes precedence
    assert pickle.loads(pickle.dumps(folder)).path(names[0]) == tmp_path / "a.jpg"
    assert ImageFolder(tmp_path, "blank").path("a.png").name == "a.png"  # as for entities


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.jpg"], ["a.b.png", "a.c.png"]),
        (["a.jpg"], ["a.jpg", "a.png"]),
        (["a.jpg"], ["a.png", "a.jpeg"]),
        (["a.jpg"], ["x/a.png", "y/a.png"]),
        (["a.jpg"], ["a", "a.b.c.png"]),
        (["a.b.jpg", "a.jpg"], ["a.b.png", "a.png", "a.b.webp", "a.c.png"]),
        (["A.png", "a.jpg"], ["a.png", "A.png", "a.PNG"]),
        (["d/a.png", "a.jpg"], ["d\\a.png", "a.png"]),
        (["é.jpg"], ["e\u0301.png", "e\u0301.jpg", "é.jpg"]),
        (["a b.jpg"], ["a%20b.jpg", "a%20b.png", "a b.jpg "]),
        ([".jpg", "..jpg"], [".a.png", "..png", "."]),
    ],
)
def test_an_image_is_never_mistaken_for_another(tmp_path, files, names):
    """No file serves two names that differ in more than the separator of folders."""
    colours = images_in(tmp_path, *files)
    seen: dict[tuple[int, int, int], str] = {}
    for folder in (ImageFolder(tmp_path, "blank", names=lambda: names), ImageFolder(tmp_path, "blank")):
        for name in names:
            image, _ = folder.first_readable([name])
            if image is not None:
                assert seen.setdefault(image.getpixel((0, 0)), name) == name
            if name in colours:  # what is there is found
                assert image is not None and image.getpixel((0, 0)) == colours[name]


def test_an_ambiguous_name_is_a_failure_of_its_own_kind(folder, tmp_path):
    """Also if the other mention is in another split."""
    folder.splits["train"][0]["imgPath"] = "view.of.the.sea.png"
    folder.splits["test"][0]["imgPath"] = "view.of.a.lake.png"
    folder.splits["test"][1]["imgPath"] = "test1.svg.png"
    folder.image("mention_images/view.jpg", (1, 2, 3))
    module = folder.module(image_cache=None)
    module.setup("test")
    (batch,) = list(module.test_dataloader())[:1]
    assert batch["mentions"]["has_image"].tolist() == [False, True, True]
    assert batch["failures"] == [(str(folder.root / "mention_images" / "view.of.a.lake.png"), "ambiguous")]
    module.processor.mention_images = module.mention_images  # as in a loaded run
    assert module.processor.mentions(module.mentions["test"])["has_image"].tolist()[:3] == [False, True, True]
    assert list(module.processor.report.failures.items()) == batch["failures"]
    finding = next(found for found in examine(module).findings if found.subject == "mention images, ambiguous")
    assert finding.value.startswith("2 of 23") and finding.verdict == "warning"
    strict = folder.module(image_cache=None, image_policy="error")
    strict.setup("test")
    with pytest.raises(DataError, match=r"lake.png is ambiguous: .* view.jpg may be its image or that of 'view.of.the"):
        list(strict.test_dataloader())


def test_threads_decode_at_most_a_number_of_pixels_at_once():
    budget, lock, used, most = PixelBudget(100), threading.Lock(), [0], []

    def decode(pixels):
        with budget.reserved(pixels):
            with lock:
                used[0] += pixels
                most.append(used[0])
            time.sleep(0)
            with lock:
                used[0] -= pixels

    sizes = [30, 60, 100, 1, 250, 99, 40] * 20
    threads = [threading.Thread(target=decode, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == len(sizes) and used == [0]
    assert all(total <= 100 or total == 250 for total in most)  # a larger image is decoded alone


def test_unknown_policy(tmp_path):
    with pytest.raises(ConfigError, match="blank, drop, error"):
        ImageFolder(tmp_path, "ignore")  # type: ignore[arg-type]
