#!/usr/bin/env bash
# The image builds from Debian packages alone, is small, runs with a read-only root as nobody in particular, ends on SIGTERM, and takes
# a layer with Python packages.
source "$(dirname "$0")/../lib.sh"
source "$root/deploy/containers.sh"
check "the image builds" image
size=$(($(podman image inspect --format '{{.Size}}' $image) / 1000000))
check "it is smaller than 250 MB ($size MB)" test $size -lt 250
name=sidewinder-test-$$
at_end podman rm -f -t 0 $name
printf COOKIE >"$work/cookie"
chown 65532 "$work/cookie"
chmod 0400 "$work/cookie"

# What Kubernetes' restricted profile asks for, and nothing to write to.
runs() {
    podman rm -f -t 0 $name >/dev/null 2>&1
    podman run --detach --name $name --network none --read-only --read-only-tmpfs=false --cap-drop ALL \
        --security-opt no-new-privileges -v "$work/cookie:/run/secrets/cookie:ro" "$@" \
        --name py@127.0.0.1 --cookie-file /run/secrets/cookie --epmd off --dist-port 9100 --admin 9568
}
inside() { podman exec $name /opt/venv/bin/python3 -c "$1"; }
ready() { inside 'import urllib.request as r; assert r.urlopen("http://127.0.0.1:9568/readyz").status == 200'; }

check "it starts with a read-only root and no capabilities" runs $image
check "it is ready" within 20 ready
check "it is process 1" inside 'import os; assert os.readlink("/proc/1/exe").endswith("sidewinder")'
check "it runs as 65532" inside 'import os; assert os.getuid() == os.getgid() == 65532'
check "it has no capability" inside 'import re; assert re.search(r"CapEff:\s0+$", open("/proc/1/status").read(), re.M)'
check "it can write nowhere" inside 'import tempfile
try: tempfile.mkdtemp()
except FileNotFoundError: pass
else: raise SystemExit(1)'
check "its venv has the Python that the program runs" inside 'import subprocess, sys
linked = subprocess.run(["ldd", "/usr/bin/sidewinder"], capture_output=True, text=True).stdout
assert "libpython%d.%d.so" % sys.version_info[:2] in linked'
check "its log is JSON" bash -c "CONTAINERS_CONF=$work/containers.conf podman logs $name 2>&1 | head -n 1 | jq -e .level"
before=$SECONDS
podman stop -t 15 $name >/dev/null
check "it ends with 0 on SIGTERM" test "$(podman inspect --format '{{.State.ExitCode}}' $name)" = 0
check "within seconds" test $((SECONDS - before)) -lt 10

# The Dockerfile of README.md, with a package that needs no registry: a wheel is a zip file.
mkdir "$work/layer"
python3 - "$work/layer" <<'P'
import sys, zipfile
with zipfile.ZipFile(f"{sys.argv[1]}/greeter-1.0-py3-none-any.whl", "w") as wheel:
    wheel.writestr("greeter.py", "def greet(name):\n    return 'hello ' + name\n")
    wheel.writestr("greeter-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: greeter\nVersion: 1.0\n")
    wheel.writestr("greeter-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    wheel.writestr("greeter-1.0.dist-info/RECORD", "greeter.py,,\n")
P
echo /app/greeter-1.0-py3-none-any.whl >"$work/layer/requirements.txt"
printf 'import greeter\nprint(greeter.greet("layer"))\n' >"$work/layer/hello.py"
sed -n '/^```dockerfile$/,/^```$/p' "$root/deploy/docker/README.md" | sed "/^\`\`\`/d; s#^FROM sidewinder#FROM $image#" >"$work/layer/Dockerfile"
check "the Dockerfile of README.md builds" buildah bud --isolation chroot -t $image-layer -f "$work/layer/Dockerfile" "$work/layer"
at_end podman rmi -f $image-layer
says_hello() { podman logs $name 2>&1 | grep -q 'hello layer'; }
podman rm -f -t 0 $name >/dev/null
check "what it brings starts" runs $image-layer --import hello
check "and is imported with the package that pip installed" within 20 says_hello
check "as 65532" inside 'import os; assert os.getuid() == 65532'
