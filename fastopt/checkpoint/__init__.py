"""State as dicts and files, and back: all or nothing."""
