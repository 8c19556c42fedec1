"""Trained models at work: generation, scoring."""
