"""The two clients: each sends the operations of `operations`, one blocking, one awaiting."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import httpx

from polyolo import __version__
from polyolo.client import (
    accounts,
    auditing,
    credentials,
    limiting,
    operations,
    privacy,
    storage,
    system,
    trials,
    uploads,
    warming,
)
from polyolo.client.call import (
    DEFAULT_URL,
    Call,
    Download,
    File,
    base_url,
    call_headers,
    connection_error,
    pause,
    read_answer,
    trusted,
)
from polyolo.client.methods import awaiting, blocking, conversing, conversing_async
from polyolo.client.uploads import Pause, Step
from polyolo.errors import PolyoloError

P = ParamSpec("P")
T = TypeVar("T")

_AGENT = {"user-agent": f"polyolo/{__version__}"}
# A proxy of the environment is for the internet; it cannot reach what listens on this machine.
_DIRECT = ("all://127.0.0.1", "all://localhost", "all://[::1]")

_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=100)  # it would keep 20


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

    def _request(
        self,
        http: httpx.Client | httpx.AsyncClient,
        call: Call[T],
        content: Any,
        timeout: float,
    ) -> httpx.Request:
        return http.build_request(
            call.method,
            self.url + call.path,
            params=call.query,
            headers=call_headers(call, self.api_key),
            content=content,
            timeout=timeout,
        )


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

    def take(self, step: Step) -> Any:
        """Take one step of a conversation, and return what came of it."""
        if isinstance(step, Call):
            return self.send(step)
        return time.sleep(step.seconds) if isinstance(step, Pause) else step()

    def _once(self, call: Call[T], timeout: float) -> T:
        content = call.body.chunks() if isinstance(call.body, File) else call.body
        request = self._request(self._http, call, content, timeout)
        try:
            response = self._http.send(request, stream=True)
            try:
                if call.into is not None and response.is_success:
                    self._download(response, call.into)
                else:
                    response.read()
            finally:
                response.close()
        except httpx.TransportError as error:
            raise connection_error(error, self.url) from error
        return read_answer(call, response)

    def _download(self, response: httpx.Response, target: Path) -> None:
        with closing(Download(target)) as download:
            for chunk in response.iter_bytes():
                download.write(chunk)
            download.finish()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    detect = blocking(operations.detect)
    detect_annotated = blocking(operations.detect_annotated)

    create_tenant = blocking(operations.create_tenant)
    list_tenants = blocking(operations.list_tenants)
    get_tenant = blocking(operations.get_tenant)
    grant_storage = blocking(storage.grant_storage)
    get_storage = blocking(storage.get_storage)
    withdraw_storage = blocking(storage.withdraw_storage)
    suspend_tenant = blocking(operations.suspend_tenant)
    resume_tenant = blocking(operations.resume_tenant)
    delete_tenant = blocking(operations.delete_tenant)
    render_tenant = blocking(operations.render_tenant)
    change_plan = blocking(limiting.change_plan)
    get_limits = blocking(limiting.get_limits)
    change_limits = blocking(limiting.change_limits)
    warm = blocking(warming.warm)
    get_schedule = blocking(warming.get_schedule)
    set_schedule = blocking(warming.set_schedule)

    create_key = blocking(credentials.create_key)
    list_keys = blocking(credentials.list_keys)
    rotate_key = blocking(credentials.rotate_key)
    revoke_key = blocking(credentials.revoke_key)

    create_oauth_client = blocking(credentials.create_oauth_client)
    list_oauth_clients = blocking(credentials.list_oauth_clients)
    rotate_oauth_client = blocking(credentials.rotate_oauth_client)
    revoke_oauth_client = blocking(credentials.revoke_oauth_client)
    access_token = blocking(credentials.access_token)
    rotate_signing_keys = blocking(credentials.rotate_signing_keys)

    register = blocking(accounts.register)
    accept_invitation = blocking(accounts.accept_invitation)
    list_users = blocking(accounts.list_users)
    change_role = blocking(accounts.change_role)
    remove_user = blocking(accounts.remove_user)
    invite = blocking(accounts.invite)
    list_invitations = blocking(accounts.list_invitations)
    withdraw_invitation = blocking(accounts.withdraw_invitation)

    list_audit = blocking(auditing.list_audit)
    verify_audit = blocking(auditing.verify_audit)

    export_tenant = blocking(privacy.export_tenant)
    erase_tenant = blocking(privacy.erase_tenant)
    get_erasure = blocking(privacy.get_erasure)
    list_erasures = blocking(privacy.list_erasures)
    get_isolation = blocking(system.get_isolation)

    push_model = conversing(uploads.push_model)
    register_model = blocking(storage.register_model)
    list_uploads = blocking(uploads.list_uploads)
    get_upload = blocking(uploads.get_upload)
    cancel_upload = blocking(uploads.cancel_upload)
    list_models = blocking(operations.list_models)
    get_model = blocking(operations.get_model)
    get_version = blocking(operations.get_version)
    use_model = blocking(operations.use_model)
    rollback_model = blocking(operations.rollback_model)
    delete_model = blocking(operations.delete_model)
    get_settings = blocking(operations.get_settings)
    change_settings = blocking(operations.change_settings)
    compare_version = blocking(trials.compare_version)
    delete_version = blocking(trials.delete_version)
    begin_rollout = blocking(trials.begin_rollout)
    promote_rollout = blocking(trials.promote_rollout)
    abort_rollout = blocking(trials.abort_rollout)
    list_golden = blocking(trials.list_golden)
    put_golden = blocking(trials.put_golden)
    delete_golden = blocking(trials.delete_golden)
    list_releases = blocking(trials.list_releases)
    move_release = blocking(trials.move_release)
    set_release = blocking(trials.set_release)

    get_runtime = blocking(operations.get_runtime)
    usage = blocking(operations.usage)
    list_usage = blocking(operations.list_usage)


class AsyncClient(_Session):
    """Use polyolo from asyncio. Tasks of one loop may share one client; use `async with`."""

    def _open(self) -> None:
        self._http = httpx.AsyncClient(
            headers=_AGENT, mounts=dict.fromkeys(_DIRECT), verify=self._trust, limits=_LIMITS
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

    async def take(self, step: Step) -> Any:
        """Take one step of a conversation, and return what came of it."""
        if isinstance(step, Call):
            return await self.send(step)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        return await asyncio.to_thread(step)

    async def _once(self, call: Call[T], timeout: float) -> T:  # noqa: ASYNC109 - handed to httpx
        content = _in_thread(call.body) if isinstance(call.body, File) else call.body
        request = self._request(self._http, call, content, timeout)
        try:
            response = await self._http.send(request, stream=True)
            try:
                if call.into is not None and response.is_success:
                    await self._download(response, call.into)
                else:
                    await response.aread()
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise connection_error(error, self.url) from error
        return read_answer(call, response)

    async def _download(self, response: httpx.Response, target: Path) -> None:
        with closing(Download(target)) as download:
            async for chunk in response.aiter_bytes(1 << 18):
                await asyncio.to_thread(download.write, chunk)  # a slow disk is a thread's business
            download.finish()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    detect = awaiting(operations.detect)
    detect_annotated = awaiting(operations.detect_annotated)

    create_tenant = awaiting(operations.create_tenant)
    list_tenants = awaiting(operations.list_tenants)
    get_tenant = awaiting(operations.get_tenant)
    grant_storage = awaiting(storage.grant_storage)
    get_storage = awaiting(storage.get_storage)
    withdraw_storage = awaiting(storage.withdraw_storage)
    suspend_tenant = awaiting(operations.suspend_tenant)
    resume_tenant = awaiting(operations.resume_tenant)
    delete_tenant = awaiting(operations.delete_tenant)
    render_tenant = awaiting(operations.render_tenant)
    change_plan = awaiting(limiting.change_plan)
    get_limits = awaiting(limiting.get_limits)
    change_limits = awaiting(limiting.change_limits)
    warm = awaiting(warming.warm)
    get_schedule = awaiting(warming.get_schedule)
    set_schedule = awaiting(warming.set_schedule)

    create_key = awaiting(credentials.create_key)
    list_keys = awaiting(credentials.list_keys)
    rotate_key = awaiting(credentials.rotate_key)
    revoke_key = awaiting(credentials.revoke_key)

    create_oauth_client = awaiting(credentials.create_oauth_client)
    list_oauth_clients = awaiting(credentials.list_oauth_clients)
    rotate_oauth_client = awaiting(credentials.rotate_oauth_client)
    revoke_oauth_client = awaiting(credentials.revoke_oauth_client)
    access_token = awaiting(credentials.access_token)
    rotate_signing_keys = awaiting(credentials.rotate_signing_keys)

    register = awaiting(accounts.register)
    accept_invitation = awaiting(accounts.accept_invitation)
    list_users = awaiting(accounts.list_users)
    change_role = awaiting(accounts.change_role)
    remove_user = awaiting(accounts.remove_user)
    invite = awaiting(accounts.invite)
    list_invitations = awaiting(accounts.list_invitations)
    withdraw_invitation = awaiting(accounts.withdraw_invitation)

    list_audit = awaiting(auditing.list_audit)
    verify_audit = awaiting(auditing.verify_audit)

    export_tenant = awaiting(privacy.export_tenant)
    erase_tenant = awaiting(privacy.erase_tenant)
    get_erasure = awaiting(privacy.get_erasure)
    list_erasures = awaiting(privacy.list_erasures)
    get_isolation = awaiting(system.get_isolation)

    push_model = conversing_async(uploads.push_model)
    register_model = awaiting(storage.register_model)
    list_uploads = awaiting(uploads.list_uploads)
    get_upload = awaiting(uploads.get_upload)
    cancel_upload = awaiting(uploads.cancel_upload)
    list_models = awaiting(operations.list_models)
    get_model = awaiting(operations.get_model)
    get_version = awaiting(operations.get_version)
    use_model = awaiting(operations.use_model)
    rollback_model = awaiting(operations.rollback_model)
    delete_model = awaiting(operations.delete_model)
    get_settings = awaiting(operations.get_settings)
    change_settings = awaiting(operations.change_settings)
    compare_version = awaiting(trials.compare_version)
    delete_version = awaiting(trials.delete_version)
    begin_rollout = awaiting(trials.begin_rollout)
    promote_rollout = awaiting(trials.promote_rollout)
    abort_rollout = awaiting(trials.abort_rollout)
    list_golden = awaiting(trials.list_golden)
    put_golden = awaiting(trials.put_golden)
    delete_golden = awaiting(trials.delete_golden)
    list_releases = awaiting(trials.list_releases)
    move_release = awaiting(trials.move_release)
    set_release = awaiting(trials.set_release)

    get_runtime = awaiting(operations.get_runtime)
    usage = awaiting(operations.usage)
    list_usage = awaiting(operations.list_usage)


async def _in_thread(file: File) -> AsyncIterator[bytes]:
    """Yield the file's bytes; a slow disk holds up a thread, not the event loop."""
    chunks = file.chunks()
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk
