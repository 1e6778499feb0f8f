#!/usr/bin/env bash
# Does what docs/operations.md says below "A sidecar in Kubernetes", with podman in the place of a cluster.
source "$(dirname "$0")/../../lib.sh"
source "$root/deploy/containers.sh"
needs erlc
here=$root/deploy/examples/sidecar-pod
page() { python3 "$root/deploy/examples/page.py" "$root/docs/operations.md" "A sidecar in Kubernetes" "$1"; }
check "the image builds" image
app=localhost/sidewinder-test-app

mkdir "$work/app"
cp "$here/Dockerfile" "$work/app/"
page "sh beam" >"$work/app/start"
check "the BEAM's image builds" buildah bud --isolation chroot --layers --build-arg BASE=localhost/sidewinder-base -t $app "$work/app"

# A network of its own, below the range that is set aside for such tests.
network=sidewinder-test-$$
address=198.18.40.21
far=198.18.40.22
podman network create --subnet 198.18.40.0/24 --disable-dns $network >"$work/network.log" 2>&1 ||
    skip "no network for pods here: $(tail -n 1 "$work/network.log")"
at_end podman network rm -f $network
pod=sidewinder-app-pod-0
printf COOKIEOFTHEPOD >"$work/cookie"
# What the kubelet makes of a Secret with fsGroup.
mkdir "$work/secret"
install -m 0440 -g 65532 "$work/cookie" "$work/secret/cookie"
chmod 0755 "$work"
mkdir "$work/tmp"
chmod 1777 "$work/tmp"
erlc -o "$work/tmp" "$root/deploy/examples/shell_lines.erl"
page erlang >"$work/tmp/lines"
"$root/tests/run/venv" deploy
python=$(dirname "$("$root/tests/run/venv" --path)")/deploy-venv/bin/python
"$python" - "$root/deploy/k8s/sidecar-before-1.29.yaml" "$work" "$image" "$app" "$address" <<'P'
import sys, yaml
source, work, image, app, address = sys.argv[1:]
objects = [one for one in yaml.safe_load_all(open(source)) if one["kind"] in ("ConfigMap", "Deployment")]
pod = objects[-1]["spec"]["template"]["spec"]
place = {"sidewinder-cookie": "/secret", "sidewinder-tmp": "/tmp"}
for volume in pod["volumes"]:
    if volume["name"] in place:
        name = volume["name"]
        volume.clear()
        volume.update(name=name, hostPath={"path": work + place[name]})
for container in pod["containers"]:
    container["image"] = (image if container["name"] == "sidewinder" else app) + ":latest"
    container["imagePullPolicy"] = "Never"
    container["env"] = [{"name": "POD_IP", "value": address}]
    # podman's probes need systemd, and its ports a network of its own; the test asks itself, on the host's.
    for field in ("startupProbe", "livenessProbe", "readinessProbe", "ports"):
        container.pop(field, None)
yaml.safe_dump_all(objects, open(f"{work}/pod.yaml", "w"))
P
at_end podman pod rm -f -t 0 $pod
check "podman plays the Deployment" podman kube play --network "$network:ip=$address" "$work/pod.yaml"
((broken == 0)) || exit 1
probe() { python3 -c "import urllib.request as r; r.urlopen('http://$address:9568/$1')"; }
check "the node has started" within 30 probe startupz
check "it is ready, as the BEAM started an epmd" within 30 probe readyz
in_beam() { podman exec $pod-app env HOME=/tmp erl -noinput -name "shell$((++shells))@$address" "$@"; }
shells=0
check "a BEAM in the pod sees what the page shows" in_beam -pa /tmp -run shell_lines main /tmp/lines
check "the application's own BEAM calls the sidecar" in_beam \
    -eval "65532 = erpc:call('app@$address', erpc, call, ['py@$address', os, getuid, []]), halt(0)."
check "it has it in nodes(hidden)" in_beam \
    -eval "true = lists:member('py@$address', erpc:call('app@$address', erlang, nodes, [hidden])), halt(0)."
# A BEAM in another pod, with the same cookie.
far_beam() {
    podman run --rm --network "$network:ip=$far" -v "$work/secret:/run/secrets/sidewinder:ro" -v "$work/tmp:/tmp" -e HOME=/tmp/far $app \
        erl -noinput -name "far@$far" -setcookie COOKIEOFTHEPOD -eval "$1"
}
check "a BEAM in another pod calls it, too" far_beam "4.0 = erpc:call('py@$address', math, sqrt, [16.0]), halt(0)."
check "the node has no capability and a read-only root" podman exec $pod-sidewinder /opt/venv/bin/python3 -c 'import re, os
assert re.search(r"CapEff:\s0+$", open("/proc/1/status").read(), re.M)
try: open("/x", "w")
except OSError: pass
else: raise SystemExit(1)'

# A call that runs while the sidecar is told to stop is answered, and its code is 0.
start long far_beam "R = erpc:call('py@$address', time, sleep, [3]), io:format(\"answer ~p~n\", [R]), halt(0)."
calls() { podman exec $pod-sidewinder /opt/venv/bin/python3 -c "import urllib.request as r, re
text = r.urlopen('http://$address:9568/metrics').read().decode()
assert re.search(r'^sidewinder_inflight [1-9]', text, re.M)"; }
within 15 calls 2>/dev/null || not_ok "the call runs"
check "the sidecar is stopped" podman stop -t 25 $pod-sidewinder
check "its code is 0" test "$(podman inspect --format '{{.State.ExitCode}}' $pod-sidewinder)" = 0
check "the call that ran was answered" within 10 grep -q 'answer' "$work/long.log"
