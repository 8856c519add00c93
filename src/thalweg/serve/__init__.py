"""What a service asks, answers and refuses: HTTP around servables."""
