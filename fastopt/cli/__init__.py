"""The command line, ``fastopt`` or ``python -m fastopt``."""
