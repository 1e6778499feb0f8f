#!/usr/bin/env bash
# Does what docs/operations.md says below "Connect from any BEAM node".
source "$(dirname "$0")/../../lib.sh"
needs erl epmd erlc python3 curl openssl
cd "$root"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
export HOME=$work ERL_EPMD_ADDRESS=127.0.0.1
ERL_EPMD_PORT=$(free_port)
export ERL_EPMD_PORT
admin=$(free_port)
commands() {
    python3 deploy/examples/page.py docs/operations.md "Connect from any BEAM node" "$1" |
        sed "s#9568#$admin#g; s#^build/sidewinder#exec ${SIDEWINDER_BIN:-build/sidewinder}#"
}
for part in cookie node beam probe; do commands "sh $part" >"$work/$part.sh"; done
commands erlang >"$work/lines"
erlc -o "$work" deploy/examples/shell_lines.erl

check "the command for a cookie makes one" sh -e "$work/cookie.sh"
check "only its owner can read it" test "$(stat -c %a "$work/.erlang.cookie")" = 600
start node sh -e "$work/node.sh"
node=$started
check "the node waits for an epmd" within 20 grep -q epmd "$work/node.log"
check "it is not ready without" bash -c "! sh -e '$work/probe.sh'"
start epmd epmd
check "it is ready once there is one" within 10 sh -e "$work/probe.sh"
sed -i "s#^erl #erl -noinput -pa $work -run shell_lines main $work/lines #" "$work/beam.sh"
check "the BEAM's shell shows what the page shows" sh -e "$work/beam.sh"
kill -INT "$node"
code=0
wait "$node" || code=$?
check "it ends with 0 on Ctrl-C" test $code = 0
