"""The foundation: configuration, addressed randomness, storage, errors. It imports nothing of ours."""
