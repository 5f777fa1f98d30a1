"""Chooses where runtimes live: processes of this machine, or pods of a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from polyolo.control import handout
from polyolo.control.artifacts import Artifacts
from polyolo.control.service import artifacts
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.control.settings import ControlSettings
from polyolo.drivers import Driver
from polyolo.drivers.children import Fork
from polyolo.drivers.kubernetes.settings import ClusterSettings, Scaling
from polyolo.drivers.process import ProcessDriver
from polyolo.sandbox.layers import Isolation

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


def _pods(settings: ClusterSettings, ledger: Ledger, vault: Vault) -> Place:
    try:
        from polyolo.drivers.kubernetes.cluster import connect
        from polyolo.drivers.kubernetes.driver import KubernetesDriver
        from polyolo.drivers.kubernetes.naming import selector
    except ModuleNotFoundError as error:
        raise OSError(
            f"runtimes on Kubernetes need {error.name}: pip install 'polyolo[kubernetes]'"
        ) from None
    cluster = connect(answer_s=settings.answer_s, selector=selector(settings.platform))
    driver = KubernetesDriver(cluster, settings, handout.keys(ledger, vault))
    return Place(
        driver=driver,
        close=driver.close,
        starts=_STARTS_IN_A_CLUSTER,
        elastic=settings.scaling is not Scaling.CONTROL,
    )
