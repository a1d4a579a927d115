"""DST in the training loops of other libraries; each module imports its own and nothing else."""
