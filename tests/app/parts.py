"""Linkers for the page, and what a browser would send."""

from __future__ import annotations

import base64
import io
import shutil
from pathlib import Path

from PIL import Image

from mimic_pl import Linker
from mimic_pl.app.actions import Actions
from mimic_pl.calibration import Calibration
from mimic_pl.serve.served_linker import ServedLinker
from tests.serve.parts import knowledge_base


def opened(folder: Path, calibrated: bool = False) -> Linker:
    """The linker of a knowledge base of nine entities; see :func:`tests.serve.parts.knowledge_base`."""
    knowledge_base(folder)
    if calibrated:
        Calibration(0.4, -1.0, top_k=5).save(folder / "model")
    return Linker.from_pretrained(folder / "model", "cpu").with_knowledge_base(folder / "kb")


def other(folder: Path) -> Linker:
    """A linker of the same entities that reads no images, and so ranks differently."""
    knowledge_base(folder, modalities="text")
    return Linker.from_pretrained(folder / "model", "cpu").with_knowledge_base(folder / "kb")


def actions(linker: Linker, other: Linker | None = None, **settings) -> Actions:
    return Actions(ServedLinker(linker), None if other is None else ServedLinker(other), **settings)


def png(size: tuple[int, int] = (30, 20), color: tuple[int, int, int] = (200, 10, 10)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return content.getvalue()


def data_uri(content: bytes) -> str:
    """A file as browsers read it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
