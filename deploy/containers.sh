# Containers on one machine with podman, buildah and runc. To be sourced after lib.sh; needs root.
#
#   image                builds localhost/sidewinder-test and sets $image; what did not change comes from the cache
#   podman, buildah      functions: as configured here, with the machine's storage
#
# The configuration is a private one: cgroups without systemd, and a wrapper of runc that takes the limits of processes out,
# which a container within a container may not raise. Images stay for the next run, all else is removed.
needs buildah podman runc catatonit jq mmdebstrap python3
((EUID == 0)) || skip "containers are made as root here"
image=localhost/sidewinder-test

cat >"$work/runc" <<'E2'
#!/usr/bin/env bash
# runc, with no process limits asked for.
previous=
for argument in "$@"; do
    case $previous in
        --bundle | -b) file=$argument/config.json what=.process.rlimits ;;
        --process | -p) file=$argument what=.rlimits ;;
        *) file= ;;
    esac
    previous=$argument
    [[ -n $file && -f $file ]] || continue
    jq "del($what)" "$file" >"$file.new" && cat "$file.new" >"$file" && rm "$file.new"
done
exec runc "$@"
E2
chmod +x "$work/runc"
cat >"$work/containers.conf" <<E2
[engine]
runtime = "sidewinder"
cgroup_manager = "cgroupfs"
events_logger = "file"
[engine.runtimes]
sidewinder = ["$work/runc"]
E2
export CONTAINERS_CONF=$work/containers.conf
podman() { CONTAINERS_CONF=$work/containers.conf command podman "$@"; }

image() {
    podman info >"$work/podman.log" 2>&1 || skip "podman does not run here: $(tail -n 1 "$work/podman.log")"
    buildah inspect --type image localhost/sidewinder-base >/dev/null 2>&1 || "$root/deploy/docker/base" || exit 1
    # What this machine trusts, for the one thing that does not come from Debian.
    buildah bud --isolation chroot --layers --build-arg BASE=localhost/sidewinder-base \
        --volume "${PIP_CERT:-/etc/ssl/certs/ca-certificates.crt}:/run/pip.crt:ro" --build-arg PIP_CERT=/run/pip.crt \
        --ignorefile "$root/deploy/docker/Dockerfile.dockerignore" -f "$root/deploy/docker/Dockerfile" -t "$image" "$root" \
        >"$work/image.log" 2>&1
}
