#!/usr/bin/env bash
# Proves the package: installed into a new Debian root, called there by a plain `erl`, removed and purged without a trace.
# Takes root, mmdebstrap and a Debian mirror; the package is the argument, or is built (deploy/debian/build).
source "$(dirname "$0")/../lib.sh"
cd "$root"
needs mmdebstrap chroot dpkg-deb
((EUID == 0)) || skip "only root can make a Debian root"
package=${1:-}
if [[ -z $package ]]; then
    deploy/debian/build >"$work/build.log" 2>&1
    package=$(ls build-deb/*.deb)
fi
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
into=$work/root
in_root() { ${instead:-} chroot "$into" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
# Everything but what dpkg and apt keep for themselves.
files() { (cd "$into" && find . -xdev \( -path ./var/lib/dpkg -o -path ./var/lib/apt -o -path ./var/cache -o -path ./var/log -o -path ./proc -o -path ./dev \
    -o -path ./tmp -o -path ./run -o -path ./root \) -prune -o -print | grep -v '^./usr/lib/python3.*/__pycache__' | sort); }

depends=$(dpkg-deb -f "$package" Depends | tr ',' '\n' | sed 's/(.*//; s/|.*//; s/ //g' | paste -sd,)
check "a root with what it depends on, and Erlang" mmdebstrap --variant=minbase --include="$depends,erlang-base,init-system-helpers" "$suite" "$into"
at_end umount "$into/proc"
mount -t proc proc "$into/proc"
files >"$work/before"
cp "$package" "$into/tmp/package.deb"
check "dpkg installs it" in_root dpkg -i /tmp/package.deb
check "no cookie comes with it" test ! -e "$into/etc/sidewinder/cookie"
check "every file of it is there" in_root dpkg -V sidewinder
check "the program starts" in_root sidewinder --version
check "erl finds the application" in_root erl -noinput -eval \
    '{ok, _} = application:ensure_all_started(sidewinder), true = is_list(code:lib_dir(sidewinder)), halt(0).'

printf 'OFTHEPACKAGE' >"$into/root/.erlang.cookie"
chmod 0400 "$into/root/.erlang.cookie"
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
start epmd in_root env ERL_EPMD_PORT="$port" ERL_EPMD_ADDRESS=127.0.0.1 epmd
start node in_root env ERL_EPMD_PORT="$port" ERL_EPMD_ADDRESS=127.0.0.1 sidewinder --config /etc/sidewinder/sidewinder.toml \
    --name py@127.0.0.1 --listen 127.0.0.1 --dist-port 0 --admin 127.0.0.1:0
node=$started
registered() { in_root env ERL_EPMD_PORT="$port" epmd -names | grep -q 'name py at'; }
check "the node registers" within 20 registered
call() {
    in_root env ERL_EPMD_PORT="$port" erl -noinput -name "a$$@127.0.0.1" -eval \
        "N = list_to_atom(\"py@127.0.0.1\"), {ok, _} = application:ensure_all_started(sidewinder), 4.0 = erpc:call(N, math, sqrt, [16.0]), {ok, 4.0} = py:call(N, math, sqrt, [16.0]), halt(0)."
}
check "erl calls it, bare and through the application" call
kill -TERM "$node"
wait "$node" || not_ok "it ends with 0 on SIGTERM"

touch "$into/etc/sidewinder/cookie"
check "it is removed" in_root dpkg -r sidewinder
check "its settings stay" test -e "$into/etc/sidewinder/sidewinder.toml"
check "it is purged" in_root dpkg -P sidewinder
files >"$work/after"
check "nothing of it stays" diff "$work/before" "$work/after"
