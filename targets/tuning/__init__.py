"""What of a target's schedules can be chosen, and kernels scheduled by what was chosen; the tuner is greencc.tuning."""
