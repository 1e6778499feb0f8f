%% What the callers of a pool see of it, without asking a process: see py_pool.
-define(VIEW(Name), {py_pool, Name}).    % the key of a pool's #view{} among the persistent terms
-define(POOLS, py_pools).                % the table of pools, and of spawned calls
-define(SHUT, 0).
-define(OPEN, 1).
-define(CALLS, 1).
-define(FAILURES, 2).

%% One member that has been up at least once.
-record(slot, {
    node :: node(),
    seed :: non_neg_integer(),                % for hashed routing
    gate :: atomics:atomics_ref(),            % ?OPEN while the node takes calls
    load :: atomics:atomics_ref(),            % the counters of py_link
    counts :: counters:counters_ref()         % ?CALLS and ?FAILURES since it is a member
}).

-record(view, {
    name :: py_pool:name(),
    routing :: py_pool:routing(),
    retries :: non_neg_integer(),
    turns :: atomics:atomics_ref(),           % counts choices: of new calls, of those that move on
    slots :: tuple()                          % of #slot{}, ordered by node
}).
