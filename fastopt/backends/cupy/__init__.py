"""The CuPy backend, the only importer of cupy."""
