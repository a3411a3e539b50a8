"""Stores whose files are changed, cut off or cannot be written, at any moment."""

from __future__ import annotations

import errno
import json
import os
import random

import pytest
import torch

from mimic_pl.errors import StoreError
from mimic_pl.store import Column, Store, StoreWriter
from tests.faults.catalogue import BY_TEST, told
from tests.store.conftest import COLUMNS, KIND, ROWS, content, write

SHARD = "shard-00003.safetensors"


@pytest.mark.parametrize("what", ["columns", "shards", "description"])
def test_a_manifest_that_lacks_something(tmp_path, what):
    path = write(tmp_path / "index", description={"model": "abc"}) / "manifest.json"
    manifest = json.loads(path.read_text())
    if what == "shards":
        manifest["shards"].pop()
        manifest["rows"] = sum(shard["rows"] for shard in manifest["shards"])
    else:
        manifest[what].popitem()
    path.write_text(json.dumps(manifest))
    with told("test_a_manifest_that_lacks_something"):
        Store.open(tmp_path / "index", KIND)


def test_a_shard_cut_off_under_its_reader(tmp_path):
    folder = write(tmp_path / "index")
    for kept in (0, 200, 1000):
        store = Store.open(folder, KIND)
        whole = (folder / SHARD).read_bytes()
        held = store.slice(48, 64)
        os.truncate(folder / SHARD, kept)
        assert all(torch.equal(held[name], tensor[48:64]) for name, tensor in content().items())  # a map would be gone
        with told("test_a_shard_cut_off_under_its_reader"):
            store.slice(48, 64)
        store.slice(0, 48)
        (folder / SHARD).write_bytes(whole)


class Failing:
    """The operating system, which reports an error at the n-th call that makes something durable."""

    def __init__(self, patch: pytest.MonkeyPatch, moment: int) -> None:
        self.left = moment
        for name in ("fsync", "replace", "posix_fallocate"):
            if hasattr(os, name):
                patch.setattr(os, name, self.failing(getattr(os, name)))

    def failing(self, call):
        def or_fail(*arguments):
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return call(*arguments)

        return or_fail


def test_what_was_reported_as_written_reads_back(tmp_path):
    rng, made, failed = random.Random(0), content(), 0
    for trial in range(BY_TEST["test_what_was_reported_as_written_reads_back"].trials):
        folder, reported = tmp_path / str(trial), 0
        with pytest.MonkeyPatch.context() as patch:
            Failing(patch, rng.randrange(1, 60))
            try:
                with StoreWriter(folder, KIND, COLUMNS, rows_per_shard=16) as writer:
                    while writer.next_row < ROWS:
                        some = slice(writer.next_row, writer.next_row + rng.randrange(1, 40))
                        writer.append({name: tensor[some] for name, tensor in made.items()})
                        writer.commit()
                        reported = writer.next_row
            except StoreError as error:
                failed += 1
                assert "cannot be written: Input/output error" in str(error)
        assert not list(folder.glob("*.tmp"))
        if reported:
            store = Store.open(folder, KIND)
            store.verify()
            assert all(torch.equal(store.slice(0, reported)[name], made[name][:reported]) for name in made)
        with StoreWriter(folder, KIND, COLUMNS, rows_per_shard=16) as writer:
            assert writer.next_row >= reported
            writer.append({name: tensor[writer.next_row :] for name, tensor in made.items()})
        store = Store.open(folder, KIND)
        assert all(torch.equal(store.slice(0, ROWS)[name], made[name]) for name in made)
    assert failed > 10
    with told("test_what_was_reported_as_written_reads_back"), pytest.MonkeyPatch.context() as patch:
        Failing(patch, 2)
        StoreWriter(tmp_path / "last", KIND, {"x": Column(torch.int8)}, rows=0).commit()
