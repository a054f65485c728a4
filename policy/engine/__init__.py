"""The embedded engine: one process that decodes for many, and speaks the OpenAI protocol on loopback."""
