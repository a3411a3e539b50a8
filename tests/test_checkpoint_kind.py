"""Weights in the forms that other programs write: read, or recognised in one sentence."""

from __future__ import annotations

import gzip
import os
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from safetensors.torch import save_file
from torch import nn

from mimic_pl.checkpoints.kind import described, weights_of
from mimic_pl.checkpoints.published import read_published
from mimic_pl.checkpoints.reader import read_checkpoint
from mimic_pl.errors import CheckpointError


class Clip(nn.Module):
    """A module with names of the published model."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleDict({"clip": nn.Linear(2, 3)})

    def forward(self, x):
        return x


MODEL = Clip()
STATE = MODEL.state_dict()
OLD = {"_use_new_zipfile_serialization": False}

READ = {
    "a state dict": (STATE, {}),
    "torch before 1.6": (STATE, OLD),
    "a Lightning checkpoint of torch before 1.6": ({"state_dict": STATE, "epoch": 3}, OLD),
    "DataParallel": (nn.DataParallel(MODEL).state_dict(), {}),
    "a compiled model": (torch.compile(MODEL).state_dict(), {}),
    "a compiled model in DataParallel": (nn.DataParallel(torch.compile(MODEL)).state_dict(), {}),
    "a compiled part": ({name.replace("clip.", "clip._orig_mod."): t for name, t in STATE.items()}, {}),
    **{key: ({key: STATE, "epoch": 3}, {}) for key in ("state_dict", "model_state_dict", "model", "module", "net")},
    "nested": ({"model": {"state_dict": nn.DataParallel(MODEL).state_dict()}}, {}),
}


@pytest.mark.parametrize(("content", "options"), READ.values(), ids=READ.keys())
def test_weights_are_read_from_every_wrapping(tmp_path, content, options):
    torch.save(content, tmp_path / "weights.bin", **options)
    found = read_published(tmp_path / "weights.bin")
    assert found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_safetensors_are_recognised_whatever_the_name(tmp_path):
    save_file(STATE, tmp_path / "weights.ckpt")
    assert read_published(tmp_path / "weights.ckpt").keys() == STATE.keys()


def test_a_checkpoint_of_lightning_loses_its_prefixes_too(tmp_path):
    for options in ({}, OLD):
        torch.save({"state_dict": torch.compile(MODEL).state_dict(), "epoch": 3}, tmp_path / "x.ckpt", **options)
        found = read_checkpoint(tmp_path / "x.ckpt")
        assert found["epoch"] == 3 and found["state_dict"].keys() == STATE.keys()


def test_a_submodule_named_module_keeps_its_name():
    state = {"module.a": torch.ones(1), "b": torch.ones(1)}
    assert weights_of(state) == state
    assert weights_of({1: torch.ones(1)}) is None and weights_of([1]) is None


def foreign(folder: Path) -> dict[str, tuple[Path, str]]:
    """Real files of other kinds, and what is said about them."""
    name = folder / "x"
    made: dict[str, tuple[Path, str]] = {}

    def make(suffix: str, sentence: str, content: bytes | None = None) -> Path:
        path = name.with_suffix(suffix)
        made[suffix] = path, sentence
        if content is not None:
            path.write_bytes(content)
        return path

    torch.jit.script(MODEL).save(make(".script", "a TorchScript archive"))
    np.savez(make(".npz", "a NumPy archive"), **{key: tensor.numpy() for key, tensor in STATE.items()})
    np.save(make(".npy", "a single NumPy array"), STATE["encoder.clip.bias"].numpy())
    with zipfile.ZipFile(make(".zip", "a ZIP archive, but not one of torch.save"), "w") as archive:
        archive.writestr("readme.txt", "text")
    torch.save(STATE, folder / "whole.pt")
    whole = (folder / "whole.pt").read_bytes()
    make(".gz", "compressed with gzip", gzip.compress(whole))
    with tarfile.open(make(".tar", "a tar archive"), "w") as tar:
        tar.add(folder / "whole.pt", "whole.pt")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 605247071\n"
    make(".lfs", "a Git LFS pointer, not the file itself. Fetch the file: git lfs pull.", pointer)
    make(".html", "a web page. Download the file itself", b"\n<!DOCTYPE html><html><title>x</title>")
    make(".h5", "an HDF5 file", b"\x89HDF\r\n\x1a\n" + bytes(100))
    make(".onnx", "an ONNX graph", b"\x08\x08\x12\x07pytorch")
    make(".index", "a part of a TensorFlow checkpoint", bytes(100))
    make(".gguf", "a GGUF file", b"GGUF" + bytes(100))
    make(".json", "a JSON file", b'{"a": 1}')
    for suffix, file, sentence in (
        (".deepspeed", "zero_to_fp32.py", "a sharded DeepSpeed checkpoint"),
        (".fsdp", "meta.pt", "a sharded FSDP checkpoint of Lightning"),
        (".hf", "config.json", "a folder of transformers"),
        (".empty", "nothing", "a folder. Name the file"),
    ):
        path = make(suffix, sentence)
        path.mkdir()
        (path / file).touch()
    return made


@pytest.mark.parametrize("read", [read_published, read_checkpoint])
def test_other_kinds_are_recognised(tmp_path, read):
    for path, sentence in foreign(tmp_path).values():
        with pytest.raises(
            CheckpointError, match=f"{re.escape(str(path))} is not a checkpoint of torch.save: it is {sentence}"
        ):
            read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("read", [read_published, read_checkpoint])
def test_a_pipe_is_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        read(tmp_path / "weights.pt")


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a process alone
@pytest.mark.parametrize("read", [read_published, read_checkpoint])
def test_a_sharded_checkpoint_of_torch(tmp_path, read):
    distributed_checkpoint.save({"state_dict": STATE}, checkpoint_id=tmp_path / "sharded")
    with pytest.raises(CheckpointError, match="format_utils dcp_to_torch"):
        read(tmp_path / "sharded")


@pytest.mark.parametrize("options", [{}, OLD])
def test_a_whole_model(tmp_path, options):
    path = tmp_path / "model.pt"
    torch.save(MODEL, path, **options)
    with pytest.raises(CheckpointError, match=r"contains no state dict|Such code can do anything"):
        read_published(path)
    with pytest.raises(CheckpointError, match=r"Clip\. Such code can do anything; it was not run.*whole model"):
        read_checkpoint(path)


def test_weights_alone_are_not_a_lightning_checkpoint(tmp_path):
    torch.save(STATE, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"a bare state dict of 2 tensors, without a 'state_dict'"):
        read_checkpoint(tmp_path / "x.pt")
    torch.save({"model": STATE, "epoch": 1}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"a dictionary with 'model', 'epoch', without"):
        read_checkpoint(tmp_path / "x.pt")
    save_file(STATE, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"a safetensors file, which holds weights only"):
        read_checkpoint(tmp_path / "x.safetensors")
    assert described(torch.ones(1)) == "a Tensor" and described({}) == "a dictionary with nothing in it"


def test_the_advice_for_a_torchscript_archive_works(tmp_path):
    torch.jit.script(MODEL).save(tmp_path / "script.pt")
    torch.save(torch.jit.load(tmp_path / "script.pt").state_dict(), tmp_path / "weights.pt")
    assert read_published(tmp_path / "weights.pt").keys() == STATE.keys()
