%% The Elixir wrapper: its own tests and doctests by mix, with no network and against real nodes, and what its page shows.
-module(elixir_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [it_is_formatted_and_compiles_without_a_warning,
     its_tests_pass_with_the_node_that_it_starts,
     its_tests_pass_with_a_node_elsewhere,
     the_elixir_of_its_page_comes_to_what_it_says].

%% Nothing of the user's mix is seen: an archive, such as hex, would be in HOME.
init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = #{directory := Directory} = sw_e2e:context(Config),
    {0, _, _} = mix(Context, "compile", [], []),
    [{ebin, filename:join(Directory, "mix/lib/sidewinder_elixir/ebin")} | Config].

end_per_suite(Config) -> sw_e2e:teardown(Config).

it_is_formatted_and_compiles_without_a_warning(Config) ->
    Context = sw_e2e:context(Config),
    ?assertMatch({0, _, _}, mix(Context, "format", ["--check-formatted"], [])),
    {Status, Output, Errors} = mix(Context, "compile", ["--force", "--warnings-as-errors"], []),
    ?assertMatch({0, nomatch}, {Status, re:run([Output, Errors], "warning:")}, {Output, Errors}).

its_tests_pass_with_the_node_that_it_starts(Config) ->
    passed(mix(sw_e2e:context(Config), "test", [], []), 10, 14).

its_tests_pass_with_a_node_elsewhere(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--path", directory() ++ "/test/python"]}),
    passed(mix(Context, "test", [], [{"SIDEWINDER_NODE", atom_to_list(Name)}]), 10, 14),
    ok = sw_e2e:stop_node(Node).

the_elixir_of_its_page_comes_to_what_it_says(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    ok = docs_SUITE:write_modules(Directory, ["orders"], docs_SUITE:blocks("docs/elixir.md", "python")),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--none", "nil", "--path", Directory]}),
    Blocks = docs_SUITE:blocks("docs/elixir.md", "elixir"),
    ok = docs_SUITE:elixir_steps(Context, Name, Blocks, 12, [proplists:get_value(ebin, Config)]),
    ok = sw_e2e:stop_node(Node).

%% --- mix ----------------------------------------------------------------------------------------

directory() -> filename:join(sw_e2e:root(), "elixir").

%% With a name and a cookie, as `elixir` starts it; what it compiles stays below the suite's directory.
mix(Context = #{directory := Directory, cookie := Cookie}, Task, Arguments, Environment) ->
    Node = case lists:keymember("SIDEWINDER_NODE", 1, Environment) of
        true -> ["--name", sw_e2e:unique("mix") ++ "@127.0.0.1", "--cookie", Cookie];
        false -> []
    end,
    Libraries = filename:dirname(filename:dirname(filename:dirname(code:which(py)))),
    sw_e2e:run("/bin/sh", ["-c", "cd \"$0\" && exec elixir \"$@\"", directory() | Node ++ ["-S", "mix", Task | Arguments]],
               sw_e2e:environment(Context) ++
                   [{"HOME", Directory}, {"MIX_HOME", Directory}, {"XDG_RUNTIME_DIR", Directory}, {"LC_ALL", "C.UTF-8"},
                    {"MIX_ENV", "test"}, {"MIX_BUILD_PATH", filename:join(Directory, "mix")}, {"ERL_LIBS", Libraries},
                    {"SIDEWINDER_BIN", sw_e2e:sidewinder()} | Environment]).

%% mix says so itself, and a test that is not found does not pass for one that did.
passed({Status, Output, Errors}, Doctests, Tests) ->
    ?assertEqual(0, Status, {Output, Errors}),
    Summary = "([0-9]+) doctests, ([0-9]+) tests, 0 failures",
    {match, Counts} = re:run(Output, Summary, [{capture, all_but_first, list}]),
    ?assertMatch([D, T] when D >= Doctests andalso T >= Tests, [list_to_integer(Count) || Count <- Counts]).
