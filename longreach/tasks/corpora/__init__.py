"""Text and code as training data: sources, tokenizers, a token cache on disk, packed contexts."""
