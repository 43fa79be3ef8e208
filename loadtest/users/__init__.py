"""Who asks, for what, and whether the answer is the right one."""
