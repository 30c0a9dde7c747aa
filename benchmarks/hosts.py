"""Hosts of their own for tests: network namespaces, each joined to a switch by a cable.

The switch is a namespace, too: nothing outside is touched, or reached.  Root may make them, and
so may any user where the system lets users have namespaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import IO

NETWORK = "10.77.0.0/16"
_LIFE_S = 900  # of a host that nobody ends


class Switch:
    """So many hosts, with the addresses 10.77.N.2; that of the switch is 10.77.N.1 for host N.

    Raises:
        OSError: the system does not allow it; says what.
    """

    def __init__(self, hosts: int) -> None:
        for tool in ("unshare", "nsenter", "setpriv", "ip"):
            if shutil.which(tool) is None:
                raise OSError(f"the command {tool} is not there")
        self._is_root = os.geteuid() == 0
        as_user = () if self._is_root else ("--user", "--map-current-user", "--keep-caps")
        self._shell = subprocess.Popen(
            ["unshare", *as_user, "--net", "sh"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._pids: list[str] = []
        try:
            self._do("ip link set lo up")
            for host in range(1, hosts + 1):
                self._add(host)
        except OSError:
            self.close()
            raise

    def _add(self, host: int) -> None:
        # The second `unshare` is this process once it is in its own namespace.
        pid = self._do(f"unshare --net sleep {_LIFE_S} >/dev/null & echo $!").strip()
        self._pids.append(pid)
        switch = self._do("readlink /proc/self/ns/net")
        self._do(f'until [ "$(readlink /proc/{pid}/ns/net)" != "{switch.strip()}" ]; do :; done')
        inside = f"nsenter --target {pid} --net"
        self._do(f"ip link add cable{host} type veth peer name eth0 netns {pid}")
        self._do(f"ip address add 10.77.{host}.1/24 dev cable{host}")
        self._do(f"{inside} ip address add 10.77.{host}.2/24 dev eth0")
        self._do(f"{inside} ip link set lo up")
        self._do(f"{inside} ip link set eth0 up")
        self.mend(host)

    def within(self, host: int | None) -> list[str]:
        """What to write before a command for it to run on a host; None: on the switch."""
        pid = str(self._shell.pid) if host is None else self._pids[host - 1]
        as_user = () if self._is_root else ("--user", "--preserve-credentials")
        return ["nsenter", "--target", pid, *as_user, "--net"]

    def cut(self, host: int) -> None:
        """Pull the host's cable: what is sent is lost, and nobody is told."""
        self._do(f"ip link set cable{host} down")

    def mend(self, host: int) -> None:
        self._do(f"ip link set cable{host} up")

    def _do(self, command: str) -> str:
        """Run a command on the switch with all rights there; returns what it prints."""
        assert self._shell.stdin
        assert self._shell.stdout
        try:
            self._shell.stdin.write(f"{command}\necho; echo ended $?\n")
            self._shell.stdin.flush()
        except BrokenPipeError:
            raise OSError(self._shell.stdout.read().strip()) from None
        return _answer(self._shell.stdout, command)

    def close(self) -> None:
        """End all hosts and the switch."""
        for pid in self._pids:
            if Path(f"/proc/{pid}").exists():
                os.kill(int(pid), 9)
        self._shell.kill()
        self._shell.wait()

    def __enter__(self) -> Switch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(stream: IO[str], command: str) -> str:
    lines: list[str] = []
    for line in stream:
        if line.startswith("ended "):
            text = "".join(lines)[:-1]  # less the line that the marker began
            if line.split()[1] != "0":
                raise OSError(f"{command}: {text.strip()}")
            return text
        lines.append(line)
    raise OSError("".join(lines).strip())
