"""Sharing models: runs and published checkpoints become folders that load anywhere, and go to the Hugging Face hub.

- :func:`export_run`: a run's folder to such a folder, with its results in the model card.
- :func:`convert_published`: a checkpoint of the published implementation to such a folder.
- :func:`push_folder`: such a folder to the hub.

:meth:`MIMIC.from_pretrained` loads a model from such a folder, or from the hub.
"""

from mimic_pl.hub.convert import convert_published
from mimic_pl.hub.export import export_run
from mimic_pl.model_folder import push_folder

__all__ = ["convert_published", "export_run", "push_folder"]
