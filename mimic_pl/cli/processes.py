"""Commands that run on several processes, devices and machines, as Lightning launches them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from jsonargparse import Namespace

from mimic_pl.cli.problems import as_mimic_error
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError, UsageError

_PATIENCE = timedelta(hours=12)
"""How long processes wait while the first one reads all records, or commits; that one of them died is seen at once."""


class Launched(NamedTuple):
    """This process of a command.

    Attributes:
        processes: All processes of the command.
        device: Device of this one; None for the default.
    """

    processes: ProcessGroup
    device: torch.device | str | None


@contextmanager
def launched(given: Namespace) -> Iterator[Launched]:
    """Launch the processes that the options ask for; what follows runs in each of them.

    The processes communicate by gloo, also those with GPUs: they exchange little, and the death of one is an error of
    the others at once. An error that all of them have is printed by the first one alone.

    Args:
        given: Values of ``--device`` and of the options of
            :func:`~mimic_pl.cli.linking_options.add_process_arguments`.

    Raises:
        UsageError: The options contradict each other.
        ConfigError: There are no such devices, or the environment has another number of processes.
    """
    alone = given.devices == given.num_nodes == 1 and not _launched_by_torchrun()
    if alone and given.accelerator == "auto":
        yield Launched(ProcessGroup(alone=True), given.device)
        return
    if given.device is not None:
        raise UsageError("--device is that of a single process. With several, or with --accelerator, leave it out.")
    from lightning.fabric import Fabric
    from lightning.fabric.strategies import DDPStrategy

    strategy = "auto" if alone else DDPStrategy(process_group_backend="gloo", timeout=_PATIENCE)
    try:
        fabric = Fabric(
            accelerator=given.accelerator, strategy=strategy, devices=given.devices, num_nodes=given.num_nodes
        )
        fabric.launch()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"The processes cannot be started: {error}") from error
    processes = ProcessGroup(alone)
    try:
        yield Launched(processes, fabric.device)
    except Exception as error:
        if processes.rank == 0 or error is not processes.failure:
            raise
        # Lightning's launcher kills the first process once another one has failed: not before it has said why.
        with suppress(RuntimeError):
            dist.recv(torch.empty(1), src=0)
        raise SystemExit(as_mimic_error(error).exit_code) from None
    if not alone:
        dist.destroy_process_group()


def _launched_by_torchrun() -> bool:
    """Whether torchrun has launched several processes, whose number the options then have to name."""
    return dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", 1)) > 1
