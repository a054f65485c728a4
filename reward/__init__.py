"""Reward models: what people judged, as a number that a completion is scored with."""
