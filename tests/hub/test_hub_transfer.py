"""Push to and load from a server with the hub's endpoints, by huggingface_hub's own client in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from mimic_pl import MIMIC
from mimic_pl.encoders import CLIPEncoder
from tests.encoders import checkpoints
from tests.hub.fake_hub import serve
from tests.hub.test_model_folder import ENTITIES, MENTIONS
from tests.training import UNITS

CLIENT = """
import json, logging, sys
from huggingface_hub import constants
from mimic_pl import MIMIC
from mimic_pl.errors import MimicError
from mimic_pl.hub import push_folder
from tests.hub.test_hub_transfer import scores_of

logged = []
class Kept(logging.Handler):
    def emit(self, record):
        logged.append(record.getMessage())
logging.getLogger("lightning.pytorch.utilities.rank_zero").addHandler(Kept())

def load(name, revision=None):
    return scores_of(MIMIC.from_pretrained(name, revision=revision))

def push(folder, name):
    return push_folder(folder, name, private=True, token="hf_test")

def push_model(folder, name):
    return MIMIC.from_pretrained(folder).push_to_hub(name, token="hf_test", license="mit")

def set_offline(offline):
    constants.HF_HUB_OFFLINE = offline

for line in sys.stdin:
    name, *args = json.loads(line)
    logged.clear()
    try:
        result = globals()[name](*args)
    except MimicError as error:
        result = f"{type(error).__name__}: {error}"
    print("RESULT", json.dumps([result, logged]), flush=True)
"""


def scores_of(model):
    """Scores of the records of the test of model folders, to the last bit."""
    mentions, entities = model.encode_mentions(MENTIONS[1:]), model.encode_entities(ENTITIES[1:])
    return [[score.hex() for score in row] for row in model.score(mentions, entities)["overall"].tolist()]


class Client:
    """A process whose client of the hub talks to the server."""

    def __init__(self, endpoint, home):
        environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.process = subprocess.Popen([sys.executable, "-c", CLIENT], env=environment, **pipes)

    def __call__(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("RESULT"):
                return json.loads(line.removeprefix("RESULT"))
        raise AssertionError("the client raised another error than ours")


@pytest.fixture(scope="module")
def hub():
    with serve() as running:
        yield running


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    client = Client(hub[1], tmp_path_factory.mktemp("hub"))
    yield client
    client.process.stdin.close()
    client.process.wait()


@pytest.fixture(scope="module")
def scores_and_folder(tmp_path_factory):
    """Scores of a model whose encoder's checkpoint is gone, and its folder."""
    torch.manual_seed(0)
    source = tmp_path_factory.mktemp("checkpoint")
    model = MIMIC(CLIPEncoder(str(checkpoints.save("siglip", source))), units=UNITS).eval()
    folder = model.save_pretrained(tmp_path_factory.mktemp("saved") / "tiny")
    scores = scores_of(model)
    shutil.rmtree(source)
    return scores, folder


@pytest.fixture(scope="module")
def saved(scores_and_folder):
    return scores_and_folder[1]


@pytest.fixture(scope="module")
def pushed(hub, client, saved):
    running, endpoint = hub
    running.models["me/tiny"] = {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"kept"}
    address, logged = client("push", str(saved), "me/tiny")
    assert address.startswith(f"{endpoint}/me/tiny/commit/")
    assert "Uploading 7 files" in logged[0]
    return running


def without_connection(running, client, offline, *command):
    """The result of a command while the hub does not answer, or is not asked."""
    if not offline:
        running.stop()
    client("set_offline", offline)
    try:
        return client(*command)
    finally:
        if not offline:
            running.restart()
        client("set_offline", False)


def test_a_push_uploads_every_file_and_removes_old_weights(pushed, saved):
    files = pushed.models["me/tiny"]
    own = {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    assert {name: content for name, content in files.items() if name != "notes.txt"} == own
    assert files["notes.txt"] == b"kept" and "me/tiny" in pushed.private


def test_a_fresh_process_scores_alike(client, scores_and_folder):
    scores, folder = scores_and_folder
    assert client("load", str(folder))[0] == scores


def test_sizes_are_told_and_the_loaded_model_is_the_pushed_one(hub, client, pushed, scores_and_folder):
    running, _ = hub
    running.models["me/tiny"]["pytorch_model.bin"] = b"never downloaded"
    scores, logged = client("load", "me/tiny")
    assert scores == scores_and_folder[0]
    weights = len(running.models["me/tiny"]["model.safetensors"])
    assert logged[0].startswith("Downloading") and f"model.safetensors {weights / 1000:.1f} kB" in logged[0]
    assert not any("pytorch_model.bin" in path for _, path, _ in running.requests)
    for offline in (True, False):  # from the cache
        again, logged = without_connection(running, client, offline, "load", "me/tiny")
        assert again == scores and not logged, offline


def test_a_model_of_another_program_is_refused_before_its_weights_are_downloaded(hub, client):
    running, _ = hub
    config = json.dumps({"model_type": "clip"}).encode()
    running.models["them/clip"] = {"config.json": config, "model.safetensors": b"large"}
    error, _ = client("load", "them/clip")
    assert error.startswith("CheckpointError: them/clip is not a model of mimic-pl")
    assert not [path for _, path, _ in running.requests if "them/clip" in path and "safetensors" in path]


def test_errors_are_one_paragraph(hub, client, pushed):
    running, _ = hub
    running.models["them/empty"] = {"README.md": b"text"}
    expected = {
        ("me/unknown",): "ConfigError: There is neither a folder 'me/unknown' here nor a model",
        ("me/tiny", "v9"): "ConfigError: 'me/tiny' on the Hugging Face hub has no revision 'v9'",
        ("them/empty",): "CheckpointError: 'them/empty' on the Hugging Face hub has no config.json",
        ("not a name!",): "ConfigError: 'not a name!' is neither a folder on this machine nor a name",
    }
    for args, message in expected.items():
        error, _ = client("load", *args)
        assert error.startswith(message) and "\n" not in error


@pytest.mark.parametrize("offline", [True, pytest.param(False, marks=pytest.mark.slow)])  # the client tries for 20 s
def test_a_hub_that_cannot_be_reached(hub, client, offline):
    error, _ = without_connection(hub[0], client, offline, "load", "me/new")
    assert error.startswith("ConfigError: 'me/new' on the Hugging Face hub is not in the cache, and the hub cannot")
    assert "\n" not in error


def test_a_model_pushes_itself(hub, client, saved):
    running, _ = hub
    address, _ = client("push_model", str(saved), "me/other")
    assert "/me/other/commit/" in address
    files = running.models["me/other"]
    assert files["model.safetensors"] == (saved / "model.safetensors").read_bytes()
    assert b"license: mit" in files["README.md"] and b"# other" in files["README.md"]
