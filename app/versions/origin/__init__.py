"""The origin: versions and pointers that several replicas share, in object storage or a folder."""
