#!/usr/bin/env bash
# Proves the unit: installed as README.md says into an empty root, verified, scored, and its command line run.
source "$(dirname "$0")/../lib.sh"
cd "$root"
program=${SIDEWINDER_BIN:-build/sidewinder}
needs systemd-analyze epmd erl python3
[[ -x $program ]] || {
    echo "$0: no $program; run make build" >&2
    exit 1
}

# The commands of README.md, with every absolute path below an empty root.
into=$work/root
mkdir -p "$into"
printf 'OFTHESERVICE' >"$work/cookie"
chmod 0600 "$work/cookie"
sed -n '/^```$/,/^```$/p' deploy/systemd/README.md | grep -E '^install ' |
    sed -e "s# /\(usr\|etc\)# $into/\1#g" -e "s#build/sidewinder#$program#" -e "s#~/.erlang.cookie#$work/cookie#" >"$work/commands"
check "the commands of README.md install it" bash -e "$work/commands"
unit=$into/etc/systemd/system/sidewinder.service

verify() {
    mkdir -p "$work/units"
    sed "s#^ExecStart=/usr#ExecStart=$into/usr#" "$unit" >"$work/units/sidewinder.service"
    systemd-analyze verify --man=no "$work/units/sidewinder.service" >"$work/verify.log" 2>&1 || return 1
    cat "$work/verify.log"
    ! grep -F sidewinder.service "$work/verify.log"
}
check "systemd finds nothing wrong in the unit" verify

exposed() {
    systemd-analyze security --no-pager --offline=true "$unit" >"$work/security.log" 2>&1 || return 1
    tail -n 2 "$work/security.log"
    tail -n 2 "$work/security.log" |
        awk -v most="$1" '/exposure level/ { for (i = 1; i <= NF; i++) if ($i + 0 > 0) found = $i } END { exit !(found != "" && found <= most) }'
}
check "its exposure is 1.5 or less" exposed 1.5
echo "    $(grep -o 'exposure level.*' "$work/security.log")"

# What systemd does with Environment=, LoadCredential= and ExecStart=, by hand.
of_unit() { sed -n "s/^$1=//p" "$unit"; }
credentials=$work/credentials
mkdir -p -m 0700 "$credentials"
install -m 0400 "$work/cookie" "$credentials/$(of_unit LoadCredential | cut -d: -f1)"
check "the credential is the file that README.md installs" test "$(of_unit LoadCredential | cut -d: -f2)" = /etc/sidewinder/cookie

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export ERL_EPMD_PORT=$port ERL_EPMD_ADDRESS=127.0.0.1
start epmd epmd
read -r -a command <<<"$(of_unit ExecStart | sed "s# /etc# $into/etc#; s#^/usr#$into/usr#")"
run=(env -i PATH=/usr/bin:/bin ERL_EPMD_PORT="$port" ERL_EPMD_ADDRESS=127.0.0.1)
read -r -a variables <<<"$(of_unit Environment)"
run+=("${variables[@]}" CREDENTIALS_DIRECTORY="$credentials" NOTIFY_SOCKET="$work/notify" WATCHDOG_USEC=1000000)

check "the settings are right" "${run[@]}" SIDEWINDER_NAME=py@127.0.0.1 "${command[@]}" --check-config
grep -q "drain-timeout = 20 .*sidewinder.toml" "$work/check.log" || not_ok "the settings come from the file"

python3 - "$work/notify" >"$work/notify.log" 2>&1 <<'P' &
import socket, sys
sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
sock.bind(sys.argv[1])
while True:
    print(sock.recv(4096).decode().replace("\n", " "), flush=True)
P
at_end stop $!
within 10 test -S "$work/notify"
start node "${run[@]}" SIDEWINDER_NAME=py@127.0.0.1 SIDEWINDER_LISTEN=127.0.0.1 SIDEWINDER_DIST_PORT=0 SIDEWINDER_ADMIN=127.0.0.1:0 "${command[@]}"
node=$started
check "it says that it is ready" within 20 grep -q READY=1 "$work/notify.log"
check "it feeds the watchdog" within 10 grep -q WATCHDOG=1 "$work/notify.log"
call='case erpc:call(list_to_atom("py@127.0.0.1"), math, sqrt, [16.0]) of 4.0 -> halt(0); Other -> io:format("~p~n", [Other]), halt(1) end.'
erl_call() { HOME=$work erl -noinput -name "a$$@127.0.0.1" -setcookie "$1" -eval "$call"; }
check "a BEAM with the cookie of the credential calls it" erl_call OFTHESERVICE
kill -TERM "$node"
stopped=0
wait "$node" || stopped=$?
check "it ends with 0 on SIGTERM" test "$stopped" = 0
check "it said that it is stopping" grep -q STOPPING=1 "$work/notify.log"
