defmodule Sidewinder.Error do
  @moduledoc """
  What went wrong with a call: an exception that Python raised, or a reason why the call had no
  result.

    * `:reason` - `:python` for an exception; otherwise what the Erlang application says, such as
      `:timeout`, `:overloaded`, `{:down, why}` or `{:not_allowed, {module, function}}`
    * `:class` - the name of the exception's class, `"ValueError"`; `nil` without one
    * `:message` - what the exception says, or what the reason means
    * `:traceback` - Python's own; `nil` without an exception

  It is both what `{:error, error}` holds and what the functions with a `!` raise:

      iex> {:error, error} = Sidewinder.call(:operator, :getitem, [[], 0])
      iex> {error.reason, error.class, error.message}
      {:python, "IndexError", "list index out of range"}
      iex> Exception.message(error)
      "IndexError: list index out of range"
  """

  @type t :: %__MODULE__{
          reason: term(),
          class: String.t() | nil,
          message: String.t(),
          traceback: String.t() | nil
        }

  defexception [:reason, :class, :message, :traceback]

  @doc "The error of a reason as the Erlang application tells it."
  @spec new(term()) :: t()
  def new({:python, class, message, traceback}) do
    %__MODULE__{reason: :python, class: class, message: message, traceback: traceback}
  end

  def new(reason), do: %__MODULE__{reason: reason, message: describe(reason)}

  @impl true
  def message(%__MODULE__{class: nil, message: message}), do: message
  def message(%__MODULE__{class: class, message: ""}), do: class
  def message(%__MODULE__{class: class, message: message}), do: "#{class}: #{message}"

  defp describe(:timeout), do: "no answer in time"
  defp describe(:overloaded), do: "too many requests are under way"
  defp describe(:cancelled), do: "the call was cancelled"
  defp describe(:draining), do: "the node is about to stop"
  defp describe(:closed), do: "the channel is closed"
  defp describe({:down, why}), do: "no connection to the node: #{inspect(why)}"
  defp describe({:worker_died, why}), do: "the process that ran the call ended: #{inspect(why)}"

  defp describe({:not_allowed, {module, function}}),
    do: "the node does not allow #{module}.#{function}"

  defp describe(reason), do: inspect(reason)
end
