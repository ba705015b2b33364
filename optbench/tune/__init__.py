"""What the machine can do, and what that leaves to gain."""
