# What the test.sh scripts below deploy/ share. To be sourced; needs bash.
#
#   needs erl ip            ends with 1 and names what is missing
#   skip WHY                ends with 77: this machine cannot show it
#   ok WHAT, not_ok WHAT    a line of the Test Anything Protocol; not_ok makes the script end with 1
#   check WHAT COMMAND...   ok if the command succeeds
#   within SECONDS COMMAND  repeats the command until it succeeds
#   at_end COMMAND...       runs it when the script ends, the last one first
#   start NAME COMMAND...   runs it in the background, its output in $work/NAME.log; its id is then in $started
#
# $root is the checkout, $work a directory that is removed at the end (kept after a failure if KEEP is set).
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
work=$(mktemp -d)
export PATH=$PATH:/usr/sbin:/sbin
broken=0
count=0
undo=()

needs() {
    local program missing=()
    for program in "$@"; do
        command -v "$program" >/dev/null || missing+=("$program")
    done
    ((${#missing[@]} == 0)) || {
        echo "$0: not here: ${missing[*]}" >&2
        exit 1
    }
}

skip() {
    echo "skip: $*"
    exit 77
}

ok() { echo "ok $((++count)) - $*"; }

not_ok() {
    echo "not ok $((++count)) - $*"
    broken=1
}

check() {
    local what=$1
    shift
    if "$@" >"$work/check.log" 2>&1; then
        ok "$what"
    else
        not_ok "$what"
        sed 's/^/    /' "$work/check.log" | tail -n 40
    fi
}

within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

at_end() { undo+=("$(printf '%q ' "$@")"); }

start() {
    local name=$1
    shift
    : >"$work/$name.log"
    # A function that ends in a program shall become it, so that signals reach it.
    instead=exec "$@" >"$work/$name.log" 2>&1 </dev/null &
    started=$!
    at_end stop "$started"
}

stop() {
    kill "$1" 2>/dev/null || true
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        kill -0 "$1" 2>/dev/null || break
        sleep 0.1
    done
    kill -9 "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

finish() {
    local code=$? each
    trap - EXIT
    set +e
    for ((each = ${#undo[@]} - 1; each >= 0; each--)); do
        eval "${undo[each]}" >/dev/null 2>&1
    done
    if ((broken && code == 0)); then code=1; fi
    if ((code != 0 && code != 77)); then
        for each in "$work"/*.log; do
            [[ -s $each ]] && echo "--- $(basename "$each")" && tail -n 25 "$each"
        done
    fi
    if [[ -n ${KEEP:-} && $code != 0 ]]; then echo "kept: $work"; else rm -rf "$work"; fi
    ((code != 0)) || echo "1..$count"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP
