"""A trained law of y given x, by the names of its targets."""
