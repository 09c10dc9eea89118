"""Mutation testing of the verifier: wrong conversions that it must catch, and correct ones that it must let pass.

`python -m tests.mutations` runs all of it, prints the table and writes docs/mutations.md.
"""
