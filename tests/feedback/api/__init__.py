"""Tests of feedback/api/."""
