"""The knowledge base of the data module -> its index, with the present weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from tqdm.auto import tqdm

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError
from mimic_pl.ranking import EntityIndex, IndexBuilder, Shard, fingerprint
from mimic_pl.units import States


def make_index(model: Any, trainer: Trainer, builder: IndexBuilder) -> EntityIndex:
    """Encode the knowledge base, or this process's share of it, or open the index that lies on disk.

    Args:
        model: The :class:`~mimic_pl.MIMIC` that encodes.
        trainer: Its Trainer, with a data module.
        builder: In which dtype, and where.

    Raises:
        ConfigError: The Trainer was given bare loaders instead of a data module.
        StoreError: The index on disk was built by another model or from other data, or is damaged.
    """
    datamodule: Any = getattr(trainer, "datamodule", None)
    if not hasattr(datamodule, "entity_dataloader"):
        raise ConfigError(
            "Ranking needs the knowledge base, which comes from a data module with entity_dataloader(). Call the "
            "Trainer with datamodule=..., for example mimic_pl.RichpediaMEL(root)."
        )
    num_entities = len(datamodule.entities)
    on_disk = builder.storage == "disk"
    # Where texts need not be padded to one length, those of about one length are encoded together.
    loader = datamodule.entity_dataloader(by_length=not (on_disk or model.matcher.reads_padding))
    shard = _shard_of(loader, num_entities)
    description: dict[str, Any] = {}
    if on_disk or shard.processes.world_size > 1:
        description = {
            "model": fingerprint(model.encoder, model.matcher),
            "precision": str(trainer.precision),
            **datamodule.describe_entities(),
        }
    if not on_disk:
        made_from = repr(description)
        return builder.in_memory(
            datamodule.entities, lambda _: _encoded(model, trainer, loader), model.device, shard, made_from
        )
    validating = trainer.state.fn in ("fit", "validate")
    return builder.on_disk(
        _folder(builder, trainer, validating),
        datamodule.entities,
        lambda first: _encoded(model, trainer, datamodule.entity_dataloader(first=first)),
        model.device,
        description,
        # Validation follows a model that changes; what lies there is of an earlier epoch.
        anew=validating,
        shard=shard,
    )


def _shard_of(loader: Any, num_entities: int) -> Shard:
    """What this process encodes: what the sampler of the entities' loader says, or all of them."""
    positions = getattr(loader.sampler, "positions", None)
    if positions is None:
        return Shard.whole(num_entities)
    return Shard(torch.as_tensor(positions), num_entities, ProcessGroup())


def _folder(builder: IndexBuilder, trainer: Trainer, validating: bool) -> Path:
    folder = Path(builder.folder or Path(trainer.log_dir or trainer.default_root_dir) / "index")
    return folder / ("validation" if validating else "entities")


def _encoded(model: Any, trainer: Trainer, loader: Any) -> Iterator[tuple[Tensor, States]]:
    """Positions and states of the entities of each batch."""
    bar = tqdm(
        _ahead(loader, model.taken_in),
        total=len(loader),
        desc="Encoding the knowledge base",
        unit="batch",
        leave=False,
        disable=trainer.progress_bar_callback is None or not trainer.is_global_zero,
    )
    was_training = model.training
    model.eval()
    try:
        for batch in bar:
            with trainer.precision_plugin.forward_context():
                states = model.entity_states(batch["entities"])
            yield batch["index"], states
    finally:
        model.train(was_training)


def _ahead(loader: Iterable[Any], move: Callable[[Any], Any]) -> Iterator[Any]:
    """Batches on the device, each on its way there while the one before is worked on."""
    moved: list[Any] = []
    for batch in loader:
        moved.append(move(batch))
        if len(moved) == 2:
            yield moved.pop(0)
    yield from moved
