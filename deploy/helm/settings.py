"""Keeps the chart's settings those of the program, by way of `sidewinder --print-schema`.

    settings.py PROGRAM            ends with 1 and a difference if values.yaml or values.schema.json is behind
    settings.py PROGRAM --write    writes both anew

In values.yaml it owns what follows the line SETTINGS; values.schema.json is wholly its work.
"""

from __future__ import annotations

import difflib
import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

CHART = Path(__file__).resolve().parent / "sidewinder"
START = "# Of the node: every setting of docs/configuration.md (this part is made by deploy/helm/settings.py)."

# What is otherwise in a pod. The cookie and the certificates are files that the chart mounts.
OTHERWISE: dict[str, object] = {
    "name": "py@{pod_ip}",
    "listen": ["{pod_ip}"],
    "dist-port": 9100,
    "admin": "{pod_ip}:9568",
    "epmd": "auto",
    "log-format": "json",
    "path": ["/app"],
    "venv": "/opt/venv",
}
NOT_THERE = {"sname", "cookie-file", "tls-cert", "tls-key", "tls-ca"}


def of_program(program: str) -> dict[str, Any]:
    output = subprocess.run([program, "--print-schema"], check=True, capture_output=True).stdout
    properties: dict[str, Any] = json.loads(output)["properties"]
    return {name: what for name, what in properties.items() if name not in NOT_THERE}


def scalar(value: object) -> str:
    """As YAML, where a bare `on` would be true."""
    bare = isinstance(value, str) and value.isalpha() and len(value) > 3 and value != "none"
    return str(value) if bare else json.dumps(value)


def values(settings: dict[str, Any]) -> str:
    lines = [START, "settings:"]
    for name, what in settings.items():
        comment = textwrap.wrap(what["description"], 110)
        lines += [f"  # {line}" for line in comment]
        lines.append(f"  {name}: {scalar(OTHERWISE.get(name, what['default']))}")
    return "\n".join(lines) + "\n"


def text(default: str = "") -> dict[str, Any]:
    return {"type": "string", "default": default}


def obj(properties: dict[str, Any], more: bool = False) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": more, "properties": properties}


def schema(settings: dict[str, Any]) -> str:
    flag, free, rows = {"type": "boolean"}, {"type": "object"}, {"type": "array"}
    count = {"type": "integer", "minimum": 0}
    port = {"type": "integer", "minimum": 1, "maximum": 65535}
    named = {"type": "array", "items": {"type": "object", "required": ["name"]}}
    ours = {name: dict(what) for name, what in settings.items()}
    ours["dist-port"] = port
    ours["admin"] = {"type": "string", "pattern": ":[0-9]+$"}
    properties = {
        "nameOverride": text(),
        "global": free,
        "image": obj(
            {
                "repository": {"type": "string", "minLength": 1},
                "tag": text(),
                "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
            }
        ),
        "imagePullSecrets": named,
        "cookie": obj(
            {"existingSecret": text(), "key": {"type": "string", "minLength": 1}, "value": text()}
        ),
        "tls": obj(
            {
                "existingSecret": text(),
                "issuer": text(),
                "issuerKind": {"enum": ["Issuer", "ClusterIssuer"]},
            }
        ),
        "clusterDomain": {"type": "string", "minLength": 1},
        "workers": obj(
            {
                "enabled": flag,
                "replicas": count,
                "labels": free,
                "annotations": free,
                "nodeSelector": free,
                "tolerations": rows,
                "affinity": free,
                "topologySpreadConstraints": rows,
                "priorityClassName": text(),
            }
        ),
        "web": obj(
            {
                "enabled": flag,
                # What runs as nobody binds no other.
                "port": {"type": "integer", "minimum": 1024, "maximum": 65535},
                "service": obj(
                    {
                        "type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                        "port": port,
                        "annotations": free,
                    }
                ),
                "from": rows,
            }
        ),
        "app": obj(
            {
                "enabled": flag,
                "replicas": count,
                "image": text(),
                "command": {"type": "array", "items": {"type": "string"}},
                "env": named,
                "ports": rows,
                "cookieMount": {"type": "string", "pattern": "^/"},
                "securityContext": free,
                "resources": free,
            }
        ),
        "sidecar": obj({"native": flag, "settings": obj(ours)}),
        "networkPolicy": obj({"enabled": flag, "peers": rows, "monitoring": rows}),
        "podDisruptionBudget": obj(
            {"enabled": flag, "maxUnavailable": {"type": ["integer", "string"]}}
        ),
        "serviceMonitor": obj({"enabled": flag, "interval": text(), "labels": free}),
        "prometheusRule": obj({"enabled": flag, "labels": free}),
        "terminationGracePeriodSeconds": {"type": "integer", "minimum": 1},
        "resources": free,
        "env": named,
        "volumes": named,
        "volumeMounts": named,
        "tmp": {"type": "string", "pattern": "^[0-9]+(Ki|Mi|Gi)?$"},
        "settings": obj(ours),
    }
    whole = {"$schema": "http://json-schema.org/draft-07/schema#", **obj(properties)}
    return json.dumps(whole, indent=2) + "\n"


def main(program: str, *options: str) -> int:
    settings = of_program(program)
    before = (CHART / "values.yaml").read_text(encoding="utf-8")
    wanted = {
        CHART / "values.yaml": before.partition(START)[0] + values(settings),
        CHART / "values.schema.json": schema(settings),
    }
    behind = 0
    for path, new in wanted.items():
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        if old == new:
            continue
        behind = 1
        if "--write" in options:
            path.write_text(new, encoding="utf-8")
        else:
            lines = difflib.unified_diff(
                old.splitlines(True), new.splitlines(True), str(path), "as the program has it"
            )
            sys.stdout.writelines(lines)
    return 0 if "--write" in options else behind


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
