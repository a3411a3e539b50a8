"""The demo: a small synthetic data set, generated in the published layout."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from tqdm.auto import tqdm

from mimic_pl.data.datamodule import MELDataModule
from mimic_pl.data.demo_design import Club, ClubMention, demo_words, design_demo
from mimic_pl.data.demo_drawing import corrupted, draw_entity_image, draw_mention_image
from mimic_pl.errors import ConfigError, DataError

__all__ = ["DemoMEL", "demo_words", "draw_demo"]

DEMO_SEED = 0
DEMO_VERSION = 1
"""Increment whenever the drawing changes: a folder of another version is regenerated."""
_STAMP = "demo.json"


class DemoMEL(MELDataModule):
    """Sports clubs that share the names of their towns; the text identifies the sport, the image the badge.

    Text alone leaves two candidates, the image alone leaves clubs of many towns, both together identify one club (see
    :mod:`mimic_pl.data.demo_design`). The data set is generated in ``root`` on first use, deterministically.

    Args:
        root: Folder of the data set; it is created if it does not exist.
        kwargs: Further arguments of :class:`MELDataModule`.

    Raises:
        ConfigError: ``root`` contains something else.
    """

    def __init__(self, root: str = "data/Demo", **kwargs: Any) -> None:
        super().__init__(root, name="Demo", **kwargs)

    @classmethod
    def check_root(cls, root: str) -> None:
        """Accept a folder that contains the demo or in which it can be generated.

        Raises:
            ConfigError: ``root`` contains something else.
        """
        folder = Path(root)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and _stamp_of(folder) is None):
            raise ConfigError(
                f"The demo data set is generated in {root!r}, but this path contains something else. "
                "Choose another folder with --data.root, or remove this one."
            )

    def prepare_data(self) -> None:
        """Generate the data set, unless it exists; this is atomic."""
        root = Path(self.root)
        self.check_root(self.root)
        wanted = {"version": DEMO_VERSION, "seed": DEMO_SEED}
        if _stamp_of(root) == wanted:
            return
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as work:
            drawing = Path(work) / "drawing"
            draw_demo(drawing, DEMO_SEED)
            if root.exists():
                root.rename(Path(work) / "old")
            try:
                drawing.rename(root)
            except OSError as error:
                if _stamp_of(root) != wanted:  # unless another process was faster
                    raise DataError(
                        f"The demo could not be moved to {root}: {error}. Choose another --data.root."
                    ) from error


def draw_demo(root: Path, seed: int) -> None:
    """Generate the demo in a new folder, in the published layout; the same seed gives the same bytes.

    It writes ``kb_entity.json``, ``qid2id.json``, ``Demo_{train,dev,test}.json``, ``kb_image/`` and
    ``mention_images/``, and finally a stamp with version and seed.

    Args:
        root: Folder to create.
        seed: Random seed.

    Raises:
        DataError: The folder exists.
    """
    if root.exists():
        raise DataError(f"The demo needs a new folder, but {root} exists. Remove it or choose another.")
    design = design_demo(seed)
    for folder in ("kb_image", "mention_images"):
        (root / folder).mkdir(parents=True)
    total = len(design.clubs) + sum(map(len, design.mentions.values()))
    with tqdm(desc="Drawing the demo", total=total, unit="image", leave=False) as bar:
        entities = []
        for position, club in enumerate(design.clubs):
            entities.append(_draw_club(root / "kb_image", position, club, Random(f"club {seed} {club.qid}")))
            bar.update()
        for split, mentions in design.mentions.items():
            records = []
            for mention in mentions:
                records.append(_draw_mention(root / "mention_images", mention, Random(f"mention {seed} {mention.id}")))
                bar.update()
            _write_json(root / f"Demo_{split}.json", records)
    _write_json(root / "kb_entity.json", entities)
    _write_json(root / "qid2id.json", {entity["qid"]: entity["id"] for entity in entities})
    _write_json(root / _STAMP, {"version": DEMO_VERSION, "seed": seed})


def _draw_club(folder: Path, position: int, club: Club, rng: Random) -> dict[str, Any]:
    """Draw a club's images, one or two, and return its entry in the knowledge base."""
    images = []
    if club.health != "absent":
        variants = (0, 1) if club.health == "fine" and rng.random() < 0.5 else (0,)
        for variant in variants:
            content = draw_entity_image(club.badge, variant)
            if club.health == "unreadable":
                content = corrupted(content, rng)
            name = f"{club.qid}_{variant}.png"
            (folder / name).write_bytes(content)
            images.append(name)
    return {
        "id": position,
        "qid": club.qid,
        "entity_name": club.name,
        "attr": club.attributes,
        "type": "club",
        "image_list": images,
    }


def _draw_mention(folder: Path, mention: ClubMention, rng: Random) -> dict[str, Any]:
    """Draw a mention's image, if it has one, and return its entry in the split."""
    name = ""
    if mention.health != "absent":
        name = f"{mention.id}.jpg"
        content = draw_mention_image(mention.club.badge, rng)
        (folder / name).write_bytes(corrupted(content, rng) if mention.health == "unreadable" else content)
    return {
        "id": mention.id,
        "sentence": mention.sentence,
        "mentions": mention.club.name,
        "entities": mention.club.name,
        "answer": mention.club.qid,
        "imgPath": name,
    }


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _stamp_of(root: Path) -> Any:
    """The stamp of a generated folder; ``None`` if there is none."""
    try:
        return json.loads((root / _STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
