# Hosts on one machine: network namespaces on a switch of their own. To be sourced after ../lib.sh; needs root.
#
#   hosts beam gpu1 gpu2    makes them, with addresses 198.18.0.1, .2, .3 and names like gpu1.example.net that all of them know;
#                           ends with 77 where the kernel or the container forbids it
#   on gpu1 COMMAND...      runs a command there, as the host gpu1.example.net
#   cut_off gpu1, heal gpu1   the switch drops every frame of that host, silently; forwards them again
#   python_node gpu1 [--FLAG]...   a node on that host, once it is ready for peers
#
# Each host has its own network, hosts file and host name. Nothing of it is reachable from outside.
needs ip erl epmd erlc python3
program=${SIDEWINDER_BIN:-$root/build/sidewinder}
switch=sw-$$
declare -A address=()
export ERL_LIBS=$root/_build/default/lib
export HOME=$work ERL_CRASH_DUMP_SECONDS=0
# No setting of the caller's shall reach them.
unset ERL_EPMD_PORT ERL_EPMD_ADDRESS

[[ -x $program && -d $ERL_LIBS/sidewinder ]] || {
    echo "$0: no $program or no $ERL_LIBS/sidewinder; run make build" >&2
    exit 1
}
printf 'COOKIEOFTHEEXAMPLE' >"$work/.erlang.cookie"
chmod 0400 "$work/.erlang.cookie"

# Ends what runs there, then the host itself.
remove_host() {
    # Forgiven: a process may end between being listed and being told to. That nobody is left is checked in the next line.
    kill $(ip netns pids "$switch-$1") || true
    within 5 nobody_on "$1" || kill -9 $(ip netns pids "$switch-$1")
    ip netns del "$switch-$1"
    rm -rf "/etc/netns/$switch-$1"
}

nobody_on() { [[ -z $(ip netns pids "$switch-$1") ]]; }

hosts() {
    local name number=0 all=127.0.0.1\ localhost$'\n'
    ((EUID == 0)) || skip "hosts are network namespaces, which take root"
    for name in "$@"; do
        address[$name]=198.18.0.$((++number))
        all+="${address[$name]} $name.example.net $name"$'\n'
    done
    { ip netns add "$switch" && at_end ip netns del "$switch" && ip -n "$switch" link add br0 type bridge &&
        ip -n "$switch" link set br0 up && unshare --uts true; } 2>"$work/netns.log" ||
        skip "no network namespaces here: $(head -n 1 "$work/netns.log")"
    for name in "$@"; do
        mkdir -p "/etc/netns/$switch-$name"
        at_end remove_host "$name"
        ip netns add "$switch-$name"
        printf '%s' "$all" >"/etc/netns/$switch-$name/hosts"
        : >"/etc/netns/$switch-$name/resolv.conf"
        ip link add eth0 netns "$switch-$name" type veth peer name "$name" netns "$switch" 2>"$work/netns.log" ||
            skip "no virtual interfaces here: $(head -n 1 "$work/netns.log")"
        ip -n "$switch" link set "$name" master br0 up
        ip -n "$switch-$name" link set lo up
        ip -n "$switch-$name" addr add "${address[$name]}/24" dev eth0
        ip -n "$switch-$name" link set eth0 up
    done
}

on() {
    local name=$1
    shift
    ${instead:-} ip netns exec "$switch-$name" unshare --uts \
        sh -c 'hostname "$0" && exec "$@"' "$name.example.net" "$@"
}

cut_off() { ip netns exec "$switch" bridge link set dev "$1" state 0; }
heal() { ip netns exec "$switch" bridge link set dev "$1" state 3; }

python_node() {
    local name=$1
    shift
    start "$name" on "$name" "$program" --name "py@$name.example.net" --epmd auto --dist-port 9100 --cookie-file "$work/.erlang.cookie" \
        --path "$root/deploy/examples" --import work --workers 4 "$@"
    within 20 grep -qE '(registered with|serving as) epmd' "$work/$name.log" || {
        not_ok "the node on $name starts"
        exit 1
    }
}
