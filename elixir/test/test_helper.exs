# SIDEWINDER_NODE names a node that runs already; otherwise one is started, as it is for everybody.
case System.fetch_env("SIDEWINDER_NODE") do
  {:ok, name} ->
    Application.put_env(:sidewinder, :default_node, String.to_atom(name))
    ExUnit.start(exclude: [:local])

  :error ->
    Application.put_env(:sidewinder, :python_path, [Path.expand("python", __DIR__)])
    ExUnit.start(exclude: [:elsewhere])
end
