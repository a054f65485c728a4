"""Who may do what: people, roles, sign-in, API keys, the audit log."""
