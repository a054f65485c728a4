"""Serving beside what else answers OpenAI's chat calls: `python -m bench.serving`."""
