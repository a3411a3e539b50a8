"""Records -> model inputs: text templates, tokenizer, images and image policy, additional record features."""

from mimic_pl.processor.alias_table import AliasTable
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import ImageFolder, ImagePolicy
from mimic_pl.processor.lexicon import BM25Lexicon
from mimic_pl.processor.processor import Modalities, Processor
from mimic_pl.processor.record_features import RecordArrays, RecordFeatures
from mimic_pl.processor.template import TextTemplate
from mimic_pl.processor.tokenizer import TextTokenizer

__all__ = [
    "AliasTable",
    "BM25Lexicon",
    "ImageFolder",
    "ImagePolicy",
    "ImageProcessor",
    "Modalities",
    "Processor",
    "RecordArrays",
    "RecordFeatures",
    "TextTemplate",
    "TextTokenizer",
]
