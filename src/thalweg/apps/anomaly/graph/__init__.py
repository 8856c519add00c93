"""The detector of tables as one module of tensor operations, for other runtimes."""
