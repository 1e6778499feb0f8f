defmodule Sidewinder do
  @moduledoc """
  Python from Elixir.

      iex> Sidewinder.call(:math, :sqrt, [16.0])
      {:ok, 4.0}
      iex> Sidewinder.call!(:json, :dumps, [%{b: 1, a: [true, nil]}], kwargs: [sort_keys: true])
      ~s({"a": [true, null], "b": 1})

  Modules and functions are atoms or strings; a function may be dotted (`"path.join"`). Without a
  `:target` the configured node is asked, `config :sidewinder, default_node: :"py@host"`; if none is
  configured one is started on this machine.

  This is a thin face of the Erlang application, whose modules (`:py`, `:py_channel`, `:py_pool`,
  `:py_data`, …) are used from Elixir as they are. What it adds: keyword lists for keyword arguments,
  `nil` for `None`, `Sidewinder.Error` for what goes wrong, functions that raise.

  ## Options

    * `:target` - a node, a pool or a context
    * `:kwargs` - Python's keyword arguments, a keyword list or a map
    * `:timeout` - milliseconds or `:infinity`; 30,000 unless given
    * `:binary` - what binaries become in Python: `:auto`, `:str` or `:bytes`
    * `:return` - `:ref` for a reference to the result, see `:py_object`; `:owner` - of that reference
    * `:key`, `:idempotent` - see `:py_pool`
    * `:trace` - the W3C trace context

  ## nil

  `nil` goes out as `None`. `None` comes back as the atom that the node is set to: `nil` at any depth
  from a node that was started with `--none nil`, which the one that is started here is. From a node
  with the default setting, a result that is `None` itself is `nil` as well; a `None` inside it is `:none`.
  """

  alias Sidewinder.Error

  @type name :: atom() | String.t()
  @type option ::
          {:target, :py.target()}
          | {:kwargs, keyword() | map()}
          | {:timeout, timeout()}
          | {:binary, :auto | :str | :bytes}
          | {:return, :term | :ref}
          | {:owner, pid()}
          | {:key, term()}
          | {:idempotent, boolean()}
          | {:trace, term()}
  @type result :: {:ok, term()} | {:error, Error.t()}

  defguardp is_name(name) when is_atom(name) or is_binary(name)

  @doc """
  Calls a Python function.

      iex> Sidewinder.call(:operator, :add, ["side", "winder"])
      {:ok, "sidewinder"}
      iex> Sidewinder.call("os.path", "join", ["a", "b"], timeout: 5_000)
      {:ok, "a/b"}
      iex> {:error, %Sidewinder.Error{reason: :timeout}} = Sidewinder.call(:time, :sleep, [10], timeout: 50)
      iex> Sidewinder.call(:builtins, :print, [], kwargs: [end: ""])
      {:ok, nil}
  """
  @spec call(name(), name(), [term()], [option()]) :: result()
  def call(module, function, args \\ [], options \\ [])
      when is_name(module) and is_name(function) and is_list(args) and is_list(options) do
    known!(options, [:kwargs, :timeout, :binary, :return, :owner, :key, :idempotent, :trace])

    on(
      options,
      [:kwargs, :timeout],
      &:py.call(module, function, args, kwargs(&1), timeout(&1)),
      &:py.call(&1, module, function, args, &2)
    )
    |> result()
  end

  @doc """
  The same, returning the value or raising `Sidewinder.Error`.

      iex> Sidewinder.call!(:operator, :floordiv, [7, 2])
      3
      iex> Sidewinder.call!(:operator, :getitem, [[], 0])
      ** (Sidewinder.Error) IndexError: list index out of range
  """
  @spec call!(name(), name(), [term()], [option()]) :: term()
  def call!(module, function, args \\ [], options \\ []) do
    bang(call(module, function, args, options))
  end

  @doc """
  Calls a function and drops its result; `:ok` says that the request is under way, nothing more.

      iex> Sidewinder.cast(:math, :sqrt, [2])
      :ok
  """
  @spec cast(name(), name(), [term()], [option()]) :: :ok | {:error, Error.t()}
  def cast(module, function, args \\ [], options \\ [])
      when is_name(module) and is_name(function) and is_list(args) and is_list(options) do
    known!(options, [:kwargs, :key, :trace])

    on(
      options,
      [:kwargs],
      &:py.cast(module, function, args, kwargs(&1)),
      &:py.cast(&1, module, function, args, &2)
    )
    |> result()
  end

  @doc """
  The value of a Python expression, in the calling process's own namespace. Local variables are a
  keyword list or a map. Options: `:target` and `:timeout`.

      iex> Sidewinder.eval("[n * n for n in range(limit)]", limit: 4)
      {:ok, [0, 1, 4, 9]}
      iex> Sidewinder.eval("{'none': None}.get('other')")
      {:ok, nil}
  """
  @spec eval(String.t(), keyword() | map(), [option()]) :: result()
  def eval(code, locals \\ [], options \\ []) when is_binary(code) do
    known!(options, [:timeout])

    locals = Map.new(locals)

    on(
      options,
      [:timeout],
      &:py.eval(code, locals, timeout(&1)),
      &:py.eval(&1, code, locals, &2)
    )
    |> result()
  end

  @doc """
  The same, returning the value or raising `Sidewinder.Error`.

      iex> Sidewinder.eval!("a + b", a: 1, b: 2)
      3
      iex> Sidewinder.eval!("a + b")
      ** (Sidewinder.Error) NameError: name 'a' is not defined
  """
  @spec eval!(String.t(), keyword() | map(), [option()]) :: term()
  def eval!(code, locals \\ [], options \\ []), do: bang(eval(code, locals, options))

  @doc """
  Runs Python statements in the calling process's own namespace. Options: `:target`, which is a node,
  and `:timeout`.

      iex> Sidewinder.exec("import math; area = lambda r: round(math.pi * r * r, 2)")
      :ok
      iex> Sidewinder.eval!("area(2)")
      12.57
  """
  @spec exec(String.t(), [option()]) :: :ok | {:error, Error.t()}
  def exec(code, options \\ []) when is_binary(code) do
    known!(options, [:timeout])

    case on(options, [], fn _ -> :py.exec(code) end, &:py.exec(&1, code, &2)) do
      {:ok, _none} -> :ok
      {:error, reason} -> {:error, Error.new(reason)}
    end
  end

  @doc """
  The same, raising `Sidewinder.Error`.

      iex> Sidewinder.exec!("raise LookupError('no such thing')")
      ** (Sidewinder.Error) LookupError: no such thing
  """
  @spec exec!(String.t(), [option()]) :: :ok
  def exec!(code, options \\ []), do: bang(exec(code, options))

  @doc """
  Begins a call and returns at once; `await/2` takes its result. The call is cancelled when the calling
  process ends.

      iex> calls = for n <- 1..3, do: Sidewinder.async(:math, :factorial, [n])
      iex> Enum.map(calls, &Sidewinder.await!/1)
      [1, 2, 6]
  """
  @spec async(name(), name(), [term()], [option()]) :: reference()
  def async(module, function, args \\ [], options \\ [])
      when is_name(module) and is_name(function) and is_list(args) and is_list(options) do
    known!(options, [:kwargs, :timeout, :binary, :return, :owner, :key, :idempotent, :trace])

    started =
      on(
        Keyword.put_new(options, :timeout, :infinity),
        [:kwargs, :timeout],
        &:py.spawn_call(module, function, args, kwargs(&1), timeout(&1)),
        &:py.spawn_call(&1, module, function, args, &2)
      )

    with {:error, reason} <- started do
      ref = make_ref()
      Kernel.send(self(), {:py_response, ref, {:error, reason}})
      ref
    end
  end

  @doc "The result of a call begun by `async/4`. After the timeout the call is cancelled."
  @spec await(reference(), timeout()) :: result()
  def await(ref, timeout \\ 30_000), do: result(:py.await(ref, timeout))

  @doc "The same, returning the value or raising `Sidewinder.Error`."
  @spec await!(reference(), timeout()) :: term()
  def await!(ref, timeout \\ 30_000), do: bang(await(ref, timeout))

  @doc """
  The items of a Python generator, plain or asynchronous, or of anything that can be iterated over, as a
  stream. The function is called when the stream is run, each time anew; the generator goes no further
  than `:demand` items (100) ahead of what is taken, and is closed when no more are. An exception in it
  raises `Sidewinder.Error` behind the items before it.

  Other options: `:target`, `:kwargs`, `:timeout` for the function to return its generator, `:batch`,
  `:binary`, `:key` and `:trace`. See `:py_stream`.

      iex> Sidewinder.stream(:itertools, :count, [1, 2]) |> Stream.map(&(&1 * &1)) |> Enum.take(4)
      [1, 9, 25, 49]
      iex> Sidewinder.stream(:shop, :counted, [3]) |> Enum.to_list()
      ** (Sidewinder.Error) LookupError: no more
  """
  @spec stream(name(), name(), [term()], keyword()) :: Enumerable.t()
  def stream(module, function, args \\ [], options \\ [])
      when is_name(module) and is_name(function) and is_list(args) and is_list(options) do
    known!(options, [:demand, :batch, :kwargs, :timeout, :binary, :key, :trace])

    Stream.resource(
      fn -> start_stream(module, function, args, Keyword.put_new(options, :demand, 100)) end,
      fn stream ->
        case result(:py_stream.next(stream)) do
          {:ok, item} -> {[item], stream}
          :done -> {:halt, stream}
          {:error, error} -> raise error
        end
      end,
      &:py_stream.cancel/1
    )
  end

  defp start_stream(module, function, args, options) do
    case Keyword.fetch(options, :target) do
      {:ok, target} -> :py.stream_start(target, module, function, args, map(options))
      :error -> :py.stream_start(module, function, args, map(options))
    end
    |> result()
    |> bang()
  end

  @doc """
  Makes a function callable from Python, as `erlang.call(name, …)`: with as many arguments as it has.

      iex> Sidewinder.register(:shout, fn text, mark -> String.upcase(text) <> mark end)
      :ok
      iex> Sidewinder.call(:erlang, :call, ["shout", "hello", "!"])
      {:ok, "HELLO!"}
      iex> Sidewinder.unregister(:shout)
      :ok
  """
  @spec register(name(), function()) :: :ok
  def register(name, function) when is_name(name) and is_function(function) do
    :py.register_function(name, &apply(function, &1))
  end

  @doc "Takes a function back; `:ok` also if it never was there."
  @spec unregister(name()) :: :ok
  def unregister(name) when is_name(name), do: :py.unregister_function(name)

  # The functions without a target find the way to the default node by themselves, and faster, but take
  # few options. Those with one take a map.
  defp on(options, simple, plain, targeted) do
    if Enum.all?(options, fn {key, _} -> key in simple end) do
      plain.(options)
    else
      with {:ok, target} <- target(options), do: targeted.(target, map(options))
    end
  end

  defp target(options) do
    case Keyword.fetch(options, :target) do
      {:ok, target} -> {:ok, target}
      :error -> :py_node.default(30_000)
    end
  end

  defp map(options) do
    options
    |> Keyword.delete(:target)
    |> Keyword.replace_lazy(:kwargs, &Map.new/1)
    |> Map.new()
  end

  defp kwargs(options), do: Map.new(Keyword.get(options, :kwargs, []))
  defp timeout(options), do: Keyword.get(options, :timeout, 30_000)

  defp known!(options, known) do
    _ = Keyword.validate!(options, [:target | known])
    :ok
  end

  defp result({:ok, :none}), do: {:ok, nil}
  defp result({:error, reason}), do: {:error, Error.new(reason)}
  defp result(other), do: other

  defp bang(:ok), do: :ok
  defp bang({:ok, value}), do: value
  defp bang({:error, error}), do: raise(error)
end
