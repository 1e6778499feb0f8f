defmodule Sidewinder.Channel do
  @moduledoc """
  Channels between Elixir and Python, with a bound on what may wait in each direction.

  A channel is a process of the node, and its pid is what Python gets: `Channel(pid)` of
  `erlang.channel` there. The functions are those of `:py_channel`, with results as Elixir has them.

      iex> {:ok, channel} = Sidewinder.Channel.new()
      iex> call = Sidewinder.async(:shop, :doubled, [channel])
      iex> for n <- 1..3, do: :ok = Sidewinder.Channel.send(channel, n)
      iex> Sidewinder.Channel.stream(channel) |> Enum.take(3)
      [2, 4, 6]
      iex> Sidewinder.Channel.close(channel)
      :ok
      iex> Sidewinder.await(call)
      {:ok, "done"}
  """

  @type t :: pid()
  @type option ::
          {:target, node()} | {:max_size, pos_integer() | :infinity} | {:owner, pid() | :none}

  @doc """
  Makes a channel, on the configured node or on `:target`. `:max_size` is how many bytes may wait in
  each direction; the channel ends with its `:owner`, which is the calling process unless given.
  """
  @spec new([option()]) :: {:ok, t()} | {:error, Sidewinder.Error.t()}
  def new(options \\ []) do
    {target, options} = Keyword.pop(options, :target)
    options = options |> Keyword.validate!([:max_size, :owner]) |> Map.new()
    made = if target, do: :py_channel.new(target, options), else: :py_channel.new(options)
    result(made)
  end

  @doc """
  Sends a message. `:busy` says that there was no room, with a timeout: not within so many
  milliseconds. Nothing was sent then.
  """
  @spec send(t(), term(), timeout()) :: :ok | :busy | {:error, Sidewinder.Error.t()}
  def send(channel, message, timeout \\ 0)
  def send(channel, message, 0), do: result(:py_channel.send(channel, message))
  def send(channel, message, timeout), do: result(:py_channel.send(channel, message, timeout))

  @doc "The next message that Python sent."
  @spec recv(t(), timeout()) :: {:ok, term()} | {:error, Sidewinder.Error.t()}
  def recv(channel, timeout \\ :infinity), do: result(:py_channel.recv(channel, timeout))

  @doc "The next message, if there is one; otherwise the error's reason is `:empty`."
  @spec try_receive(t()) :: {:ok, term()} | {:error, Sidewinder.Error.t()}
  def try_receive(channel), do: result(:py_channel.try_receive(channel))

  @doc """
  What Python sends, as a stream that ends when the channel is closed and empty. Waiting longer than
  `timeout` for one message raises `Sidewinder.Error`. The channel is left open.
  """
  @spec stream(t(), timeout()) :: Enumerable.t()
  def stream(channel, timeout \\ :infinity) do
    Stream.repeatedly(fn -> :py_channel.recv(channel, timeout) end)
    |> Stream.transform(nil, fn
      {:ok, message}, _ -> {[message], nil}
      {:error, :closed}, _ -> {:halt, nil}
      {:error, reason}, _ -> raise Sidewinder.Error.new(reason)
    end)
  end

  @doc "Ends the channel behind what was sent. As often as you like."
  @spec close(t()) :: :ok
  def close(channel), do: :py_channel.close(channel)

  @doc "Bytes that wait, the bound, whether it is closed, and counts of messages."
  @spec info(t()) :: map()
  def info(channel), do: :py_channel.info(channel)

  defp result({:error, reason}), do: {:error, Sidewinder.Error.new(reason)}
  defp result(other), do: other
end
