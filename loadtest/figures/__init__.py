"""What the answers say, in numbers: collected in each worker, added up in one place, and shown."""
