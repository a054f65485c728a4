"""Tests of console/: the operators' pages."""
