"""Drawing in a terminal, by rich: curves, pictures, and the panel of a run."""
