"""Export of sparse models to other runtimes."""
