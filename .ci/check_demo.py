"""Check what the demo's test wrote: right overall, and clearly worse for text alone and for images alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

OVERALL_AT_LEAST = 0.9
SINGLE_AT_MOST = 0.75


def main() -> None:
    """Read the newest ``metrics.json`` under the folder of the runs and exit non-zero if it falls short."""
    files = sorted(Path(sys.argv[1]).rglob("metrics.json"), key=lambda file: file.stat().st_mtime)
    if not files:
        sys.exit(f"No metrics.json under {sys.argv[1]}: the demo was not tested.")
    scores = json.loads(files[-1].read_text(encoding="utf-8"))["metrics"]
    hits = {name: scores[name]["hits@1"] for name in ("overall", "text", "vision")}
    shown = ", ".join(f"{name} {value:.3f}" for name, value in hits.items())
    if hits["overall"] < OVERALL_AT_LEAST or max(hits["text"], hits["vision"]) > SINGLE_AT_MOST:
        sys.exit(
            f"Demo H@1: {shown}. Wanted: overall at least {OVERALL_AT_LEAST}, text and vision at most {SINGLE_AT_MOST}."
        )
    print(f"Demo H@1: {shown}: as it should be.")


if __name__ == "__main__":
    main()
