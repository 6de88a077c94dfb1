"""Data sets and the way from a file to a batch: one file per format or source."""
