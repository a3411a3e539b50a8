"""Whatever is wrong with the files is said before a wrong number is read, and a cut file never kills the process."""

from __future__ import annotations

import json
import re
import zlib

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimic_pl.errors import StoreError
from mimic_pl.store import Store
from tests.store.conftest import KIND, ROWS, write

SHARD = "shard-00003.safetensors"


def test_nothing_there(tmp_path):
    with pytest.raises(StoreError, match=r"There is no entity index in .*nowhere \(no file manifest.json\)"):
        Store.open(tmp_path / "nowhere", KIND)


def test_another_kind_or_model(folder):
    with pytest.raises(StoreError, match="holds the entity index, not the image cache"):
        Store.open(folder, "image cache")
    Store.open(folder, KIND, expects={"model": "abc"})
    with pytest.raises(StoreError, match="was built for another model: 'abc', and now it is 'xyz'. Build it again"):
        Store.open(folder, KIND, expects={"model": "xyz"})
    with pytest.raises(StoreError, match="for another image policy: None, and now it is 'blank'"):
        Store.open(folder, KIND, expects={"model": "abc", "image policy": "blank"})


def edit(folder, **changes):
    """A manifest that says something else, with a checksum that is right for it."""
    path = folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    content.pop("crc32")
    crc = zlib.crc32(json.dumps(content, sort_keys=True).encode())
    path.write_text(json.dumps({**content, "crc32": f"{crc:08x}"}))


def test_manifests_that_can_not_be_read(folder):
    edit(folder, version=1)
    with pytest.raises(StoreError, match="format version 1, and this version of mimic-pl reads version 2"):
        Store.open(folder, KIND)
    edit(folder, version=2, rows=ROWS + 1)
    with pytest.raises(StoreError, match="104 rows, of which its shards hold 103"):
        Store.open(folder, KIND)
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    edit(folder, rows=ROWS, shards=[{**shards[0], "file": "../outside"}, *shards[1:]])
    with pytest.raises(StoreError, match="outside of the folder"):
        Store.open(folder, KIND)
    edit(folder, format="something else")
    with pytest.raises(StoreError, match="no manifest of a store that mimic-pl wrote"):
        Store.open(folder, KIND)
    whole = (folder / "manifest.json").read_bytes()
    for part in (whole[:-40], b"", b"[]", b"\xff\xfe", b'{"format": "mimic_pl store", "version": 2}'):
        (folder / "manifest.json").write_bytes(part)
        with pytest.raises(StoreError, match="manifest.json"):
            Store.open(folder, KIND)


def test_a_missing_shard(folder):
    (folder / SHARD).unlink()
    with pytest.raises(StoreError, match=f"{SHARD} is missing, a part of the entity index"):
        Store.open(folder, KIND)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_of_another_size(folder, change):
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-1] if change < 0 else content + b"!")
    with pytest.raises(StoreError, match=f"{SHARD} has {len(content) + change} bytes .* needs {len(content)}"):
        Store.open(folder, KIND)


def test_a_shard_cut_off_after_opening(folder):
    store = Store.open(folder, KIND)
    (folder / SHARD).write_bytes(b"")
    for read in (lambda: store.slice(48, 50), lambda: store.select(torch.tensor([50]))):
        with pytest.raises(StoreError, match=f"{SHARD} has 0 bytes"):
            read()
    store.slice(0, 48)


@pytest.mark.parametrize("place", [0, 20, 1500, -1])
def test_one_flipped_byte(folder, place):
    content = bytearray((folder / SHARD).read_bytes())
    content[place] ^= 64
    (folder / SHARD).write_bytes(content)
    store = Store.open(folder, KIND)
    for read in (store.verify, lambda: store.slice(40, 60), lambda: store.select(torch.tensor([1, 50]))):
        with pytest.raises(StoreError, match=f"{SHARD} is damaged: .*checksum"):
            read()
    store.slice(0, 48)  # the others are fine


def test_a_shard_of_another_store(folder, tmp_path):
    """As long as it should be, readable, but of other arrays; not even the checksum is asked for."""
    tensors = load_file(folder / SHARD)
    tensors["bias"] = tensors["bias"].view(torch.int32)
    save_file(tensors, folder / SHARD)
    content = (folder / SHARD).read_bytes()
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    shards[3]["bytes"] = len(content)
    edit(folder, shards=shards)
    with pytest.raises(StoreError, match=f"{SHARD} is damaged .*it holds other arrays than the manifest"):
        Store.open(folder, KIND, check=False).slice(48, 50)
    (folder / SHARD).write_bytes(re.sub(rb"data_offsets", rb"data_0ffsets", content))
    with pytest.raises(StoreError, match=f"{SHARD} is damaged"):
        Store.open(folder, KIND, check=False).slice(48, 50)


def test_checksums_can_be_left_alone(tmp_path):
    folder = write(tmp_path)
    content = bytearray((folder / SHARD).read_bytes())
    content[-1] ^= 1
    (folder / SHARD).write_bytes(content)
    store = Store.open(folder, KIND, check=False)
    store.select(torch.tensor([50]))
    with pytest.raises(StoreError, match="checksum"):
        store.verify()
