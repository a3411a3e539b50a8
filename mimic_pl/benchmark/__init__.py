"""The benchmark: ratios measured side by side in one run, against the published order of operations and the machine."""

from mimic_pl.benchmark.run import run_benchmark
from mimic_pl.benchmark.settings import ROWS, Settings

__all__ = ["ROWS", "Settings", "run_benchmark"]
