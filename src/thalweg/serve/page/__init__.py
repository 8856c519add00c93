"""The page that `thalweg serve` shows to people."""
