"""Building the entity index for an evaluation with the model's current weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from mimic_pl.batch import Batch
from mimic_pl.data.protocol import RankedData, data_of
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import StoreError
from mimic_pl.ranking import EntityIndex, IndexBuilder, Shard, fingerprint
from mimic_pl.trainer_folder import trainer_folder
from mimic_pl.units import States

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC


def evaluation_index(model: MIMIC, trainer: Trainer, builder: IndexBuilder) -> EntityIndex:
    """Encode the knowledge base, or this process's shard of it, or open the index on disk.

    Args:
        model: The model that encodes.
        trainer: Its Trainer, with a data module.
        builder: Dtype and storage of the index.

    Raises:
        ConfigError: The Trainer was given data loaders instead of a data module.
        StoreError: The index on disk was built by another model or from other data, or is damaged; or images
            changed while they were encoded.
    """
    data = data_of(trainer, RankedData)
    num_entities = len(data.entities)
    on_disk = builder.storage == "disk"
    # If texts need not be padded to a fixed length, those of similar length are batched together.
    padded = on_disk or model.matcher.reads_padding or model.encoder.reads_padding
    loader = data.entity_dataloader(by_length=not padded)
    shard = _shard_of(loader, num_entities)
    description: dict[str, object] = {}
    if on_disk or shard.processes.world_size > 1:
        description = {
            "model": fingerprint(model.encoder, model.matcher),
            "precision": str(trainer.precision),
            **data.describe_entities(),
        }
    if not on_disk:
        provenance = repr(description)
        return builder.in_memory(data.entities, lambda _: _encoded(model, loader), model.device, shard, provenance)
    validating = trainer.state.fn in ("fit", "validate")

    def encoded(first: int) -> Iterator[tuple[Tensor, States]]:
        yield from _encoded(model, data.entity_dataloader(first=first))
        if not validating and not description.items() >= data.describe_entities().items():
            raise StoreError(
                "Images of the knowledge base changed while they were encoded. Delete the folder "
                f"{_folder(builder, trainer, validating)}, and start again when they are complete."
            )

    return builder.on_disk(
        _folder(builder, trainer, validating),
        data.entities,
        encoded,
        model.device,
        description,
        # During fit, the stored index is of an earlier epoch's weights.
        rebuild=validating,
        shard=shard,
    )


def _shard_of(loader: DataLoader[Batch], num_entities: int) -> Shard:
    """The shard given by the sampler of the entity loader, or all entities."""
    positions = getattr(loader.sampler, "positions", None)
    if positions is None:
        return Shard.whole(num_entities)
    return Shard(torch.as_tensor(positions), num_entities, ProcessGroup())


def _folder(builder: IndexBuilder, trainer: Trainer, validating: bool) -> Path:
    folder = Path(builder.folder or trainer_folder(trainer) / "index")
    return folder / ("validation" if validating else "entities")


def _encoded(model: MIMIC, loader: DataLoader[Batch]) -> Iterator[tuple[Tensor, States]]:
    """Positions and states of the entities of each batch."""
    run = model.batch_encoder()
    for batch, states in run(loader, "entities", model.entity_states, "Encoding the knowledge base"):
        yield batch["index"], states
