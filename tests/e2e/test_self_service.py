"""From a clean start to a revoked key with nothing but HTTP: the docs' quick start, run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx

from tests.e2e.platform import eventually

QUICK_START = Path(__file__).parents[2] / "docs" / "quickstart.md"


def test_the_quick_start_does_what_the_docs_say(platform, board, tmp_path: Path):
    """Just the script that is printed there: register, detect, token, rotate, revoke, 401."""
    (script,) = re.findall(
        r"^```python\n(.*?)^```$", QUICK_START.read_text(), re.MULTILINE | re.DOTALL
    )
    file = tmp_path / "quickstart.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, "-I", "-S", file, board],
        env={"POLYOLO_URL": platform.url, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert re.fullmatch(r"registered quick-start-\w{6}, key \w{12}", said[0])
    assert re.match(r"\w+ [01]\.\d\d \[", said[1])  # something was found
    assert said[-2].endswith("900 s")
    assert re.fullmatch(r"key \w{12} is revoked, \w{12} goes on", said[-1])


def test_a_deleted_client_takes_its_tokens_along(platform, board):
    """A token of it is refused within a second, in the words of RFC 6750."""
    tenant, client = platform.tenant("token-ends")
    picture, key = board.read_bytes(), tenant.api_key.key
    with client, httpx.Client(base_url=platform.url, timeout=30, trust_env=False) as http:
        made = client.create_oauth_client(name="line 3", scopes=["detect"])
        token = client.access_token(made.client_id, made.client_secret).access_token

        def detect() -> httpx.Response:
            bearer = {"authorization": f"Bearer {token}"}
            return http.post("/v1/detect", content=picture, headers=bearer)

        assert key
        assert detect().status_code == 200
        client.revoke_oauth_client(made.id)
        eventually(lambda: detect().status_code == 401, within=1, what="401")
        assert 'error="invalid_token"' in detect().headers["www-authenticate"]


def test_the_revoked_key_is_unknown_and_the_last_use_of_the_other_known(platform, board):
    """A gateway tells of uses in batches: within seconds the list says when."""
    _, client = platform.tenant("last-use")
    with client:
        client.detect(board)
        (key,) = eventually(
            lambda: [k for k in client.list_keys() if k.last_used_at], within=5, what="last use"
        )
        assert key.last_used_at is not None
        assert abs(key.last_used_at - time.time()) < 120
