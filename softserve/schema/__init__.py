"""The wire format: what a body may hold, and what an answer holds, each field with an example.

Types and plain ranges are checked here; what needs the model, or two fields at once, is checked on
the server.
"""
