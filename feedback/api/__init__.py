"""`/api/v1`: the interface for programs, one module for each thing it speaks of."""
