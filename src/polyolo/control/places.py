"""Chooses where runtimes live and strangers' files are opened: on this machine, or in a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyolo.control import conversion, handout
from polyolo.control.artifacts import Artifacts
from polyolo.control.conversion import Converter
from polyolo.control.leader import identity
from polyolo.control.service import artifacts
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.control.settings import ControlSettings
from polyolo.drivers import Driver
from polyolo.drivers.children import Fork
from polyolo.drivers.kubernetes.settings import ClusterSettings, Scaling
from polyolo.drivers.process import ProcessDriver
from polyolo.sandbox.layers import Isolation
from polyolo.sandbox.programs import Local, Program

if TYPE_CHECKING:  # an extra, which most platforms do without
    from polyolo.drivers.kubernetes.cluster import Cluster

_STARTS_A_CPU = 2
"""Runtimes that start at once for each CPU: a start keeps one busy, but for reading files."""
_STARTS_IN_A_CLUSTER = 1_000_000  # its scheduler knows better how many there may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where runtimes live, as the reconciler has to know it."""

    driver: Driver
    close: Callable[[], None]
    """Ends processes, which could not live on by themselves, and leaves pods alone."""
    starts: int
    """Runtimes that start at once."""
    elastic: bool = False
    """Whether the place itself adds copies by load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs:
    """What opens strangers' files, wherever that is done."""

    inspect: Program
    compare: Program
    converter: Converter
    close: Callable[[], None] = lambda: None
    """Ends what runs: whoever waits for it hears that it is not ready."""


def programs(settings: ControlSettings, isolation: Isolation) -> Programs:
    """Return the programs, where the settings have them run: here, or each time in a pod.

    The home is held. Raises OSError when they cannot be run there.
    """
    if settings.cluster is None or settings.cluster.jobs is None:
        return Programs(
            inspect=Local(command=settings.inspect_command, isolation=isolation),
            compare=Local(command=settings.compare_command, isolation=isolation),
            converter=conversion.here(settings.converter, isolation),
        )
    return _in_jobs(settings, settings.cluster)


def _in_jobs(settings: ControlSettings, known: ClusterSettings) -> Programs:
    assert known.jobs is not None
    if settings.converter:
        raise OSError(
            "--converter is a program of this machine, and files are opened in the cluster's pods: "
            "name an image in `jobs.converter_image` (of the chart: jobs.converterImage)"
        )
    connect = _client()
    from polyolo.drivers.kubernetes.jobs import Jobs, mine

    me = identity(settings.home / "lock")
    jobs = Jobs(connect(answer_s=known.answer_s, selector=mine(me)), known, me)
    jobs.sweep()
    serving = ("python3", "-m", "polyolo.serving")
    converter = Converter()
    if image := known.jobs.converter_image:
        converter = Converter(program=jobs.program(image, conversion.anywhere()))
    return Programs(
        inspect=jobs.program(known.image, (*serving, "inspect")),
        compare=jobs.program(known.image, (*serving, "compare")),
        converter=converter,
        close=jobs.close,
    )


def opened(
    settings: ControlSettings,
    ledger: Ledger,
    vault: Vault,
    store: Artifacts,
    isolation: Isolation,
    fork: Fork | None = None,
) -> Place:
    """Return the place that the settings choose. Raises OSError when it cannot be used.

    fork: starts the processes that are to outlive a change of the program (see Children).
    """
    if settings.cluster is not None:
        return _pods(settings.cluster, ledger, vault)
    processes = ProcessDriver(
        settings.run,
        settings.runtime_command,
        environment=settings.runtime_environment,
        releases=settings.releases,
        drain_s=settings.drain_s,
        warm=settings.warm,
        isolation=isolation,
        put=store.put,
        key_of=lambda tenant: artifacts.key_of(ledger, vault, tenant).hex(),
        fork=fork,
        succeeds=settings.succeeds,
    )
    starts = _STARTS_A_CPU * len(os.sched_getaffinity(0))
    return Place(driver=processes, close=processes.close, starts=starts)


def _client() -> Callable[..., Cluster]:
    """Return what connects to a cluster. Raises OSError where that is not installed."""
    try:
        from polyolo.drivers.kubernetes.cluster import connect
    except ModuleNotFoundError as error:
        raise OSError(
            f"runtimes on Kubernetes need {error.name}: pip install 'polyolo[kubernetes]'"
        ) from None
    return connect


def _pods(settings: ClusterSettings, ledger: Ledger, vault: Vault) -> Place:
    connect = _client()
    from polyolo.drivers.kubernetes.driver import KubernetesDriver
    from polyolo.drivers.kubernetes.naming import selector

    cluster = connect(answer_s=settings.answer_s, selector=selector(settings.platform))
    driver = KubernetesDriver(cluster, settings, handout.keys(ledger, vault))
    return Place(
        driver=driver,
        close=driver.close,
        starts=_STARTS_IN_A_CLUSTER,
        elastic=settings.scaling is not Scaling.CONTROL,
    )
