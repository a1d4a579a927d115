"""Trained models in the forms that other runtimes take."""
