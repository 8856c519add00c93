"""From a recipe to a bundle: reads the data, trains, writes the run folder."""
