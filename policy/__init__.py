"""Policy versions and their history, adapters on disk, and the engine that speaks for a policy."""
