"""Things that watch a run: budget, drawing, result files."""
