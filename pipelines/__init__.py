"""The Ray parts: thin wrappers around `linvt`."""
