"""Verification: what can be said of a converted checkpoint, by which evidence, and where the first difference is.

Levels 1 and 2 (`accounting`, `roundtrip`) read files and import no tensor library; levels 3 and 4 (`modules`, `logits`)
run models.
"""
