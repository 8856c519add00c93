"""Connections where files run out: they wait, and the log says so once."""

import asyncio
import errno
import logging
import socket

from thalweg.serve import listener
from thalweg.serve.listener import Acceptor


class Short(socket.socket):
    """A listener of a process that may open no more files."""

    tries = 0
    short = True

    def accept(self):
        self.tries += self.short
        if self.short:
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


class Greeting(asyncio.Protocol):
    def connection_made(self, transport):
        transport.write(b"hello")
        transport.close()


def test_where_files_run_out_one_line_says_so_and_clients_wait(monkeypatch, caplog):
    async def test():
        with Short() as short:
            short.bind(("127.0.0.1", 0))
            short.listen()
            acceptor = Acceptor(short, Greeting, set())
            taken = [await asyncio.open_connection(*short.getsockname()) for _ in range(3)]
            async with asyncio.timeout(20):
                while short.tries < 5:
                    await asyncio.sleep(0.001)
                short.short = False
                assert [await reader.read() for reader, _ in taken] == [b"hello"] * 3
            tries = short.tries
            await asyncio.sleep(0.02)
            assert short.tries == tries
            for _, writer in taken:
                writer.close()
            acceptor.close()

    monkeypatch.setattr(listener, "RETRY", 0.001)
    caplog.set_level(logging.INFO, "thalweg.serve")
    asyncio.run(test())
    (line,) = caplog.messages
    assert "Too many open files" in line
    monkeypatch.setattr(listener, "QUIET", 0.0)  # a minute later
    asyncio.run(test())
    assert len(caplog.messages) > 2
