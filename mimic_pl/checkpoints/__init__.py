"""Checkpoint files: where they are, what they are, and how they are read and written.

No code in a checkpoint is run, corruption is reported before its values are used, and a file is replaced as a whole.
"""
