"""The shipped mapping specs (`*.yaml`), and the reference models that they convert to."""
