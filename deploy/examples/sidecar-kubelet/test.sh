#!/usr/bin/env bash
# deploy/k8s/sidecar.yaml on a real kubelet: the node is there before the BEAM, and ends after it.
source "$(dirname "$0")/../../lib.sh"
here=$root/deploy/examples/sidecar-kubelet
[[ -x ${KUBELET:-} ]] || skip "no kubelet: set KUBELET to one of release 1.29 or later (README.md says how to build it)"
source "$root/deploy/containers.sh"
source "$root/deploy/examples/hosts.sh"
needs containerd ctr jq nsenter
page() { python3 "$root/deploy/examples/page.py" "$root/docs/operations.md" "A sidecar in Kubernetes" "$1"; }
check "the image builds" image
app=localhost/sidewinder-test-app
mkdir "$work/app"
cp "$root/deploy/examples/sidecar-pod/Dockerfile" "$work/app/"
page "sh beam" >"$work/app/start"
check "the BEAM's image builds" buildah bud --isolation chroot --layers --build-arg BASE=localhost/sidewinder-base -t $app "$work/app"
printf 'FROM scratch\nCOPY catatonit /pause\nENTRYPOINT ["/pause", "-P"]\n' >"$work/app/Dockerfile.pause"
cp "$(command -v catatonit)" "$work/app/"
buildah bud --isolation chroot -q -t localhost/sidewinder-test-pause -f "$work/app/Dockerfile.pause" "$work/app" >/dev/null
for name in "$image" "$app" localhost/sidewinder-test-pause; do
    buildah push -q "$name:latest" "docker-archive:$work/$(basename "$name").image:$name:latest"
done

hosts node
at_end find /sys/fs/cgroup -depth -type d -path '*/k8s.io*' -exec rmdir {} +
chmod 0755 "$work"
mkdir "$work/secret" "$work/settings" "$work/tmp"
chmod 1777 "$work/tmp"
install -m 0440 -g 65532 "$work/.erlang.cookie" "$work/secret/cookie"
"$root/tests/run/venv" deploy
python=$(dirname "$("$root/tests/run/venv" --path)")/deploy-venv/bin/python
"$python" - "$root/deploy/k8s/sidecar.yaml" "$work" "$image" "$app" <<'P'
import sys, yaml
source, work, image, app = sys.argv[1:]
by = {one["kind"]: one for one in yaml.safe_load_all(open(source)) if one}
pod = by["Deployment"]["spec"]["template"]["spec"]
for file, text in by["ConfigMap"]["data"].items():
    open(f"{work}/settings/{file}", "w").write(text)
place = {"sidewinder-cookie": "secret", "sidewinder-settings": "settings"}
for volume in pod["volumes"]:
    if volume["name"] in place:
        name = volume["name"]
        volume.clear()
        volume.update(name=name, hostPath={"path": f"{work}/{place[name]}"})
for container in pod["containers"] + pod["initContainers"]:
    container["image"] = (image if container["name"] == "sidewinder" else app) + ":latest"
    container["imagePullPolicy"] = "Never"
pod.pop("serviceAccountName", None)
yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app", "namespace": "default"}, "spec": pod},
               open(f"{work}/pod.yaml", "w"))
P
start node nsenter "--net=/run/netns/$switch-node" unshare --mount --propagation private "$here/node.sh" "$work" \
    localhost/sidewinder-test-pause:latest "$KUBELET" "${address[node]}"
kubelet() { on node python3 -c "import urllib.request as r; print(r.urlopen('http://127.0.0.1:10255/pods').read().decode())" 2>/dev/null; }
up() { kubelet >/dev/null; }
within 60 up || { not_ok "the kubelet answers"; exit 1; }
ok "the kubelet answers: $("$KUBELET" --version)"
cp "$work/pod.yaml" "$work/pods/app.yaml"

status() { kubelet | jq -r ".items[0].status | $1"; }
is() { [[ $(status "$1") == "$2" ]]; }
check "the pod gets ready" within 120 is '[.conditions[] | select(.type == "Ready")][0].status' True
kubelet | jq '.items[0].status' >"$work/status.log"
ip=$(status .podIP)
node_at=$(status '.initContainerStatuses[0].state.running.startedAt')
beam_at=$(status '.containerStatuses[0].state.running.startedAt')
echo "    the node started at $node_at, the BEAM at $beam_at"
check "the sidecar runs as an init container that has started" is '.initContainerStatuses[0] | "\(.name) \(.started) \(.ready)"' "sidewinder true true"
check "the BEAM was started after the node" test "$(date -d "$node_at" +%s)" -le "$(date -d "$beam_at" +%s)"
check "the node did not wait for the epmd that the BEAM starts" grep -q "not registered with epmd" "$(ls "$work"/logs/*_app-node_*/sidewinder/0.log)"
start epmd on node epmd
check "a BEAM outside calls it" on node erl -noinput -name far@198.18.50.1 -eval "4.0 = erpc:call('py@$ip', math, sqrt, [16.0]), halt(0)."
check "the BEAM of the pod calls it" on node erl -noinput -name far@198.18.50.1 \
    -eval "65532 = erpc:call('app@$ip', erpc, call, ['py@$ip', os, getuid, []]), halt(0)."

# The logs are deleted with the containers: they are followed from here on.
start sidecar_log tail -n +1 -F "$(ls "$work"/logs/*_app-node_*/sidewinder/0.log)"
ended_at=$SECONDS
rm "$work/pods/app.yaml"
gone() { [[ -z $(ctr --address "$work/containerd/sock" --namespace k8s.io tasks ls -q) ]]; }
check "the pod ends within the grace period when it is taken away" within 40 gone
echo "    it took $((SECONDS - ended_at)) s"
check "the node drained" grep -q draining "$work/sidecar_log.log"
down=$(grep -n "app@$ip is down" "$work/sidecar_log.log" | head -n 1 | cut -d: -f1)
drain=$(grep -n 'draining' "$work/sidecar_log.log" | head -n 1 | cut -d: -f1)
check "the BEAM was gone before it was told to" test "${down:-0}" -gt 0 -a "${down:-0}" -lt "${drain:-0}"
grep -E "Killing container with a grace period|exited" "$work/kubelet.log" | tail -n 4 | cut -c1-200 | sed 's/^/    /' || true
