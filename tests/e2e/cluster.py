"""The whole platform on a real cluster, installed from the chart; the cluster is KUBECONFIG's.

The test's own machine lends what a cluster does not bring: PostgreSQL and a bucket. So it has to be
one that pods reach and that reaches Services, a node for instance. `kubectl` does what an operator
would do by hand. Images: POLYOLO_IMAGES, with {} for serving, gateway and control.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from base64 import b64encode
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from polyolo.client import Client
from polyolo.client.call import trusted
from polyolo.drivers.kubernetes.naming import place
from polyolo.errors import NotFoundError
from polyolo.resources import Tenant
from tests.contract.bucket_server import bucket
from tests.e2e.platform import eventually
from tests.integration import postgres

CHART = Path(__file__).parents[2] / "deploy/helm/polyolo"
PLATFORM = "polyolo-e2e"
"""Name of the platform, of its namespace and of its Secret."""
PARTS = ("control", "gateway")
_DATABASE_PORT = 5432
_ROLLED_OUT_S = 180

Object = dict[str, Any]


def kubectl(*arguments: str, given: Any = None, check: bool = True) -> str:
    """Run kubectl and return what it prints. given: objects, for its standard input."""
    done = subprocess.run(
        ["kubectl", *arguments],
        input=None if given is None else json.dumps(given),
        capture_output=True,
        text=True,
        timeout=_ROLLED_OUT_S + 30,
    )
    if check and done.returncode:
        pytest.fail(f"kubectl {' '.join(arguments[:6])}: {done.stderr[-2000:]}")
    return done.stdout


def found(*arguments: str) -> Any:
    """Return what `kubectl get` finds, as JSON; None for nothing."""
    said = kubectl("get", *arguments, "-o", "json", "--ignore-not-found")
    return json.loads(said) if said else None


def listed(*arguments: str) -> list[Object]:
    """Return the objects that `kubectl get` finds."""
    seen = found(*arguments)  # of an empty list kubectl says nothing
    return [] if seen is None else list(seen["items"])


class ClusterPlatform:
    """One installation, with what it borrows from this machine."""

    first_answer_s = 20.0
    """Seconds that a new tenant's first answer may take."""

    def __init__(self) -> None:
        """Prepare; skips where there is no cluster to install on."""
        if not os.environ.get("KUBECONFIG"):
            pytest.skip("needs KUBECONFIG, which names the cluster to install on")
        if shutil.which("kubectl") is None:
            pytest.skip("needs kubectl")
        if found("namespace", PLATFORM) is not None:
            pytest.fail(f"the namespace {PLATFORM} is there; delete what an earlier run left")
        server = urlsplit(kubectl("config", "view", "--minify", "-o", _SERVER))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.connect((server.hostname, server.port or 443))
            self.address = str(asking.getsockname()[0])
        has_keda = found("crd", "scaledobjects.keda.sh") is not None
        self.scaling = os.environ.get("POLYOLO_SCALING") or ("keda" if has_keda else "control")
        self.operator_key = f"po_{secrets.token_hex(32)}"
        self._secrets = {
            "operator.key": self.operator_key,
            "POLYOLO_MASTER_KEY": b64encode(secrets.token_bytes(32)).decode(),
            "POLYOLO_GATEWAY_TOKEN": secrets.token_hex(32),
        }
        self.url = self.gateway = ""
        self._following = False
        self._made: list[str] = []
        self._bucket = ""
        self._kept = ExitStack()
        self._home = Path(tempfile.mkdtemp(prefix="polyolo-e2e-"))
        self._kept.callback(shutil.rmtree, self._home)
        self.ca = self._home / "ca.pem"
        self._objects: list[Object] = []

    def start(self) -> None:
        """Install, and return when the door is open."""
        self.database = self._kept.enter_context(postgres.server(self.address))
        self._bucket = self._kept.enter_context(bucket(host=self.address)).endpoint
        self.begin("postgres")
        self._for_programs()

    def begin(self, database: str) -> None:
        """Install where nothing of the platform is but a database, and what it has in the bucket;
        return when the door is open."""
        login = f"postgres:{self.database.password}"
        url = f"postgresql+psycopg://{login}@{self.address}:{_DATABASE_PORT}/{database}"
        marks = {"pod-security.kubernetes.io/enforce": "restricted"}
        self._apply([_object("Namespace", PLATFORM, labels=marks)])
        self._apply([_secret(PLATFORM, {**self._secrets, "POLYOLO_DATABASE": url})])
        services = [one for one in _rendered(self._values()) if one["kind"] == "Service"]
        self._apply(
            services
        )  # their addresses are in the certificate, and in control's environment
        self.gateway = self.service(f"{PLATFORM}-gateway")
        self.url = f"https://{self.gateway}:8700"
        certificate, key = _self_signed(self.gateway)
        self.ca.write_bytes(certificate)
        files = {"tls.crt": certificate.decode(), "tls.key": key.decode()}
        self._apply([_secret(f"{PLATFORM}-tls", files, kind="kubernetes.io/tls")])
        self.install()
        eventually(self._ready, within=60, what="the gateway answers /readyz")

    def upgrade(self) -> None:
        """Have the next release; return when the platform is of it, its tenants' pods follow."""
        self._following = True
        self.install()

    def install(self) -> None:
        """Bring about what the chart says, and return when it is there."""
        self._objects = _rendered(self._values(self.url))
        self._apply(self._objects)
        for part in PARTS:
            self.rolled_out(part)

    def rolled_out(self, part: str) -> None:
        """Wait until a part of the platform is there as it should be."""
        name = f"deployment/{PLATFORM}-{part}"
        kubectl("-n", PLATFORM, "rollout", "status", name, f"--timeout={_ROLLED_OUT_S}s")

    def close(self) -> None:
        """Remove everything, tenants first, for control is what removes them."""
        try:
            if self.url:
                with self.operator() as operator:
                    for tenant in operator.list_tenants():
                        operator.delete_tenant(tenant.id)
                eventually(lambda: not self.left(), within=180, what="tenants' namespaces go")
        finally:
            self.uninstall()
            self._kept.close()

    def uninstall(self) -> None:
        """Delete what the chart made, and the platform's namespace; pods die as of a lost node, for
        nobody is left whom gateways would have to ask to go elsewhere."""
        made = [*self._objects, _object("Namespace", PLATFORM)]
        everything = {"apiVersion": "v1", "kind": "List", "items": made}
        kubectl("-n", PLATFORM, "delete", "deployments", "--all", "--wait=false")
        kubectl("-n", PLATFORM, "delete", "pods", "--all", "--force", "--grace-period=0")
        kubectl("delete", "--ignore-not-found", "--wait", "-f", "-", given=everything)

    def left(self) -> list[str]:
        """Return the namespaces of tenants that there are."""
        items = listed("namespaces", "-l", f"polyolo/platform={PLATFORM}")
        return [one["metadata"]["name"] for one in items]

    @property
    def grpc(self) -> str:
        """Return where the door speaks gRPC."""
        return f"{self.gateway}:8701"

    def operator(self) -> Client:
        """Return the operator's client."""
        return self.client(self.operator_key)

    def tenant(self, name: str) -> tuple[Tenant, Client]:
        """Create a tenant and return it with a client that holds its key."""
        with self.operator() as operator:
            tenant = operator.create_tenant(name)
        assert tenant.api_key is not None
        assert tenant.api_key.key is not None
        self._made.append(tenant.id)
        return tenant, self.client(tenant.api_key.key)

    def client(self, key: str) -> Client:
        """Return a client that holds a key."""
        return Client(self.url, key, ca=self.ca)

    def empty(self) -> None:
        """Begin to delete the tenants that were made: what a node has room for are few."""
        with self.operator() as operator:
            while self._made:
                with suppress(NotFoundError):  # a test may have deleted it
                    operator.delete_tenant(self._made.pop())

    def namespace(self, tenant: Tenant) -> str:
        """Return where a tenant's runtime lives."""
        return place(tenant.id, PLATFORM).namespace

    def pods(self, tenant: Tenant) -> list[Object]:
        """Return the tenant's pods that are ready and stay."""
        items = listed("-n", self.namespace(tenant), "pods")
        return [one for one in items if _is_ready(one)]

    def running(self, home: str = PLATFORM, part: str = "") -> set[str]:
        """Return the names of a namespace's pods, those that leave too. part: of the platform."""
        chosen = ("-l", f"app.kubernetes.io/component={part}") if part else ()
        return {one["metadata"]["name"] for one in listed("-n", home, "pods", *chosen)}

    def service(self, name: str) -> str:
        """Return the address of one of the platform's Services."""
        return str(found("-n", PLATFORM, "service", name)["spec"]["clusterIP"])

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", verify=trusted(self.ca)).status_code == 200
        except httpx.HTTPError:
            return False

    def _for_programs(self) -> None:
        """Have programs that tests start trust the door."""
        before = {name: os.environ.get(name) for name in ("POLYOLO_CA", "CURL_CA_BUNDLE")}
        os.environ.update(dict.fromkeys(before, str(self.ca)))
        for name, value in before.items():
            back = (os.environ.pop, name) if value is None else (os.environ.update, {name: value})
            self._kept.callback(*back)

    def _apply(self, objects: list[Object]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": objects}
        kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=listed)

    def _values(self, public: str = "https://polyolo.example") -> Object:
        named = os.environ.get("POLYOLO_IMAGES", "polyolo-{}:0.1.0")
        if self._following:
            named = os.environ.get("POLYOLO_NEXT_IMAGES", named)
        ports = [443, 6443, _DATABASE_PORT, urlsplit(self._bucket).port]
        environment = {
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self._bucket,
        }
        memory = "257Mi" if self._following else "256Mi"  # or the same images would change nothing
        little = {"requests": {"cpu": "100m", "memory": memory}, "limits": {"memory": "2Gi"}}
        nodes = {"kubernetes.io/os": "linux"} if self._following else {}
        return {
            "platform": PLATFORM,
            "secret": PLATFORM,
            "publicUrl": public,
            "images": {part: named.format(part) for part in ("serving", "gateway", "control")},
            "control": {
                "store": {"url": "s3://models/e2e"},
                "env": [{"name": name, "value": value} for name, value in environment.items()],
                "resources": little,
            },
            "gateway": {
                "tlsSecret": f"{PLATFORM}-tls",
                "autoscaling": {"enabled": False},
                "resources": little,
            },
            "runtimes": {"scaling": self.scaling, "inFlight": 2, "nodeSelector": nodes},
            "networkPolicy": {"controlPorts": ports},
        }


_SERVER = "jsonpath={.clusters[0].cluster.server}"


def _rendered(values: Object) -> list[Object]:
    from helm_python.chart import Chart  # Helm itself, which other suites need not load

    with Chart.load(CHART) as chart:
        texts = chart.render(values=values, name=PLATFORM, namespace=PLATFORM)
    named = sorted(name for name in texts if name.endswith(".yaml"))
    return [one for name in named for one in yaml.safe_load_all(texts[name]) if one]


def _object(kind: str, name: str, **metadata: Any) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, **metadata}}


def _secret(name: str, values: dict[str, str], kind: str = "Opaque") -> Object:
    return {**_object("Secret", name, namespace=PLATFORM), "type": kind, "stringData": values}


def _is_ready(pod: Object) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def _self_signed(address: str) -> tuple[bytes, bytes]:
    """Return a certificate of an address, and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, PLATFORM)])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False
        )
        .sign(key, SHA256())
    )
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), secret
