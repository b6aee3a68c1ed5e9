"""The tuner: searches the schedules of a model's kernels, measures them, and keeps what it found in a database."""
