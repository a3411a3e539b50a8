"""The benchmark: ratios measured side by side in one run, against the published order of operations and the machine."""
