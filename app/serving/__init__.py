"""What happens to a request, from admission to its last token."""
