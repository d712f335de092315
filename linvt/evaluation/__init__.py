"""Benchmarks: questions, prompts, scoring, statistics and reports. Nothing here loads a model."""
