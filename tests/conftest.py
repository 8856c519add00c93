"""What every test starts from."""

import signal

# A background job of a shell begins with Ctrl-C ignored, and so would all processes that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
