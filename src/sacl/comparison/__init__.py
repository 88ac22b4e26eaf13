"""A few-label comparison: cohort x labeled subjects x strategy x seed, every cell a run."""
