"""The model to serve: where it is, and how its weights are held."""
