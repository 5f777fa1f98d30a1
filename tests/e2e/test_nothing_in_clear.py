"""Canaries: what must never lie anywhere in clear is looked for everywhere it could lie."""

import gzip
import re
from pathlib import Path

import cv2
import httpx
import numpy as np

from tests.e2e.platform import eventually

PASSWORD = "canary-password-7f3a91c2"
EMAIL = "canary-6b1e@canary.example"


def test_no_secret_and_no_pixel_lies_anywhere_in_clear(fresh_platform):
    """Neither files nor database, logs nor command lines hold a password, key, token or pixel."""
    fresh_platform.start()
    noise = np.random.default_rng(5).integers(0, 256, (64, 64, 3), np.uint8)
    picture = cv2.imencode(".bmp", noise)[1].tobytes()  # its pixels lie in the file as they are
    with httpx.Client(base_url=fresh_platform.url, timeout=30, trust_env=False) as http:
        account = {"email": EMAIL, "password": PASSWORD, "organization": "canary"}
        key = http.post("/api/v1/register", json=account).json()["api_key"]["key"]
        bearer = {"authorization": f"Bearer {key}"}
        client = http.post(
            "/api/v1/tenants/me/oauth-clients",
            json={"name": "canary", "scopes": ["detect"]},
            headers=bearer,
        ).json()
        secret = client["client_secret"]
        token = http.post(
            "/oauth2/token",
            data={"grant_type": "client_credentials"},
            auth=(client["client_id"], secret),
        ).json()["access_token"]
        assert http.post("/v1/detect", content=picture, headers=bearer).status_code == 200
        broken = http.post("/v1/detect", content=picture[:-200], headers=bearer)
        assert broken.status_code == 422
        form = http.post("/v1/detect", files={"image": picture}, headers=bearer)
        assert form.status_code == 200
        eventually(
            lambda: http.get("/api/v1/tenants/me/usage", headers=bearer).json()["requests"] == 3,
            within=10,
            what="usage arrives",
        )

    pixels = noise.tobytes()[1200:1232]
    assert pixels in picture  # else the search below would find nothing in any build
    canaries = {
        "password": PASSWORD.encode(),
        "e-mail": EMAIL.encode(),
        "API key": key.encode(),
        "client secret": secret.encode(),
        "access token": token.encode(),
        "pixels": pixels,
    }
    assert found_in(fresh_platform.home, canaries) == []
    assert fresh_platform.stop() == 0
    assert found_in(fresh_platform.home, canaries) == []


def test_the_search_finds_what_was_planted(tmp_path):
    """The search above sees a canary in a file, and in a compressed one."""
    (tmp_path / "plain").write_bytes(b"x" * 9000 + b"canary" + b"y")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(b"my canary"))
    assert len(found_in(tmp_path, {"bird": b"canary"})) == 2


def found_in(home: Path, canaries: dict[str, bytes]) -> list[str]:
    """Return where a canary lies below `home`, or in the command line of a process or its
    environment that names `home`."""
    places = [path for path in home.rglob("*") if path.is_file()]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(home).encode() in (entry / "cmdline").read_bytes():
                places += [entry / "cmdline", entry / "environ"]
        except OSError:
            continue  # it ended while we looked
    found = []
    for place in places:
        try:
            content = place.read_bytes()
        except OSError:
            continue
        if content.startswith(b"\x1f\x8b"):
            content += gzip.decompress(content)
        found += [
            f"{name} in {place}"
            for name, canary in canaries.items()
            if re.search(re.escape(canary), content)
        ]
    return found
