"""A disk cache of frozen tower outputs, so that each text and image is encoded once."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from mimic_pl.errors import StoreError
from mimic_pl.files import readable_bytes
from mimic_pl.home import expanded
from mimic_pl.key_value_store import KeyValueStore

Tower = Callable[..., dict[str, Tensor]]
"""Maps tensors ``[batch, ...]`` to named tensors ``[batch, ...]``."""

_KEY_BYTES = 16
_log = logging.getLogger(__name__)


def content_keys(pixels: Tensor, has_image: Tensor) -> Tensor:
    """128-bit hash of each image, int64 ``[batch, 2]``.

    Args:
        pixels: uint8 ``[batch, 3, S, S]``.
        has_image: Whether there is an image, bool ``[batch]``: a missing image differs from a black one.
    """
    hashes = bytearray()
    for row, present in zip(pixels.contiguous(), has_image.tolist(), strict=True):
        hashes += hashlib.blake2b(row.numpy(), digest_size=_KEY_BYTES, salt=bytes([present])).digest()
    return torch.frombuffer(hashes, dtype=torch.int64).view(len(pixels), 2)


class FrozenFeatures:
    """Cache of frozen tower outputs, for experiments that train only the layers after them.

    It is keyed by content: records may be moved or renamed. Each combination of weights, precision and device type has
    its own folder, so features of other weights are never returned.

    With CLIP ViT-B/32 it needs about 80 kB for a text of 40 tokens and 155 kB for an image, in float32. If the disk is
    full, a warning is logged and the remaining features are computed without the cache.

    Args:
        towers: The frozen towers.
        folder: Folder of the cache.
        disk_fraction: Maximum fraction of the free disk space that it may take.
    """

    def __init__(self, towers: Sequence[nn.Module], folder: str | Path, disk_fraction: float = 1.0) -> None:
        self.towers = towers
        self.root = expanded(folder)
        self._disk_fraction = disk_fraction
        self._versions: object = None
        self._fingerprint = ""
        self._room: float | None = None  # bytes that may still be written; determined at the first write

    @property
    def usable(self) -> bool:
        """Whether the towers are still frozen: BackboneFinetuning may have unfrozen them."""
        return not any(weight.requires_grad for weight in self._weights())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, name: str, tower: Tower, inputs: Sequence[Tensor], keys: Tensor) -> dict[str, Tensor]:
        """Look up a tower's outputs for these inputs; the tower runs only on those that are not cached.

        Args:
            name: ``text`` or ``vision``.
            tower: The tower.
            inputs: Its arguments, each ``[batch, ...]``.
            keys: Keys of the rows, int64 ``[batch, n]``.

        Raises:
            StoreError: The whole store is damaged.
        """
        device = inputs[0].device
        store = KeyValueStore(self.root / self.fingerprint(device), ("text", "vision"))
        digests = [hashlib.blake2b(row.numpy(), digest_size=_KEY_BYTES).digest() for row in keys.cpu().contiguous()]
        cached = {key: store.get(name, key) for key in dict.fromkeys(digests)}
        rows = {key: load(value) for key, value in cached.items() if value is not None}
        missing = [key for key, value in cached.items() if value is None]
        if missing:
            missing_rows = torch.tensor([digests.index(key) for key in missing], device=device)
            with torch.no_grad():
                outputs = tower(*(tensor[missing_rows] for tensor in inputs))
            computed = {output: tensor.detach().cpu().contiguous() for output, tensor in outputs.items()}
            rows |= {key: {o: tensor[n].clone() for o, tensor in computed.items()} for n, key in enumerate(missing)}
            self._store(store, [(name, key, save(rows[key])) for key in missing])
        return {output: torch.stack([rows[key][output] for key in digests]).to(device) for output in rows[digests[0]]}

    def fingerprint(self, device: torch.device) -> str:
        """Hash of the towers' weights and of everything else that their outputs on a device depend on."""
        versions = [(id(w), w._version, w.data_ptr(), w.dtype) for w in self._weights()]
        if versions != self._versions:
            digest = hashlib.blake2b(digest_size=_KEY_BYTES)
            for tower in self.towers:
                digest.update(repr(tower).encode())
                for name, weight in tower.state_dict().items():
                    digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
                    digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._versions, self._fingerprint = versions, digest.hexdigest()
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        environment = (
            *(self._fingerprint, device.type, autocast, torch.get_float32_matmul_precision()),
            *(version(package) for package in ("torch", "transformers", "timm")),
        )
        return hashlib.blake2b(repr(environment).encode(), digest_size=_KEY_BYTES).hexdigest()

    def _weights(self) -> Iterable[Tensor]:
        for tower in self.towers:
            yield from tower.parameters()
            yield from tower.buffers()

    def _store(self, store: KeyValueStore, items: list[tuple[str, bytes, bytes]]) -> None:
        size = sum(len(value) for _, _, value in items)
        try:
            if self._room is None:
                store.folder.mkdir(parents=True, exist_ok=True)
                self._room = self._disk_fraction * shutil.disk_usage(store.folder).free
                _log.info(
                    f"Features of frozen towers are cached in {store.folder}, {readable_bytes(size // len(items))} per "
                    "record. To change the folder, set --model.encoder.frozen_features FOLDER; to disable it, null."
                )
            if size > self._room:
                if self._room:
                    _log.warning(
                        f"The disk of {self.root} has no space left for features of frozen towers; the remaining ones "
                        "are computed in every epoch. Set another folder: --model.encoder.frozen_features FOLDER."
                    )
                self._room = 0
                return
            store.put(items)
            self._room -= size
        except (StoreError, OSError) as error:
            self._room = 0
            _log.warning(f"Features of frozen towers cannot be cached and are computed in every epoch. {error}")
