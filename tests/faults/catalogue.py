# ruff: noqa: E501  # a row of the table is a line
"""The catalogue of injected faults: the fault, what the user sees, and the test that injects it.

``python -m tests.faults.catalogue`` generates README.md from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from mimic_pl.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceMemoryError,
    MachineError,
    MimicError,
    NonFiniteScoreError,
    StoreError,
    UsageError,
)

README = Path(__file__).with_name("README.md")


class Fault(NamedTuple):
    """A row of the catalogue.

    Attributes:
        fault: What is done to the files or the machine.
        sees: Part of the error message, with ``…`` for any text; what happens instead if there is no error.
        error: Class of the error; ``None`` if the command continues.
        test: File and name of the test, relative to ``tests/``.
        trials: How often the test injects it.
    """

    fault: str
    sees: str
    error: type[MimicError] | None
    test: str
    trials: int = 1


IMAGES, DATA = "data/test_images.py::", "faults/test_data_files.py::"
INDEX = "ranking/test_lance_index.py::"
STORE, CHECKPOINTS, MACHINE = "test_key_value_store.py::", "faults/test_checkpoints.py::", "faults/test_machine.py::"

DAMAGED = "encoders/test_damaged_checkpoints.py::"
WRONG, CONSTRUCTORS = "encoders/test_wrong_models.py::", "cli/test_constructors.py::"

FAULTS: dict[str, tuple[Fault, ...]] = {
    "Images": (
        Fault("truncated, empty, or not an image (an HTML page)", "unreadable", None, IMAGES + "test_failures_by_kind", 3),
        Fault("the same under `--model.processor.image_policy error`", "Fix the file, or accept such images with --model.processor.image_policy blank or drop", DataError, "faults/test_image_files.py::test_the_policy_decides_whether_the_command_fails"),
        Fault("CMYK", "converted to RGB", None, IMAGES + "test_cmyk"),
        Fault("animated", "the first frame", None, IMAGES + "test_the_first_frame_of_an_animation"),
        Fault("EXIF orientation", "rotated as it is meant to be seen", None, IMAGES + "test_exif_orientation_is_applied"),
        Fault("decompression bomb of 400 megapixels", "oversized", None, IMAGES + "test_a_decompression_bomb_is_not_decoded"),
        Fault("random corruption of PNG, JPEG, GIF, BMP, WebP and TIFF", "unreadable", None, IMAGES + "test_corrupted_bytes_are_unreadable_or_oversized", 240),
        Fault("a pipe, a directory or a device in place of a file", "unreadable", None, "faults/test_image_files.py::test_pipes_folders_and_devices_do_not_block", 3),
        Fault("a path outside of the data folder: `..`, absolute, with a drive letter", "is outside the data folder", DataError, "data/test_reader.py::test_an_image_outside_of_the_folder", 5),
        Fault("a name with a NUL character", "is not a file name", DataError, "data/test_reader.py::test_an_image_outside_of_the_folder"),
        Fault("a path that leaves the data folder through a symbolic link", "is outside the data folder", DataError, "faults/test_image_files.py::test_symlinked_folders_are_followed_but_names_cannot_escape"),
    ),
    "Data files": (
        Fault("malformed JSON", "line 2, column 10", DataError, "data/test_reader.py::test_malformed_files_are_errors_with_a_location", 3),
        Fault("a JSON object instead of a list", "expected a list of records", DataError, "data/test_reader.py::test_malformed_files_are_errors_with_a_location"),
        Fault("a byte that is not valid UTF-8, a NUL byte", "the byte 0xff", DataError, "data/test_reader.py::test_malformed_files_are_errors_with_a_location", 2),
        Fault("a duplicate qid", "is also record 0", DataError, "data/test_reader.py::test_problems_come_in_the_order_of_the_records", 2),
        Fault("a duplicate mention id: both mentions are kept, the doctor reports it", "used more than once", None, "data/test_doctor.py::test_everything_at_once"),
        Fault("`qid2id.json` with other ids", "remove qid2id.json", DataError, "data/test_reader.py::test_qid2id_disagrees", 3),
        Fault("golds that are not in the knowledge base: counted, reported, never found", "a gold that is not", None, "data/test_datamodule.py::test_nil_and_unknown_golds_are_counted"),
        Fault("a sentence of 100 MB: its first tokens, in little memory", "truncated to its first tokens", None, DATA + "test_a_huge_sentence"),
        Fault("an empty knowledge base", "A knowledge base needs at least one", DataError, DATA + "test_an_empty_knowledge_base"),
        Fault("an empty split", "split of … contains no mentions", DataError, "data/test_datamodule.py::test_missing_files_and_empty_splits"),
        Fault("a knowledge base of one entity, batches of one", "trains and tests", None, DATA + "test_one_entity_and_batches_of_one", 2),
    ),
    "Stores and the index": (
        Fault("an index of another model, text template, dtype or number of entities", "another model", StoreError, INDEX + "test_an_index_of_another_model_is_rejected", 6),
        Fault("NaN in the index", "are not finite", NonFiniteScoreError, INDEX + "test_nan_in_the_index"),
        Fault("a flipped byte in a row of the index: the entity is named", "the entity 'Q33' with the order number 33 fails its checksum", StoreError, INDEX + "test_a_corrupted_row_is_named", 3),
        Fault("a flipped byte anywhere in the index's files: an error, or the same results", "is damaged", StoreError, INDEX + "test_one_flipped_byte_of_an_index", 120),
        Fault("a data file of the index is missing, truncated, or truncated while open: no SIGBUS", "is damaged", StoreError, INDEX + "test_a_missing_or_truncated_data_file", 5),
        Fault("an index build killed at a random moment: what was written is kept", "the same results", None, INDEX + "test_a_killed_build_resumes", 6),
        Fault("a corrupted fragment of an unfinished index", "is damaged", StoreError, INDEX + "test_a_fragment_corrupted_before_the_build_resumes_is_an_error"),
        Fault("two processes write one index: the second is rejected", "Another process is writing to", StoreError, INDEX + "test_a_second_writer_is_rejected_unless_the_first_was_killed"),
        Fault("NaN in scores", "mention … entity", NonFiniteScoreError, "ranking/test_engine.py::test_a_non_finite_score_is_an_error_that_names_mention_and_entity", 3),
        Fault("a flipped bit in a cached image: it counts as missing, and the image is decoded", "the same pixels", None, "data/test_image_cache.py::test_a_flipped_byte_in_cached_pixels_is_detected_and_the_image_decoded"),
        Fault("the same in any key-value store", "a missing value", None, STORE + "test_a_value_with_a_flipped_bit_counts_as_missing", 60),
        Fault("a truncated cache, or another file in its place", "Delete the folder", StoreError, STORE + "test_a_truncated_or_foreign_file", 5),
        Fault("the writer of a cache killed at a random moment: what was acknowledged is kept", "nothing that was acknowledged is lost", None, STORE + "test_what_was_acknowledged_survives_a_kill", 8),
        Fault("three processes write and read one cache", "all values", None, STORE + "test_many_processes_write_and_read"),
        Fault("filling an image cache is killed", "the same pixels", None, "data/test_image_cache.py::test_a_fill_that_is_killed", 6),
        Fault("two processes fill one image cache: one waits", "every image is decoded once", None, "data/test_image_cache.py::test_two_processes_at_once"),
    ),
    "Checkpoints": (
        Fault("a pickle with code in it: `test`, `fit` and `robustness --ckpt_path`", "Such code can do anything; it was not run", CheckpointError, CHECKPOINTS + "test_code_in_a_checkpoint_is_not_run_by_any_command", 3),
        Fault("the same for `load_run`", "Such code can do anything; it was not run", CheckpointError, CHECKPOINTS + "test_code_in_a_checkpoint_is_not_run_by_load_run"),
        Fault("the same for `MIMIC.from_published`: only tensors are loaded", "the code is not run", None, "test_published.py::test_code_in_a_checkpoint_is_never_run"),
        Fault("truncated, empty, another file, or a record marked as a folder (torch leaves that tensor uninitialized)", "cannot be read as a checkpoint", CheckpointError, CHECKPOINTS + "test_corrupted_checkpoints", 6),
        Fault("one flipped byte in the weights, which torch loads silently", "was changed after it was written", CheckpointError, CHECKPOINTS + "test_one_flipped_byte_in_a_checkpoint", 9),
        Fault("NaN in weights", "contain NaN: ", CheckpointError, CHECKPOINTS + "test_non_finite_weights", 4),
        Fault("truncated while its weights are in use: no SIGBUS", "cannot be read as a checkpoint", CheckpointError, CHECKPOINTS + "test_a_checkpoint_truncated_after_it_was_read"),
        Fault("no read permission", "Check its permissions", CheckpointError, CHECKPOINTS + "test_a_checkpoint_without_read_permission"),
        Fault("published weights in safetensors, truncated or with a corrupted header", "cannot be read as a checkpoint", CheckpointError, CHECKPOINTS + "test_corrupted_safetensors", 4),
        Fault("encoder weights truncated or empty", "damaged", CheckpointError, "encoders/test_encoders.py::test_damaged_weights_are_a_checkpoint_error", 2),
        Fault("weights of another model", "The checkpoint does not fit the configured model", CheckpointError, "cli/test_errors.py::test_weights_that_do_not_fit"),
    ),
    "Encoders": (
        Fault("a text model where a CLIP is due, a CLIP where a text model is due, a vision model, a vision-language model, a model of videos, a decoder", "is a text model (bert), but a model with a text and an image tower is", ConfigError, WRONG + "test_another_kind_of_model_on_the_command_line"),
        Fault("the same in Python, for ten kinds", "vision-language model without separate towers", ConfigError, WRONG + "test_another_kind_of_model_is_named_with_what_to_use", 10),
        Fault("more tokens than positions, of which the padding token takes two (RoBERTa, XLM-R, CamemBERT, MPNet, Longformer)", "only 16 positions", ConfigError, WRONG + "test_positions_that_are_counted_from_the_padding_token", 15),
        Fault("names of timm for transformers and the other way round, names that neither knows, sizes that do not fit", "name of a timm vision model", ConfigError, WRONG + "test_names_and_sizes_that_do_not_fit", 13),
        Fault("safetensors headers that lie about lengths, offsets or shapes; a configuration, tokenizer or image processor that is no JSON, has wrong types, or asks for endless layers or pixels; missing files; code in a checkpoint", "deserializing header: invalid", CheckpointError, DAMAGED + "test_a_damaged_file_is_one_paragraph", 30),
        Fault("code in the pickled weights of an encoder: it is not run", "other objects than tensors", CheckpointError, DAMAGED + "test_code_in_pickled_weights_is_not_run"),
        Fault("NaN in the weights of an encoder", "contain NaN", CheckpointError, DAMAGED + "test_weights_with_nan"),
        Fault("a configuration with fewer layers than the weights of an encoder", "weights of layers that its config.json does not have", CheckpointError, DAMAGED + "test_fewer_layers_than_weights"),
        Fault("a pipe or a device in place of a file of a checkpoint", "is a pipe or a device", CheckpointError, DAMAGED + "test_a_pipe_or_a_device_does_not_block", 6),
        Fault("a `tokenizer.json` of a terabyte", "more than any tokenizer", CheckpointError, DAMAGED + "test_a_huge_file_of_json_is_not_read"),
        Fault("texts cut to the longest of a batch for a text tower that pools the last position (SigLIP)", "last of", ConfigError, "encoders/test_dual_encoders.py::test_cut_texts_are_refused_by_a_tower_that_pools_the_last_position"),
    ),
    "Configurations": (
        Fault("an exception in any constructor that a configuration names: encoder, unit, loss, model, data, callback, logger, optimizer", "cannot be built from its arguments: 5 is no multiple of 2, which heads need", ConfigError, CONSTRUCTORS + "test_every_part_of_a_configuration", 8),
        Fault("a package that a configuration needs is not installed (logger, strategy, precision)", "pip install -U", ConfigError, CONSTRUCTORS + "test_a_missing_package_is_named_with_how_to_install_it", 3),
        Fault("an unknown key in a file", "fit has no option", UsageError, CONSTRUCTORS + "test_an_unknown_key_names_its_file_and_the_nearest_key", 4),
    ),
    "The machine": (
        Fault("the disk fills up while a cache is written: earlier values read back", "cannot be read or written", StoreError, STORE + "test_a_disk_that_fills_up"),
        Fault("the disk fills up while an index is built", "The disk is full", StoreError, INDEX + "test_a_disk_that_fills_up_under_an_index"),
        Fault("the disk fills up during `fit`: earlier checkpoints are intact", "The disk is full", MachineError, MACHINE + "test_fit_on_a_disk_that_fills_up", 3),
        Fault("the disk fills up during `test`", "The disk is full", MachineError, MACHINE + "test_test_on_a_full_disk"),
        Fault("a limit on file size (`ulimit -f`) during `fit`, in a separate process", "The disk is full", MachineError, MACHINE + "test_a_limit_on_the_size_of_files"),
        Fault("no space for the image cache: runs without it", "decoded in every epoch", None, "data/test_image_cache.py::test_a_full_disk_or_an_unwritable_folder_disables_the_cache", 2),
        Fault("read-only file system", "Access denied (", MachineError, MACHINE + "test_a_read_only_disk"),
        Fault("no write permission", "Access denied (", MachineError, MACHINE + "test_no_permission"),
        Fault("a file in place of the folder of runs", "The operating system reports an error", MachineError, MACHINE + "test_a_file_in_place_of_a_folder"),
        Fault("shared memory is full", "Shared memory (/dev/shm) is full", MachineError, MACHINE + "test_no_room_in_shared_memory"),
        Fault("a data loader worker is killed", "A loader process died", MachineError, MACHINE + "test_a_loader_worker_is_killed"),
        Fault("out of device memory while ranking: one retry with smaller blocks, then an error", "eval_batch_size", DeviceMemoryError, "ranking/test_engine.py::test_out_of_memory_shrinks_the_blocks_once_and_then_is_an_error", 2),
        Fault("out of memory elsewhere", "Out of memory", DeviceMemoryError, MACHINE + "test_memory_runs_out", 3),
        Fault("training is killed in a step, in validation or while a checkpoint is written, and resumed with `--ckpt_path last`", "bit-identical weights", None, "faults/test_interruption.py::test_training_killed_at_random_moments", 2),
        Fault("SIGTERM, then SIGINT to a resumed run: a checkpoint, exit codes 143 and 130", "bit-identical weights", None, "faults/test_interruption.py::test_termination_signals", 2),
        Fault("the same with two processes, signals to one of them or to both", "bit-identical weights", None, "faults/test_interruption.py::test_termination_signals_to_two_processes", 2),
        Fault("the first process of a distributed run is killed: the other exits within a minute", "Another process of this run died", MachineError, "distributed/test_launchers.py::test_the_first_process_is_killed"),
        Fault("a process other than the first, launched by Lightning, is killed", "Another process of this run died", MachineError, "distributed/test_launchers.py::test_a_process_launched_by_lightning_is_killed"),
        Fault("one of two processes that build an index is killed: the build resumes from what both have written, with two processes or with one, and gives the same results", "Another process of this run died", MachineError, "faults/test_interruption.py::test_a_killed_process_of_an_index_build", 2),
        Fault("two processes train in one folder: each gets its own run", "two complete runs", None, MACHINE + "test_two_processes_train_in_one_folder"),
        Fault("two processes test one run: its results are complete", "those of one of them", None, MACHINE + "test_two_processes_test_one_run"),
        Fault("a configuration that is not valid YAML", "is not valid YAML", UsageError, MACHINE + "test_a_configuration_that_is_not_yaml", 2),
    ),
}  # fmt: skip

BY_TEST = {fault.test.rpartition("::")[2]: fault for rows in FAULTS.values() for fault in rows}


def matches(fault: Fault, text: str) -> bool:
    """Whether a text contains the message of a row."""
    return re.search(".*".join(map(re.escape, fault.sees.split("…"))), text) is not None


@contextmanager
def expect_fault(test: str) -> Iterator[None]:
    """Assert that the block raises the error of a test's row, with its message."""
    fault = BY_TEST[test]
    assert fault.error is not None
    with pytest.raises(fault.error) as caught:
        yield
    assert matches(fault, " ".join(str(caught.value).split())), str(caught.value)


def check_command_error(test: str, code: int, err: str) -> str:
    """Assert that a command exited with the exit code and message of a test's row, and without a traceback.

    Returns:
        The message.
    """
    fault = BY_TEST[test]
    assert fault.error is not None
    assert code == fault.error.exit_code, err
    assert "Traceback" not in err
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert matches(fault, message), message
    return message


def table() -> str:
    """The content of README.md."""
    lines = [
        "# Faults",
        "",
        "Each row is a fault that a test injects into real files and processes. Generated by "
        "`python -m tests.faults.catalogue`; a test checks that it is up to date. `test_fuzz.py` feeds corrupted bytes "
        "to all readers: `pytest tests/faults/test_fuzz.py -s --fuzz-inputs 100000`.",
        "",
        "Not detected: a changed value in safetensors weights from elsewhere (published weights, encoders), since that "
        "format has no checksums.",
    ]
    for family, rows in FAULTS.items():
        lines += [
            "",
            f"## {family}",
            "",
            "| fault | what the user sees | exit code | test | trials |",
            "|---|---|---|---|---|",
        ]
        for row in rows:
            kind = "continues" if row.error is None else row.error.__name__
            code = 0 if row.error is None else row.error.exit_code
            lines.append(f"| {row.fault} | {kind}: {row.sees} | {code} | `{row.test}` | {row.trials} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    README.write_text(table(), encoding="utf-8")
