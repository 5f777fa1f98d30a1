"""The settings of the control plane: where it keeps things and what it starts."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from polyolo.control.passwords import Passwords
from polyolo.control.plans import OFFERED
from polyolo.control.provider import IdentityProvider
from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.errors import InvalidValueError
from polyolo.types import Plan


class Registration(StrEnum):
    """Who may make an account and a tenant without the operator."""

    OPEN = "open"  # everybody
    INVITE = "invite"  # whoever has an invitation of the operator
    CLOSED = "closed"  # nobody


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSettings:
    """Everything that the composition root needs to know."""

    home: Path
    """Directory of everything that is kept: database, operator's key, models. Made with mode
    0700 when missing; one platform at a time may use it."""
    standard: Path
    """File of the model that every tenant may call as `standard`. Read at start only: another
    file takes effect at the next start, in every runtime."""
    standard_label: str = ""
    """What the operator calls that model, `pcb:2` for example; shown to tenants."""
    database: str = ""
    """SQLAlchemy URL. Default: SQLite in `home`, which needs no server and no setup."""
    plans: tuple[Plan, ...] = OFFERED
    """What tenants may be given; the first one is what a tenant gets when none is named."""
    public_url: str = "http://127.0.0.1:8700"
    """Where clients reach the platform; access tokens are issued by and for it, so that those of
    another platform are good for nothing here."""
    registration: Registration = Registration.OPEN
    """Who may register. Default: everybody; `polyolo up` asks for an invitation when it listens
    beyond loopback, since a stranger's tenant costs the operator a runtime."""
    provider: IdentityProvider | None = None
    """Whom else people may prove themselves to than to the platform. Default: nobody."""
    secure_cookies: bool = False
    """Whether the door speaks TLS: then a browser sends the session's cookie over TLS only."""
    gateway_token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    """Bearer token of the gateways. Default: a new one at each start, handed to the child."""
    runtime_command: tuple[str, ...] = (sys.executable, "-m", "polyolo.serving")
    """What starts a runtime; `--spec FILE --socket PATH` is added."""
    runtime_environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that runtimes get besides PATH, locale and temporary directory."""
    inspect_command: tuple[str, ...] = (sys.executable, "-m", "polyolo.serving", "inspect")
    """What judges an uploaded model file; the file's path is added. Where files are opened in a
    cluster's pods (see `cluster`), only the standard model is judged by it."""
    passwords: Passwords = field(default_factory=Passwords, repr=False)
    """What hashes passwords. Default: argon2id with 64 MiB and 3 passes."""
    strict_isolation: bool = False
    """Whether the platform refuses to start where a layer of the sandbox is missing; else it says
    so once and goes on with the others."""
    compare_command: tuple[str, ...] = (sys.executable, "-m", "polyolo.serving", "compare")
    """What compares two versions of a model; the path of a file is added (see comparejob)."""
    releases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Commands that start runtimes of other releases, by name; as `runtime_command`. In a cluster
    they are images, see `cluster`."""
    converter: str = ""
    """What turns uploaded .pt files into ONNX: the Python of an environment of its own in which
    ultralytics is installed, or a command that takes the paths of an input and an output. It runs
    in a sandbox only. Default: nothing, .pt files are refused."""
    drain_s: float = 30.0
    """Seconds that a runtime is given to finish what it has in flight before it is killed."""
    audit_days: int = 365
    """Days that the audit log is kept, 184 to 365: long enough for an investigation, no longer
    than a year for what is about people."""
    store: str = ""
    """Where the model files are kept: a directory, or `s3://bucket/prefix` with the usual
    variables beside it (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL).
    Control planes that share a database share it too. Default: `artifacts` in the home."""
    cluster: ClusterSettings | None = None
    """The Kubernetes cluster whose pods the runtimes are. Default: none, they are processes of
    this machine."""
    listen: tuple[str, int] | None = None
    """Address and port on which gateways of other machines reach the control API. Default: none,
    a Unix socket in the home is enough for those of this machine."""
    hand_out: tuple[str, int] | None = None
    """Address and port on which runtimes of other machines fetch their model files."""
    workers: int = 8
    """Threads of the reconciler: so many tenants are brought into their desired state at once.
    They mostly wait for runtimes, so the number has little to do with the number of cores; a few
    that wait for hung ones leave enough for who wakes."""
    warm: int = 2
    """Runtimes kept ready for tenants that wake: a fifth of the time until the first answer. Each
    takes about 100 MB. Default 2: one for a second tenant while the first is replaced."""

    succeeds: bool = False
    """Whether this process was the platform before, as another program: see `cli.succession`."""

    def __post_init__(self) -> None:
        if not 184 <= self.audit_days <= 365:
            raise InvalidValueError(f"the audit log is kept 184 to 365 days, not {self.audit_days}")

    @property
    def release_names(self) -> tuple[str, ...]:
        """Return the releases of the runtimes' program that there are beside the platform's own."""
        return tuple(self.releases if self.cluster is None else self.cluster.releases)

    @property
    def database_url(self) -> str:
        """Return the database's URL, the default one when none is set."""
        return self.database or f"sqlite:///{self.home / 'polyolo.db'}"

    @property
    def artifacts(self) -> Path:
        """Return the directory of the model files, where they are in one."""
        local = self.store and not self.store.startswith("s3://")
        return Path(self.store).absolute() if local else self.home / "artifacts"

    @property
    def run(self) -> Path:
        """Return the directory of what lives only while the platform runs."""
        return self.home / "run"

    @property
    def socket(self) -> Path:
        """Return the Unix socket on which the control API listens."""
        return self.run / "control.sock"
