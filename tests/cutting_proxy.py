"""A TCP proxy on loopback that cuts the connection once so many bytes have passed."""

import contextlib
import socket
import threading


class CuttingProxy:
    """Passes bytes to and from `address` until `allow_bytes` have gone the counted way; then it drops every connection.

    Args:
        address: host:port of the server behind it.
        counted: `sent` counts what the client sends, `received` what it gets.
    """

    def __init__(self, address: str, counted: str) -> None:
        host, _, port = address.partition(":")
        self._behind, self._counted = (host, int(port)), counted
        self.allow_bytes: float = float("inf")
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._behind)
            for source, target, way in ((client, server, "sent"), (server, client, "received")):
                threading.Thread(target=self._pump, args=(source, target, way), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, way: str) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(4096):
                if way == self._counted:
                    with self._lock:
                        room = max(0, min(len(block), int(min(self.allow_bytes, 1 << 30))))
                        self.allow_bytes -= room
                    target.sendall(block[:room])
                    if room < len(block):
                        break
                else:
                    target.sendall(block)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
