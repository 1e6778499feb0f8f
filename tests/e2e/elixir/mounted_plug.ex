# What a router's `forward "/in%20ner", to: PyAsgiPlug` leaves of a path; all others go to the same plug as they are.
defmodule MountedPlug do
  def init(options), do: PyAsgiPlug.init(options)

  def call(%{path_info: ["in%20ner" | rest]} = conn, options),
    do: PyAsgiPlug.call(%{conn | script_name: ["in%20ner"], path_info: rest}, options)

  def call(conn, options), do: PyAsgiPlug.call(conn, options)
end
