"""Rollouts, the policy update, the gate and the scheduled cycle that runs them in order."""
