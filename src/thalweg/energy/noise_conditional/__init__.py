"""Neural networks U(y, t): energies of data plus noise of variance t."""
