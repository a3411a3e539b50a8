"""Why an entity has its rank for a mention: scores, shares, attention and gates, as numbers and as a picture."""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from PIL import Image

from mimic_pl.batch import Batch
from mimic_pl.calibration import Calibration
from mimic_pl.checkpoints.atomic_io import write_run_file
from mimic_pl.errors import ConfigError
from mimic_pl.escaping import printable, shortened
from mimic_pl.linking.attention_and_gates import Patches, Token, over_patches, over_words, pair_gates
from mimic_pl.linking.encoded import encoded
from mimic_pl.linking.shares import fractions_of, shares_of
from mimic_pl.linking.thumbnails import png_uri
from mimic_pl.model import MIMIC
from mimic_pl.processor.images import ImageFolder, open_image
from mimic_pl.ranking import EntityIndex, Explanation, explain
from mimic_pl.records import Entity, ImageSource, Mention

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LinkExplanation:
    """Why an entity has its rank for a mention.

    ``print`` shows the numbers, a notebook also the picture; :meth:`save` writes the picture.

    Attributes:
        mention: The mention.
        entity: The entity.
        ranking: Scores with bounds and ranks, overall and by unit, and the scores of the other entities on top.
        shares: What each unit contributes to the overall score (see :func:`~mimic_pl.linking.shares.shares_of`).
        others: The same for the entities in ``ranking.competitors``, by id.
        names: Names of these entities by id, if known.
        words: Attention of the entity's text to the tokens of the mention's; empty for a model without TGLU.
        patches: Attention of the mention's text to the patches of its image; ``None`` for a model without CMFU.
        gates: Values of the gates by unit and gate, from -1 to 1; empty for a model without gates.
        mention_image: The mention's image, if it has one that opens.
        entity_image: The entity's image, if it has one that opens.
        probability: Probability that the mention means the entity, if there is a calibration.
        nil_probability: Probability that none of the top entities is meant.
    """

    mention: Mention
    entity: Entity
    ranking: Explanation
    shares: dict[str, float]
    others: dict[str, dict[str, float]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    words: tuple[Token, ...] = ()
    patches: Patches | None = None
    gates: dict[str, float] = field(default_factory=dict)
    mention_image: Image.Image | None = field(default=None, repr=False)
    entity_image: Image.Image | None = field(default=None, repr=False)
    probability: float | None = None
    nil_probability: float | None = None

    @property
    def score(self) -> float:
        """Overall score."""
        return self.ranking.scores["overall"].score

    @property
    def rank(self) -> int:
        """Rank by the overall score, 1-based."""
        return self.ranking.scores["overall"].rank

    @property
    def title(self) -> str:
        """Mention, entity, rank, and probability if known, on one line."""
        line = f"{self.mention.mention!r} → {self.entity.name!r} ({self.entity.id}): rank {self.rank:,} of "
        line += f"{self.ranking.num_entities:,}"
        return printable(line + ("" if self.probability is None else f", probability {self.probability:.1%}"))

    def __str__(self) -> str:
        """All numbers as text."""
        lines = [self.title, shortened(printable(self.mention.sentence), 200), "", str(self.ranking)]
        if self.shares:
            fractions = fractions_of(self.shares)
            parts = (f"{name} {share:+.4f} ({fractions[name]:+.0%})" for name, share in self.shares.items())
            lines += ["", f"Shares of the overall score {self.score:.4f}: " + ", ".join(parts)]
        words = [f"{token.text} {token.weight:.1%}" for token in self._heaviest(8)]
        if words:
            lines += ["", "Attention to the mention's words: " + ", ".join(words)]
        if self.patches is not None and self.mention_image is not None:
            row, column = divmod(int(self.patches.grid.argmax()), self.patches.grid.shape[1])
            side = self.patches.grid.shape[0]
            lines += [
                "",
                f"Attention to the image: {float(self.patches.grid.max()):.1%} at row {row + 1}, column {column + 1} "
                f"of {side} x {side} patches, {self.patches.rest:.1%} outside of them",
            ]
        if self.gates:
            lines += ["", "Gates: " + ", ".join(f"{name} {value:+.3f}" for name, value in self.gates.items())]
        if self.nil_probability is not None:
            lines += ["", f"Probability that none of the top entities is meant: {self.nil_probability:.1%}"]
        return printable("\n".join(lines))

    def _heaviest(self, count: int) -> Sequence[Token]:
        """The tokens with the largest weights."""
        return sorted(self.words, key=lambda token: -token.weight)[:count]

    def figure(self) -> Figure:
        """The picture as a matplotlib figure, for :meth:`matplotlib.figure.Figure.savefig`."""
        from mimic_pl.linking.explanation_figure import draw  # matplotlib takes a second to import

        return draw(self)

    def save(self, path: str | Path) -> Path:
        """Write the picture: PNG, PDF or SVG by the suffix of the path.

        Raises:
            ConfigError: Matplotlib does not know the suffix.
            MachineError: The disk is full, or the folder is not writable; an earlier file is intact.
        """
        path = Path(path)
        write_run_file(path, self._drawn(path.suffix.removeprefix(".").lower() or "png"))
        return path

    def png(self) -> bytes:
        """The picture as the content of a PNG file."""
        return self._drawn("png")

    def _drawn(self, kind: str) -> bytes:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import

        known = FigureCanvasAgg.get_supported_filetypes()
        if kind not in known:
            raise ConfigError(f"A picture cannot be written as {kind!r}. Choose one of: {', '.join(sorted(known))}.")
        content = io.BytesIO()
        self.figure().savefig(content, format=kind, dpi=120)
        return content.getvalue()

    def _repr_html_(self) -> str:
        """Picture and numbers for a notebook; texts are escaped."""
        return f'<img src="{png_uri(self.png())}" alt="explanation"><pre>{html.escape(str(self))}</pre>'


@torch.no_grad()
def explain_link(
    model: MIMIC,
    mention: Mention,
    entity: Entity,
    index: EntityIndex,
    top_k: int = 5,
    calibration: Calibration | None = None,
    name_of: Callable[[str], str] | None = None,
) -> LinkExplanation:
    """Explain the rank of an entity for a mention.

    Scores and ranks are those of the index; attention and gates are computed from the records.

    Args:
        model: The model.
        mention: The mention.
        entity: The entity, whose id is in the index.
        index: All entities.
        top_k: Number of other entities on top to compare with.
        calibration: Adds probabilities.
        name_of: Name of an entity by its id, to show beside the ids of the others.

    Raises:
        DataError: The entity is not in the index.
        ConfigError: A record lacks a field of the text template.
    """
    mentions = encoded(model, "mentions", [cast(Batch, {"mentions": model.processor.mentions([mention])})])
    entities = encoded(model, "entities", [cast(Batch, {"entities": model.processor.entities([entity])})])
    deep = top_k if calibration is None else max(top_k, calibration.top_k)
    ranking = explain(model.matcher, model.encode_mentions([mention]), entity.id, index, deep)
    probability, nil = _probabilities(ranking, calibration, model.matcher.reranks)
    ranking = replace(ranking, competitors=dict(list(ranking.competitors.items())[:top_k]))
    own = {name: explained.score for name, explained in ranking.scores.items()}
    patches = over_patches(model.matcher, mentions.features)
    gates = pair_gates(model.matcher, mentions.features, entities.features)
    return LinkExplanation(
        mention,
        entity,
        ranking,
        shares_of(model.matcher, own),
        {id: shares_of(model.matcher, scores) for id, scores in ranking.competitors.items()},
        {} if name_of is None else {id: name_of(id) for id in ranking.competitors},
        tuple(over_words(model, mentions, entities)[0]),
        None if patches is None else patches[0],
        {name: float(value) for name, value in gates.items()},
        _opened(() if mention.image is None else (mention.image,), model, model.processor.mention_images),
        _opened(entity.images, model, model.processor.entity_images),
        probability,
        nil,
    )


def _probabilities(
    ranking: Explanation, calibration: Calibration | None, reranked: bool
) -> tuple[float | None, float | None]:
    """Probability of the entity, 0 if it is below those that are calibrated, and of NIL; the order is in the ranks."""
    if calibration is None or reranked:  # scores of an explanation are those before reranking
        return None, None
    scores = [own["overall"] for own in ranking.competitors.values()]
    place = ranking.scores["overall"].rank - 1
    inside = place <= len(scores)
    if inside:
        scores.insert(place, ranking.scores["overall"].score)
    probabilities, nil = calibration(torch.tensor([scores], dtype=torch.float64))
    return float(probabilities[0, place]) if inside else 0.0, float(nil[0])


def _opened(images: Sequence[ImageSource], model: MIMIC, folder: ImageFolder | None) -> Image.Image | None:
    """The first image that opens, as the processor finds it."""
    processor = model.processor
    if processor.modalities == "text":
        return None
    return processor.first_opened(images, folder, lambda image: open_image(image, processor.max_pixels))[0]
