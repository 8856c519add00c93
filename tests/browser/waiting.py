"""Waiting for a page."""

import time


def until(page, expression, arg=None):
    """Waits until JavaScript is true. `wait_for_function` evaluates a text in the page, which its policy forbids."""
    end = time.monotonic() + 60
    while not page.evaluate(expression, arg):
        assert time.monotonic() < end, f"never true: {expression}"
        page.wait_for_timeout(30)
