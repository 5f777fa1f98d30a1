"""Strings of tenants stay strings: no metacharacter of anything changes the graph of objects."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from polyolo.drivers.kubernetes.naming import place
from polyolo.drivers.kubernetes.render import Features, render
from polyolo.types import MOUNTED, DetectionSettings, ModelSpec, RuntimeSpec, VersionSpec
from tests.cluster import schemas
from tests.cluster.clusters import SETTINGS, keys

HOSTILE = (
    "a: b\n---\nkind: ClusterRoleBinding",
    "{{ .Values.secret }} {{`x`}} ${HOME} $(POLYOLO_ARTIFACT_KEY) $$(X)",
    "`id`; rm -rf / && $(reboot) | nc -l 1 > /tmp/x #",
    "--privileged=true\0--host 0.0.0.0",
    '"}}, "hostNetwork": true, {"x": "',
    "!!python/object/apply:os.system [id]",
    "*anchor &anchor <<: *x",
    "yes no null ~ 0x1F 1e3 012",
    "\u202e\u0000\ufeff\u2028 \ud7ff \U0001f600",
    "../../etc/passwd",
    "%s %(x)s {0} {x!r}",
    "\r\n\t \x1b[31m",
)
strings = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=40))


def spec(word: str, tenant: str = "t_a") -> RuntimeSpec:
    """Return a spec with `word` in every place that a tenant has a say in."""
    version = VersionSpec(
        version=1,
        digest="a" * 64,
        uri=f"object:{word}",
        classes=(word, word),
        family=word,
        golden=(f"object:{word}",),
    )
    mounted = replace(version, version=2, uri=f"{MOUNTED}{word}")
    chosen = DetectionSettings(classes=(word, 1))
    model = ModelSpec(name=word, current=1, versions=(version, mounted), settings=chosen)
    return RuntimeSpec(
        tenant=tenant, generation=1, default_model=word, models=(model,), storage="pvc://models"
    )


def shape(value: Any) -> Any:
    """Return what objects are made of: every key, and the type of every value."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [shape(inner) for inner in value]
    return type(value).__name__


def values(value: Any, path: str = "") -> dict[str, Any]:
    """Return every value by its path."""
    if isinstance(value, dict):
        pairs = [(f"{path}/{name}", inner) for name, inner in value.items()]
    elif isinstance(value, (list, tuple)):
        pairs = [(f"{path}/{number}", inner) for number, inner in enumerate(value)]
    else:
        return {path: value}
    return {name: found for key, inner in pairs for name, found in values(inner, key).items()}


def objects(word: str) -> Any:
    return render(spec(word), SETTINGS, Features(monitors=True), keys("t_a"))


BENIGN = objects("city")


@settings(max_examples=60, deadline=None)
@given(word=strings)
@example(word="a: b\n---\nkind: ClusterRoleBinding")
def test_every_hostile_string_gives_the_graph_of_a_benign_tenant(word):
    """The same objects with the same fields; only the document's text and digests differ."""
    made = objects(word)
    assert shape(made) == shape(BENIGN)
    mine, theirs = values(made), values(BENIGN)
    differ = {path.partition("/")[2] for path in mine if mine[path] != theirs[path]}
    assert {path.split("/", 1)[1] for path in differ} <= {
        "data/spec.json",
        "metadata/annotations/polyolo/rendered",
    }
    document = json.loads(made[7]["data"]["spec.json"])
    assert document["default_model"] == word
    assert document["models"][0]["versions"][0]["classes"] == [word, word]
    # Written and read as YAML, as people do with `tenants render`, it is still the same.
    assert yaml.safe_load(yaml.safe_dump(made[7])) == made[7]


@pytest.mark.parametrize("word", HOSTILE)
def test_it_still_fits_the_schemas(word):
    """Nothing of it makes an object that a server would refuse."""
    assert [said for made in objects(word) if (said := schemas.complaint(made, "1.36"))] == []


@settings(max_examples=60, deadline=None)
@given(tenant=strings)
def test_an_id_is_a_plain_word_or_nothing_is_rendered(tenant):
    """The one string that becomes a name is refused unless it is harmless as it is."""
    try:
        made = render(spec("city", tenant), SETTINGS, Features(), keys("t_a"))
    except ValueError:
        return
    assert all(letter.isascii() and (letter.isalnum() or letter in "_-") for letter in tenant)
    home = place(tenant, "polyolo").namespace
    assert {one["metadata"].get("namespace", home) for one in made} == {home}


@pytest.mark.parametrize("release", HOSTILE)
def test_a_release_is_one_that_the_operator_named(release):
    """It chooses among images, and is part of none."""
    with pytest.raises(OSError, match="no image"):
        render(replace(spec("city"), release=release), SETTINGS, Features(), keys("t_a"))
