#!/usr/bin/env bash
# Does what docs/operations.md says below "Workers on separate hosts", on four hosts: a BEAM, and three with a Python node each.
source "$(dirname "$0")/../../lib.sh"
source "$(dirname "$0")/../hosts.sh"
needs curl
section="Workers on separate hosts"
page() { python3 "$root/deploy/examples/page.py" "$root/docs/operations.md" "$section" "$1"; }
# The page's commands, with the paths of an installation below $work.
commands() { page "$1" | sed -e "s#/etc/sidewinder/#$work/etc/#g; s#/opt/work#$root/deploy/examples#g; s#\bsidewinder --#$program --#g"; }
erlc -o "$work" "$root/deploy/examples/shell_lines.erl"
mkdir -p "$work/etc"
install -m 0400 "$work/.erlang.cookie" "$work/etc/cookie"

hosts app gpu1 gpu2 gpu3
commands "sh worker" | sed '$s/^/exec /' >"$work/worker.sh"
for host in gpu1 gpu2 gpu3; do
    start "$host" on "$host" sh -e "$work/worker.sh"
    [[ $host != gpu1 ]] || node_on_gpu1=$started
    check "the commands for a worker start a node on $host" within 20 grep -qE '(registered with|serving as) epmd' "$work/$host.log"
    commands "sh probe" >"$work/probe.sh"
    check "it is ready on $host" within 10 on "$host" sh -e "$work/probe.sh"
done
page "erlang" >"$work/lines"
commands "sh beam" | sed "s#^erl #erl -noinput -pa $work -run shell_lines main $work/lines #" >"$work/beam.sh"
check "the BEAM's shell shows what the page shows" on app sh -e "$work/beam.sh"

# What the page says of a worker that is lost.
kill -9 "$node_on_gpu1"
cat >"$work/lost_lines" <<'L'
1> {ok, _} = application:ensure_all_started(sidewinder), {ok, _} = py_pool:start(crew, #{nodes => ['py@gpu1.example.net', 'py@gpu2.example.net', 'py@gpu3.example.net']}), lists:usort([py:call(crew, work, job, [N]) =:= {ok, N} || N <- lists:seq(1, 100)]).
[true]
2> lists:sort(py_pool:members(crew)).
['py@gpu2.example.net','py@gpu3.example.net']
L
check "calls go to the others when a worker is killed" on app erl -noinput -name other@app.example.net -pa "$work" \
    -run shell_lines main "$work/lost_lines"
