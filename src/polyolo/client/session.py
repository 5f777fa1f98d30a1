"""The two clients: each sends the operations of `operations`, one blocking, one awaiting."""

from __future__ import annotations

import asyncio
import functools
import inspect
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from polyolo import __version__
from polyolo.client import accounts, auditing, credentials, operations
from polyolo.client.call import (
    DEFAULT_URL,
    Call,
    File,
    base_url,
    call_headers,
    connection_error,
    pause,
    read_answer,
    trusted,
)
from polyolo.errors import PolyoloError

P = ParamSpec("P")
T = TypeVar("T")

_AGENT = {"user-agent": f"polyolo/{__version__}"}
# A proxy of the environment is for the internet; it cannot reach what listens on this machine.
_DIRECT = ("all://127.0.0.1", "all://localhost", "all://[::1]")


class _Session:
    """Where, as whom and how patiently: what both clients are made with."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 70.0,
        retries: int = 3,
        ca: str | os.PathLike[str] | None = None,
    ) -> None:
        """Prepare a client; the connection opens with the first call.

        url: the service, by default POLYOLO_URL, else http://127.0.0.1:8700.
        api_key: an API key, or the operator's key; by default POLYOLO_API_KEY.
        timeout: seconds that the server may keep a call waiting, and after which a failed one
        is not tried again. 70 leaves the last word to the gateway, which gives up after 60.
        retries: how often a call that may be repeated is tried again when the service is
        overloaded, starting or out of reach; it waits as long as the server asks for.
        ca: PEM file of the certificates to trust in place of the usual ones, as for a service
        whose certificate is self-signed; by default POLYOLO_CA.
        Raises InvalidValueError for a malformed URL or a file that holds no certificate.
        """
        self.url = base_url(url or os.environ.get("POLYOLO_URL") or DEFAULT_URL)
        self.api_key = (api_key or os.environ.get("POLYOLO_API_KEY") or "").strip() or None
        self.timeout = timeout
        self.retries = retries
        self._trust = trusted(ca or os.environ.get("POLYOLO_CA") or None)
        self._open()

    def _open(self) -> None:
        raise NotImplementedError


def _blocking(operation: Callable[P, Call[T]]) -> Callable[Concatenate[Client, P], T]:
    @functools.wraps(operation)
    def method(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(operation(*args, **kwargs))

    return _as_method(method)


def _awaiting(
    operation: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    @functools.wraps(operation)
    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(operation(*args, **kwargs))

    return _as_method(method)


M = TypeVar("M", bound=Callable[..., object])


def _as_method(method: M) -> M:
    """Have `help()` show the method: a self to leave out, and the result without its Call."""
    signature = inspect.signature(method)
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    result = str(signature.return_annotation).removeprefix("Call[").removesuffix("]")
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[itself, *signature.parameters.values()], return_annotation=result
    )
    return method


class Client(_Session):
    """Use polyolo from blocking code. Threads may share one client; close it, or use `with`."""

    def _open(self) -> None:
        self._http = httpx.Client(headers=_AGENT, mounts=dict.fromkeys(_DIRECT), verify=self._trust)

    def send(self, call: Call[T]) -> T:
        """Send a call and return its result, trying again where that may help.

        Raises the PolyoloError that the answer, or the lack of one, tells of, and OSError for
        a file that cannot be read.
        """
        deadline = time.monotonic() + self.timeout
        for tries in itertools.count():
            left = deadline - time.monotonic()
            try:
                return self._once(call, self.timeout if tries == 0 else left)
            except PolyoloError as error:
                wait = pause(call, error, tries, self.retries, deadline - time.monotonic())
                if wait is None:
                    raise
            time.sleep(wait)
        raise AssertionError("unreachable: the loop has no end")

    def _once(self, call: Call[T], timeout: float) -> T:
        content = call.body.chunks() if isinstance(call.body, File) else call.body
        try:
            response = self._http.request(
                call.method,
                self.url + call.path,
                params=call.query,
                headers=call_headers(call, self.api_key),
                content=content,
                timeout=timeout,
            )
        except httpx.TransportError as error:
            raise connection_error(error, self.url) from error
        return read_answer(call, response)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    detect = _blocking(operations.detect)
    detect_annotated = _blocking(operations.detect_annotated)

    create_tenant = _blocking(operations.create_tenant)
    list_tenants = _blocking(operations.list_tenants)
    get_tenant = _blocking(operations.get_tenant)
    suspend_tenant = _blocking(operations.suspend_tenant)
    resume_tenant = _blocking(operations.resume_tenant)
    delete_tenant = _blocking(operations.delete_tenant)
    render_tenant = _blocking(operations.render_tenant)

    create_key = _blocking(credentials.create_key)
    list_keys = _blocking(credentials.list_keys)
    rotate_key = _blocking(credentials.rotate_key)
    revoke_key = _blocking(credentials.revoke_key)

    create_oauth_client = _blocking(credentials.create_oauth_client)
    list_oauth_clients = _blocking(credentials.list_oauth_clients)
    revoke_oauth_client = _blocking(credentials.revoke_oauth_client)
    access_token = _blocking(credentials.access_token)
    rotate_signing_keys = _blocking(credentials.rotate_signing_keys)

    register = _blocking(accounts.register)
    accept_invitation = _blocking(accounts.accept_invitation)
    list_users = _blocking(accounts.list_users)
    change_role = _blocking(accounts.change_role)
    remove_user = _blocking(accounts.remove_user)
    invite = _blocking(accounts.invite)
    list_invitations = _blocking(accounts.list_invitations)
    withdraw_invitation = _blocking(accounts.withdraw_invitation)

    list_audit = _blocking(auditing.list_audit)
    verify_audit = _blocking(auditing.verify_audit)

    push_model = _blocking(operations.push_model)
    list_models = _blocking(operations.list_models)
    get_model = _blocking(operations.get_model)
    get_version = _blocking(operations.get_version)
    use_model = _blocking(operations.use_model)
    rollback_model = _blocking(operations.rollback_model)
    delete_model = _blocking(operations.delete_model)
    get_settings = _blocking(operations.get_settings)
    change_settings = _blocking(operations.change_settings)

    get_runtime = _blocking(operations.get_runtime)
    usage = _blocking(operations.usage)
    list_usage = _blocking(operations.list_usage)


class AsyncClient(_Session):
    """Use polyolo from asyncio. Tasks of one loop may share one client; use `async with`."""

    def _open(self) -> None:
        self._http = httpx.AsyncClient(
            headers=_AGENT, mounts=dict.fromkeys(_DIRECT), verify=self._trust
        )

    async def send(self, call: Call[T]) -> T:
        """Send a call and return its result, trying again where that may help.

        Raises the PolyoloError that the answer, or the lack of one, tells of, and OSError for
        a file that cannot be read.
        """
        deadline = time.monotonic() + self.timeout
        for tries in itertools.count():
            left = deadline - time.monotonic()
            try:
                return await self._once(call, self.timeout if tries == 0 else left)
            except PolyoloError as error:
                wait = pause(call, error, tries, self.retries, deadline - time.monotonic())
                if wait is None:
                    raise
            await asyncio.sleep(wait)
        raise AssertionError("unreachable: the loop has no end")

    async def _once(self, call: Call[T], timeout: float) -> T:  # noqa: ASYNC109 - handed to httpx
        content = _in_thread(call.body) if isinstance(call.body, File) else call.body
        try:
            response = await self._http.request(
                call.method,
                self.url + call.path,
                params=call.query,
                headers=call_headers(call, self.api_key),
                content=content,
                timeout=timeout,
            )
        except httpx.TransportError as error:
            raise connection_error(error, self.url) from error
        return read_answer(call, response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    detect = _awaiting(operations.detect)
    detect_annotated = _awaiting(operations.detect_annotated)

    create_tenant = _awaiting(operations.create_tenant)
    list_tenants = _awaiting(operations.list_tenants)
    get_tenant = _awaiting(operations.get_tenant)
    suspend_tenant = _awaiting(operations.suspend_tenant)
    resume_tenant = _awaiting(operations.resume_tenant)
    delete_tenant = _awaiting(operations.delete_tenant)
    render_tenant = _awaiting(operations.render_tenant)

    create_key = _awaiting(credentials.create_key)
    list_keys = _awaiting(credentials.list_keys)
    rotate_key = _awaiting(credentials.rotate_key)
    revoke_key = _awaiting(credentials.revoke_key)

    create_oauth_client = _awaiting(credentials.create_oauth_client)
    list_oauth_clients = _awaiting(credentials.list_oauth_clients)
    revoke_oauth_client = _awaiting(credentials.revoke_oauth_client)
    access_token = _awaiting(credentials.access_token)
    rotate_signing_keys = _awaiting(credentials.rotate_signing_keys)

    register = _awaiting(accounts.register)
    accept_invitation = _awaiting(accounts.accept_invitation)
    list_users = _awaiting(accounts.list_users)
    change_role = _awaiting(accounts.change_role)
    remove_user = _awaiting(accounts.remove_user)
    invite = _awaiting(accounts.invite)
    list_invitations = _awaiting(accounts.list_invitations)
    withdraw_invitation = _awaiting(accounts.withdraw_invitation)

    list_audit = _awaiting(auditing.list_audit)
    verify_audit = _awaiting(auditing.verify_audit)

    push_model = _awaiting(operations.push_model)
    list_models = _awaiting(operations.list_models)
    get_model = _awaiting(operations.get_model)
    get_version = _awaiting(operations.get_version)
    use_model = _awaiting(operations.use_model)
    rollback_model = _awaiting(operations.rollback_model)
    delete_model = _awaiting(operations.delete_model)
    get_settings = _awaiting(operations.get_settings)
    change_settings = _awaiting(operations.change_settings)

    get_runtime = _awaiting(operations.get_runtime)
    usage = _awaiting(operations.usage)
    list_usage = _awaiting(operations.list_usage)


async def _in_thread(file: File) -> AsyncIterator[bytes]:
    """Yield the file's bytes; a slow disk holds up a thread, not the event loop."""
    chunks = file.chunks()
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk
