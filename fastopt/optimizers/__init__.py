"""The public optimizers, one file each."""
