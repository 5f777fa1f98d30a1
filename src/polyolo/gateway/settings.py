"""What an operator may set on a gateway, with unit, default and reason of each setting."""

from __future__ import annotations

from dataclasses import dataclass

from polyolo.tls import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one gateway process."""

    host: str = "127.0.0.1"
    """Address to listen on. Default: this machine only; beyond it TLS is needed."""
    port: int = 8700
    """Port to listen on, gRPC on the port behind it; 0 takes a free one. Default 8700, the
    platform's public port."""
    listen: int | None = None
    """Descriptor of a listening socket that the parent process opened, instead of host and port:
    the door stays open while one gateway process takes over from another."""
    door: str = ""
    """What names the gateways that stand behind one door, one after the other: they share a rate
    as one. Default: it has a door of its own."""
    succeeds: int | None = None
    """Descriptor to write a byte to once it serves beside the gateway that it takes over from."""
    tls: Tls | None = None
    """Certificate and key to speak TLS with; needed for a host beyond this machine."""
    control: str
    """Where the control plane answers: `unix:/path/to/socket` or `http://host:port`."""
    token: str
    """What this gateway proves itself to the control plane with (POLYOLO_GATEWAY_TOKEN)."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks (CIDR) of proxies whose X-Forwarded-For is believed. Default: nobody's."""
    confirm_s: float = 60.0
    """Seconds without a word from the control plane after which no credential is accepted any
    more (503): one that was revoked meanwhile would go on working. Control speaks every 20 s."""
    max_body_bytes: int = 21 * 1024 * 1024
    """Largest body of a detection, or gRPC message, bytes. Default 21 MiB: a picture of 20 MiB and
    what is around it."""
    whole_body_bytes: int = 256 * 1024
    """Bodies for control up to this many bytes are read before it is asked, larger ones stream.
    Detections are always read whole, so that a slow client occupies nothing but its own memory."""
    held_bytes: int = 128 * 1024 * 1024
    """Bytes of pictures of one tenant in the gateway's memory at once; further bodies wait."""
    all_held_bytes: int = 512 * 1024 * 1024
    """The same of all tenants together; then those wait who hold more than others."""
    slots: int = 0
    """Detections inside runtimes at once, of all tenants together; the others wait here for their
    turn. For runtimes that share one machine: a few more than its CPUs. Default 0: no bound, for
    runtimes that have machines, or shares of them, of their own."""
    redis: str | None = None
    """URL of a Redis where all gateways count each tenant's rate together. Default: none, each of N
    gateways grants 1/N of every rate."""
    deadline_s: float = 60.0
    """Seconds for a whole detection, from its head to its answer; then 504."""
    control_deadline_s: float = 900.0
    """Seconds for a call of the control API. Default 900: uploading a 512 MiB model at 5 Mbit/s."""
    hold_s: float = 10.0
    """Seconds that a request waits for a runtime that starts, or is out of reach; then 503."""
    hold_requests: int = 128
    """Requests of one tenant that may wait for its starting runtime; more are answered 503."""
    control_connections: int = 128
    """Calls of the control API passed on at once; more are answered 503."""
    control_share: int = 32
    """Of them, those of one tenant, or of one address that no credential comes from."""
    usage_flush_s: float = 1.0
    """Seconds between handing usage to the control plane."""
    usage_batch: int = 500
    """Usage records handed over at once; about 100 KB of JSON."""
    usage_buffer: int = 100_000
    """Usage records kept while the control plane is away, then the oldest are dropped and counted.
    Default 100,000: about 40 MB, and 15 minutes of 100 requests a second."""
    scaler: str | None = None
    """Address, HOST:PORT, on which KEDA asks by gRPC, in clear: for a network of the platform's
    own. Default: none."""
    scaler_peers: str | None = None
    """Name behind which all gateways answer there, HOST:PORT of a headless service. Default:
    there is no other gateway."""
    leave_s: float = 0.0
    """Seconds after SIGTERM in which everything goes on, while clients are asked to connect anew:
    for a gateway behind a load balancer that goes on sending it connections for a moment. 75 are
    enough for gRPC, whose connections are renewed every minute. Default: none."""
    drain_s: float = 30.0
    """Seconds that requests in flight are given to finish then."""
    access_log: bool = True
    """Write one line a request to stderr."""
