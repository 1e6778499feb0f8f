#!/usr/bin/env bash
# A kubelet and its containerd, in a mount namespace of their own: node.sh WORK PAUSE KUBELET ADDRESS. Ends when it is told to.
set -euo pipefail
work=$1 pause=$2 kubelet=$3 address=$4
here=$(cd "$(dirname "$0")" && pwd)
mount --make-rshared /
for directory in /var/lib/cni /run/containerd /run/netns; do mkdir -p "$directory" && mount -t tmpfs none "$directory"; done
# The kubelet sets these; the machine's own shall stay as they are.
number=0 kubelet_pid=
for name in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
    number=$((number + 1))
    cat "/proc/sys/$name" >"$work/sysctl-$number"
    mount --bind "$work/sysctl-$number" "/proc/sys/$name"
done
mkdir -p "$work/containerd" "$work/logs" "$work/cni" "$work/pods" "$work/kubelet"
printf '{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipam":{"type":"host-local",
    "dataDir":"%s/ipam","ranges":[[{"subnet":"198.18.50.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}' "$work" >"$work/cni/pods.conflist"
fill() { sed "s#WORK#$work#g; s#PAUSE#$pause#g" "$here/$1" >"$work/$1"; }
fill containerd.toml
fill kubelet.yaml
containerd --config "$work/containerd.toml" >"$work/containerd.log" 2>&1 &
containerd=$!
ctr=(ctr --address "$work/containerd/sock" --namespace k8s.io)

# What still runs would outlive its containerd.
finish() {
    local task
    kill "$kubelet_pid"
    for task in $("${ctr[@]}" tasks ls -q); do "${ctr[@]}" tasks kill --signal KILL "$task"; done
    sleep 1
    for task in $("${ctr[@]}" tasks ls -q); do "${ctr[@]}" tasks delete --force "$task"; done
    kill "$containerd"
    exit 0
}
trap finish TERM INT
until [[ -S $work/containerd/sock ]]; do sleep 0.1; done
for image in "$work"/*.image; do "${ctr[@]}" images import "$image"; done
"$kubelet" --config "$work/kubelet.yaml" --root-dir "$work/kubelet" --node-ip "$address" --hostname-override node \
    --cert-dir "$work/kubelet/pki" --v 2 >"$work/kubelet.log" 2>&1 &
kubelet_pid=$!
wait $kubelet_pid
