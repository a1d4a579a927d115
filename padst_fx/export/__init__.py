"""Files for other runtimes: one package per target."""
