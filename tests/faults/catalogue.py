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
FORMATS = "formats/test_read_records.py::"
INDEX = "ranking/test_lance_index.py::"
RUNS, CHOSEN = "faults/test_runs_and_results.py::", "cli/test_chosen_run.py::"
STORE, CHECKPOINTS, MACHINE = "test_key_value_store.py::", "faults/test_checkpoints.py::", "faults/test_machine.py::"
KIND = "test_checkpoint_kind.py::"
AROUND = "faults/test_surroundings.py::"

DAMAGED = "encoders/test_damaged_checkpoints.py::"
KB, LINKING, SHARED = "knowledge_base/", "linking/", "hub/test_damaged_folders.py::"
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
        Fault("a JPEG of 101 or 2,000 scans", "oversized", None, "faults/test_image_files.py::test_a_jpeg_of_many_scans_is_not_decoded", 3),
        Fault("500 scan markers in the metadata of a JPEG, or after its end", "opened", None, "faults/test_image_files.py::test_markers_of_scans_outside_of_the_image_are_not_counted", 3),
        Fault("PostScript in a file named `.png`, as bytes, or opened by the caller: Ghostscript is not started", "unreadable", None, "faults/test_image_files.py::test_postscript_is_never_run", 3),
        Fault("a GIF of 100,000 frames, a TIFF whose pages form a cycle", "the first frame", None, "faults/test_image_files.py::test_only_the_first_of_many_frames_is_decoded", 3),
        Fault("a GIF whose first frame is larger than its screen", "oversized, if it is", None, "faults/test_image_files.py::test_frames_larger_than_their_file_declares", 3),
        Fault("an icon that contains a larger image than it declares", "oversized, if it is", None, "faults/test_image_files.py::test_an_icon_with_a_larger_image_than_it_declares", 3),
        Fault("compressed metadata of a PNG that expand to 20 MB", "unreadable", None, "faults/test_image_files.py::test_compressed_metadata_that_expands", 3),
        Fault("a sparse file of a terabyte", "oversized", None, "faults/test_image_files.py::test_a_file_of_terabytes_is_not_read"),
        Fault("4,500 tags of a JPEG, each of which claims all bytes of the file", "opened, without a warning", None, "faults/test_image_files.py::test_thousands_of_damaged_tags_give_no_warning"),
        Fault("pixels of a PNG that expand beyond its size", "opened", None, "faults/test_image_files.py::test_pixels_that_expand_beyond_the_image"),
        Fault("many large images at once: threads wait, so that at most two of the maximum size are in memory", "opened", None, IMAGES + "test_threads_decode_at_most_a_number_of_pixels_at_once", 140),
        Fault("NaN, infinity, outliers, or one value everywhere in a TIFF of floats", "unreadable", None, IMAGES + "test_values_without_a_range_are_unreadable", 4),
        Fault("two names that lead to one renamed file: `a.b.png` and `a.c.png` to `a.jpg`", "ambiguous", None, IMAGES + "test_an_ambiguous_name_is_a_failure_of_its_own_kind", 2),
        Fault("names that differ in case, suffix, Unicode normalization, percent-encoding or trailing spaces", "missing or ambiguous", None, IMAGES + "test_an_image_is_never_mistaken_for_another", 11),
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
        Fault("malformed JSON Lines, CSV and Parquet, duplicate keys or columns, several lists, empty files", "occurs twice in one object", DataError, FORMATS + "test_what_cannot_be_read_is_an_error_with_its_place", 18),
        Fault("a field that is not text: a boolean, NaN, an object", "is not text", DataError, "data/test_reader.py::test_a_field_that_is_not_text", 12),
        Fault("numbers and lists with an obvious text", "taken as text, reported once", None, "data/test_reader.py::test_numbers_and_lists_with_an_obvious_text_are_taken_and_reported_once"),
        Fault("a column that is missing in all records", "The same in 399 more", DataError, "data/test_reader.py::test_a_column_that_is_not_there"),
        Fault("WikiDiverse as its authors annotated it", "is WikiDiverse as its authors annotated it", DataError, "data/test_published_layouts.py::test_wikidiverse_as_annotated_is_recognised", 2),
        Fault("no image of the entities exists, as with a wrong folder", "entity images are missing", DataError, DATA + "test_no_image_of_the_entities_exists"),
        Fault("10 GB of zeros as a file with records", "begins with NUL bytes", DataError, FORMATS + "test_ten_gigabytes_of_zeros_are_not_read", 4),
        Fault("a compressed file whose text does not end", "has more than", DataError, FORMATS + "test_compressed_text_that_does_not_end", 3),
        Fault("a device as a file of mentions", "is a device, not a file", DataError, DATA + "test_a_device_as_a_file_of_mentions"),
        Fault("mentions from a pipe", "the same links as from a file", None, DATA + "test_mentions_from_a_pipe_and_from_other_formats"),
        Fault("a pipe that nobody writes to: a warning", "Waiting for data from the pipe", None, FORMATS + "test_a_pipe"),
        Fault("a pipe that does not end", "Write its output to a file", DataError, FORMATS + "test_a_pipe_that_does_not_end"),
        Fault("a value of two megabytes in place of a text: a short message", "is not text: it is an object", DataError, DATA + "test_two_megabytes_in_a_value"),
        Fault("a configuration of 10 GB, or whose anchors expand without bound", "is not valid YAML", UsageError, DATA + "test_a_configuration_that_expands_without_bound", 10),
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
        Fault("a damaged page of the cache that leads to another image: it counts as missing, and the image is decoded", "the same pixels", None, "data/test_image_cache.py::test_a_page_that_leads_to_another_image_is_detected"),
        Fault("a flipped bit anywhere in the pages of a key-value store: the value, a missing value, an error, or (rarely) the process crashes", "never another value", None, STORE + "test_a_flipped_bit_in_a_page_never_gives_another_value", 300),
        Fault("an image of the knowledge base is replaced, deleted or damaged after the index was built", "another content of entity images", StoreError, "ranking/test_builder.py::test_an_index_of_other_images_is_rejected", 4),
        Fault("images vanish while the index is built", "changed while they were encoded", StoreError, "ranking/test_builder.py::test_images_that_vanish_while_they_are_encoded"),
        Fault("a truncated cache, or another file in its place", "Delete the folder", StoreError, STORE + "test_a_truncated_or_foreign_file", 5),
        Fault("the writer of a cache killed at a random moment: what was acknowledged is kept", "nothing that was acknowledged is lost", None, STORE + "test_what_was_acknowledged_survives_a_kill", 8),
        Fault("a limit on address space (`ulimit -v`) that a cache exceeds", "ulimit -v unlimited", StoreError, STORE + "test_a_limit_on_address_space"),
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
        Fault("weights of another kind: TorchScript, NumPy, HDF5, ONNX, TensorFlow, GGUF, archives, a Git LFS pointer, a web page, folders", "is not a checkpoint of torch.save: it is", CheckpointError, KIND + "test_other_kinds_are_recognised", 36),
        Fault("a named pipe in place of a checkpoint: it is not waited for", "is a pipe or a device", CheckpointError, KIND + "test_a_pipe_is_not_waited_for", 2),
        Fault("a sharded checkpoint of torch.distributed", "format_utils dcp_to_torch", CheckpointError, KIND + "test_a_sharded_checkpoint_of_torch", 2),
        Fault("a pickled model instead of its weights: `from_published`", "contains no state dict", CheckpointError, KIND + "test_a_whole_model", 2),
        Fault("weights saved before torch 1.6, with prefixes of DistributedDataParallel or compiled modules, or in a dictionary", "the weights are read", None, KIND + "test_weights_are_read_from_every_wrapping", 13),
        Fault("encoder weights truncated or empty", "damaged", CheckpointError, "encoders/test_encoders.py::test_damaged_weights_are_a_checkpoint_error", 2),
        Fault("weights of another model", "The checkpoint does not fit the configured model", CheckpointError, "cli/test_errors.py::test_weights_that_do_not_fit"),
    ),
    "Knowledge bases": (
        Fault("SIGKILL while entities are indexed, added, updated, deleted, compacted: nothing acknowledged is lost, links are exact", "goes on", None, KB + "test_kills.py::test_killed_at_random_two_hundred_times", 210),
        Fault("two writers and five readers at once, with compactions", "no torn read", None, KB + "test_concurrency.py::test_two_writers_and_five_readers"),
        Fault("another process is writing for longer than `wait`", "Another process is writing to", StoreError, KB + "test_knowledge_base.py::test_a_second_writer_waits_or_is_refused"),
        Fault("a flipped bit in a row", "the entity 'Q3' with the order number 3 fails its checksum", StoreError, KB + "test_damage.py::test_damaged_rows_are_named"),
        Fault("a flipped byte anywhere, missing and truncated files", "`mimic-pl kb verify` names them", None, KB + "test_damage.py::test_missing_and_truncated_files"),
        Fault("a version that a compaction removed is read", "removed", StoreError, KB + "test_knowledge_base.py::test_compaction_merges_files_and_removes_old_versions"),
        Fault("another model, template or dtype", "built for another model and another text template", StoreError, KB + "test_knowledge_base.py::test_another_model_is_refused_and_told"),
        Fault("an indexing that ends in the middle", "goes on", None, KB + "test_knowledge_base.py::test_an_interrupted_indexing_goes_on"),
        Fault("SIGKILL while a knowledge base is created: an empty folder of versions is left", "it can be created", None, KB + "test_killed_creation.py::test_a_knowledge_base_can_be_created", 4),
        Fault("SIGKILL while an index is deleted", "the next writer finishes it", None, KB + "test_killed_creation.py::test_deleting_that_was_killed_goes_on"),
        Fault("data without a manifest", "is damaged", StoreError, KB + "test_killed_creation.py::test_data_without_a_manifest_is_damage"),
        Fault("a damaged record", "can be updated or deleted", None, KB + "test_damage.py::test_a_damaged_record_can_be_updated_or_deleted", 6),
        Fault("entities are added to a knowledge base, and that is interrupted: BM25's document frequencies", "those of the entities that are there", None, LINKING + "test_linker.py::test_statistics_follow_an_indexing_into_a_knowledge_base_that_was_interrupted"),
    ),
    "Linking": (
        Fault("bad records among good ones: no mention, wrong spans, unknown candidates, wrong filters, images that are no images", "an error of their own; the others are linked", None, LINKING + "test_linker.py::test_a_bad_record_costs_the_others_nothing", 10),
        Fault("SIGKILL of `mimic-pl index` and `mimic-pl link`", "the same command goes on, with the same output", None, LINKING + "test_interruption.py::test_indexing_and_linking_killed_at_random_moments"),
        Fault("SIGKILL of a writer of links, in each format", "goes on", None, "formats/test_link_writer.py::test_killed_writers_go_on", 20),
        Fault("two commands write links to one file", "Another process is writing …links.jsonl", StoreError, "formats/test_link_writer.py::test_two_writers_of_one_file"),
        Fault("a full disk while links are written", "disk is full", MachineError, "formats/test_link_writer.py::test_a_full_disk"),
        Fault("a damaged alias table", "'prior' is '-1'", DataError, LINKING + "test_alias_table.py::test_damaged_tables", 3),
        Fault("a damaged `calibration.json`", "is not a calibration", DataError, "calibration/test_file.py::test_damage_is_named"),
        Fault("a `calibration.json` of another version", "of its format; this is version 1", DataError, "calibration/test_file.py::test_a_file_of_another_version_is_refused"),
        Fault("a calibration of other weights: `test`", "Probabilities are left out", None, "cli/test_calibrate_command.py::test_a_calibration_of_other_weights_is_not_used"),
        Fault("a reranker that raises", "failed for the mention 'Jordan'", ConfigError, "retrieval/test_reranker.py::test_an_exception_of_the_reranker_names_it_and_the_mention"),
        Fault("a reranker that returns too few numbers, or none", "Return a list of numbers", ConfigError, "retrieval/test_reranker.py::test_other_results_are_refused", 4),
        Fault("a damaged cross-encoder", "is damaged: its checksum is", CheckpointError, "retrieval/test_cross_encoder.py::test_damaged_files_are_refused", 5),
        Fault("a damaged line of JSON Lines or of a Wikidata dump", "an error of its own; the others are read", None, "formats/test_wikidata.py::test_a_damaged_line_leaves_the_others_readable", 4),
        Fault("a file of entities in no known layout", ", which no format has", DataError, "formats/test_layouts.py::test_an_unknown_layout_lists_what_is_there_and_what_is_known"),
        Fault("a file of entities in a layout that could be two", "fit several formats. Name the one that is meant", DataError, "formats/test_layouts.py::test_an_ambiguous_layout_has_to_be_named"),
    ),
    "Servers": (
        Fault("requests that are too large, images that are no images or bombs, paths and addresses instead of images, a full queue", "413, 422 or 503 with the reason; the server goes on", None, "serve/test_rest.py::test_what_is_refused", 11),
        Fault("malformed queries of the reconciliation API", "422 with the place", None, "serve/test_reconciliation.py::test_wrong_queries_are_named", 6),
        Fault("SIGTERM while requests are in flight", "they are answered", None, "serve/test_serve_command.py::test_requests_in_flight_are_answered_at_the_end"),
        Fault("`mimic-pl serve --writable` without a token", "set the environment variable MIMIC_TOKEN to a secret", ConfigError, "serve/test_serve_command.py::test_without_a_token_nothing_is_writable"),
        Fault("`mimic-pl app --writable` on a host that others reach", "change the knowledge base", ConfigError, "app/test_app_command.py::test_adding_needs_a_host_that_nobody_else_reaches"),
        Fault("`mimic-pl app` on a port that is taken", "cannot listen on port", ConfigError, "app/test_app_command.py::test_a_port_that_is_taken"),
        Fault("a page: paths and addresses instead of images, bombs, texts that are too long", "the page says what is wrong", None, "app/test_actions.py::test_what_is_refused"),
        Fault("a page: files among the values, bodies that are too large, other hosts, other routes", "422, 413, 400 or 404", None, "app/test_page_guard.py::test_values_are_texts_and_numbers_within_limits"),
        Fault("Ctrl-C while a page is open", "the command ends", None, "app/test_app_command.py::test_it_ends_while_a_page_is_open"),
        Fault("spaCy: one document of several has a mention that cannot be linked", "goes to the pipeline's error handler; the others are linked", None, "serve/test_spacy_component.py::test_a_mention_that_cannot_be_linked_costs_its_document_alone"),
    ),
    "Shared models": (
        Fault("a description that was changed, leads out of the folder, or is of another program or format", "leads out of the folder", CheckpointError, SHARED + "test_a_config_that_is_not_what_was_written", 8),
        Fault("weights of another model", "do not fit the model", CheckpointError, SHARED + "test_weights_of_another_model_are_refused"),
        Fault("weights with NaN are saved", "contain NaN: ", CheckpointError, SHARED + "test_weights_that_are_nan_are_not_saved"),
        Fault("the folder to save to has other files", "contains other files", ConfigError, SHARED + "test_nothing_else_is_overwritten", 3),
        Fault("SIGKILL while a model is saved", "a whole model, or none", None, SHARED + "test_a_killed_save_leaves_a_whole_model_or_none", 60),
        Fault("the hub cannot be reached", "is not in the cache, and the hub cannot", ConfigError, "hub/test_hub_transfer.py::test_a_hub_that_cannot_be_reached", 2),
    ),
    "Runs and results": (
        Fault("a flipped byte in a checkpoint, given by its name, its path, `~` or a `file://` URL, on the command line or in a file", "was changed after it was written", CheckpointError, RUNS + "test_a_damaged_checkpoint_however_it_is_given", 16),
        Fault("the same in Python: `load_run`, `load_from_checkpoint`, `from_published`", "was changed after it was written", CheckpointError, RUNS + "test_a_damaged_checkpoint_in_python", 5),
        Fault("the same in a Trainer with ExactResume or AtomicCheckpointIO", "was changed after it was written", CheckpointError, RUNS + "test_a_damaged_checkpoint_through_a_trainer", 8),
        Fault("a checkpoint at a URL of another machine", "is not on this machine", CheckpointError, RUNS + "test_a_checkpoint_on_another_machine", 9),
        Fault("`fit --ckpt_path last` where the newest run has another seed, data or model: it is not resumed", "differs", None, CHOSEN + "test_last_is_a_run_with_the_same_model_data_and_seed", 4),
        Fault("`--ckpt_path` of another run: its results are written to a new folder", "in a new folder", None, CHOSEN + "test_a_checkpoint_of_another_run_is_used_in_a_new_folder", 2),
        Fault("a copied run is resumed and tested: the original is unchanged", "the same bytes", None, CHOSEN + "test_a_copied_run_leaves_the_original_alone"),
        Fault("files of runs have wrong times, or the clock was set back", "the run started last", None, "cli/test_runs.py::test_a_run_is_newer_than_those_before_even_if_the_clock_was_set_back", 2),
        Fault("dangling links among runs and checkpoints", "are ignored", None, "cli/test_runs.py::test_dangling_links_are_neither_runs_nor_checkpoints", 4),
        Fault("a SLURM job is preempted and requeued, without a logger", "resumes at the step of the signal", None, "faults/test_interruption.py::test_a_slurm_job_is_requeued"),
        Fault("the configuration of a run of another version", "was started by 0.0.1 of mimic-pl", UsageError, CHOSEN + "test_a_run_of_another_version_is_named"),
        Fault("`test` is killed between its two files: `report` refuses them", "are of different evaluations", DataError, RUNS + "test_a_kill_between_predictions_and_metrics"),
        Fault("the folder of a run is deleted during training", "was deleted or moved during training", MachineError, RUNS + "test_the_folder_of_a_run_is_deleted_during_training", 2),
        Fault("the disk fills up while a report is written: the earlier one is intact", "The disk is full", MachineError, RUNS + "test_a_report_on_a_full_disk"),
        Fault("two reports are written into one folder: the second is rejected", "Another process is writing to", StoreError, RUNS + "test_two_reports_into_one_folder"),
        Fault("two `robustness` commands on one run: the second is rejected", "Another process is writing to", StoreError, "cli/test_robustness_command.py::test_two_commands_do_not_write_into_one_run"),
        Fault("two `baselines` commands into one folder: the second is rejected", "Another process is writing to", StoreError, "baselines/test_baselines_command.py::test_two_commands_do_not_write_into_one_folder"),
        Fault("a run is tested while it trains", "complete results", None, RUNS + "test_a_run_is_tested_while_it_trains"),
    ),
    "Encoders": (
        Fault("a text model in place of CLIP, CLIP in place of a text model, a vision model, a vision-language model, a video model, a decoder", "is a text model (bert); expected a model with a text and an image tower", ConfigError, WRONG + "test_another_kind_of_model_on_the_command_line"),
        Fault("the same in Python, for eleven kinds", "vision-language model without separate towers", ConfigError, WRONG + "test_another_kind_of_model_is_named_with_what_to_use", 11),
        Fault("more tokens than positions, which are counted from the id of the padding token (RoBERTa, XLM-R, CamemBERT, MPNet, Longformer)", "only 16 positions", ConfigError, WRONG + "test_positions_that_are_counted_from_the_padding_token", 15),
        Fault("names of timm models for transformers and vice versa, unknown names, sizes that do not fit", "name of a timm vision model", ConfigError, WRONG + "test_names_and_sizes_that_do_not_fit", 13),
        Fault("safetensors headers that lie about lengths, offsets or shapes; a configuration, tokenizer or image processor that is not JSON, has wrong types, or asks for billions of layers or pixels; missing files; code in a checkpoint", "deserializing header: invalid", CheckpointError, DAMAGED + "test_a_damaged_file_is_one_paragraph", 30),
        Fault("code in the pickled weights of an encoder: it is not run", "objects other than tensors", CheckpointError, DAMAGED + "test_code_in_pickled_weights_is_not_run"),
        Fault("NaN in the weights of an encoder", "contain NaN", CheckpointError, DAMAGED + "test_weights_with_nan"),
        Fault("a configuration with fewer layers than the weights of an encoder", "weights of layers that its config.json does not have", CheckpointError, DAMAGED + "test_fewer_layers_than_weights"),
        Fault("a pipe or a device in place of a file of a checkpoint", "is a pipe or a device", CheckpointError, DAMAGED + "test_a_pipe_or_a_device_does_not_block", 6),
        Fault("a `tokenizer.json` of a terabyte", "more than any tokenizer", CheckpointError, DAMAGED + "test_a_huge_file_of_json_is_not_read"),
        Fault("texts cut to the longest of a batch for a text tower that pools the last position (SigLIP)", "last of", ConfigError, "encoders/test_dual_encoders.py::test_cut_texts_are_rejected_by_a_tower_that_pools_the_last_position"),
    ),
    "Configurations": (
        Fault("an exception in any constructor that a configuration names: encoder, unit, loss, model, data, callback, logger, optimizer", "cannot be built from its arguments: 5 is not divisible by 2, the heads", ConfigError, CONSTRUCTORS + "test_every_part_of_a_configuration", 8),
        Fault("a package that a configuration needs is not installed (logger, strategy, precision)", "pip install -U", ConfigError, CONSTRUCTORS + "test_a_missing_package_is_named_with_how_to_install_it", 3),
        Fault("a layer larger than memory", "Out of memory while", DeviceMemoryError, CONSTRUCTORS + "test_a_layer_larger_than_memory_is_an_error_of_the_machine"),
        Fault("Weights & Biases without an account", "Weights & Biases cannot be used", ConfigError, "cli/test_loggers.py::test_weights_and_biases_without_an_account"),
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
    "Surroundings": (
        Fault("no home directory, and a user id without a name, as in containers", "no home directory", None, AROUND + "test_no_home_directory_and_no_name_of_the_user"),
        Fault("the reader of the output is gone: `mimic-pl test | head -1`", "exit code 141, nothing else is printed", None, AROUND + "test_the_reader_of_the_output_is_gone", 2),
        Fault("an argument or the current folder is not valid UTF-8", "is not valid UTF-8", UsageError, AROUND + "test_names_that_are_not_utf8", 2),
        Fault("the current folder is deleted", "The current folder was deleted", UsageError, AROUND + "test_the_current_folder_is_deleted"),
        Fault("arguments of 5,000 characters", "an error of one short paragraph", None, AROUND + "test_arguments_of_any_length", 8),
        Fault("names that are not ASCII, and a terminal that prints only ASCII", "names are escaped", None, AROUND + "test_a_terminal_that_lacks_the_characters_of_a_name"),
        Fault("a terminal of width 0", "the table is printed", None, AROUND + "test_a_terminal_of_no_width"),
        Fault("escape sequences, markup, bidirectional overrides and a million characters in names and ids: `doctor`, `fit`, `test`, TensorBoard", "names are escaped", None, "cli/test_terminal.py::test_no_output_of_a_command_has_control_characters", 3),
        Fault("the same in an error message: it is escaped and shortened", "is also record 0", DataError, "cli/test_terminal.py::test_errors_name_the_ids_escaped_and_bounded"),
        Fault("formulas, links and HTML in names of runs: `report.md`, `report.csv`", "they are escaped", None, "cli/test_terminal.py::test_the_report_has_no_live_text"),
    ),
    "Numbers": (
        Fault("a number out of range, NaN or a bool, for every numeric argument of every public class", "; it must be", ConfigError, "test_ranges.py::test_every_number_is_refused_outside_of_its_range", 87),
        Fault("the same on the command line, before the encoder loads", "; it must be", ConfigError, "cli/test_numbers.py::test_the_command_line_refuses_a_number_before_the_encoder_loads", 19),
        Fault("invalid learning rates, schedulers and nested objects", "model.optimizer.lr is inf", ConfigError, "cli/test_numbers.py::test_the_command_line_refuses_numbers_of_objects_before_the_encoder_loads", 5),
        Fault("a unit or matcher whose scores depend on the pairs that are scored at once", "must depend on its pair alone", ConfigError, "test_model.py::test_scores_that_depend_on_the_block_cannot_be_ranked", 4),
        Fault("a scheduler for fewer steps than the training takes", "cannot be stepped further", ConfigError, "test_model.py::test_a_scheduler_for_fewer_steps_says_how_many_there_are"),
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
