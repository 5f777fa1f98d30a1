"""Asks servers of others: a bounded time, a bounded answer, and nowhere but where it was sent."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from polyolo.tls import loopback

DEADLINE_S = 10.0
"""Seconds of a whole exchange: a person waits at the other end."""
LIMIT_BYTES = 256 << 10
"""Bytes of an answer; descriptions, keys and tokens have some thousands."""


class OutboundError(Exception):
    """No answer that can be used; says why, without anything of what was sent."""


class Outbound:
    """A client of other servers. It follows no redirect and keeps no connection and no cookie."""

    def __init__(self, deadline_s: float = DEADLINE_S) -> None:
        """Read the certificates to trust: those of SSL_CERT_FILE, else the usual ones."""
        self._tls: ssl.SSLContext = httpx.create_ssl_context()
        self._deadline_s = deadline_s

    async def ask(
        self,
        method: str,
        url: str,
        *,
        form: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Return status and JSON object of an answer. Raises OutboundError for any other end."""
        sent = {"accept": "application/json", "accept-encoding": "identity", **(headers or {})}
        here = loopback(urlsplit(url).hostname or "")
        try:
            async with (
                asyncio.timeout(self._deadline_s),
                # A proxy of the environment is for what is beyond this machine.
                httpx.AsyncClient(verify=self._tls, trust_env=not here) as client,
                client.stream(method, url, data=form, headers=sent) as answer,
            ):
                if answer.has_redirect_location or "content-encoding" in answer.headers:
                    raise OutboundError(f"{answer.status_code}, which is no answer of its own")
                body = bytearray()
                async for chunk in answer.aiter_raw():
                    body += chunk
                    if len(body) > LIMIT_BYTES:
                        raise OutboundError(f"more than {LIMIT_BYTES:,} bytes")
        except TimeoutError:
            raise OutboundError(f"no answer within {self._deadline_s:g} seconds") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise OutboundError(f"no answer ({type(error).__name__})") from None
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            said = None
        if not isinstance(said, dict):
            raise OutboundError(f"{answer.status_code}, not a JSON object")
        return answer.status_code, said
