"""Input that is broken, or meant to do harm: what must be refused, and what only looks as if it should be."""
