%% What the README shows is what happens: its shell lines, its Python example and the tour of `make run`.
-module(docs_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [the_bare_shell_lines_of_the_readme_print_what_it_says,
     the_application_lines_of_the_readme_print_what_it_says,
     the_python_example_of_the_readme_is_a_server_that_answers,
     the_erlang_of_the_channels_page_comes_to_what_it_says,
     the_elixir_of_the_channels_page_comes_to_what_it_says,
     the_erlang_of_the_calls_page_comes_to_what_it_says,
     the_elixir_of_the_calls_page_comes_to_what_it_says,
     the_event_loop_of_the_erlang_page_comes_to_what_it_says,
     the_erlang_of_the_pools_page_comes_to_what_it_says,
     the_erlang_of_the_state_page_comes_to_what_it_says,
     the_erlang_of_the_batching_page_comes_to_what_it_says,
     the_erlang_of_the_web_page_comes_to_what_it_says,
     the_erlang_of_the_streams_page_comes_to_what_it_says,
     the_elixir_of_the_streams_page_comes_to_what_it_says,
     the_erlang_of_the_objects_page_comes_to_what_it_says,
     the_erlang_of_the_contexts_page_comes_to_what_it_says,
     the_erlang_of_the_observing_page_comes_to_what_it_says,
     the_erlang_of_the_migrating_page_comes_to_what_it_says,
     the_tour_ends_well_without_a_terminal].

init_per_suite(Config) -> sw_e2e:setup(Config).

end_per_suite(Config) -> sw_e2e:teardown(Config).

the_bare_shell_lines_of_the_readme_print_what_it_says(Config) ->
    Context = sw_e2e:context(Config),
    Node = sw_e2e:start_node(Context, #{name => "py@127.0.0.1"}),
    Beam = sw_e2e:start_beam(Context),
    [Bare, _Application] = blocks("erlang"),
    Steps = steps(Bare),
    ?assert(length(Steps) >= 4),
    check(Steps, sw_e2e:on(Beam, fun() -> evaluate(Steps) end, 60000)),
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

the_application_lines_of_the_readme_print_what_it_says(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    Beam = sw_e2e:start_beam(Context, #{name => none,
                                        args => ["-pa", filename:dirname(code:which(py))],
                                        env => [{"XDG_RUNTIME_DIR", Directory},
                                                {"SIDEWINDER_BIN", sw_e2e:sidewinder()}]}),
    [_Bare, Application] = blocks("erlang"),
    Steps = steps(Application),
    ?assert(length(Steps) >= 2),
    check(Steps, sw_e2e:on(Beam, fun() -> evaluate(Steps) end, 60000)),
    ok = sw_e2e:stop_beam(Beam).

the_python_example_of_the_readme_is_a_server_that_answers(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    [Example] = blocks("python"),
    ok = file:write_file(filename:join(Directory, "readme_example.py"), Example),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--path", Directory]}),
    Beam = sw_e2e:start_beam(Context),
    Answers = sw_e2e:on(Beam, fun() ->
        Pid = erpc:call(Name, readme_example, start, []),
        [is_pid(Pid), gen_server:call({counter, Name}, 1), gen_server:call({counter, Name}, 41)]
    end),
    ?assertEqual([true, 1, 42], Answers),
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

the_erlang_of_the_channels_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/channels.md", ["jobs"], 17).

the_elixir_of_the_channels_page_comes_to_what_it_says(Config) ->
    elixir_of_a_page(Config, "docs/channels.md", ["jobs"], 11).

the_erlang_of_the_calls_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/calls.md", ["orders", "stock"], 11).

the_elixir_of_the_calls_page_comes_to_what_it_says(Config) ->
    elixir_of_a_page(Config, "docs/calls.md", ["orders", "stock"], 3).

the_erlang_of_the_observing_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/observing.md", ["shop"], 20).

the_erlang_of_the_migrating_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/migrating.md", ["moved"], 20).

the_event_loop_of_the_erlang_page_comes_to_what_it_says(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context),
    {ok, Text} = file:read_file(filename:join(sw_e2e:root(), "docs/erlang.md")),
    [_, Section] = re:split(Text, "^## Event loops$", [multiline]),
    ok = erlang_steps(Context, Name, blocks_of(hd(re:split(Section, "^## ", [multiline])), "erlang"), 9),
    ok = sw_e2e:stop_node(Node).

the_erlang_of_the_web_page_comes_to_what_it_says(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    {ok, Text} = file:read_file(filename:join(sw_e2e:root(), "docs/web.md")),
    [begin
         {match, [Code]} = re:run(Text, "^```python " ++ File ++ "\n(.*?)^```$", [multiline, dotall, {capture, [1], binary}]),
         ok = file:write_file(filename:join(Directory, File), Code)
     end || File <- ["hello.py", "blog.py"]],
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--path", Directory]}),
    [_, Section] = re:split(Text, "^## Behind a BEAM web server$", [multiline]),
    ok = erlang_steps(Context, Name, blocks_of(hd(re:split(Section, "^## ", [multiline])), "erlang"), 3),
    ok = sw_e2e:stop_node(Node).

the_erlang_of_the_objects_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/objects.md", ["models"], 15).

the_erlang_of_the_contexts_page_comes_to_what_it_says(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context),
    ok = erlang_steps(Context, Name, blocks("docs/contexts.md", "erlang"), 15, [{'Node', Name}, {'Directory', Directory}]),
    ok = sw_e2e:stop_node(Node).

the_erlang_of_the_streams_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/streams.md", ["feed", "prices"], 15).

the_elixir_of_the_streams_page_comes_to_what_it_says(Config) ->
    elixir_of_a_page(Config, "docs/streams.md", ["feed", "prices"], 4).

the_erlang_of_the_state_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/state.md", ["limits"], 11).

the_erlang_of_the_batching_page_comes_to_what_it_says(Config) ->
    erlang_of_a_page(Config, "docs/batching.md", ["models"], 7).

the_erlang_of_the_pools_page_comes_to_what_it_says(Config) ->
    Context = sw_e2e:context(Config),
    Nodes = [#{name := First} | _] = [node_with_modules(Context, "docs/pools.md", ["work"]) || _ <- [1, 2, 3]],
    Names = [Name || #{name := Name} <- Nodes],
    ok = erlang_steps(Context, First, blocks("docs/pools.md", "erlang"), 9, [{'Nodes', Names}]),
    [ok = sw_e2e:stop_node(Node) || Node <- Nodes].

%% A node that has the page's Python blocks for modules: the last name all that are left.
node_with_modules(Context = #{directory := Directory}, Page, Names) ->
    write_modules(Directory, Names, blocks(Page, "python")),
    sw_e2e:start_node(Context, #{args => ["--path", Directory]}).

write_modules(Directory, [Name], Blocks) ->
    ok = file:write_file(filename:join(Directory, Name ++ ".py"), Blocks);
write_modules(Directory, [Name | Names], [Block | Blocks]) ->
    ok = file:write_file(filename:join(Directory, Name ++ ".py"), Block),
    write_modules(Directory, Names, Blocks).

erlang_of_a_page(Config, Page, Names, AtLeast) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = node_with_modules(Context, Page, Names),
    ok = erlang_steps(Context, Name, blocks(Page, "erlang"), AtLeast),
    ok = sw_e2e:stop_node(Node).

%% The lines of these blocks, in a BEAM with the application whose default node is that one.
erlang_steps(Context, Name, Blocks, AtLeast) ->
    erlang_steps(Context, Name, Blocks, AtLeast, [{'Node', Name}]).

erlang_steps(Context, Name, Blocks, AtLeast, Bound) ->
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    Steps = lists:append([steps(Lines) || Lines <- Blocks]),
    ?assert(length(Steps) >= AtLeast),
    check(Steps, sw_e2e:on(Beam, fun() ->
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, default_node, Name),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = stock_sup(),
        ok = shown(),
        evaluate(Steps, Bound)
    end, 60000)),
    ok = sw_e2e:stop_beam(Beam).

%% The supervisor of the calls page, as it is described there.
stock_sup() ->
    load(stock_sup, ["-module(stock_sup).", "-export([init/1]).", "init(Arg) -> {ok, Arg}."]).

%% The handler of logger of the observing page.
shown() ->
    load(shown, ["-module(shown).", "-export([log/2]).",
                 "log(#{level := Level, meta := Meta, msg := {F, A}}, #{config := #{to := To}}) -> "
                 "To ! {logged, Level, lists:flatten(io_lib:format(F, A)), Meta}; log(_, _) -> ok."]).

load(Module, Source) ->
    Forms = [begin {ok, Tokens, _} = erl_scan:string(Line), {ok, Form} = erl_parse:parse_form(Tokens), Form end || Line <- Source],
    {ok, Module, Binary} = compile:forms(Forms),
    {module, Module} = code:load_binary(Module, atom_to_list(Module), Binary),
    ok.

elixir_of_a_page(Config, Page, Names, AtLeast) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = node_with_modules(Context, Page, Names),
    ok = elixir_steps(Context, Name, blocks(Page, "elixir"), AtLeast, []),
    ok = sw_e2e:stop_node(Node).

%% The lines of these blocks, in a BEAM with the application, and with what else is in these paths.
elixir_steps(Context, Name, Blocks, AtLeast, Paths) ->
    Steps = lists:append([iex_steps(Lines) || Lines <- Blocks]),
    ?assert(length(Steps) >= AtLeast),
    {Expressions, _} = lists:unzip(Steps),
    Code = "[name, expressions] = System.argv()\n"
           "Application.load(:sidewinder)\n"
           "Application.put_env(:sidewinder, :default_node, String.to_atom(name))\n"
           "{:ok, _} = Application.ensure_all_started(:sidewinder)\n"
           "evaluate = fn expression, bound ->\n"
           "  {value, bound} = Code.eval_string(expression, bound)\n"
           "  IO.puts(\"=\" <> Base.encode64(inspect(value, limit: :infinity)))\n"
           "  bound\n"
           "end\n"
           "expressions |> Base.decode64!() |> :erlang.binary_to_term() |> Enum.reduce([], evaluate)\n",
    {Status, Output, Errors} =
        sw_e2e:elixir(Context, lists:append([["-pa", Path] || Path <- [filename:dirname(code:which(py)) | Paths]]), Code,
                      [atom_to_list(Name), base64:encode_to_string(term_to_binary(Expressions))]),
    ?assertEqual(0, Status, {Output, Errors}),
    check(Steps, [base64:decode(Line) || <<"=", Line/binary>> <- binary:split(Output, <<"\n">>, [global])]).

iex_steps(Block) ->
    [begin
         [Expression, Printed] = binary:split(Step, <<"\n">>),
         {Expression, squeeze(Printed)}
     end || Step <- tl(re:split(Block, "^iex> ", [multiline]))].

the_tour_ends_well_without_a_terminal(Config) ->
    Context = sw_e2e:context(Config),
    Tour = filename:join(sw_e2e:root(), "tests/tour/run"),
    {Code, Output, Errors} = sw_e2e:run("/usr/bin/env", ["bash", Tour],
                                        sw_e2e:environment(Context)),
    ?assertEqual({0, nomatch}, {Code, string:find(Output, "WRONG")}, {Output, Errors}).

%% --- reading the README ---------------------------------------------------------------------------

blocks(Language) -> blocks("README.md", Language).

blocks(File, Language) ->
    {ok, Text} = file:read_file(filename:join(sw_e2e:root(), File)),
    blocks_of(Text, Language).

blocks_of(Text, Language) ->
    {match, Found} = re:run(Text, "```" ++ Language ++ "\n(.*?)```",
                            [global, dotall, {capture, [1], binary}]),
    [Block || [Block] <- Found].

%% [{Expression, Printed}] of a block of shell lines.
steps(Block) ->
    [begin
         [Expression, Printed] = binary:split(Step, <<".\n">>),
         {binary_to_list(<<Expression/binary, ".">>), squeeze(Printed)}
     end || Step <- tl(re:split(Block, "^[0-9]+> ", [multiline]))].

check(Steps, Printed) ->
    lists:foreach(fun({{Expression, Expected}, Got}) ->
                      ?assertEqual({Expression, Expected}, {Expression, squeeze(Got)})
                  end, lists:zip(Steps, Printed)).

squeeze(Text) -> re:replace(Text, "\\s+", "", [global, {return, binary}]).

%% What each line comes to, as the shell prints it. Runs in the BEAM.
evaluate(Steps) -> evaluate(Steps, []).

evaluate(Steps, Bound0) ->
    {Printed, _} = lists:mapfoldl(fun({Expression, _}, Bindings) ->
        {ok, Tokens, _} = erl_scan:string(Expression),
        {ok, Forms} = erl_parse:parse_exprs(Tokens),
        {value, Value, Bound} = erl_eval:exprs(Forms, Bindings),
        {unicode:characters_to_binary(io_lib:format("~tp", [Value])), Bound}
    end, Bound0, Steps),
    Printed.
