"""From a function to its minimum, and what stands around that."""
