defmodule Sidewinder.Application do
  @moduledoc false
  use Application

  # `None` is to be `nil` wherever it stands. A node that runs elsewhere is told so with `--none nil`;
  # the one that is started when none is configured is told here.
  @impl true
  def start(_type, _args) do
    arguments = Application.get_env(:sidewinder, :node_args, [])

    unless "--none" in arguments do
      Application.put_env(:sidewinder, :node_args, arguments ++ ["--none", "nil"])
    end

    Supervisor.start_link([], strategy: :one_for_one)
  end
end
