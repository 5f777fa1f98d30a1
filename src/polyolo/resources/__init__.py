"""What the control API answers, as clients see it: the resources behind its paths.

The same rules as in `polyolo.types`: frozen, slotted, keyword-only, a field is added with a
default and is never renamed.
"""

from polyolo.resources.identity import (
    AccessToken,
    ApiKey,
    Identity,
    Invitation,
    OAuthClient,
    Redirect,
    Session,
    SignInWays,
    User,
)
from polyolo.resources.models import (
    ENGINES,
    PRECISIONS,
    GoldenPicture,
    Model,
    ModelSettings,
    ModelVersion,
    Release,
    Storage,
    Upload,
)
from polyolo.resources.platform import (
    AuditEntry,
    AuditProblem,
    AuditVerdict,
    HostIsolation,
    IsolationLayer,
)
from polyolo.resources.tenants import (
    Certificate,
    Erasure,
    Kept,
    Limits,
    ModelUsage,
    Registered,
    Schedule,
    Tenant,
    Usage,
    UsageTaken,
)

__all__ = [
    "ENGINES",
    "PRECISIONS",
    "AccessToken",
    "ApiKey",
    "AuditEntry",
    "AuditProblem",
    "AuditVerdict",
    "Certificate",
    "Erasure",
    "GoldenPicture",
    "HostIsolation",
    "Identity",
    "Invitation",
    "IsolationLayer",
    "Kept",
    "Limits",
    "Model",
    "ModelSettings",
    "ModelUsage",
    "ModelVersion",
    "OAuthClient",
    "Redirect",
    "Registered",
    "Release",
    "Schedule",
    "Session",
    "SignInWays",
    "Storage",
    "Tenant",
    "Upload",
    "Usage",
    "UsageTaken",
    "User",
]
