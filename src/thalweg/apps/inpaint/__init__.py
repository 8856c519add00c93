"""In-painting and other linear inverse problems: draws of what is missing, given what was observed."""
