"""Published language models."""
