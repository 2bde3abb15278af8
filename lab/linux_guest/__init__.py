"""Linux guests as witnesses: what a real kernel says of its clocks after a restore."""
