"""Autotuning: which schedule of each kernel of a model is fastest on a device, found by measuring, and kept."""
