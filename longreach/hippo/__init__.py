"""The theory of state spaces: measures, transition matrices, diagonal forms, discretisation."""
