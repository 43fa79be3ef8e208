"""Names that point at immutable versions: history, rollback, retention, a watched folder."""
