# What examples/asgi/py_asgi_plug.ex uses of Plug, as its documentation describes it, over a server of sixty lines: Plug itself
# is in no package that a test can fetch. One request a connection; a body has a content-length or is not there.
defmodule Plug do
  @callback init(term) :: term
  @callback call(struct, term) :: struct
end

defmodule Plug.Conn do
  defstruct adapter: nil,
            host: "www.example.com",
            method: "GET",
            path_info: [],
            port: 0,
            query_string: "",
            remote_ip: nil,
            req_headers: [],
            request_path: "",
            resp_headers: [{"cache-control", "max-age=0, private, must-revalidate"}],
            scheme: :http,
            script_name: [],
            state: :unset,
            status: nil

  # At most `length` bytes; `adapter` is the socket and what of the body is still to come, as only the latest conn knows.
  def read_body(%{adapter: {socket, left}} = conn, options) do
    wanted = min(left, Keyword.get(options, :length, 8_000_000))

    case wanted > 0 && :gen_tcp.recv(socket, wanted, 15_000) do
      false -> {:ok, "", conn}
      {:ok, data} when wanted == left -> {:ok, data, %{conn | adapter: {socket, 0}}}
      {:ok, data} -> {:more, data, %{conn | adapter: {socket, left - wanted}}}
      {:error, reason} -> {:error, reason}
    end
  end

  def send_resp(%{state: :unset} = conn, status, body) do
    _ = head(conn, status, [{"content-length", Integer.to_string(byte_size(body))}], body)
    %{conn | state: :sent, status: status}
  end

  def send_chunked(%{state: :unset} = conn, status) do
    _ = head(conn, status, [{"transfer-encoding", "chunked"}], "")
    %{conn | state: :chunked, status: status}
  end

  # An empty one would end the answer, and does nothing.
  def chunk(%{state: :chunked} = conn, ""), do: {:ok, conn}

  def chunk(%{state: :chunked, adapter: {socket, _}} = conn, data) do
    case :gen_tcp.send(socket, [Integer.to_string(byte_size(data), 16), "\r\n", data, "\r\n"]) do
      :ok -> {:ok, conn}
      {:error, reason} -> {:error, reason}
    end
  end

  # As servers below Plug do it, it is theirs to say how long a body is.
  defp head(%{adapter: {socket, _}} = conn, status, framing, body) do
    own = if status in [204, 304], do: [], else: framing
    others = for {name, _} = header <- conn.resp_headers, name != "content-length", do: header
    true = Enum.all?(others, fn {name, _} -> name == String.downcase(name) end)
    lines = for {name, value} <- own ++ others, do: [name, ": ", value, "\r\n"]
    :gen_tcp.send(socket, ["HTTP/1.1 #{status} \r\n", lines, "\r\n", body])
  end
end

defmodule PlugStandIn do
  def start(plug, options) do
    asker = self()

    spawn(fn ->
      {:ok, listener} = :gen_tcp.listen(0, [:binary, ip: {127, 0, 0, 1}, active: false, reuseaddr: true, backlog: 64])
      {:ok, port} = :inet.port(listener)
      send(asker, {__MODULE__, port})
      accept(listener, plug, plug.init(options))
    end)

    receive do
      {__MODULE__, port} -> port
    end
  end

  defp accept(listener, plug, options) do
    {:ok, socket} = :gen_tcp.accept(listener)

    server =
      spawn(fn ->
        receive do
          :go -> serve(socket, plug, options)
        end
      end)

    :ok = :gen_tcp.controlling_process(socket, server)
    send(server, :go)
    accept(listener, plug, options)
  end

  defp serve(socket, plug, options) do
    :ok = :inet.setopts(socket, packet: :http_bin)
    {:ok, {:http_request, method, {:abs_path, target}, _}} = :gen_tcp.recv(socket, 0, 10_000)
    headers = headers(socket)
    :ok = :inet.setopts(socket, packet: :raw)
    {:ok, {remote, _}} = :inet.peername(socket)
    asked = URI.parse("http://" <> (List.keyfind(headers, "host", 0) |> elem(1)))
    [path | query] = String.split(target, "?", parts: 2)

    conn = %Plug.Conn{
      adapter: {socket, String.to_integer(List.keyfind(headers, "content-length", 0, {"", "0"}) |> elem(1))},
      host: asked.host,
      method: to_string(method),
      path_info: for(part <- String.split(path, "/"), part != "", do: part),
      port: asked.port,
      query_string: Enum.join(query),
      remote_ip: remote,
      req_headers: headers,
      request_path: path
    }

    case plug.call(conn, options) do
      %{state: :chunked} -> :gen_tcp.send(socket, "0\r\n\r\n")
      %{state: :sent} -> :ok
    end

    :gen_tcp.close(socket)
  end

  defp headers(socket) do
    case :gen_tcp.recv(socket, 0, 10_000) do
      {:ok, {:http_header, _, name, _, value}} -> [{String.downcase(to_string(name)), value} | headers(socket)]
      {:ok, :http_eoh} -> []
    end
  end
end
