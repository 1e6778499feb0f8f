%% Distribution inside TLS, with BEAMs that run `-proto_dist inet_tls`: both sides show a certificate and check
%% the other's. Certificates are made for each suite by public_key and lie in its directory.
-module(tls_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, all/1, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [a_beam_calls_python_inside_tls_and_watches_its_processes,
     a_large_term_passes_both_ways_while_small_calls_go_on,
     a_node_dials_a_beam_inside_tls,
     two_nodes_of_ours_and_a_beam_are_one_cluster,
     the_cookie_counts_inside_tls_too,
     a_beam_without_tls_is_refused_and_the_others_stay,
     a_certificate_of_another_authority_is_refused_with_its_reason,
     an_expired_certificate_is_refused_with_its_reason,
     a_certificate_for_another_host_is_refused_unless_hosts_are_not_checked,
     a_beam_whose_certificate_is_for_another_host_is_not_dialled,
     renewed_certificates_and_a_new_authority_count_for_new_links_only,
     files_that_do_not_fit_together_change_nothing,
     peers_that_say_nothing_or_rubbish_hold_nobody_up,
     a_killed_beam_is_noticed_and_may_come_back,
     the_end_of_the_certificate_is_a_metric,
     wrong_settings_are_one_line,
     the_commands_of_the_documentation_lead_to_a_link].

init_per_suite(Config) ->
    {ok, _} = application:ensure_all_started(public_key),
    sw_e2e:setup(Config).

end_per_suite(Config) ->
    ok = sw_e2e:teardown(Config).

%% --- certificates -------------------------------------------------------------------------------

%% A test's own directory and authority.
pki(Config) ->
    #{directory := Directory} = sw_e2e:context(Config),
    Own = filename:join(Directory, sw_e2e:unique("pki")),
    ok = filelib:ensure_dir(filename:join(Own, "x")),
    #{directory => Own, authority => authority()}.

authority() ->
    public_key:pkix_test_root_cert(sw_e2e:unique("authority"), [{digest, sha256}, {key, {namedCurve, secp256r1}}]).

here() -> [{iPAddress, <<127, 0, 0, 1>>}, {dNSName, "127.0.0.1"}].
elsewhere() -> [{dNSName, "elsewhere.test"}].

%% Writes NAME.pem, NAME.key and NAME.ca. Options: hosts, validity, authority.
certificate(Pki, Name) ->
    certificate(Pki, Name, #{}).

certificate(#{directory := Directory, authority := Authority}, Name, Options) ->
    Hosts = {'Extension', {2, 5, 29, 17}, false, maps:get(hosts, Options, here())},
    Validity = [{validity, Dates} || {ok, Dates} <- [maps:find(validity, Options)]],
    Data = public_key:pkix_test_data(#{
        root => maps:get(authority, Options, Authority), intermediates => [],
        peer => [{digest, sha256}, {key, {namedCurve, secp256r1}}, {extensions, [Hosts]} | Validity]
    }),
    {Kind, Key} = proplists:get_value(key, Data),
    #{cert := Root} = maps:get(authority, Options, Authority),
    Base = filename:join(Directory, Name),
    replace(Base ++ ".pem", [{'Certificate', proplists:get_value(cert, Data), not_encrypted}]),
    replace(Base ++ ".key", [{Kind, Key, not_encrypted}]),
    replace(Base ++ ".ca", [{'Certificate', Root, not_encrypted}]),
    Base.

%% As tools that renew certificates do it: the new file takes the old one's name.
replace(File, Entries) ->
    ok = file:write_file(File ++ ".new", public_key:pem_encode(Entries)),
    ok = file:change_mode(File ++ ".new", 8#400),
    ok = file:rename(File ++ ".new", File).

node_arguments(Base) ->
    ["--tls-cert", Base ++ ".pem", "--tls-key", Base ++ ".key", "--tls-ca", Base ++ ".ca"].

start_node(Config, Base) ->
    start_node(Config, Base, []).

start_node(Config, Base, More) ->
    sw_e2e:start_node(sw_e2e:context(Config), #{args => node_arguments(Base) ++ More}).

beam_arguments(Base) ->
    Files = [{certfile, Base ++ ".pem"}, {keyfile, Base ++ ".key"}, {cacertfile, Base ++ ".ca"}, {verify, verify_peer}],
    File = Base ++ ".config",
    ok = file:write_file(File, io_lib:format("~p.~n", [[{server, [{fail_if_no_peer_cert, true} | Files]}, {client, Files}]])),
    ["-proto_dist", "inet_tls", "-ssl_dist_optfile", File].

start_beam(Config, Base) ->
    start_beam(Config, Base, #{}).

start_beam(Config, Base, Options) ->
    sw_e2e:start_beam(sw_e2e:context(Config), Options#{args => beam_arguments(Base)}).

stop(Nodes, Beams) ->
    [ok = sw_e2e:stop_node(Node) || Node <- Nodes],
    [ok = sw_e2e:stop_beam(Beam) || Beam <- Beams],
    ok.

ping(Beam, #{name := Name}) -> sw_e2e:on(Beam, fun() -> net_adm:ping(Name) end).
call(Beam, #{name := Name}) -> sw_e2e:on(Beam, fun() -> gen_server:call({py, Name}, {call, math, sqrt, [16.0]}) end).

%% --- the cases ----------------------------------------------------------------------------------

a_beam_calls_python_inside_tls_and_watches_its_processes(Config) ->
    Pki = pki(Config),
    Node = #{name := Name} = start_node(Config, certificate(Pki, "node")),
    Beam = start_beam(Config, certificate(Pki, "beam")),
    ?assertEqual(pong, ping(Beam, Node)),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ?assertEqual(4.0, sw_e2e:on(Beam, fun() -> erpc:call(Name, math, sqrt, [16.0]) end)),
    ?assertEqual(normal, sw_e2e:on(Beam, fun() ->
        {_, Monitor} = spawn_monitor(Name, probe, nap, [0.05]),
        receive {'DOWN', Monitor, process, _, Reason} -> Reason after 10000 -> late end
    end)),
    %% Many at once, from as many threads: their answers are written by the reactor alone.
    ?assertEqual(lists:seq(1, 2000), sw_e2e:on(Beam, fun() ->
        Self = self(),
        Callers = [spawn_link(fun() ->
            Self ! {self(), erpc:call(Name, probe, identity, [I])}
        end) || I <- lists:seq(1, 2000)],
        [receive {Caller, Value} -> Value end || Caller <- Callers]
    end)),
    ok = stop([Node], [Beam]).

a_large_term_passes_both_ways_while_small_calls_go_on(Config) ->
    Pki = pki(Config),
    Node = #{name := Name} = start_node(Config, certificate(Pki, "node")),
    Beam = start_beam(Config, certificate(Pki, "beam")),
    {Same, Small} = sw_e2e:on(Beam, fun() ->
        Self = self(),
        Large = crypto:strong_rand_bytes(20_000_000),
        Echo = spawn_link(fun() ->
            Self ! {self(), gen_server:call({py, Name}, {call, probe, identity, [Large]}, 60000) =:= {ok, Large}}
        end),
        Answers = [gen_server:call({py, Name}, {call, probe, identity, [I]}) || I <- lists:seq(1, 200)],
        {receive {Echo, Is} -> Is end, Answers}
    end),
    ?assert(Same),
    ?assertEqual([{ok, I} || I <- lists:seq(1, 200)], Small),
    ok = stop([Node], [Beam]).

a_node_dials_a_beam_inside_tls(Config) ->
    Pki = pki(Config),
    Beam = #{node := BeamName} = start_beam(Config, certificate(Pki, "beam")),
    Node = #{name := Name} = start_node(Config, certificate(Pki, "node"), ["--peer", atom_to_list(BeamName)]),
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Beam, fun() -> nodes(hidden) end) =:= [Name] end),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([Node], [Beam]).

two_nodes_of_ours_and_a_beam_are_one_cluster(Config) ->
    Pki = pki(Config),
    One = #{name := OneName, program := Program} = start_node(Config, certificate(Pki, "one")),
    Two = #{name := TwoName} = start_node(Config, certificate(Pki, "two"), ["--peer", atom_to_list(OneName)]),
    _ = sw_e2e:wait_line(Program, atom_to_list(TwoName) ++ " is up"),
    Beam = start_beam(Config, certificate(Pki, "beam")),
    ?assertEqual({ok, 4.0}, call(Beam, One)),
    ?assertEqual({ok, 4.0}, call(Beam, Two)),
    ok = stop([One, Two], [Beam]).

the_cookie_counts_inside_tls_too(Config) ->
    Pki = pki(Config),
    Node = #{program := Program} = start_node(Config, certificate(Pki, "node")),
    Stranger = start_beam(Config, certificate(Pki, "beam"), #{cookie => "another"}),
    ?assertEqual(pang, ping(Stranger, Node)),
    _ = sw_e2e:wait_line(Program, "handshake with .* failed: .*the cookie does not match"),
    ok = stop([Node], [Stranger]).

a_beam_without_tls_is_refused_and_the_others_stay(Config) ->
    Pki = pki(Config),
    Node = #{program := Program} = start_node(Config, certificate(Pki, "node")),
    Beam = start_beam(Config, certificate(Pki, "beam")),
    ?assertEqual(pong, ping(Beam, Node)),
    Plain = sw_e2e:start_beam(sw_e2e:context(Config)),
    ?assertEqual(pang, ping(Plain, Node)),
    _ = sw_e2e:wait_line(Program, "handshake with .* failed: TLS: "),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([Node], [Beam, Plain]).

a_certificate_of_another_authority_is_refused_with_its_reason(Config) ->
    Pki = pki(Config),
    Node = #{program := Program} = start_node(Config, certificate(Pki, "node")),
    %% It trusts ours, so that the refusal is the node's.
    Base = certificate(Pki, "stranger", #{authority => authority()}),
    {ok, _} = file:copy(certificate(Pki, "beam") ++ ".ca", Base ++ ".trusted"),
    ok = file:rename(Base ++ ".trusted", Base ++ ".ca"),
    Stranger = start_beam(Config, Base),
    ?assertEqual(pang, ping(Stranger, Node)),
    _ = sw_e2e:wait_line(Program, "failed: TLS: its certificate is refused: .*(issuer|self.signed)"),
    ok = stop([Node], [Stranger]).

an_expired_certificate_is_refused_with_its_reason(Config) ->
    Pki = pki(Config),
    Node = #{program := Program} = start_node(Config, certificate(Pki, "node")),
    Beam = start_beam(Config, certificate(Pki, "beam", #{validity => {{2020, 1, 1}, {2021, 1, 1}}})),
    ?assertEqual(pang, ping(Beam, Node)),
    _ = sw_e2e:wait_line(Program, "failed: TLS: its certificate is refused: certificate has expired"),
    ok = stop([Node], [Beam]).

a_certificate_for_another_host_is_refused_unless_hosts_are_not_checked(Config) ->
    Pki = pki(Config),
    Base = certificate(Pki, "node"),
    Node = #{program := Program} = start_node(Config, Base),
    Lax = start_node(Config, Base, ["--tls-check-host", "off"]),
    Beam = start_beam(Config, certificate(Pki, "beam", #{hosts => elsewhere()})),
    ?assertEqual(pang, ping(Beam, Node)),
    _ = sw_e2e:wait_line(Program, "failed: TLS: the certificate of .* is not for its host"),
    ?assertEqual(pong, ping(Beam, Lax)),
    ok = stop([Node, Lax], [Beam]).

a_beam_whose_certificate_is_for_another_host_is_not_dialled(Config) ->
    Pki = pki(Config),
    Beam = #{node := BeamName} = start_beam(Config, certificate(Pki, "beam", #{hosts => elsewhere()})),
    Node = #{program := Program} =
        start_node(Config, certificate(Pki, "node"), ["--peer", atom_to_list(BeamName)]),
    _ = sw_e2e:wait_line(Program, "cannot reach peer .*TLS: the certificate of .* is not for its host"),
    ?assertEqual([], sw_e2e:on(Beam, fun() -> nodes(hidden) end)),
    ok = stop([Node], [Beam]).

renewed_certificates_and_a_new_authority_count_for_new_links_only(Config) ->
    Pki = pki(Config),
    Base = certificate(Pki, "node"),
    Node = #{program := Program} = start_node(Config, Base),
    Old = start_beam(Config, certificate(Pki, "old")),
    OldToo = start_beam(Config, certificate(Pki, "old_too")),
    ?assertEqual(pong, ping(Old, Node)),
    Rotated = Pki#{authority := authority()},
    Base = certificate(Rotated, "node"),
    New = start_beam(Config, certificate(Rotated, "new")),
    ?assertEqual(pong, ping(New, Node)),
    ?assertEqual({ok, 4.0}, call(New, Node)),
    _ = sw_e2e:wait_line(Program, "certificates were read anew"),
    ?assertEqual({ok, 4.0}, call(Old, Node)),
    ?assertEqual(pang, ping(OldToo, Node)),
    ok = stop([Node], [Old, OldToo, New]).

files_that_do_not_fit_together_change_nothing(Config) ->
    Pki = pki(Config),
    Base = certificate(Pki, "node"),
    Node = #{program := Program} = start_node(Config, Base),
    Beam = start_beam(Config, certificate(Pki, "beam")),
    {ok, Key} = file:read_file(certificate(Pki, "another") ++ ".key"),
    ok = file:delete(Base ++ ".key"),
    ok = file:write_file(Base ++ ".key", Key),
    ok = file:change_mode(Base ++ ".key", 8#400),
    ?assertEqual(pong, ping(Beam, Node)),
    _ = sw_e2e:wait_line(Program, "tls-key: .*; the certificates stay as they were"),
    ok = stop([Node], [Beam]).

peers_that_say_nothing_or_rubbish_hold_nobody_up(Config) ->
    Pki = pki(Config),
    Port = list_to_integer(sw_e2e:free_port()),
    Node = #{program := Program} = start_node(Config, certificate(Pki, "node"), ["--dist-port", integer_to_list(Port)]),
    Connect = fun() -> {ok, Socket} = gen_tcp:connect("127.0.0.1", Port, [binary, {active, false}]), Socket end,
    Silent = [Connect() || _ <- lists:seq(1, 60)],
    [begin
        Socket = Connect(),
        ok = gen_tcp:send(Socket, Rubbish),
        ?assertMatch({error, _}, drain(Socket))
    end || Rubbish <- [crypto:strong_rand_bytes(5000), <<22, 3, 1, 255, 255>>, <<22, 3, 1, 0, 4, 1, 0, 0, 255>>,
                       binary:copy(<<22, 3, 3, 64, 0>>, 4000)]],
    Beam = start_beam(Config, certificate(Pki, "beam")),
    ok = sw_e2e:within(2000, fun() -> ?assertEqual(pong, ping(Beam, Node)) end),
    _ = sw_e2e:wait_line(Program, "failed: no packet in time", 15000),
    [?assertMatch({error, _}, drain(Socket)) || Socket <- Silent],
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([Node], [Beam]).

%% What the node says until it closes; a record cut short is waited for as long as a step may take.
drain(Socket) ->
    case gen_tcp:recv(Socket, 0, 12000) of
        {ok, _} -> drain(Socket);
        {error, timeout} -> still_open;
        Error -> Error
    end.

a_killed_beam_is_noticed_and_may_come_back(Config) ->
    Pki = pki(Config),
    Name = sw_e2e:unique("beam"),
    Node = #{program := Program} = start_node(Config, certificate(Pki, "node")),
    Base = certificate(Pki, "beam"),
    Beam = start_beam(Config, Base, #{name => Name}),
    ?assertEqual(pong, ping(Beam, Node)),
    ok = sw_e2e:kill_beam(Beam),
    _ = sw_e2e:wait_line(Program, Name ++ "@127.0.0.1 is down: (closed by the peer|Connection reset)"),
    Again = start_beam(Config, Base, #{name => Name}),
    ?assertEqual(pong, ping(Again, Node)),
    ?assertEqual({ok, 4.0}, call(Again, Node)),
    ok = stop([Node], [Again]).

the_end_of_the_certificate_is_a_metric(Config) ->
    Pki = pki(Config),
    Tomorrow = calendar:gregorian_days_to_date(calendar:date_to_gregorian_days(date()) + 2),
    Base = certificate(Pki, "node", #{validity => {{2020, 1, 1}, Tomorrow}}),
    Port = sw_e2e:free_port(),
    Node = start_node(Config, Base, ["--admin", Port]),
    Left = metric(Port, "sidewinder_cert_expiry_seconds") - erlang:system_time(second),
    ?assert(Left > 86400 - 3600 andalso Left < 3 * 86400),
    ok = stop([Node], []).

metric(Port, Name) ->
    {ok, Socket} = gen_tcp:connect("127.0.0.1", list_to_integer(Port), [binary, {active, false}]),
    ok = gen_tcp:send(Socket, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
    {match, [Value]} = re:run(all(Socket), "\n" ++ Name ++ " ([0-9.e+-]+)", [{capture, [1], list}]),
    try list_to_float(Value) catch error:badarg -> list_to_integer(Value) end.

all(Socket) ->
    case gen_tcp:recv(Socket, 0, 10000) of
        {ok, Data} -> [Data | all(Socket)];
        {error, closed} -> []
    end.

wrong_settings_are_one_line(Config) ->
    Pki = #{directory := Directory} = pki(Config),
    Base = certificate(Pki, "node"),
    Other = certificate(Pki, "other"),
    Open = filename:join(Directory, "open.key"),
    {ok, _} = file:copy(Base ++ ".key", Open),
    ok = file:change_mode(Open, 8#444),
    Cases = [
        {["--tls-cert", Base ++ ".pem"], "sidewinder: tls-key: TLS takes all of"},
        {["--tls-cert", Base ++ ".none", "--tls-key", Base ++ ".key", "--tls-ca", Base ++ ".ca"],
         "sidewinder: tls-cert: cannot read"},
        {["--tls-cert", Base ++ ".key", "--tls-key", Base ++ ".key", "--tls-ca", Base ++ ".ca"],
         "sidewinder: tls-cert: '.*': "},
        {["--tls-cert", Base ++ ".pem", "--tls-key", Other ++ ".key", "--tls-ca", Base ++ ".ca"],
         "sidewinder: tls-key: '.*': .*mismatch"},
        {["--tls-cert", Base ++ ".pem", "--tls-key", Open, "--tls-ca", Base ++ ".ca"],
         "sidewinder: tls-key: .* can be read by others"},
        {["--tls-cert", Base ++ ".pem", "--tls-key", Base ++ ".key", "--tls-ca", Base ++ ".key"],
         "sidewinder: tls-ca: '.*': "}
    ],
    Context = sw_e2e:context(Config),
    [begin
        {Code, _, Text} = sw_e2e:run(sw_e2e:sidewinder(),
                                     ["--name", "x@127.0.0.1" | sw_e2e:node_arguments(Context, Arguments)],
                                     sw_e2e:environment(Context)),
        ?assertEqual({1, Arguments}, {Code, Arguments}),
        ?assertMatch({match, _}, re:run(Text, "^" ++ Line)),
        ?assertEqual(1, length(string:lexemes(Text, "\n")))
    end || {Arguments, Line} <- Cases].

%% docs/operations.md, "Inside TLS", in a directory of its own, with this suite's names, cookie and epmd.
the_commands_of_the_documentation_lead_to_a_link(Config) ->
    #{directory := Directory} = pki(Config),
    Context = #{cookie := Cookie, epmd_port := EpmdPort} = sw_e2e:context(Config),
    {ok, Text} = file:read_file(filename:join(sw_e2e:root(), "docs/operations.md")),
    Block = fun(Name) ->
        {match, [Found]} = re:run(Text, "```\\S+ " ++ Name ++ "\n(.*?)\n```", [dotall, {capture, [1], list}]),
        Found
    end,
    ?assertMatch({0, _, _}, sw_e2e:run("/bin/sh", ["-ec", "cd " ++ Directory ++ "\n" ++ Block("tls-files")], [])),
    "sidewinder --name py@127.0.0.1 " ++ Settings = Block("tls-node"),
    Arguments = [case Word of "--" ++ _ -> Word; File -> filename:join(Directory, File) end
                 || Word <- string:lexemes(Settings, " ")],
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => Arguments}),
    ok = file:write_file(filename:join(Directory, "ssl_dist.config"), Block("tls-config")),
    Beam = string:replace(Block("tls-beam"), "app@", sw_e2e:unique("beam") ++ "@"),
    Try = io_lib:format("cd ~ts && ~ts -noshell -setcookie ~ts -eval 'io:format(\"~~p\", [erpc:call(list_to_atom(\"~ts\"), math, sqrt, [16.0])]), halt().'",
                        [Directory, Beam, Cookie, Name]),
    ?assertMatch({0, <<"4.0", _/binary>>, _},
                 sw_e2e:run("/bin/sh", ["-ec", lists:flatten(Try)], [{"ERL_EPMD_PORT", EpmdPort}])),
    ok = stop([Node], []).
