"""The benchmark: speed and memory relative to the published order of operations and to the machine's limits."""
