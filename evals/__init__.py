"""Frozen suites, the judge that counts, and the measures the gate reads."""
