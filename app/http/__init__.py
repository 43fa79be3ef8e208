"""The HTTP transport: it translates, and decides nothing."""
