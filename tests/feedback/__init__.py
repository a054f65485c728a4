"""Tests of feedback/."""
