"""The link to the database by TLS: a certificate is checked, and a wrong one is one line.

The test server has no TLS of its own, so a process in front of it ends it, which speaks
PostgreSQL's way of starting TLS.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from benchmarks.postgres import Postgres
from hpo.errors import UserError
from hpo.storage.open import open_storage

REPO = Path(__file__).parents[2]
_SSL_REQUEST = struct.pack("!II", 8, 80877103)


@dataclass(frozen=True)
class Door:
    """A server on this machine that takes nothing but TLS."""

    port: int
    authority: Path  # the certificate that signed its own
    ciphers: list[str]  # of the connections so far


def signed(context: ssl.SSLContext, directory: Path) -> Path:
    """Gives a server a certificate; returns that of the authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(directory / "authority.pem")
    authority.issue_cert("localhost").configure_cert(context)
    return directory / "authority.pem"


def as_documented(context: ssl.SSLContext, directory: Path) -> Path:
    """The same with the commands of docs/machines.md, all but that for the superuser."""
    text = (REPO / "docs" / "machines.md").read_text()
    (commands,) = [b for b in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if "openssl" in b]
    commands = re.sub("(?m)^sudo .*$", "", commands.replace("HOST", "localhost"))
    subprocess.run(["sh", "-euc", commands], cwd=directory, capture_output=True, check=True)
    server = directory / "tls" / "server"
    assert (server / "server.key").stat().st_mode & 0o077 == 0
    context.load_cert_chain(server / "server.crt", server / "server.key")
    return directory / "tls" / "authority" / "root.crt"


@pytest.fixture
def door(request: pytest.FixtureRequest, postgres: Postgres, tmp_path: Path) -> Iterator[Door]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority = getattr(request, "param", signed)(context, tmp_path)
    listener = socket.create_server(("127.0.0.1", 0))
    door = Door(listener.getsockname()[1], authority, [])

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    def serve(client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if client.recv(8) != _SSL_REQUEST:
                return  # in the clear: not here
            client.sendall(b"S")
            with (
                context.wrap_socket(client, server_side=True) as inside,
                socket.create_connection(("127.0.0.1", postgres.port)) as server,
            ):
                cipher = inside.cipher()
                assert cipher is not None
                door.ciphers.append(cipher[1])
                back = threading.Thread(target=pump, args=(server, inside), daemon=True)
                back.start()
                pump(inside, server)
                back.join()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield door
    listener.close()


@pytest.mark.parametrize("door", [signed, as_documented], indirect=True)
def test_a_certificate_that_is_right_is_taken(url: Callable[..., str], door: Door) -> None:
    query = f"?sslmode=verify-full&sslrootcert={door.authority}"
    storage = open_storage(at(url("runes_owner", query), door.port, "localhost"))
    storage.create_study("by-tls", {}, [{"x": 1.0}])
    assert storage.get_study_id_from_name("by-tls") > 0
    assert set(door.ciphers) <= {"TLSv1.2", "TLSv1.3"}
    assert door.ciphers


@pytest.mark.parametrize(
    ("host", "query", "words"),
    [
        ("127.0.0.1", "?sslmode=verify-full&sslrootcert={ca}", "the name of the server in the URL"),
        ("localhost", "?sslmode=verify-full&sslrootcert={other}", "check sslrootcert"),
        ("localhost", "?sslmode=verify-full&sslrootcert={none}", "check sslrootcert"),
    ],
)
def test_another_name_another_authority_and_none_are_one_line(
    url: Callable[..., str], door: Door, tmp_path: Path, host: str, query: str, words: str
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "other.pem")
    names = {"ca": door.authority, "other": tmp_path / "other.pem", "none": tmp_path / "none"}
    query = query.format(**names)
    with pytest.raises(UserError) as error:
        open_storage(at(url("runes_owner", query), door.port, host))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_a_server_without_tls_is_not_spoken_to_in_the_clear(url: Callable[..., str]) -> None:
    with pytest.raises(UserError, match=r"set up TLS on the server, or leave sslmode out"):
        open_storage(url("runes_owner", "?sslmode=require"))


def at(url: str, port: int, host: str) -> str:
    before, after = url.split("@")
    _, database = after.split("/", 1)
    return f"{before}@{host}:{port}/{database}"
