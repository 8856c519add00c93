"""The work of a service: its queue, batches and workers."""
