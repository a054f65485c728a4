"""llama.cpp as an engine: models and adapters turned into GGUF, and a process that speaks for them as the embedded engine does."""
