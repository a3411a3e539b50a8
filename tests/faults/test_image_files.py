"""Files that are not images, and paths outside of the data folder."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image

from mimic_pl.data.file_keys import digest
from mimic_pl.data.reader import read_mentions
from mimic_pl.processor.images import ImageError, ImageFolder, open_image
from tests.faults.catalogue import check_command_error, expect_fault


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
