"""Products and convolutions in int8: what the targets that lower them share."""
