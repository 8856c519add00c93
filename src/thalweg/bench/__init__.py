"""Speed of chains and of dual score matching on this machine."""
