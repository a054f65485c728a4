"""Tests of all pages at once: hostile texts, accessibility, narrow and zoomed windows, weight, empty and full databases."""
