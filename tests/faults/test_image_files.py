"""Files that are not images, and paths outside of the data folder."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from mimic_pl.data.file_keys import digest
from mimic_pl.data.reader import read_mentions
from mimic_pl.processor.images import ImageError, ImageFolder, open_image
from tests.data.image_bytes import chunk, gif, jpeg, png, tiff, with_scans
from tests.faults.catalogue import check_command_error, expect_fault

GREY = np.full((3, 4), 97, np.uint8)


def test_the_policy_decides_whether_the_command_fails(command, trained, tmp_path, caplog):
    root = shutil.copytree(trained.root, tmp_path / "set")
    whole = (root / "mention_images" / "test3.jpg").read_bytes()
    for number, damaged in ((3, whole[: len(whole) // 2]), (4, b""), (5, b"<html>404</html>")):
        (root / "mention_images" / f"test{number}.jpg").write_bytes(damaged)
    shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    options = ["test", "--data.root", str(root), "--data.image_cache", "null"]
    code, _, err = command(*options, "--model.processor.image_policy", "error", folder=tmp_path)
    assert "test3.jpg" in check_command_error("test_the_policy_decides_whether_the_command_fails", code, err)
    code, _, err = command(*options, folder=tmp_path)
    assert code == 0 and "3 images could not be used (3 unreadable)" in caplog.text, err
    assert len((tmp_path / "lightning_logs/version_0/predictions.jsonl").read_text().splitlines()) == 9


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")
def test_pipes_folders_and_devices_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "folder.jpg", "device.jpg"):
        with pytest.raises(ImageError, match="is unreadable: it is a folder or a device"):
            open_image(tmp_path / name)
        assert digest(tmp_path / name) is None


def test_symlinked_folders_are_followed_but_names_cannot_escape(tmp_path):
    """Image folders are often links to a larger disk. Links are trusted, names in data files are not."""
    outside, inside = tmp_path / "disk" / "images", tmp_path / "set" / "mention_images"
    outside.mkdir(parents=True)
    inside.parent.mkdir()
    inside.symlink_to(outside)
    Image.new("RGB", (2, 2), "red").save(outside / "x.png")
    image, failures = ImageFolder(inside, "error").first_readable(["x.png"])
    assert image is not None and not failures
    row = {"id": 1, "mentions": "m", "sentence": "s", "imgPath": "deeper/../../secret.png"}
    (tmp_path / "mentions.json").write_text(json.dumps([row]))
    with expect_fault("test_symlinked_folders_are_followed_but_names_cannot_escape"):
        read_mentions(tmp_path / "mentions.json")


def seen_as(source, **options) -> tuple[int, int]:
    """The size of an image that opens."""
    image = open_image(source, **options)
    assert image.mode == "RGB"
    return image.size


def test_a_jpeg_of_many_scans_is_not_decoded():
    """Decoding takes a pass over all pixels for each scan."""
    assert seen_as(with_scans(100)) == (32, 32)
    for count in (101, 2000):
        with pytest.raises(ImageError, match="is oversized: it has too many scans"):
            open_image(with_scans(count))
    assert seen_as(with_scans(40), max_pixels=2 * 32 * 32) == (32, 32)
    with pytest.raises(ImageError, match="is oversized: it has too many scans"):
        open_image(with_scans(41), max_pixels=2 * 32 * 32)


def test_markers_of_scans_outside_of_the_image_are_not_counted():
    """In the metadata, as in thumbnails, and after the image, as in photos with a video."""
    whole, markers = jpeg(), b"\xff\xda" * 500
    metadata = b"\xff\xe1" + struct.pack(">H", 2 + len(markers)) + markers
    for file in (whole[:2] + metadata + whole[2:], whole + markers, whole[:2] + metadata + jpeg(progressive=True)[2:]):
        assert np.array_equal(open_image(file), open_image(file.replace(metadata, b"").removesuffix(markers)))


EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 10 10
%%EndComments
showpage
"""


def test_postscript_is_never_run(tmp_path, monkeypatch):
    """Whatever the file is called, and if the caller has opened it."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'started'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # searched for again
    (tmp_path / "x.png").write_bytes(EPS)
    with Image.open(tmp_path / "x.png") as image:
        for source in (tmp_path / "x.png", EPS, image):
            with pytest.raises(ImageError, match="is unreadable: (not one of|.* Ghostscript)"):
                open_image(source)
        assert not (tmp_path / "started").exists()
        if EpsImagePlugin.has_ghostscript():  # the test itself would notice
            with pytest.raises(OSError):
                image.load()
            assert (tmp_path / "started").exists()


def test_only_the_first_of_many_frames_is_decoded():
    assert seen_as(gif((8, 8), (8, 8), 100_000)) == (8, 8)
    assert seen_as(tiff(GREY, next_page=8)) == (4, 3)  # pages in a cycle
    assert seen_as(tiff(GREY, next_page=2**31)) == (4, 3)


def test_frames_larger_than_their_file_declares():
    assert seen_as(gif((8, 8), (90, 90))) == (90, 90)
    with pytest.raises(ImageError, match="is oversized: 90 x 90 pixels"):
        open_image(gif((8, 8), (90, 90)), max_pixels=1000)
    with pytest.raises(ImageError, match="is oversized"):
        open_image(gif((8, 8), (90, 90)).replace(struct.pack("<HH", 90, 90), struct.pack("<HH", 60_000, 60_000)))


def test_an_icon_with_a_larger_image_than_it_declares():
    inside = png(np.zeros((90, 90), np.uint8))
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 8, 8, 0, 0, 1, 32, len(inside), 22) + inside
    assert seen_as(icon) == (90, 90)
    with pytest.raises(ImageError, match="is oversized: 90 x 90 pixels"):
        open_image(icon, max_pixels=1000)
    huge = icon.replace(struct.pack(">II", 90, 90), struct.pack(">II", 40_000, 40_000))
    with pytest.raises(ImageError, match="is (oversized|unreadable)"):
        open_image(huge)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_compressed_metadata_that_expands(kind):
    expanding = zlib.compress(bytes(20_000_000), 9)  # 20 kB
    start = b"k\0\1\0\0\0" if kind == b"iTXt" else b"k\0\0"
    with pytest.raises(ImageError, match="is unreadable: Decompressed data too large"):
        open_image(png(GREY, chunk(kind, start + expanding)))


def test_pixels_that_expand_beyond_the_image():
    file = png(GREY)
    rows = b"".join(b"\0" + row.tobytes() for row in GREY)
    longer = file.replace(chunk(b"IDAT", zlib.compress(rows)), chunk(b"IDAT", zlib.compress(rows + bytes(20_000_000))))
    assert longer != file and np.array_equal(open_image(longer), open_image(file))


def test_a_file_of_terabytes_is_not_read(tmp_path):
    """A sparse file takes no space."""
    with open(tmp_path / "x.jpg", "wb") as file:
        file.write(jpeg()[:200])
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match=r"is oversized: the file has 1.1 TB"):
        open_image(tmp_path / "x.jpg")
    assert digest(tmp_path / "x.jpg") is None


def test_thousands_of_damaged_tags_give_no_warning(recwarn):
    """Each of them claims all bytes of the file as its data."""
    entries = [struct.pack("<HHII", 40_000 + number, 7, 60_000, 8) for number in range(4500)]
    tags = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    data = b"Exif\0\0" + tags.ljust(65_000, b"\0")
    whole = jpeg()
    assert seen_as(whole[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data + whole[2:]) == (32, 32)
    assert not recwarn.list
