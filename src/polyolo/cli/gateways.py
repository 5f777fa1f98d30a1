"""The gateways of one door: one that serves, kept running; those before it, which finish.

They are children of the event loop's thread, which has to live as long as they do. The door is
open all the time: connections of the moment between two gateways wait in it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from polyolo import telemetry
from polyolo.drivers.children import Handle
from polyolo.drivers.inherited import Inherited
from polyolo.sandbox.cgroups import Group

_PAUSE_S = 0.25  # before a gateway that ended is started again: a crash at start must not spin
_DRAIN_S = 35.0  # a gateway gives its requests 30, and hands over its usage after that
_SUCCEEDS_S = 30.0
"""For another gateway to be ready to take over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """What is handed from one program to the next when the platform goes on as another one."""

    socket: int
    """Descriptor of the listening socket."""
    name: str = field(default_factory=lambda: secrets.token_hex(6))
    """What its gateways have in common."""
    token: str
    """What the gateways prove themselves to control with."""
    serving: int = 0
    """The gateway's pid."""
    finishing: tuple[int, ...] = ()
    """Pids of those before it."""


class Gateways:
    """The gateway processes of a door. On the loop's thread."""

    def __init__(
        self,
        door: Door,
        arguments: tuple[str, ...],
        environment: Mapping[str, str],
        group: Group | None = None,
    ) -> None:
        """Start none yet. arguments: of each, besides what the door says; environment: too.

        group: the control group that they are moved into.
        """
        self._group = group
        self._door = door
        self._arguments = ("--listen", str(door.socket), "--door", door.name, *arguments)
        self._environment = {**environment, "POLYOLO_GATEWAY_TOKEN": door.token}
        self._log = telemetry.logger("up")
        self._serving: Handle | None = None
        self._watches: dict[Handle, asyncio.Task[None]] = {}

    def open(self) -> None:
        """Start a gateway, or go on with those that are there."""
        for pid in self._door.finishing:
            self._watch(Inherited(pid))
        serving = Inherited(self._door.serving) if self._door.serving else self._start()
        self._serving = self._watch(serving)

    async def succeed(self) -> None:
        """Have another gateway serve whoever comes from now on; the one before finishes.

        Raises OSError, and all is as before, when there is none that can.
        """
        if len(self._watches) > 1:
            raise OSError("the gateway before this one has not finished yet; come again in 2 min")
        ready, tell = os.pipe()
        try:
            fresh = self._start("--succeeds", str(tell), pass_fds=(tell,))
        finally:
            os.close(tell)
        try:
            if not await _readable(ready, _SUCCEEDS_S) or not os.read(ready, 1):
                raise OSError("the new gateway does not start; its log lines say why")
        except BaseException:
            fresh.kill()
            await ended(fresh)
            raise
        finally:
            os.close(ready)
        before, self._serving = self._serving, self._watch(fresh)
        if before is not None:
            before.send_signal(signal.SIGUSR2)

    def handed(self) -> Door:
        """Return what the next program has to know, and let go of the processes."""
        for task in self._watches.values():
            task.cancel()
        pids = {handle.pid for handle in self._watches}
        serving = self._serving.pid if self._serving in self._watches else 0
        return Door(
            socket=self._door.socket,
            name=self._door.name,
            token=self._door.token,
            serving=serving,
            finishing=tuple(pids - {serving}),
        )

    async def close(self) -> None:
        """Have all of them finish what is in flight, and end."""
        self._serving = None
        for handle in self._watches:
            handle.terminate()
        if self._watches:
            await asyncio.wait(self._watches.values(), timeout=_DRAIN_S)
        for handle in list(self._watches):
            handle.kill()
            await ended(handle)

    def _start(self, *more: str, pass_fds: tuple[int, ...] = ()) -> Handle:
        started = subprocess.Popen(  # noqa: S603  # this very program
            [sys.executable, "-m", "polyolo.gateway", *self._arguments, *more],
            env={**self._environment, "POLYOLO_PARENT": str(os.getpid())},
            pass_fds=(self._door.socket, *pass_fds),
        )
        if self._group is not None:
            with suppress(OSError):  # it has ended, or the group has: it goes without
                self._group.add(started.pid)
        return started

    def _watch(self, handle: Handle) -> Handle:
        self._watches[handle] = asyncio.create_task(self._until_ended(handle))
        return handle

    async def _until_ended(self, handle: Handle) -> None:
        """See a gateway's end, and start another one if it was the one that serves."""
        status = await ended(handle)
        del self._watches[handle]
        while handle is self._serving:
            self._log.error("the gateway ended; starting it again", status=status)
            await asyncio.sleep(_PAUSE_S)
            if handle is self._serving:
                with suppress(OSError):  # no memory, say
                    self._serving = self._watch(self._start())


async def ended(handle: Handle, seconds: float | None = None) -> int | None:
    """Wait for a process's end, so long at most; return how it ended, None when it has not."""
    if handle.poll() is None:
        descriptor = os.pidfd_open(handle.pid)
        try:
            await _readable(descriptor, seconds)
        finally:
            os.close(descriptor)
    return handle.poll()


async def _readable(descriptor: int, seconds: float | None) -> bool:
    """Wait until a descriptor can be read; say whether it can."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(descriptor, there.set)
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await there.wait()
    finally:
        loop.remove_reader(descriptor)
    return there.is_set()
