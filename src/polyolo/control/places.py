"""Chooses where runtimes live: processes of this machine, or pods of a cluster."""

from __future__ import annotations

from collections.abc import Callable

from polyolo.control.handout import keys
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.control.settings import ControlSettings
from polyolo.drivers import Driver
from polyolo.drivers.process import ProcessDriver


def opened_driver(
    settings: ControlSettings, ledger: Ledger, vault: Vault
) -> tuple[Driver, Callable[[], None]]:
    """Return the driver that the settings choose, and what closes it.

    Closing ends processes, which could not live on by themselves, and leaves pods alone. Raises
    OSError when the place cannot be used.
    """
    if settings.cluster is None:
        processes = ProcessDriver(
            settings.run,
            settings.runtime_command,
            environment=settings.runtime_environment,
            drain_s=settings.drain_s,
        )
        return processes, processes.close
    try:
        from polyolo.drivers.kubernetes.cluster import connect
        from polyolo.drivers.kubernetes.driver import KubernetesDriver
        from polyolo.drivers.kubernetes.naming import selector
    except ModuleNotFoundError as error:
        raise OSError(
            f"runtimes on Kubernetes need {error.name}: pip install 'polyolo[kubernetes]'"
        ) from None
    cluster = connect(
        answer_s=settings.cluster.answer_s, selector=selector(settings.cluster.platform)
    )
    pods = KubernetesDriver(cluster, settings.cluster, keys(ledger, vault))
    return pods, pods.close
