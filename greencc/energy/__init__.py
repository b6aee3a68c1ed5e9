"""Meters of energy: what a piece of work cost, in joules, and how that figure was come by."""
