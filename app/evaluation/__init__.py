"""Which way of prompting is best: scores, how sure they are, and a report."""
