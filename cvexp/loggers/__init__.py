"""Where what is logged goes: one file for each kind of logger."""
