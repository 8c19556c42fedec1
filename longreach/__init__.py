"""Longreach: sequence models for very long contexts, each exact, trainable and fast.

Imports run one way, and nothing imports to its right:
errors < ops < hippo < mixers < models < tasks < training < inference < cli.
"""

__version__ = "0.1.0"
