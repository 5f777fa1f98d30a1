"""The command line: who is asked as whom, what is printed where, with which exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from polyolo.cli import main
from polyolo.cli.door import default_home
from tests.unit.recorded_service import (
    CLIENT,
    GOLDEN,
    KEY,
    MODEL,
    RELEASE,
    REPORT,
    ROLLOUT,
    SETTINGS,
    TENANT,
    USAGE,
    Says,
    Service,
    problem,
    running_service,
)

API = "/api/v1/tenants"
TRIED = MODEL | {"rollout": ROLLOUT}
ON_RELEASE = TENANT | {"release": "0.1"}
COMMANDS = [
    "up", "demo", "detect", "bench", "usage", "limits", "doctor", "serve", "gateway", "control",
    "tenants create", "tenants list", "tenants show", "tenants suspend", "tenants resume",
    "tenants delete", "tenants export", "tenants erase", "tenants verify",
    "tenants limits", "tenants plan",
    "keys create", "keys list", "keys rotate", "keys revoke",
    "oauth create", "oauth list", "oauth rotate", "oauth revoke", "oauth token",
    "oauth rotate-signing-key",
    "models push", "models list", "models show", "models use", "models rollback",
    "models settings", "models delete", "models pull", "models rollout", "models promote",
    "models abort", "models compare", "models golden add", "models golden list",
    "models golden delete", "tenants release", "tenants storage",
    "models register", "releases list", "releases move",
]  # fmt: skip


@pytest.fixture
def service(monkeypatch, tmp_path) -> Iterator[Service]:
    """Give a service that the environment names, with a tenant's and the operator's key."""
    with running_service() as service:
        monkeypatch.setenv("POLYOLO_URL", service.url)
        monkeypatch.setenv("POLYOLO_API_KEY", "pk_tenant")
        monkeypatch.setenv("POLYOLO_OPERATOR_KEY", "po_operator")
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
        yield service


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run a command in this process; return exit status, stdout, stderr."""
    status = main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def asked_as(service: Service) -> str:
    return service.seen[-1].headers["authorization"].removeprefix("Bearer ")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(capsys, command):
    """`--help` of each command says what it does, and of each option what it means."""
    status, out, err = run(capsys, *command.split(), "--help")
    assert (status, err) == (0, "")
    assert f"Usage: polyolo {command}" in out


def test_help_and_detect_load_no_server():
    """Pages of help and detections stay fast: no server, numpy or database is imported."""
    program = (
        "import sys; from polyolo.cli import main; main(['--help']); main(['detect', '--help']);"
        "print([m for m in sys.modules if m.split('.')[0] in"
        " ('numpy', 'cv2', 'starlette', 'fastapi', 'sqlalchemy', 'onnxruntime', 'aiohttp')"
        " or m.startswith(('polyolo.serving', 'polyolo.gateway', 'polyolo.control'))])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["up"], 1, "which is not installed: pip install 'polyolo[all]'"),
        (["serve", "--spec", "s"], 1, "which is not installed: pip install 'polyolo[all]'"),
        (["detcet"], 2, 'there is no command "detcet", did you mean "detect"?'),
        (["models", "pull", "x"], 1, "no model x to pull"),
    ],
)
def test_without_the_servers_installed_the_client_works(arguments, status, said):
    """With the plain package, a server's command says what to install; the rest just works."""
    program = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name in ('starlette', 'fastapi', 'uvicorn', 'uvloop', 'numpy',\n"
        "                    'prometheus_client', 'sqlalchemy', 'aiohttp', 'cv2', 'onnxruntime'):\n"
        "            raise ModuleNotFoundError(f'No module named {name}', name=name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "from polyolo.cli import main\n"
        f"sys.exit(main({arguments}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_module_and_the_script_are_the_same_command():
    """`python -m polyolo` works where no script is on the path."""
    done = subprocess.run([sys.executable, "-m", "polyolo", "--version"], capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"0.1.0\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["tenants", "create"],
        ["tenants", "create", "a", "--bogus"],
        ["detect"],
        ["detect", "a.jpg", "--confidence", "high"],
        ["detect", "a.jpg", "--in-flight", "0"],
        ["bench", "--in-flight", "101"],
        ["bench", "--seconds", "0"],
        ["models", "use", "city"],
        ["models", "push", "city", "no-such-file.onnx"],
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(capsys, service, arguments):
    """What cannot be understood is said in one line that points to the help; nothing is sent."""
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert "--help" in err
    assert service.seen == []


def test_a_failure_is_one_sentence_and_status_1(capsys, service):
    """The server's detail is what the person reads."""
    service.on("GET", f"{API}/acme", problem(404, "not-found", "There is no tenant acme."))
    assert run(capsys, "tenants", "show", "acme", "--json") == (
        1,
        "",
        "polyolo: There is no tenant acme.\n",
    )


def test_no_service_says_what_to_start(capsys, service):
    """A connection that is refused is explained, without a traceback."""
    status, out, err = run(capsys, "keys", "list", "--url", "http://127.0.0.1:1")
    assert (status, out) == (1, "")
    assert "is `polyolo up` running?" in err
    assert err.count("\n") == 1


def test_a_pipe_that_closes_is_no_failure_to_report(service):
    """`polyolo ... | head` ends silently."""
    service.on("GET", API, Says(body={"tenants": [TENANT] * 3000}))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "polyolo", "tenants", "list", "--json"],
        stdout=writing,
        stderr=subprocess.PIPE,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("arguments", "method", "path", "says", "shown"),
    [
        ("tenants create acme", "POST", API, TENANT | {"api_key": KEY}, KEY["key"]),
        ("tenants list", "GET", API, {"tenants": [TENANT]}, "starting"),
        ("tenants show acme", "GET", f"{API}/acme", TENANT, "t_0123456789"),
        ("tenants suspend acme", "PATCH", f"{API}/acme", TENANT, "403"),
        ("tenants resume acme", "PATCH", f"{API}/acme", TENANT, "active"),
        ("tenants delete acme", "DELETE", f"{API}/acme", None, "deleted"),
        ("keys create --name n --expires 90d", "POST", f"{API}/me/keys", KEY, KEY["key"]),
        ("keys list", "GET", f"{API}/me/keys", {"keys": [KEY]}, "abcdefghijkl"),
        ("keys rotate k1", "POST", f"{API}/me/keys/k1/rotate", KEY, KEY["key"]),
        ("keys revoke k1", "DELETE", f"{API}/me/keys/k1", None, "revoked"),
        ("keys rotate k1 --overlap 1h", "POST", f"{API}/me/keys/k1/rotate", KEY, KEY["key"]),
        ("oauth create", "POST", f"{API}/me/oauth-clients", CLIENT, CLIENT["client_secret"]),
        ("oauth list", "GET", f"{API}/me/oauth-clients", {"clients": [CLIENT]}, "oc_abc"),
        (
            *("oauth rotate c1 --overlap 1h", "POST", f"{API}/me/oauth-clients/c1/rotate"),
            *(CLIENT | {"previous_until": 1.8e9}, CLIENT["client_secret"]),
        ),
        ("oauth revoke c1", "DELETE", f"{API}/me/oauth-clients/c1", None, "revoked"),
        ("models list", "GET", f"{API}/me/models", {"models": [MODEL]}, "city *"),
        ("models show city", "GET", f"{API}/me/models/city", MODEL, "1x3x416x416"),
        ("models use city:2", "POST", f"{API}/me/models/city/use", MODEL, "answers now"),
        ("models rollback city", "POST", f"{API}/me/models/city/rollback", MODEL, "again"),
        ("models settings city", "GET", f"{API}/me/models/city/settings", SETTINGS, "0.45"),
        ("models delete city", "DELETE", f"{API}/me/models/city", None, "deleted"),
        ("models delete city:1", "DELETE", f"{API}/me/models/city/versions/1", None, "deleted"),
        (
            "models rollout city:2 --share 0.2",
            "PUT",
            f"{API}/me/models/city/rollout",
            TRIED,
            "answers 20.0%",
        ),
        ("models promote city", "POST", f"{API}/me/models/city/rollout/promote", MODEL, "now"),
        ("models abort city", "DELETE", f"{API}/me/models/city/rollout", MODEL, "everything"),
        ("models show city", "GET", f"{API}/me/models/city", TRIED, "agreement 0.750 in 17"),
        (
            "models compare city:2",
            "GET",
            f"{API}/me/models/city/versions/2/comparison",
            REPORT,
            "12.5 ms against 10.0 ms",
        ),
        (
            "models golden list city",
            "GET",
            f"{API}/me/models/city/golden",
            {"golden": [GOLDEN]},
            "1.0 kB",
        ),
        ("models golden delete city 1", "DELETE", f"{API}/me/models/city/golden/1", None, "1"),
        ("tenants release acme 0.1", "PUT", f"{API}/acme/release", ON_RELEASE, "is on 0.1"),
        ("tenants release acme", "GET", f"{API}/acme", TENANT, "follows the platform"),
        ("releases list", "GET", "/api/v1/releases", {"releases": [RELEASE]}, "10.0% moved"),
        (
            "releases move 0.1 --share 0.1",
            "PUT",
            "/api/v1/releases",
            {"releases": [RELEASE]},
            "10.0% moved",
        ),
        ("usage", "GET", f"{API}/me/usage", USAGE, "1.23"),
        ("usage --all", "GET", "/api/v1/usage", {"usage": [USAGE]}, "acme"),
    ],
)
def test_each_command_prints_for_people_and_for_programs(
    capsys, service, arguments, method, path, says, shown
):
    """One request; the text says what matters, and --json prints one JSON document only."""
    service.on(method, path, Says(204 if says is None else 200, says))
    status, out, err = run(capsys, *arguments.split())
    assert (status, err) == (0, "")
    assert shown in out
    operator = arguments.startswith(("tenants", "releases")) or "--all" in arguments
    assert asked_as(service) == ("po_operator" if operator else "pk_tenant")
    assert len(service.seen) == 1

    status, out, err = run(capsys, *arguments.split(), "--json")
    assert (status, err) == (0, "")
    document = json.loads(out)
    if says is not None:
        (wanted,) = says.values() if len(says) == 1 else [says]
        first, wanted = (document[0], wanted[0]) if isinstance(wanted, list) else (document, wanted)
        assert {name: first[name] for name in wanted if name != "runtime"} == {
            name: value for name, value in wanted.items() if name != "runtime"
        }


def test_a_long_key_is_printed_in_one_piece(capsys, service, monkeypatch):
    """A key can be copied from a narrow terminal: no line break inside, nothing added."""
    monkeypatch.setenv("COLUMNS", "20")
    service.on("POST", API, Says(201, TENANT | {"api_key": KEY}))
    out = run(capsys, "tenants", "create", "acme")[1]
    assert f"  export POLYOLO_API_KEY={KEY['key']}\n" in out


def test_names_are_printed_as_they_are(capsys, service):
    """A name in brackets is a name, not markup of the terminal."""
    service.on("GET", API, Says(body={"tenants": [TENANT | {"name": "[red]a[/red] :smile:"}]}))
    assert "[red]a[/red] :smile:" in run(capsys, "tenants", "list")[1]


@pytest.mark.parametrize("noun", ["keys list", "models list", "usage"])
def test_the_operator_acts_on_a_tenant_by_name(capsys, service, noun):
    """--tenant asks with the operator's key, about that tenant."""
    path = f"{API}/acme/{noun.split()[0]}"
    service.on("GET", path, Says(body=USAGE if noun == "usage" else {"keys": [], "models": []}))
    assert run(capsys, *noun.split(), "--tenant", "acme")[0] == 0
    assert asked_as(service) == "po_operator"


def test_where_the_operators_key_comes_from(capsys, service, monkeypatch, tmp_path):
    """--operator-key, else --home, else the environment, else the default home."""
    service.on("GET", API, Says(body={"tenants": []}))
    for home, key in ((tmp_path / "other", "po_other"), (default_home(), "po_default")):
        home.mkdir(parents=True)
        (home / "operator.key").write_text(f"{key}\n")
    other = ["--home", str(tmp_path / "other")]
    for options, key in (
        ([*other, "--operator-key", "po_given"], "po_given"),
        (other, "po_other"),
        ([], "po_operator"),
    ):
        assert run(capsys, "tenants", "list", *options)[0] == 0
        assert asked_as(service) == key
    monkeypatch.delenv("POLYOLO_OPERATOR_KEY")
    run(capsys, "tenants", "list")
    assert asked_as(service) == "po_default"


def test_a_missing_key_says_where_keys_come_from(capsys, service, monkeypatch, tmp_path):
    """Without a credential nothing is sent; the sentence names what to set."""
    monkeypatch.delenv("POLYOLO_OPERATOR_KEY")
    monkeypatch.setenv("POLYOLO_API_KEY", "")
    (tmp_path / "operator.key").write_text("")
    for arguments, hint in (
        (["tenants", "list"], "POLYOLO_OPERATOR_KEY"),
        (["tenants", "list", "--home", str(tmp_path)], "empty"),
        (["models", "list"], "POLYOLO_API_KEY"),
        (["models", "list", "--tenant", "acme"], "POLYOLO_OPERATOR_KEY"),
        (["detect", "a.jpg"], "POLYOLO_API_KEY"),
    ):
        status, out, err = run(capsys, *arguments)
        assert (status, out) == (1, "")
        assert hint in err
    assert service.seen == []


def test_the_first_push_and_the_next(capsys, service, tmp_path):
    """A push says whether the version answers now, and if not, how it will."""
    file, names = tmp_path / "m.onnx", tmp_path / "names.txt"
    file.write_bytes(b"model")
    names.write_text("tv\n\n cat \r\n")
    service.on_push()
    service.on("GET", f"{API}/me/models/city", Says(body=MODEL), Says(body=MODEL | {"current": 2}))
    push = ["models", "push", "city", str(file), "--classes"]
    assert "polyolo models use city:2" in run(capsys, *push, str(names))[1]
    begun, sent = (one for one in service.seen if one.method in ("POST", "PATCH"))
    assert begun.json["classes"] == ["tv", "cat"]
    assert sent.body == b"model"
    assert "default model" in run(capsys, *push, "coco")[1]
    *_, begun, _ = (one for one in service.seen if one.method in ("POST", "PATCH"))
    assert begun.json["classes"][79] == "toothbrush"


@pytest.mark.parametrize(
    ("options", "body"),
    [
        (["--confidence", "0.4"], {"confidence": 0.4}),
        (["--classes", "tv, 3", "--iou", "0.5"], {"classes": ["tv", 3], "iou": 0.5}),
        (["--classes", ""], {"classes": None}),
        (["--max-detections", "5"], {"max_detections": 5}),
    ],
)
def test_settings_change_only_what_is_given(capsys, service, options, body):
    """Each option is one field of the change; no classes means all again."""
    service.on("PATCH", f"{API}/me/models/city/settings", Says(body=SETTINGS))
    assert run(capsys, "models", "settings", "city", *options)[0] == 0
    assert service.seen[0].json == body


def test_expiry_may_be_seconds(capsys, service):
    """A bare number goes out as a number."""
    service.on("POST", f"{API}/me/keys", Says(201, KEY))
    run(capsys, "keys", "create", "--expires", "3600", "--scope", "detect", "--scope", "usage:read")
    assert service.seen[0].json == {"expires_in": "3600", "scopes": ["detect", "usage:read"]}
