"""Data: named sets and files, fitted invertible transforms, batches addressed by step."""
