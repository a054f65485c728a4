"""Who may do what: people, roles, sign-in, API keys, tenants and their limits, the audit log."""
