"""Using a trained model: writing text, and judging it over whole long documents."""
