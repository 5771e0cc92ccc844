"""Hosts of a test's own: network namespaces on one bridge, whose cables can be pulled."""

import os
import random
import shutil
import subprocess
from contextlib import ExitStack
from functools import cache
from typing import Self

import pytest


class Network:
    """A bridge, with this machine at one address of it, and hosts at others."""

    def __init__(self) -> None:
        if reason := why_not():
            pytest.skip(reason)
        self._name = f"autorun{os.getpid() % 1_000_000}"
        taken = _ip("-oneline", "address")
        free = [each for each in range(1, 255) if f"10.231.{each}." not in taken]
        self._subnet = f"10.231.{random.choice(free)}"
        self._hosts: list[Host] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        _ip("link", "add", self._name, "type", "bridge")
        self._exit.callback(_ip, "link", "delete", self._name)
        _ip("address", "add", f"{self._subnet}.1/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def host(self) -> "Host":
        """Another host, until the network's end."""
        number = len(self._hosts) + 2
        made = Host(f"{self._name}-{number}", f"{self._subnet}.{number}", self._name)
        self._exit.callback(made.remove)
        made.plug_in()
        self._hosts.append(made)
        return made


class Host:
    """A network namespace. `within` precedes a command that is to run there."""

    def __init__(self, name: str, address: str, bridge: str) -> None:
        self.name = name
        self.address = address
        self.within = ("ip", "netns", "exec", name)
        self._bridge = bridge
        self._plug = f"v{name.removeprefix('autorun')}"
        _ip("netns", "add", name)

    def plug_in(self) -> None:
        _ip("link", "add", self._plug, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        _ip("link", "set", self._plug, "master", self._bridge, "up")
        _ip("-netns", self.name, "address", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-netns", self.name, "link", "set", "lo", "up")
        self.come_back()

    def vanish(self) -> None:
        """Nothing arrives from it any more, not even that its connections are closed."""
        _ip("-netns", self.name, "link", "set", "eth0", "down")

    def come_back(self) -> None:
        _ip("-netns", self.name, "link", "set", "eth0", "up")

    def lose(self, percent: int) -> None:
        """Let so many of its packets vanish; a kernel that cannot skips the test."""
        loss = ("qdisc", "replace", "dev", "eth0", "root", "netem", "loss", f"{percent}%")
        command = [*self.within, "tc", *loss]
        if subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("The kernel has no netem, which loses packets.")

    def remove(self) -> None:
        """Delete its link as well: the kernel keeps that for as long as a process is left there."""
        try:
            _ip("link", "delete", self._plug)
        finally:
            _ip("netns", "delete", self.name)


@cache
def why_not() -> str:
    """Why this machine can have no hosts; empty if it can."""
    if shutil.which("ip") is None or shutil.which("setpriv") is None:
        return "ip or setpriv is not installed."
    name = f"autorun-probe-{os.getpid()}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "delete", name)
        _ip("link", "add", name[-15:], "type", "bridge")
        _ip("link", "delete", name[-15:])
    except subprocess.CalledProcessError as error:
        return f"Network namespaces are not allowed here: {error.stderr.strip()}"
    return ""


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout
