"""The options by which an operator has people sign in through an OpenID Connect provider."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from polyolo.control.provider import IdentityProvider
from polyolo.errors import InvalidValueError

SECRET = "POLYOLO_OIDC_CLIENT_SECRET"  # noqa: S105  # where it is, not what it is
"""Environment variable of the client's secret; an argument could be read by every user."""

_GROUP = Group("Sign-in through an OpenID Connect provider", sort_key=5)
_Issuer = Annotated[str | None, Parameter(env_var="POLYOLO_OIDC_ISSUER")]
_Client = Annotated[str, Parameter(env_var="POLYOLO_OIDC_CLIENT_ID", show_default=False)]
_Name = Annotated[str, Parameter(show_default=False)]
_Many = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]
_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


@Parameter(name="*", group=_GROUP)
@dataclass(frozen=True, kw_only=True)
class SignIn:
    """A provider beside passwords; none without an issuer.

    Register PUBLIC-URL/api/v1/sign-in/oidc/callback as the redirect URI there.
    """

    oidc_issuer: _Issuer = None
    """URL of the provider, https."""
    oidc_client_id: _Client = ""
    """What the provider calls this platform."""
    oidc_client_secret_file: Path | None = None
    """File with the client's secret; or set POLYOLO_OIDC_CLIENT_SECRET."""
    oidc_name: _Name = ""
    """What people call the provider. [default: its host]"""
    oidc_domain: _Many = ()
    """Domain of e-mail addresses that may come in; repeat for more. [default: all]"""
    oidc_audience: _Many = ()
    """Whom else ID tokens may be for; repeat for more. [default: nobody]"""
    oidc_link_by_email: _Flag = False
    """Take who has a user's verified address for that user. The user's password ends then. Only
    for a provider that gives an address to nobody but its owner."""

    def provider(self) -> IdentityProvider | None:
        """Return what control is told of it, None without one.

        Raises InvalidValueError, and OSError for a secret's file that cannot be read.
        """
        if self.oidc_issuer is None:
            if self != SignIn():
                raise InvalidValueError("an --oidc option needs --oidc-issuer too")
            return None
        file = self.oidc_client_secret_file
        secret = os.environ.get(SECRET, "") if file is None else file.read_text().strip()
        return IdentityProvider(
            issuer=self.oidc_issuer,
            client_id=self.oidc_client_id,
            client_secret=secret,
            name=self.oidc_name,
            domains=self.oidc_domain,
            audiences=self.oidc_audience,
            link_by_email=self.oidc_link_by_email,
        )


NO_SIGN_IN = SignIn()
