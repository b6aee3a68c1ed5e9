"""Autotuning: searches the spaces of schedules that targets offer, by measuring."""
