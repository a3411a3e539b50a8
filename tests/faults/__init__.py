"""A package, so that ``catalogue`` stays the name of the library that spaCy imports."""
