"""Trained models in the forms that other runtimes take: one package per target."""
