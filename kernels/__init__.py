"""The fused attention extension: knows tensors, nothing of faces. Empty until identity adapters need it."""
