"""Whole networks: a stack of mixers, a language model around it, published checkpoints."""
