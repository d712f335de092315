"""Extraction without Ray: listing inputs, planning shards, and the work on one video."""
