"""A model as a folder of plain files, which any machine can load without the data, the run or the encoder's checkpoint.

    config.json         versions, class paths and plain arguments of all parts, checksums of the files; written last
    model.safetensors   all weights; in several files above 5 GB, as on the Hugging Face hub
    encoder/            configuration, tokenizer and image preprocessing of the encoder, without weights
    features/           files of the processor's features, such as an alias table, if there are any
    statistics.safetensors  what the processor's features have learnt of a knowledge base, if they were fitted to one
    README.md           the model card
    calibration.json    of a run that was calibrated

Nothing in it is executed: weights are safetensors, the rest JSON, and class paths name mimic-pl's own classes unless
``trust_remote_code`` is set. What is loaded is bit for bit what was saved; a file that was changed since is refused.

On the command line, ``mimic-pl export RUN FOLDER`` writes such a folder, with the results of the run in its model card,
and ``mimic-pl convert weights`` one of a checkpoint of the published implementation. In Python:

    >>> model.save_pretrained("my_model")  # doctest: +SKIP
    >>> model = MIMIC.from_pretrained("my_model")  # doctest: +SKIP
    >>> model.push_to_hub("USER/MODEL", private=True)  # doctest: +SKIP
    >>> linker = Linker.from_pretrained("USER/MODEL")  # doctest: +SKIP
"""

from mimic_pl.model_folder.hub_transfer import local_folder, push_folder
from mimic_pl.model_folder.load import load_folder
from mimic_pl.model_folder.model_card import CardFacts
from mimic_pl.model_folder.save import save_folder

__all__ = ["CardFacts", "load_folder", "local_folder", "push_folder", "save_folder"]
