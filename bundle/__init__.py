"""The edge bundle: a policy version with all that guards it in one signed file, for a box with no database and no way home."""
