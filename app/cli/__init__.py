"""The command line: the server, and commands that talk to a running one."""
