"""The embedded default: a tiny image-LLM and the rendered world it was trained on (docs/tiny.md)."""
