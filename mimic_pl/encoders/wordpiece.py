"""A tokenizer built from a list of words, for models that are created from a configuration instead of a checkpoint."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, START, END = "[PAD]", "[UNK]", "[CLS]", "[EOS]"


def build_tokenizer(vocabulary: Iterable[str]) -> PreTrainedTokenizerFast:
    """Build a lower-casing WordPiece tokenizer from a vocabulary.

    Every printable ASCII text can be tokenized: out-of-vocabulary words are split into the longest known pieces, down
    to single characters. Each text becomes ``[CLS] tokens [EOS]``, and a pair ``[CLS] tokens [EOS] tokens [EOS]``.

    Args:
        vocabulary: Words that become one token each, with ids in this order; duplicates are ignored.
    """
    characters = sorted(set(string.printable.lower()) - set(string.whitespace))
    pieces = [*characters, *(f"##{character}" for character in characters), *(word.lower() for word in vocabulary)]
    ids: dict[str, int] = {}
    for piece in [PAD, UNKNOWN, START, END, *pieces]:
        ids.setdefault(piece, len(ids))

    tokenizer = Tokenizer(models.WordPiece(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B:1 {END}:1",
        special_tokens=[(START, ids[START]), (END, ids[END])],
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        cls_token=START,
    )
