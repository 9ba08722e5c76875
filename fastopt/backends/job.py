"""Where compiled code finds its arrays: the words of a job, and how work is cut up."""

from __future__ import annotations

LEAF_LINES = ("PARAM", "GRAD", "OFFSET", "ROW", "STREAM")
"""What the lines of the array ``leaves`` hold of each parameter: the addresses of it and of its
gradient, its places in arena and table, and where its random bits begin."""

JOB = (
    *("FUNCTION", "TOTAL", "LEAVES", "COUNT", "CHUNKS"),
    *("TABLE", "EXACT", "CODES", "SCALES", "PITCH"),  # of an update
    *("LANES", "SUMS", "FACTOR"),  # of a norm
    *("KNOWN", "AXES", "AXES_COUNT", "EXTENTS", "EXTENTS_COUNT", "STEPS", "CLOCK"),  # of a look
)
"""The words of a job: what does its chunks and how many they are; addresses and sizes of arrays.
Compiled code finds all its arrays there: handing one over as an argument costs as much as updating
100 elements."""

CHUNK = 2_048
"""Elements that are updated in one go: small enough to share out evenly among threads, large enough
that finding the next ones costs nothing."""

LANES_APART = 4_096
"""Bytes from the lanes of one thread to those of the next: what two threads write all the time must
not share a cache line, nor lie in two that processors fetch together."""


def at(name: str) -> int:
    """Return where a word of a job stands, in bytes from its beginning."""
    return 8 * JOB.index(name)
