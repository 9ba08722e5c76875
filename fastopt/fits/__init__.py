"""Fits: from a function to its minimum."""
