"""The Numba backend, the only importer of numba."""
