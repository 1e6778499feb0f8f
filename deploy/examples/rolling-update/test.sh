#!/usr/bin/env bash
# Three nodes on three hosts are replaced one after the other while 32 processes call: no call fails, and none runs twice.
source "$(dirname "$0")/../../lib.sh"
source "$(dirname "$0")/../hosts.sh"
erlc -o "$work" "$root/deploy/examples/load.erl"
export RUNS=$work/runs

hosts beam gpu1 gpu2 gpu3
for host in gpu1 gpu2 gpu3; do
    python_node "$host"
    pid[${host#gpu}]=$started
done
start load on beam erl -noinput -name app@beam.example.net -pa "$work" -run load main "$work/stop" 32 \
    py@gpu1.example.net py@gpu2.example.net py@gpu3.example.net
load=$started
within 20 grep -q started "$work/load.log" || exit 1
for number in 1 2 3; do
    sleep 1
    # What an orchestrator does: SIGTERM, wait for the end, start the new one, wait until it is ready.
    kill -TERM "${pid[$number]}"
    code=0
    wait "${pid[$number]}" || code=$?
    check "the node on gpu$number drains and ends with 0" test $code = 0
    python_node "gpu$number"
done
sleep 2
touch "$work/stop"
wait "$load"
read -r _ answered failed < <(grep '^total' "$work/load.log")
check "calls were made all the time ($answered)" test "$answered" -gt 1000
check "no call failed" test "$failed" = 0
check "each ran once" test "$(sort "$RUNS" | uniq -d | wc -l)" = 0
check "as many ran as were answered" test "$(wc -l <"$RUNS")" = "$answered"
idle=$(awk '$1 == "tick" && $3 == 0' "$work/load.log" | wc -l)
check "there was an answer in nearly every tenth of a second ($idle without)" test "$idle" -le 5
