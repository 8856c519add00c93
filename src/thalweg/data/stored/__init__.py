"""Rows that stay where they are stored, one module a source: npy, folders of images, Parquet, map-style data sets."""
