"""Images of every format are converted to RGB, and unusable ones are classified by failure."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mimic_pl.data.image_scan import failures, scan
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.images import ImageError, ImageFolder, open_image


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


def test_16_bit_images_are_scaled_to_8_bits(tmp_path):
    Image.fromarray(np.array([[0, 0x4000, 0xFFFF]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert [pixel(tmp_path / "x.png", (x, 0))[0] for x in range(3)] == [0, 0x40, 0xFF]


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


def test_mention_images_are_found_as_jpg(tmp_path):
    for name in ("a.jpg", "b.png", "b.jpg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    folder = ImageFolder(tmp_path, "blank", renamed=True)
    assert folder.path("http://site/a.svg.png").name == "a.jpg"
    assert folder.path("b.png").name == "b.png"  # the literal name takes precedence


def test_unknown_policy(tmp_path):
    with pytest.raises(ConfigError, match="blank, drop, error"):
        ImageFolder(tmp_path, "ignore")  # type: ignore[arg-type]
