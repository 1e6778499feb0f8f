%% Tells of events, in the shape of `telemetry`: [sidewinder, Of, What], measurements and metadata.
%%
%% They go to the function or module in the application environment's `event_handler`, called
%% (handle_event/3 in a module) in the process where the event happened. Without one they go to
%% `telemetry`, where that is loaded. A handler that fails is logged and hurts nobody.
-module(py_event).

-export([emit/3]).

-include_lib("kernel/include/logger.hrl").

-type handler() :: undefined | module() | fun(([atom()], map(), map()) -> term()).

-spec emit([atom()], map(), map()) -> ok.
emit(Event, Measurements, Metadata) ->
    Handler = application:get_env(sidewinder, event_handler, undefined),
    try handle(Handler, Event, Measurements, Metadata) of
        _ -> ok
    catch
        Class:Reason:Stack ->
            ?LOG_ERROR(#{what => "event handler failed", handler => Handler, event => Event,
                         class => Class, reason => Reason, stack => Stack})
    end.

-spec handle(handler(), [atom()], map(), map()) -> term().
handle(undefined, Event, Measurements, Metadata) ->
    telemetry(telemetry, Event, Measurements, Metadata);
handle(Handler, Event, Measurements, Metadata) when is_function(Handler, 3) ->
    Handler(Event, Measurements, Metadata);
handle(Handler, Event, Measurements, Metadata) when is_atom(Handler) ->
    Handler:handle_event(Event, Measurements, Metadata).

%% The module is an argument because it need not exist.
-spec telemetry(module(), [atom()], map(), map()) -> term().
telemetry(Module, Event, Measurements, Metadata) ->
    case erlang:function_exported(Module, execute, 3) of
        true -> Module:execute(Event, Measurements, Metadata);
        false -> ok
    end.
