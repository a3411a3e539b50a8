"""``python -m mimic_pl``: the same as the console script ``mimic-pl``."""

from mimic_pl.cli import main

if __name__ == "__main__":
    main()
