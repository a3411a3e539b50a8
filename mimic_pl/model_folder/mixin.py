"""Methods of MIMIC that write it to files and read it from them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from typing_extensions import Self

from mimic_pl.checkpoints.published import load_weights, published_sizes, read_published
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import CheckpointError
from mimic_pl.model_description import KEY, describe_model, load_model
from mimic_pl.model_folder.hub_transfer import local_folder, push_folder
from mimic_pl.model_folder.load import load_folder
from mimic_pl.model_folder.model_card import CardFacts
from mimic_pl.model_folder.save import save_folder
from mimic_pl.units import CMFU, TGLU, VDLU, UnitFactory

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC


class ModelFiles:
    """A model's folders and checkpoints.

    :meth:`save_pretrained`, :meth:`push_to_hub` and :meth:`from_pretrained` are named as in
    ``huggingface_hub.ModelHubMixin``, but do not derive from it: it records only arguments that are JSON values, writes
    in place without checksums, and reads ``config.json`` before anything can be checked.
    """

    def save_pretrained(self, save_directory: str | Path, *, license: str | None = None) -> Path:
        """Write the model into a folder, from which :meth:`from_pretrained` loads it on any machine.

        The folder has ``model.safetensors``, ``config.json``, the encoder's configuration, tokenizer and image
        preprocessing, and a model card; see :mod:`mimic_pl.model_folder`. ``mimic-pl export`` also fills the card with
        the results of a run.

        Args:
            save_directory: A new or empty folder, or one with a model to replace.
            license: Licence of the weights, as the hub abbreviates it (``apache-2.0``).

        Returns:
            The folder, absolute.

        Raises:
            ConfigError: The folder contains something else, or a part of the model cannot be described.
            StoreError: The disk is full, or the folder is not writable.

        Example:
            >>> model.save_pretrained("my_model")  # doctest: +SKIP
        """
        return save_folder(cast("MIMIC", self), save_directory, CardFacts(license=license))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        license: str | None = None,
    ) -> str:
        """Write the model into a temporary folder and upload that to the Hugging Face hub.

        Args:
            repo_id: Name on the hub, ``USER/MODEL``; it is created if it does not exist.
            private: Create it as a private one; by default, as the user's settings on the hub say.
            token: Access token; by default, that of ``hf auth login``.
            revision: Branch to commit to.
            license: See :meth:`save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            ConfigError: The hub denies access, or cannot be reached.
        """
        facts = CardFacts(name=repo_id.rpartition("/")[2], license=license)
        with tempfile.TemporaryDirectory() as folder:
            saved = save_folder(cast("MIMIC", self), folder, facts)
            return push_folder(saved, repo_id, private, token, revision)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: torch.device | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        token: str | bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load a model from a folder of :meth:`save_pretrained`, or from the Hugging Face hub.

        Neither the data, nor the run, nor the checkpoint that the encoder started from is needed, and no code in the
        folder is executed. What is downloaded is logged with its size before, and kept in the hub's cache.

        Args:
            pretrained_model_name_or_path: The folder, or the name on the hub.
            device: Device of the model; the CPU by default.
            revision: Branch, tag or commit on the hub.
            trust_remote_code: Also build classes of packages other than mimic_pl; importing them executes their code.
            token: Access token; by default, that of ``hf auth login``.
            **kwargs: Arguments of the model that override saved ones, such as ``ranker`` or ``optimizer``.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: The folder is incomplete, damaged, or of another program.
            ConfigError: It names a class of another package; the hub has no such model, or cannot be reached.

        Example:
            >>> model = MIMIC.from_pretrained("my_model", device="cuda")  # doctest: +SKIP
        """
        given = pretrained_model_name_or_path
        folder = local_folder(given, revision, token)
        return cls._require_own(load_folder(folder, device, trust_remote_code, str(given), **kwargs), given)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the description of the model to the checkpoint."""
        checkpoint[KEY] = describe_model(cast("MIMIC", self))

    @classmethod
    def load_from_checkpoint(  # without Lightning's arguments for hyperparameters
        cls,
        checkpoint_path: str | Path,
        map_location: torch.device | str | None = None,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> Self:
        """Build the model that a checkpoint describes, and load its weights.

        The checkpoint contains class paths and plain arguments of all parts of the model; no code in it is executed.

        Args:
            checkpoint_path: Path of the checkpoint.
            map_location: Device of the model; the CPU by default.
            trust_remote_code: Also build classes of packages other than mimic_pl; importing them executes their code.
            **kwargs: Arguments of the model that override stored ones, such as ``ranker`` or ``optimizer``.

        Returns:
            The model in evaluation mode.

        Raises:
            CheckpointError: The file is damaged, does not describe a model, or its weights do not match it.
            ConfigError: It names a class of another package, or one that does not exist.

        Example:
            >>> model = MIMIC.load_from_checkpoint("lightning_logs/version_0/checkpoints/last.ckpt")  # doctest: +SKIP
        """
        model = load_model(checkpoint_path, trust_remote_code, **kwargs)
        return cls._require_own(model, checkpoint_path).to(map_location or "cpu")  # type: ignore[attr-defined]

    @classmethod
    def _require_own(cls, model: MIMIC, source: str | Path) -> Self:
        if not isinstance(model, cls):
            raise CheckpointError(f"{source} contains a {type(model).__name__}, not a {cls.__name__}.")
        return model

    # ---- published weights --------------------------------------------------------------------------------------

    @classmethod
    def from_published(cls, checkpoint: str | Path, pretrained: str, **kwargs: Any) -> Self:
        """Load a checkpoint of the published implementation.

        All sizes are read from its tensors.

        Args:
            checkpoint: Its Lightning ``.ckpt``, or a state dict or safetensors file with the same names.
            pretrained: The CLIP checkpoint that it was trained from, for architecture, tokenizer and image
                preprocessing; the weights are those of ``checkpoint``.
            **kwargs: Additional arguments of the model.

        Raises:
            CheckpointError: Names are unknown or missing, or shapes do not match; the message lists all of them.
        """
        state = read_published(checkpoint)
        sizes = published_sizes(state)
        positions = state.get("encoder.clip.text_model.embeddings.position_embedding.weight")
        text_length = min(40, len(positions)) if positions is not None else 40
        units: dict[str, UnitFactory] = {
            "text": lambda dims: TGLU(dims, sizes["text"]),
            "vision": lambda dims: VDLU(dims, sizes["vision"]),
            "cross_modal": lambda dims: CMFU(dims, sizes["cross_modal"]),
        }
        encoder = CLIPEncoder(pretrained, text_length=text_length, image_dim=sizes["image_dim"])
        model = cls(encoder, units=units, **kwargs)  # type: ignore[call-arg]
        load_weights(model, state, str(checkpoint))  # type: ignore[arg-type]
        return model
