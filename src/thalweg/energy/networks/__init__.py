"""Neural networks E(x): vectors and images to one number a row."""
