#!/usr/bin/env bash
# One of three hosts is cut off for longer than the tick time, while 32 processes call, and then it is back: calls that it had fail
# and say so, the others go elsewhere, none runs twice, and within two seconds of the heal all three work again.
source "$(dirname "$0")/../../lib.sh"
source "$(dirname "$0")/../hosts.sh"
needs bridge
erlc -o "$work" "$root/deploy/examples/load.erl"
export RUNS=$work/runs
ticktime=4

hosts beam gpu1 gpu2 gpu3
for host in gpu1 gpu2 gpu3; do
    python_node "$host" --ticktime $ticktime
done
start load on beam erl -noinput -name app@beam.example.net -kernel net_ticktime $ticktime \
    -pa "$work" -run load main "$work/stop" 32 py@gpu1.example.net py@gpu2.example.net py@gpu3.example.net
load=$started
within 20 grep -q started "$work/load.log" || exit 1

now() { echo $(($(date +%s%N) / 1000000)); }
# The answers a second between two times of now.
rate() { awk -v from="$1" -v to="$2" '$1 == "tick" && $2 > from && $2 <= to { n += $3 } END { printf "%d\n", n * 1000 / (to - from) }' "$work/load.log"; }
# Of all calls between two times of now, how many in a hundred gpu2 was given. (A rate would also say how busy this machine is.)
share() {
    awk -v from="$1" -v to="$2" '$1 == "tick" && $2 > from && $2 <= to {
            all = 0
            for (i = 5; i < NF; i += 2) { all += $(i + 1); if ($i ~ /gpu2/) cut = $(i + 1) }
            if (!begun) { begun = 1; all0 = all; cut0 = cut }
        }
        END { printf "%d\n", (cut - cut0) * 100 / (all - all0 + (all == all0)) }' "$work/load.log"
}

sleep 4
cut_at=$(now)
cut_off gpu2
within $((ticktime * 5 / 4 + 2)) grep -q 'app@beam.example.net is down' "$work/gpu2.log" && noticed=0 || noticed=1
check "the node that is cut off notices within a tick time and a quarter" test $noticed = 0
sleep 4
healed_at=$(now)
heal gpu2
sleep 6
touch "$work/stop"
wait "$load"
before=$(rate $((cut_at - 3000)) "$cut_at")
during=$(rate $((healed_at - 3000)) "$healed_at")
after=$(rate $((healed_at + 2000)) $((healed_at + 5000)))
echo "    answers a second: $before before, $during with two hosts, $after from two seconds after the heal on"
shares=("$(share $((cut_at - 3000)) "$cut_at")" "$(share $((healed_at - 3000)) "$healed_at")" "$(share $((healed_at + 2000)) $((healed_at + 5000)))")
echo "    of a hundred calls gpu2 had ${shares[0]} before, ${shares[1]} while it was cut off, ${shares[2]} from two seconds after the heal on"
check "it had its part of the calls before" test "${shares[0]}" -ge 25
check "with two hosts the others go on without it" test "$during" -gt 100 -a "${shares[1]}" -le 3
check "two seconds after the heal it has its part again" test "${shares[2]}" -ge 25
check "what failed was lost with its host, or refused while it was" \
    awk '$1 == "failed" && $3 !~ /^{down,.?py@gpu2/ { print; bad = 1 } END { exit bad }' "$work/load.log"
read -r _ answered failed < <(grep '^total' "$work/load.log")
check "no more failed than were in flight there ($failed of $((answered + failed)))" test "$failed" -le 32
check "each ran once at the most" test "$(sort "$RUNS" | uniq -d | wc -l)" = 0
check "what was answered ran" test "$(wc -l <"$RUNS")" -ge "$answered"
