"""Command lines: each parses a configuration and calls one pipeline."""
