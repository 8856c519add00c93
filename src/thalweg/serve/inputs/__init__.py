"""Bodies of requests as arrays by name."""
