# ruff: noqa: E501  # a row of the table is a line
"""The catalogue of faults: what goes wrong, what the user sees, and the test that makes it go wrong.

``python -m tests.faults.catalogue`` writes README.md from it.
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
    """A row.

    Attributes:
        fault: What is done to the files or the machine.
        sees: Words of the message, with anything at ``…``; where nothing is an error, what happens instead.
        error: Kind of the error; ``None`` if the work goes on.
        test: File and name of the test, below ``tests/``.
        trials: How often it is done.
    """

    fault: str
    sees: str
    error: type[MimicError] | None
    test: str
    trials: int = 1


IMAGES, DATA = "data/test_images.py::", "faults/test_data_files.py::"
INDEX = "ranking/test_lance_index.py::"
STORE, CHECKPOINTS, MACHINE = "test_key_value_store.py::", "faults/test_checkpoints.py::", "faults/test_machine.py::"

FAULTS: dict[str, tuple[Fault, ...]] = {
    "Images": (
        Fault("truncated, zero bytes, or no image (an HTML page)", "unreadable", None, IMAGES + "test_failures_by_kind", 3),
        Fault("the same under `--model.processor.image_policy error`", "Fix the file, or accept such images with --model.processor.image_policy blank or drop", DataError, "faults/test_image_files.py::test_the_command_ends_or_goes_on_as_the_policy_says"),
        Fault("CMYK", "the colours that a person sees", None, IMAGES + "test_cmyk"),
        Fault("animated", "the first frame", None, IMAGES + "test_the_first_frame_of_an_animation"),
        Fault("turned by EXIF", "turned as a person sees it", None, IMAGES + "test_exif_turns_the_image"),
        Fault("decompression bomb of 400 megapixels", "oversized", None, IMAGES + "test_a_bomb_is_not_decoded"),
        Fault("random damage to PNG, JPEG, GIF, BMP, WebP and TIFF", "unreadable", None, IMAGES + "test_damaged_bytes_are_unreadable_and_nothing_else", 240),
        Fault("a pipe, a folder or a device in place of a file", "unreadable", None, "faults/test_image_files.py::test_what_is_no_file_is_not_waited_for", 3),
        Fault("a name that climbs out of the data folder: `..`, absolute, with a drive", "is outside the data folder", DataError, "data/test_reader.py::test_an_image_outside_of_the_folder", 5),
        Fault("a name with NUL", "is not a file name", DataError, "data/test_reader.py::test_an_image_outside_of_the_folder"),
        Fault("a name that climbs out through a link", "is outside the data folder", DataError, "faults/test_image_files.py::test_links_are_followed_and_names_do_not_climb_through_them"),
    ),
    "Data files": (
        Fault("malformed JSON", "line 2, column 10", DataError, "data/test_reader.py::test_malformed_files_say_where", 3),
        Fault("a JSON object where a list is due", "expected a list of records", DataError, "data/test_reader.py::test_malformed_files_say_where"),
        Fault("a byte that is no UTF-8, a NUL byte", "the byte 0xff", DataError, "data/test_reader.py::test_malformed_files_say_where", 2),
        Fault("a qid twice", "is also record 0", DataError, "data/test_reader.py::test_problems_come_in_the_order_of_the_records", 2),
        Fault("an id twice: mentions stay apart, the doctor tells", "used more than once", None, "data/test_doctor.py::test_everything_at_once"),
        Fault("`qid2id.json` with other ids", "remove qid2id.json", DataError, "data/test_reader.py::test_qid2id_disagrees", 3),
        Fault("golds that are not in the knowledge base: counted, told, never found", "a gold that is not", None, "data/test_datamodule.py::test_nil_and_unknown_golds_are_counted"),
        Fault("a sentence of 100 MB: the first tokens, in little memory", "the tokens of its beginning", None, DATA + "test_a_huge_sentence"),
        Fault("an empty knowledge base", "A knowledge base needs at least one", DataError, DATA + "test_an_empty_knowledge_base"),
        Fault("an empty split", "split of … contains no mentions", DataError, "data/test_datamodule.py::test_what_is_not_there"),
        Fault("a knowledge base of one entity, batches of one", "trains and tests", None, DATA + "test_one_entity_and_batches_of_one", 2),
    ),
    "Stores and the index": (
        Fault("an index of another model, text template, dtype or size", "another model", StoreError, INDEX + "test_another_models_index_is_refused", 6),
        Fault("NaN in the index", "are not finite", NonFiniteScoreError, INDEX + "test_a_number_in_the_index_that_is_none"),
        Fault("a flipped byte in a row of the index: the entity is named", "the entity 'Q33' with the order number 33 is not what was written (checksum)", StoreError, INDEX + "test_a_damaged_row_is_named", 3),
        Fault("a flipped byte anywhere in the index's files: an error, or the same numbers", "is damaged", StoreError, INDEX + "test_one_flipped_byte_of_an_index", 120),
        Fault("a data file of the index is missing, cut off, or is cut off under its reader: no SIGBUS", "is damaged", StoreError, INDEX + "test_a_data_file_that_is_missing_or_cut_off", 5),
        Fault("the building of an index killed at any moment: what was written is kept", "the same numbers", None, INDEX + "test_a_killed_build_goes_on", 6),
        Fault("a fragment of an unfinished index damaged: it is written again", "the same numbers", None, INDEX + "test_a_fragment_damaged_before_the_build_went_on_is_written_again"),
        Fault("two processes write one index: the second is refused", "Another process is writing to", StoreError, INDEX + "test_a_second_writer_of_an_index_is_refused_and_a_killed_one_forgotten"),
        Fault("NaN in scores", "mention … entity", NonFiniteScoreError, "ranking/test_engine.py::test_a_non_finite_score_is_an_error_that_knows_its_mention_and_entity", 3),
        Fault("a flipped bit in a value of a cache: it counts as missing, and the image is decoded", "is not as it was", None, "data/test_image_cache.py::test_a_flipped_byte_in_pixels_is_noticed_and_the_image_decoded"),
        Fault("the same in a store of any values", "a missing value", None, STORE + "test_a_flipped_bit_in_a_value_is_a_missing_value", 60),
        Fault("a cache that is cut off, or no store", "Delete the folder", StoreError, STORE + "test_a_file_that_is_cut_off_or_no_store", 5),
        Fault("the writer of a cache killed at any moment: what was acknowledged is kept", "nothing that was acknowledged is lost", None, STORE + "test_what_was_acknowledged_survives_a_kill", 8),
        Fault("three processes write one cache and read it", "all values", None, STORE + "test_many_processes_write_and_read"),
        Fault("the filling of an image cache killed", "the same pixels", None, "data/test_image_cache.py::test_killed_while_filling", 6),
        Fault("two processes fill one image cache: one waits", "every image once", None, "data/test_image_cache.py::test_two_processes_at_once"),
    ),
    "Checkpoints": (
        Fault("a pickle with code in it: `test`, `fit` and `robustness --ckpt_path`", "Such code can do anything; it was not run", CheckpointError, CHECKPOINTS + "test_code_in_a_checkpoint_is_not_run_by_any_command", 3),
        Fault("the same for `load_run`", "Such code can do anything; it was not run", CheckpointError, CHECKPOINTS + "test_code_in_a_checkpoint_is_not_run_by_load_run"),
        Fault("the same for `MIMIC.from_published`: what is no tensor is left out", "exploded", None, "test_published.py::test_code_in_a_checkpoint_is_never_run"),
        Fault("cut off, empty, something else, or a record marked as a folder (torch leaves that tensor to chance)", "cannot be read as a checkpoint", CheckpointError, CHECKPOINTS + "test_damaged_checkpoints", 6),
        Fault("one flipped byte among the weights, which torch loads in silence", "was changed after it was written", CheckpointError, CHECKPOINTS + "test_one_flipped_byte_in_a_checkpoint", 9),
        Fault("NaN in weights", "contain NaN: ", CheckpointError, CHECKPOINTS + "test_weights_that_are_no_numbers", 4),
        Fault("cut off while one holds its weights: no SIGBUS", "cannot be read as a checkpoint", CheckpointError, CHECKPOINTS + "test_a_checkpoint_cut_off_under_its_reader"),
        Fault("may not be read", "Check its permissions", CheckpointError, CHECKPOINTS + "test_a_checkpoint_that_may_not_be_read"),
        Fault("published weights in safetensors, cut off or with a damaged header", "cannot be read as a checkpoint", CheckpointError, CHECKPOINTS + "test_damaged_safetensors", 4),
        Fault("an encoder's weights cut off or empty", "damaged", CheckpointError, "encoders/test_encoders.py::test_damaged_weights_are_a_checkpoint_error", 2),
        Fault("weights of another model", "The checkpoint does not fit the configured model", CheckpointError, "cli/test_errors.py::test_weights_that_do_not_fit"),
    ),
    "The machine": (
        Fault("a disk that fills up under a cache: what was written reads back", "cannot be read or written", StoreError, STORE + "test_a_disk_that_fills_up"),
        Fault("a disk that fills up under an index", "The disk is full", StoreError, INDEX + "test_a_disk_that_fills_up_under_an_index"),
        Fault("a disk that fills up under `fit`: older checkpoints are whole", "The disk is full", MachineError, MACHINE + "test_fit_on_a_disk_that_fills_up", 3),
        Fault("a disk that fills up under `test`", "The disk is full", MachineError, MACHINE + "test_test_on_a_full_disk"),
        Fault("files that may not grow (`ulimit -f`) under `fit`, in a process of its own", "The disk is full", MachineError, MACHINE + "test_a_limit_on_the_size_of_files"),
        Fault("no room for the image cache: it goes on without", "decoded in every epoch", None, "data/test_image_cache.py::test_no_room_and_no_folder", 2),
        Fault("read-only file system", "Access denied (", MachineError, MACHINE + "test_a_read_only_disk"),
        Fault("no permission", "Access denied (", MachineError, MACHINE + "test_no_permission"),
        Fault("a file where the folder of runs should be", "The operating system reports an error", MachineError, MACHINE + "test_a_file_where_a_folder_is_due"),
        Fault("no room in shared memory", "Shared memory (/dev/shm) is full", MachineError, MACHINE + "test_no_room_in_shared_memory"),
        Fault("a loader process is killed", "A loader process died", MachineError, MACHINE + "test_a_loader_process_is_killed"),
        Fault("the device's memory runs out while ranking: a smaller block once, then an error", "eval_batch_size", DeviceMemoryError, "ranking/test_engine.py::test_out_of_memory_shrinks_the_blocks_once_and_then_says_so", 2),
        Fault("memory runs out elsewhere", "Out of memory", DeviceMemoryError, MACHINE + "test_memory_runs_out", 3),
        Fault("training is killed in a step, in validation or while a checkpoint is written, and started again with `--ckpt_path last`", "the same weights to the bit", None, "faults/test_interruption.py::test_killed_at_any_moment", 2),
        Fault("SIGTERM, then SIGINT to a resumed run: a checkpoint, exit codes 143 and 130", "the same weights to the bit", None, "faults/test_interruption.py::test_told_to_end", 2),
        Fault("the same with two processes, to one of them and to both", "the same weights to the bit", None, "faults/test_interruption.py::test_two_processes_told_to_end", 2),
        Fault("the first process of a distributed run is killed: the other ends within a minute", "Another process of this run died", MachineError, "distributed/test_launchers.py::test_the_first_process_is_killed"),
        Fault("another one than the first is killed, which Lightning has started", "Another process of this run died", MachineError, "distributed/test_launchers.py::test_the_process_that_lightning_has_started_is_killed"),
        Fault("one of two processes that build an index is killed: the same command goes on from what each has written, to the same numbers; another number of processes begins anew", "Another process of this run died", MachineError, "faults/test_interruption.py::test_a_lost_process_of_an_index_build", 2),
        Fault("two processes train in one folder: each gets a run of its own", "two whole runs", None, MACHINE + "test_two_processes_train_in_one_folder"),
        Fault("two processes test one run: its results are whole", "those of one of them", None, MACHINE + "test_two_processes_test_one_run"),
        Fault("a configuration that is no YAML", "is not valid YAML", UsageError, MACHINE + "test_a_configuration_that_is_no_yaml", 2),
    ),
}  # fmt: skip

BY_TEST = {fault.test.rpartition("::")[2]: fault for rows in FAULTS.values() for fault in rows}


def says(fault: Fault, text: str) -> bool:
    """Whether a text has the words of a row."""
    return re.search(".*".join(map(re.escape, fault.sees.split("…"))), text) is not None


@contextmanager
def told(test: str) -> Iterator[None]:
    """The block raises the error of a test's row, with the row's words."""
    fault = BY_TEST[test]
    assert fault.error is not None
    with pytest.raises(fault.error) as caught:
        yield
    assert says(fault, " ".join(str(caught.value).split())), str(caught.value)


def told_by_command(test: str, code: int, err: str) -> str:
    """A command ended with the exit code of a test's row and one paragraph with the row's words, and no traceback.

    Returns:
        The paragraph.
    """
    fault = BY_TEST[test]
    assert fault.error is not None
    assert code == fault.error.exit_code, err
    assert "Traceback" not in err
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert says(fault, message), message
    return message


def table() -> str:
    """README.md."""
    lines = [
        "# Faults",
        "",
        "Each row is a fault that a test injects into real files and processes. Written by "
        "`python -m tests.faults.catalogue`; a test compares it with the catalogue. `test_fuzz.py` gives all readers "
        "damaged bytes: `pytest tests/faults/test_fuzz.py -s --fuzz-inputs 100000`.",
        "",
        "What is not found: a changed number in weights that others wrote as safetensors (published weights, an "
        "encoder's), since that format has no checksums.",
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
            kind = "goes on" if row.error is None else row.error.__name__
            code = 0 if row.error is None else row.error.exit_code
            lines.append(f"| {row.fault} | {kind}: {row.sees} | {code} | `{row.test}` | {row.trials} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    README.write_text(table(), encoding="utf-8")
