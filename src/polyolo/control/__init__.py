"""The control plane: the source of truth, and the only room that changes it."""
