"""Loss and gradients of DDP with two and three processes (gloo) equal those of one process with the whole batch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests import tiny
from tests.launch import needs_fork, run
from tests.readme import readme_block
from tests.slow import some_slow

pytestmark = needs_fork

OVERLAYS = Path(__file__).parents[2] / "cli_configs"
BATCH = 12  # of the 20 mentions: the second and last batch is smaller, and three processes cannot share it evenly

MINING = [
    *("--trainer.callbacks+", "mimic_pl.callbacks.HardNegatives", "--trainer.callbacks.depth", "2"),
    *("--model.losses.contrastive", "UnitConsistentLoss", "--model.losses.contrastive.mask_false_negatives", "true"),
]
STATIC = {"class_path": "lightning.pytorch.strategies.DDPStrategy", "init_args": {"static_graph": True}}
WHITE = {
    "white": {
        "class_path": "mimic_pl.units.GlobalCosine",
        "init_args": {"pretrained": True, "centered": True, "projection": 4},
    }
}
CASES: dict[str, list[str]] = {
    "faithful": [],
    "bf16": ["--trainer.precision", "bf16-mixed"],
    "static_graph": ["--trainer.strategy", json.dumps(STATIC)],
    "accumulation": ["--trainer.accumulate_grad_batches", "2"],
    "checkpointing": ["--model.encoder.gradient_checkpointing", "true"],
    "hard_negatives": ["--trainer.max_epochs", "2", *MINING],
    "unit_loss": ["--model.units", json.dumps({"auxiliary": {"class_path": "tests.distributed.units.Auxiliary"}})],
    # Both processes have mentions to whiten with, and a batch of one of them is cut.
    "whitening": [
        *("--trainer.callbacks+", "mimic_pl.callbacks.Whitening", "--trainer.callbacks.records", "17"),
        *("--data.eval_batch_size", "3", "--data.entity_batch_size", "5", "--model.units", json.dumps(WHITE)),
    ],
    "readme": ["--model", "theirs_of_readme.Model"],
    "readme_hard_negatives": ["--model", "theirs_of_readme.Model", "--trainer.max_epochs", "2", *MINING],
    **{
        Path(overlay).stem: ["--config", str(OVERLAYS / f"{overlay}.yaml")]
        for overlay in (
            *("experiments/concatenation", "experiments/text_unit_only", "experiments/vision_unit_only"),
            *("experiments/global_similarity", "experiments/padding_mask", "experiments/text_only"),
            "experiments/frozen_encoder",
            *(
                "recipes/intra_modal",
                "recipes/assignment",
                "recipes/symmetric",
                "recipes/from_scratch",
                "recipes/compact",
            ),
        )
    },
}
ENCODER = {
    "class_path": "mimic_pl.encoders.TextVisionEncoder",
    "init_args": {
        "text_config": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "vocabulary": tiny.WORDS,
        "vision": "vit_tiny_patch16_224",
        "vision_pretrained": False,
        "vision_args": {"img_size": 16, "patch_size": 8, "depth": 1, "embed_dim": 16, "num_heads": 2},
        "text_length": 16,
        "text_dim": 8,
        "image_dim": 8,
    },
}
ENCODER["init_args"]["text_config"]["hidden_dropout_prob"] = 0.0  # each process would draw its own dropout mask
ENCODER["init_args"]["text_config"]["attention_probs_dropout_prob"] = 0.0


class Steps:
    """Recorded steps by case and number of processes, trained on first access."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = tiny.write_set(folder / "set")
        (folder / "theirs_of_readme.py").write_text(readme_block("# theirs.py"))
        self.found: dict[tuple[str, int], list] = {}

    def __getitem__(self, key: tuple[str, int]) -> list:
        if key not in self.found:
            case, count = key
            path = self.folder / f"{case}-{count}.pt"
            keep = ["--trainer.callbacks+", "tests.distributed.steps.Steps", "--trainer.callbacks.path", str(path)]
            run(["fit", *self.arguments(case, count), *keep], self.folder, count)
            self.found[key] = torch.load(path)
        return self.found[key]

    def arguments(self, case: str, count: int) -> list[str]:
        config = tiny.config(self.root, self.folder)
        config["trainer"] |= {"max_epochs": 1, "precision": "64-true", "logger": False}
        config["trainer"] |= {"enable_checkpointing": False, "enable_model_summary": False}
        config["trainer"] |= {"devices": count, "strategy": "ddp"}
        del config["model"]["init_args"]["units"]
        config["data"]["init_args"]["batch_size"] = BATCH // count
        if case == "other_encoder":
            config["model"]["init_args"]["encoder"] = ENCODER
        if case == "local":
            config["model"]["init_args"]["global_negatives"] = False
            config["trainer"]["limit_train_batches"] = 1
            if count == 1:  # one process accumulates as many batches as there are processes
                config["trainer"] |= {"accumulate_grad_batches": 2, "limit_train_batches": 2}
                config["data"]["init_args"]["batch_size"] = BATCH // 2
        path = self.folder / f"{case}-{count}.yaml"
        path.write_text(yaml.safe_dump(config))
        return ["--config", str(path), *CASES.get(case, [])]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    return Steps(tmp_path_factory.mktemp("ddp"))


def assert_same(steps, alone):
    assert len(steps) == len(alone)
    for step, one in zip(steps, alone, strict=True):
        assert step.keys() == one.keys()
        for name, value in step.items():
            if name == "mentions":
                assert value == one[name]
            elif name == "matcher.raw_weights":  # fitted to scores that are always float32
                torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-4)
            else:
                torch.testing.assert_close(value, one[name], rtol=1e-6, atol=1e-6, msg=lambda text: f"{name}: {text}")  # noqa: B023


EXACT = {*CASES, "other_encoder"} - {"bf16", "static_graph"}
QUICK = {"faithful"}


@pytest.mark.parametrize("case", some_slow(sorted(EXACT), EXACT - QUICK))
def test_two_processes_compute_what_one_computes(steps, case):
    alone = steps[case, 1]
    assert any(name == "val/mrr" for step in alone for name in step), "validation ran"
    gradients = next(step for step in alone if "loss" not in step)
    assert any(tensor.abs().max() > 1e-3 for tensor in gradients.values())
    assert_same(steps[case, 2], alone)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["faithful", "symmetric", "text_unit_only"])
def test_three_processes_with_an_uneven_last_batch(steps, case):
    assert_same(steps[case, 3], steps[case, 1])


@pytest.mark.slow
def test_bf16_mixed(steps):
    """Losses are as close to those of float64 as the rounding of bfloat16 allows."""
    exact = [step["loss"] for step in steps["faithful", 1] if "loss" in step]
    assert len(exact) == 2
    for count in (1, 2):
        losses = [step["loss"] for step in steps["bf16", count] if "loss" in step]
        assert losses == pytest.approx(exact, rel=0.02) and losses != exact


@pytest.mark.slow
def test_a_static_graph(steps):
    assert_same(steps["static_graph", 2], steps["faithful", 1])


@pytest.mark.slow
def test_local_negatives(steps):
    """Each process uses its own batch: gradients are the mean over both, which one process accumulates."""
    gradients, gradients_of_two = (
        next(step for step in steps["local", count] if "encoder.image_global.weight" in step) for count in (1, 2)
    )
    assert gradients.keys() == gradients_of_two.keys()
    for name, gradient in gradients_of_two.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-6, atol=1e-6)
