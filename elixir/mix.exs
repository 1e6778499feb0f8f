defmodule Sidewinder.MixProject do
  use Mix.Project

  # Nothing is fetched. The Erlang application is where ERL_LIBS says, or in the checkout that this is
  # part of, after `make build`.
  if :code.lib_dir(:sidewinder) == {:error, :bad_name} do
    built = Path.expand("../_build/default/lib/sidewinder/ebin", __DIR__)

    Code.append_path(built) == true ||
      Mix.raise("no application sidewinder: run `make build`, or set ERL_LIBS to where it is")
  end

  def project do
    [
      app: :sidewinder_elixir,
      version: "0.1.0",
      elixir: "~> 1.14",
      description: "Python as a node of the cluster, from Elixir",
      start_permanent: Mix.env() == :prod,
      deps: []
    ]
  end

  def application do
    [extra_applications: [:sidewinder], mod: {Sidewinder.Application, []}]
  end
end
