"""Starts the projections of cosine units from a whitening of the features, so that training starts from zero-shot."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mimic_pl.batch import Inputs
from mimic_pl.data import MELDataModule
from mimic_pl.distributed import ProcessGroup
from mimic_pl.encoding import Side
from mimic_pl.errors import ConfigError
from mimic_pl.model import MIMIC
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.units import GlobalCosine, Matcher


class Whitening(Callback):
    """Whitens the features that cosine units compare, before the first training step.

    Features of pretrained towers vary most in directions that say little about the pair, such as colour or size. The
    ``projection`` of every :class:`~mimic_pl.units.GlobalCosine` that has one is set to a whitening of the features of
    entities and training mentions (see :meth:`GlobalCosine.whiten <mimic_pl.units.GlobalCosine.whiten>`), in which all
    directions vary alike. Golds are not read: with a learning rate of 0 this is a model without training, and training
    starts from its scores. Units that are centred are centred on the same records until the first validation.

    A resumed run keeps its projections.

    Args:
        records: Maximum number of entities and of mentions to whiten with, the first ones of each.
    """

    @in_range(records=COUNT)
    def __init__(self, records: int = 2048) -> None:
        self.records = records
        self._whitened = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that there is something to whiten.

        Raises:
            ConfigError: No unit has a projection, or the data is not that of a single MELDataModule.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, MIMIC) or not projected_units(pl_module.matcher):
            raise ConfigError(
                "Whitening sets the projections of GlobalCosine units, but the model has none. Set the projection of a "
                "unit, for example --model.units.image.init_args.projection 512, or remove the callback."
            )
        if not isinstance(getattr(trainer, "datamodule", None), MELDataModule):
            raise ConfigError("Whitening needs a MELDataModule, with a single knowledge base. Remove the callback.")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Whiten, unless the run is resumed; collective."""
        if self._whitened:
            return
        assert isinstance(pl_module, MIMIC), "checked in setup"
        whiten_units(
            pl_module.matcher, *(self._features(trainer, pl_module, side) for side in ("mentions", "entities"))
        )
        for unit in projected_units(pl_module.matcher).values():
            assert unit.projection is not None
            # All processes compute the same, but broadcasting guarantees that they are bit-identical.
            unit.projection.data.copy_(trainer.strategy.broadcast(unit.projection.data))
        self._whitened = True

    def _features(self, trainer: Trainer, model: MIMIC, side: Side) -> dict[str, Tensor]:
        """Features by unit of the first records of a side in order, those of all processes."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        loader = data.mining_dataloader() if side == "mentions" else data.entity_dataloader()
        units = projected_units(model.matcher)
        index = [torch.empty(0, dtype=torch.int64, device=model.device)]
        own = [{name: none_of(unit) for name, unit in units.items()}]  # a process may have none of them
        batches = takewhile(lambda batch: bool(self._wanted(batch["index"]).any()), loader)
        for batch, features in model.batch_encoder()(batches, side, lambda inputs: compared(model, inputs)):
            kept = self._wanted(batch["index"])
            index.append(batch["index"][kept])
            own.append({name: rows[kept] for name, rows in features.items()})
        joined = [torch.cat([rows[name] for rows in own]) for name in units]
        order, *everyone = (
            torch.cat(parts) for parts in zip(*ProcessGroup().gather([torch.cat(index), *joined]), strict=True)
        )
        return {name: rows[order.argsort()] for name, rows in zip(units, everyone, strict=True)}

    def _wanted(self, index: Tensor) -> Tensor:
        """Which records are among the first ones; padding is not."""
        return (index >= 0) & (index < self.records)

    def state_dict(self) -> dict[str, Any]:
        """Whether the projections were set."""
        return {"whitened": self._whitened}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore whether the projections were set."""
        self._whitened = state_dict["whitened"]


def projected_units(matcher: Matcher) -> dict[str, GlobalCosine]:
    """The units with a projection, by name."""
    return {
        name: unit
        for name, unit in matcher.named_units()
        if isinstance(unit, GlobalCosine) and unit.projection is not None
    }


def compared(model: MIMIC, inputs: Inputs) -> dict[str, Tensor]:
    """Features of one side that units with a projection compare, by unit, ``[batch, width]``."""
    features = model.matcher.norm(model.encode(inputs))
    return {name: unit.compared(features).float() for name, unit in projected_units(model.matcher).items()}


def none_of(unit: GlobalCosine) -> Tensor:
    """Features of no records, ``[0, width]``."""
    assert unit.projection is not None
    return torch.empty(0, unit.projection.shape[1], device=unit.projection.device)


@torch.no_grad()
def whiten_units(matcher: Matcher, mentions: Mapping[str, Tensor], entities: Mapping[str, Tensor]) -> None:
    """Set the projections of units to a whitening, and centre the units on the same records, in place.

    Args:
        matcher: Has the units.
        mentions: Features of mentions by unit, as of :func:`compared`; there may be none.
        entities: Features of entities.

    Raises:
        ConfigError: There are too few different features to whiten.
    """
    for name, unit in projected_units(matcher).items():
        sides: dict[Side, Tensor] = {"mentions": mentions[name], "entities": entities[name]}
        unit.whiten(*sides.values())
        assert unit.projection is not None
        for side, rows in sides.items():
            directions = rows.to(unit.projection.dtype) @ unit.projection.T
            unit.set_totals(side, unit.totals({"direction": directions}))
