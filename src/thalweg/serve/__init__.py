"""A service of stored models over HTTP."""
