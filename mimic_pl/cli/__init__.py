"""The command line: ``mimic-pl fit | validate | test | predict | doctor | benchmark``."""

from mimic_pl.cli.app import main

__all__ = ["main"]
