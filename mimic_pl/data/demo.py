"""The demo: a small data set that the package draws itself, in the published on-disk layout."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from tqdm.auto import tqdm

from mimic_pl.data.datamodule import MELDataModule
from mimic_pl.data.demo_design import Club, ClubMention, demo_words, design_demo
from mimic_pl.data.demo_drawing import draw_met, draw_published, unreadable
from mimic_pl.errors import ConfigError, DataError

__all__ = ["DemoMEL", "demo_words", "draw_demo"]

DEMO_SEED = 0
DEMO_VERSION = 1
"""To be raised whenever the drawing changes: a folder of another version is drawn anew."""
_STAMP = "demo.json"


class DemoMEL(MELDataModule):
    """Sports clubs that share the names of their towns; the text tells the sport, the image the badge.

    Text alone leaves two clubs, the image alone leaves clubs of many towns, both together decide (see
    :mod:`mimic_pl.data.demo_design`). The set is drawn into ``root`` when it is first needed, the same everywhere.

    Args:
        root: Folder of the set; it is made if it does not exist.
        kwargs: Further arguments of :class:`MELDataModule`.

    Raises:
        ConfigError: ``root`` is a folder with something else in it.
    """

    def __init__(self, root: str = "data/Demo", **kwargs: Any) -> None:
        super().__init__(root, name="Demo", **kwargs)

    @classmethod
    def check_root(cls, root: str) -> None:
        """Accept a folder that holds the demo, and one that can be drawn.

        Raises:
            ConfigError: ``root`` holds something else.
        """
        folder = Path(root)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and _stamp_of(folder) is None):
            raise ConfigError(
                f"The demo draws itself into {root!r}, but there is something else at that place. "
                "Give another folder with --data.root, or remove this one."
            )

    def prepare_data(self) -> None:
        """Draw the set, unless it is there already; an interrupted drawing leaves nothing behind."""
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
                if _stamp_of(root) != wanted:  # unless another process was quicker
                    raise DataError(
                        f"The demo could not be moved to {root}: {error}. Give another --data.root."
                    ) from error


def draw_demo(root: Path, seed: int) -> None:
    """Draw the demo into a new folder, in the published layout; the same seed gives the same bytes.

    Written are ``kb_entity.json``, ``qid2id.json``, ``Demo_{train,dev,test}.json``, ``kb_image/`` and
    ``mention_images/``, and last a stamp that says which drawing this is.

    Args:
        root: Folder to make.
        seed: Decides everything.

    Raises:
        DataError: The folder exists.
    """
    if root.exists():
        raise DataError(f"The demo is drawn into a new folder, but {root} exists. Remove it or name another.")
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
            content = draw_published(club.badge, variant)
            if club.health == "unreadable":
                content = unreadable(content, rng)
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
        content = draw_met(mention.club.badge, rng)
        (folder / name).write_bytes(unreadable(content, rng) if mention.health == "unreadable" else content)
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
    """What the stamp of a drawn folder says; ``None`` where there is none."""
    try:
        return json.loads((root / _STAMP).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
