"""What a run is worth: one document per split, and the comparison of runs."""
