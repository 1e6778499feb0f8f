%% Tells of events, in the shape of `telemetry`: [sidewinder, Of, What], measurements and metadata.
%%
%% Those of nodes and pools go to the function or module in the application environment's
%% `event_handler`, called (handle_event/3 in a module) in the process where the event happened, or
%% without one to `telemetry`, where that is loaded. Those of calls and channels, of which there are
%% many, go to `telemetry` alone. All go to what is attached with py_telemetry. A handler that fails
%% is logged and hurts nobody.
-module(py_event).

-export([emit/3, tell/3]).

-include_lib("kernel/include/logger.hrl").

-type handler() :: undefined | module() | fun(([atom()], map(), map()) -> term()).

%% Of a node or a pool.
-spec emit([atom(), ...], map(), map()) -> ok.
emit(Event, Measurements, Metadata) ->
    ok = py_telemetry:refresh(),
    Handler = application:get_env(sidewinder, event_handler, undefined),
    ok = safely(Handler, Event, Measurements, Metadata),
    py_telemetry:attached(Event, Measurements, Metadata).

%% Of a call or a channel.
-spec tell([atom(), ...], map(), map()) -> ok.
tell(Event, Measurements, Metadata) ->
    ok = safely(undefined, Event, Measurements, Metadata),
    py_telemetry:attached(Event, Measurements, Metadata).

-spec safely(handler(), [atom(), ...], map(), map()) -> ok.
safely(Handler, Event, Measurements, Metadata) ->
    try handle(Handler, Event, Measurements, Metadata) of
        _ -> ok
    catch
        Class:Reason:Stack ->
            ?LOG_ERROR(#{what => "event handler failed", handler => Handler, event => Event,
                         class => Class, reason => Reason, stack => Stack})
    end.

-spec handle(handler(), [atom(), ...], map(), map()) -> term().
handle(undefined, Event, Measurements, Metadata) ->
    telemetry(telemetry, Event, Measurements, Metadata);
handle(Handler, Event, Measurements, Metadata) when is_function(Handler, 3) ->
    Handler(Event, Measurements, Metadata);
handle(Handler, Event, Measurements, Metadata) when is_atom(Handler) ->
    Handler:handle_event(Event, Measurements, Metadata).

%% The module is an argument because it need not exist.
-spec telemetry(module(), [atom(), ...], map(), map()) -> term().
telemetry(Module, Event, Measurements, Metadata) ->
    case erlang:function_exported(Module, execute, 3) of
        true -> Module:execute(Event, Measurements, Metadata);
        false -> ok
    end.
