"""Measurements on real models: what they are, where they come from, and how they are timed."""
