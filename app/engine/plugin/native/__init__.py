"""What is written in C++, and compiled for the machine by scripts/install.sh."""
