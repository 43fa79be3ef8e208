"""What runs the model, and the language of a generation."""
