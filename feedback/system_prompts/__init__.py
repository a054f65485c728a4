"""System prompts as versions with shares of the traffic: what stands before a conversation that brings no system turn of its own."""
