"""Damaged, incomplete and hostile files of a checkpoint: one paragraph each, in little memory."""

import json
import os
import shutil
import struct
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimic_pl.encoders import CLIPEncoder
from mimic_pl.encoders.loading_errors import loading_error, reason
from mimic_pl.errors import CheckpointError, ConfigError, MimicError
from tests.encoders.checkpoints import save


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    return save("clip", tmp_path_factory.mktemp("intact"))


def use(folder):
    encoder = CLIPEncoder(str(folder))
    ids, mask = encoder.build_tokenizer()(["a fast car", "a" * 40 + "b"])
    encoder.build_image_processor()
    with torch.no_grad():
        encoder.eval()(ids, mask, torch.zeros(2, 3, 32, 32))


WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
TOKENIZER_CONFIG, IMAGES = "tokenizer_config.json", "preprocessor_config.json"


def changed(name, change):
    """A file of JSON, and its bytes after a change of its object."""

    def content(intact):
        found = json.loads((intact / name).read_text())
        change(found)
        return json.dumps(found).encode()

    return name, content


def header(change):
    """The weights, and their bytes after a change of the header."""

    def content(intact):
        whole = (intact / WEIGHTS).read_bytes()
        size = struct.unpack("<Q", whole[:8])[0]
        fields = json.loads(whole[8 : 8 + size])
        change(fields, [name for name in fields if name != "__metadata__"])
        text = json.dumps(fields).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + size :]

    return WEIGHTS, content


def weights(size, text=b""):
    """A header of this text, with a declared size."""
    return WEIGHTS, lambda _: struct.pack("<Q", size) + text


ENDLESS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}

DAMAGE = {
    "eight bytes": (*weights(100), CheckpointError, "invalid header length"),
    "a header of 4 EB": (*weights(2**62, b"{}"), CheckpointError, "header too large"),
    "a header beyond the end": (*weights(10**6, b"{}"), CheckpointError, "header length"),
    "a header that is not JSON": (*weights(4, b"xxxx"), CheckpointError, "invalid JSON"),
    "overlapping tensors": (
        *header(lambda f, n: f[n[1]].update(data_offsets=f[n[0]]["data_offsets"])),
        *(CheckpointError, "deserializing header: invalid"),
    ),
    "a tensor of 4 EB": (
        *header(lambda f, n: f[n[1]].update(shape=[2**40, 2**20])),
        *(CheckpointError, "overflow computing buffer size"),
    ),
    "no weights in the file": (*weights(2, b"{}"), CheckpointError, "would be random"),
    "one weight of another name": (
        *header(lambda f, n: f.update(other=f.pop(n[-1]))),
        *(CheckpointError, "lacks 1 weights of its model"),
    ),
    "no weights": (WEIGHTS, None, ConfigError, "no file named model.safetensors.*lacks this file"),
    "a configuration that is not JSON": (CONFIG, lambda _: b"\xff{", CheckpointError, "not a valid JSON file"),
    "a number in its place": (CONFIG, lambda _: b"3", CheckpointError, "The configuration of the checkpoint"),
    "nesting without end": (CONFIG, lambda _: b'{"a":' * 100_000, CheckpointError, "recursion"),
    "no configuration": (CONFIG, None, ConfigError, "has no config.json.*It contains model.safetensors"),
    "an unknown architecture": (
        *changed(CONFIG, lambda c: c.update(model_type="nonesuch")),
        *(ConfigError, "model type `nonesuch`.*update transformers"),
    ),
    "its own code": (
        *changed(CONFIG, lambda c: c.update(model_type="x", auto_map={"AutoConfig": "x.X"})),
        *(ConfigError, "mimic-pl runs no code from a checkpoint"),
    ),
    "a size that is a word": (
        *changed(CONFIG, lambda c: c["text_config"].update(hidden_size="many")),
        *(CheckpointError, "expected int, got str"),
    ),
    "other sizes than the weights": (
        *changed(CONFIG, lambda c: c["text_config"].update(vocab_size=10**12)),
        *(CheckpointError, "other shapes than its config.json"),
    ),
    "ten million layers": (
        *changed(CONFIG, lambda c: c["text_config"].update(num_hidden_layers=10**7)),
        *(CheckpointError, "num_hidden_layers is 10000000"),
    ),
    "half a tokenizer": (TOKENIZER, lambda p: (p / TOKENIZER).read_bytes()[:500], CheckpointError, "The tokenizer of"),
    "an unknown kind of tokenizer": (
        *changed(TOKENIZER, lambda t: t.update(model={"type": "Other"})),
        *(CheckpointError, "untagged enum"),
    ),
    "a pattern that takes forever": (
        *changed(TOKENIZER, lambda t: t.update(pre_tokenizer=ENDLESS)),
        *(ConfigError, "fails on a text: .*retry-limit"),
    ),
    "tokens that the model does not know": (
        *changed(TOKENIZER, lambda t: t["model"]["vocab"].update(car=60_000)),
        *(ConfigError, "produces the token 60000, but the model knows only"),
    ),
    "no tokenizer": (TOKENIZER, None, ConfigError, "Save the tokenizer .tokenizer.json. next to the weights"),
    "a tokenizer that needs a package": (
        *changed(TOKENIZER_CONFIG, lambda t: t.update(tokenizer_class="SiglipTokenizer")),
        *(ConfigError, "pip install sentencepiece"),
    ),
    "no padding token": (
        *changed(TOKENIZER_CONFIG, lambda t: t.update(pad_token=None)),
        *(ConfigError, "has no padding token"),
    ),
    "no image processor": (IMAGES, None, ConfigError, "does not say how its images are normalised"),
    "an unknown image processor": (
        *changed(IMAGES, lambda i: i.update(image_processor_type="Other")),
        *(ConfigError, "Unrecognized image processor"),
    ),
    "a mean of two channels": (
        *changed(IMAGES, lambda i: i.update(image_mean=[0.5, 0.5])),
        *(CheckpointError, "mean must have 3 elements"),
    ),
    "a deviation of zero": (
        *changed(IMAGES, lambda i: i.update(image_std=[0, 0, 0])),
        *(ConfigError, "Images cannot be normalised"),
    ),
    "images of a million pixels a side": (
        *changed(IMAGES, lambda i: i.update(size={"shortest_edge": 10**6})),
        *(CheckpointError, "resizes images to 1000000 pixels"),
    ),
}


@pytest.mark.parametrize(("name", "content", "error", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_one_paragraph(intact, tmp_path, name, content, error, message):
    if "sentencepiece" in message and find_spec("sentencepiece"):
        pytest.skip("sentencepiece is installed")
    folder = shutil.copytree(intact, tmp_path / "clip")
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content(intact))
    with pytest.raises(error, match=message) as caught:
        use(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1200


@pytest.mark.parametrize("place", [CONFIG, TOKENIZER, WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_does_not_block(intact, tmp_path, place, kind):
    folder = shutil.copytree(intact, tmp_path / "clip")
    (folder / place).unlink()
    if kind == "pipe":
        os.mkfifo(folder / place)
    else:
        (folder / place).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="is a pipe or a device"):
        use(folder)


def test_a_huge_file_of_json_is_not_read(intact, tmp_path):
    folder = shutil.copytree(intact, tmp_path / "clip")
    os.truncate(folder / TOKENIZER, 2**40)  # a hole, which takes no space
    with pytest.raises(CheckpointError, match="1.1 TB, more than any tokenizer"):
        use(folder)


class Code:
    def __reduce__(self):
        return os.mkdir, ("was_run",)


def test_code_in_pickled_weights_is_not_run(intact, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(intact, tmp_path / "clip")
    (folder / WEIGHTS).unlink()
    torch.save({"weight": Code()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="objects other than tensors"):
        use(folder)
    assert not (tmp_path / "was_run").exists()


def test_weights_with_nan(intact, tmp_path):
    folder = shutil.copytree(intact, tmp_path / "clip")
    weights = load_file(folder / WEIGHTS)
    weights["text_projection.weight"][0, 0] = torch.nan
    save_file(weights, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match="contain NaN: text_projection.weight"):
        use(folder)


def test_fewer_layers_than_weights(intact, tmp_path):
    folder = shutil.copytree(intact, tmp_path / "clip")
    content = changed(CONFIG, lambda c: c["text_config"].update(num_hidden_layers=1))[1](intact)
    (folder / CONFIG).write_bytes(content)
    with pytest.raises(CheckpointError, match="16 weights of layers that its config.json does not have"):
        use(folder)


def test_an_encoder_is_built_in_inference_mode(intact):
    with torch.inference_mode():
        use(intact)


def test_the_intact_checkpoint_is_used(intact):
    use(intact)


def test_reasons_are_whole_and_bounded():
    assert reason(OSError("no file\nnamed x\n\nin y")) == "no file named x in y."
    assert reason(KeyError("width")) == "the key 'width' is missing."
    assert reason(ValueError()) == "ValueError."
    long = reason(ValueError("a" * 2_000_000 + " the end"))
    assert len(long) < 700 and long.startswith("aaa") and long.endswith("the end.")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError("x is not a local folder and is not a valid model identifier\nIf this is a private"), "spelling"),
        (OSError("You are trying to access a gated repo.\nMake sure to have access to it at"), "hf auth login"),
        (OSError("There was a specific connection error: 401 Client Error"), "hf auth login"),
        (OSError("We couldn't connect to 'https://huggingface.co' to load the files"), "already be in the cache"),
        (ImportError("XTokenizer requires the SentencePiece library but it was not"), "pip install sentencepiece"),
        (ImportError("`tiktoken` is required. Install it with `pip install tiktoken`."), "pip install tiktoken`."),
        (ModuleNotFoundError("No module named 'accelerate.x'", name="accelerate.x"), "pip install accelerate"),
    ],
)
def test_advice_fits_the_reason(error, advice):
    """Errors of a hub that the tests cannot reach, in its words."""
    converted = loading_error("The checkpoint 'x'", error)
    assert isinstance(converted, MimicError) and converted.exit_code == 3
    assert str(converted).startswith("The checkpoint 'x' cannot be loaded: ") and advice in str(converted)
