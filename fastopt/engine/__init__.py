"""From parameter groups to steps: buckets, kernels, scalars, policies, device memory."""
