# A plug that hands requests to a Python application.
#
#     forward "/api", to: PyAsgiPlug, init_opts: [target: :web, app: "shop:app"]
#
# The client's going is noticed where the server ends the request's process, or at the next chunk. While a part of the
# body is waited for, nothing of the answer goes out: read_body/2 has no way to say that nothing came yet.
defmodule PyAsgiPlug do
  @behaviour Plug
  import Plug.Conn

  @impl true
  def init(options), do: %{target: options[:target], app: options[:app], options: Map.new(options[:options] || [])}

  @impl true
  def call(conn, %{target: target, app: app, options: options}) do
    request = %{
      method: conn.method,
      path: conn.request_path,
      query_string: conn.query_string,
      headers: conn.req_headers,
      scheme: Atom.to_string(conn.scheme),
      client: {conn.remote_ip, 0},
      server: {conn.host, conn.port},
      root_path: Enum.map_join(conn.script_name, &("/" <> &1)),
      body: {:stream, next_part(conn)}
    }

    case :py_asgi.request(target, app, request, options) do
      {:ok, status, headers, {:stream, stream}} ->
        conn |> put_headers(headers) |> send_chunked(status) |> pass_on(:py_asgi.read(stream))

      {:ok, status, headers, body} ->
        conn |> put_headers(headers) |> send_resp(status, body)

      {:error, reason} ->
        send_resp(conn, :py_asgi.status_of(reason), "")
    end
  end

  defp next_part(conn) do
    fn _ms ->
      case read_body(conn, length: 65_536) do
        {:ok, data, _conn} -> {:done, data}
        {:more, data, conn} -> {:more, data, next_part(conn)}
        {:error, reason} -> {:error, reason}
      end
    end
  end

  # Duplicates are kept; names are in lower case, as Plug wants them.
  defp put_headers(conn, headers) do
    %{conn | resp_headers: for({name, value} <- headers, do: {String.downcase(name), value})}
  end

  defp pass_on(conn, {:more, data, stream}) do
    case chunk(conn, data) do
      {:ok, conn} ->
        pass_on(conn, :py_asgi.read(stream))

      {:error, _} ->
        :py_asgi.close(stream)
        conn
    end
  end

  defp pass_on(conn, {:done, ""}), do: conn

  defp pass_on(conn, {:done, data}) do
    {:ok, conn} = chunk(conn, data)
    conn
  end

  # The client must not take it for the whole.
  defp pass_on(_conn, {:error, reason}), do: exit({:shutdown, reason})
end
