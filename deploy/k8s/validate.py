"""What the manifests have to be, beyond what a cluster would take.

    validate.py FILE...    prints ok and not ok lines; ends with 1 if anything is not ok

Each object is checked strictly (no unknown field) against the schemas of two versions of Kubernetes, and what this project
promises of its pods is looked for in each of them. Kinds that Kubernetes itself does not have are only looked at by hand here.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

Object = dict[str, Any]
VERSIONS = (
    "1.29",
    "1.37",
)  # the first with native sidecars on by default, and the newest known here
FOREIGN = {"monitoring.coreos.com/v1", "cert-manager.io/v1"}


def strictly(one: Object) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(one, version, strict=True)


def refuses_what_it_should(one: Object) -> None:
    """A check that takes everything is none."""
    wrong = copy.deepcopy(one)
    wrong["metadata"]["bogus"] = "x"
    try:
        strictly(wrong)
    except kubernetes_validate.ValidationError:
        return
    raise AssertionError("an unknown field was taken")


def pods(objects: list[Object]) -> Iterator[tuple[str, Object]]:
    for one in objects:
        if one["kind"] in ("StatefulSet", "Deployment"):
            yield f'{one["kind"]} {one["metadata"]["name"]}', one["spec"]["template"]["spec"]
        elif one["kind"] == "Pod":
            yield f'Pod {one["metadata"]["name"]}', one["spec"]


def nodes(pod: Object) -> list[Object]:
    both = pod["containers"] + pod.get("initContainers", [])
    return [container for container in both if container["name"] == "sidewinder"]


def settings(objects: list[Object], node: Object) -> Object:
    name = Path(node["args"][1]).name
    for one in objects:
        if one["kind"] == "ConfigMap" and name in one["data"]:
            found: Object = json.loads(one["data"][name])
            return found
    raise AssertionError(f"no ConfigMap has {name}")


def a_pod_is_restricted(_: list[Object], pod: Object) -> None:
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True and security["fsGroup"] == 65532
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["enableServiceLinks"] is False and pod["automountServiceAccountToken"] is False
    for container in pod["containers"] + pod.get("initContainers", []):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False and own["readOnlyRootFilesystem"] is True
        assert own["capabilities"]["drop"] == ["ALL"]


def a_node_is_probed_on_its_admin_port(objects: list[Object], pod: Object) -> None:
    (node,) = nodes(pod)
    ports = {port["name"]: port["containerPort"] for port in node["ports"]}
    assert str(settings(objects, node)["admin"]).endswith(f':{ports["admin"]}')
    for kind, path in (("startup", "/startupz"), ("liveness", "/livez"), ("readiness", "/readyz")):
        assert node[f"{kind}Probe"]["httpGet"] == {"path": path, "port": "admin"}


def a_pod_ends_later_than_its_drain(objects: list[Object], pod: Object) -> None:
    (node,) = nodes(pod)
    assert pod["terminationGracePeriodSeconds"] > settings(objects, node)["drain-timeout"]
    assert "lifecycle" not in node, "a preStop of a sidecar runs before the application has ended"


def the_cookie_is_a_mounted_file(objects: list[Object], pod: Object) -> None:
    (node,) = nodes(pod)
    (mount,) = [m for m in node["volumeMounts"] if m["name"] == "sidewinder-cookie"]
    assert str(settings(objects, node)["cookie-file"]).startswith(mount["mountPath"] + "/")
    assert not [variable for variable in node["env"] if "COOKIE" in variable["name"]]


def every_volume_is_there(_: list[Object], pod: Object) -> None:
    there = {volume["name"] for volume in pod["volumes"]}
    for container in pod["containers"] + pod.get("initContainers", []):
        assert {mount["name"] for mount in container["volumeMounts"]} <= there


def memory_is_what_is_asked_for(_: list[Object], pod: Object) -> None:
    (node,) = nodes(pod)
    resources = node["resources"]
    assert resources["limits"]["memory"] == resources["requests"]["memory"]


PROMISES: tuple[Callable[[list[Object], Object], None], ...] = (
    a_pod_is_restricted,
    a_node_is_probed_on_its_admin_port,
    a_pod_ends_later_than_its_drain,
    the_cookie_is_a_mounted_file,
    every_volume_is_there,
    memory_is_what_is_asked_for,
)


def main(files: list[str]) -> int:
    count, failed = 0, 0

    def check(what: str, ask: Callable[[], object]) -> None:
        nonlocal count, failed
        count += 1
        try:
            ask()
        except (AssertionError, KeyError, ValueError, kubernetes_validate.ValidationError) as error:
            failed += 1
            print(f"not ok {count} - {what}: {error!r}")
        else:
            print(f"ok {count} - {what}")

    for file in files:
        objects = [one for one in yaml.safe_load_all(Path(file).read_text("utf-8")) if one]
        own = [one for one in objects if one["apiVersion"] not in FOREIGN]
        check(f"{file} holds something", lambda: own[0])
        for one in own:
            what = f'{one["kind"]} {one["metadata"]["name"]}'
            check(f"{file}: {what} is valid", lambda one=one: strictly(one))
        check(f"{file}: an unknown field would be refused", lambda: refuses_what_it_should(own[0]))
        for name, pod in pods(objects):
            for promise in PROMISES:
                said = promise.__name__.replace("_", " ")
                check(f"{file}: {name}: {said}", lambda p=promise, pod=pod: p(objects, pod))
    return 1 if failed or not count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
