"""The constant Z of an energy: estimated with an interval, or exact where states can be counted."""
