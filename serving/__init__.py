"""What a chat app sees: the `/v1` API, routing to a policy version, the chat page."""
