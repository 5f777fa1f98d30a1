"""What the control plane makes of the host's isolation: told, warned of, or insisted on."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyolo.control.app import opened
from polyolo.sandbox.layers import Layer
from tests.integration.control_plane import serving, settings


async def test_the_operator_is_told(tmp_path: Path):
    """Every layer, its state, what it guards, and why it is not there."""
    async with serving(settings(tmp_path / "home")) as api:
        answer = await api.ask("GET", "/system/isolation")
        assert answer.status_code == 200
        told = answer.json()
        assert [one["layer"] for one in told["layers"]] == [layer.value for layer in Layer]
        assert not told["strict"]
        for one in told["layers"]:
            assert one["guards"]
            assert bool(one["why"]) == (one["state"] != "on")
        key = (await api.ask("POST", "/tenants", json={"name": "a"})).json()["api_key"]["key"]
        assert (await api.ask("GET", "/system/isolation", key)).status_code == 403


async def test_without_bubblewrap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Best effort goes on without; strict does not start, and says what to mend."""
    monkeypatch.setenv("PATH", str(tmp_path))
    async with serving(settings(tmp_path / "home")) as api:
        told = (await api.ask("GET", "/system/isolation")).json()
        assert not told["complete"]
    strict = settings(tmp_path / "home", strict_isolation=True)
    with pytest.raises(OSError, match="strict") as refused:
        async with opened(strict):
            pass
    assert "mount namespace (bubblewrap is not installed" in str(refused.value)
