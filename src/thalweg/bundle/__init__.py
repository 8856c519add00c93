"""What a run leaves and everything else reads: the trained energy, its files, its calibration."""
