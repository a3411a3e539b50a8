"""The command line: ``mimic-pl fit | validate | test | predict | doctor``."""

from mimic_pl.cli.app import main

__all__ = ["main"]
