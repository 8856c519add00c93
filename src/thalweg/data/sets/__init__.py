"""Named data sets, one module each: `thalweg train NAME`."""
