"""What both trainers stand on: device and dtype, LoRA targets, encoding, progress and the run's record.

Imports core only; torch and friends inside functions.
"""
