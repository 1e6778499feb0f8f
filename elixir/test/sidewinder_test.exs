defmodule SidewinderTest do
  use ExUnit.Case, async: true

  alias Sidewinder.{Channel, Error}

  doctest Sidewinder
  doctest Sidewinder.Error
  doctest Sidewinder.Channel

  test "keyword arguments are a keyword list or a map" do
    assert Sidewinder.call!(:shop, :names, [], kwargs: [b: 1, a: nil]) == ["a", "b"]
    assert Sidewinder.call!(:shop, :names, [], kwargs: %{"b" => 1, a: 2}) == ["a", "b"]
  end

  test "nil is None on the way out and on the way back" do
    assert Sidewinder.eval!("x is None", x: nil)
    assert Sidewinder.call(:builtins, :print, [], kwargs: [end: ""]) == {:ok, nil}
  end

  @tag :local
  test "None inside a result is nil from the node that is started here" do
    assert Sidewinder.call!(:shop, :nothing) == %{"inside" => [nil], "kept" => :some_atom}
  end

  @tag :elsewhere
  test "None inside a result is what a node elsewhere was told" do
    assert Sidewinder.call!(:shop, :nothing) == %{"inside" => [:none], "kept" => :some_atom}
  end

  test "an exception has its class, its message and its traceback" do
    assert {:error, %Error{} = error} = Sidewinder.call(:json, :loads, ["{"])
    assert error.reason == :python
    assert error.class == "json.decoder.JSONDecodeError"
    assert error.message =~ "Expecting property name"
    assert error.traceback =~ "Traceback (most recent call last)"
    assert error.traceback =~ "decoder.py"
  end

  test "an exception can be rescued" do
    assert_raise Error, "KeyError: 'a'", fn ->
      Sidewinder.call!(:operator, :getitem, [%{}, "a"])
    end

    assert_raise Error, fn -> Sidewinder.await!(Sidewinder.async(:math, :sqrt, [-1])) end
  end

  test "a node that is not there is an error" do
    assert {:error, %Error{reason: {:down, _}, class: nil, message: message}} =
             Sidewinder.call(:math, :sqrt, [1], target: :"nobody@127.0.0.1")

    assert message =~ "no connection"
    ref = Sidewinder.async(:math, :sqrt, [1], target: :"nobody@127.0.0.1")
    assert {:error, %Error{reason: {:down, _}}} = Sidewinder.await(ref)
  end

  test "a call that takes too long is cancelled" do
    assert {:error, %Error{reason: :timeout}} =
             Sidewinder.eval("__import__('time').sleep(9)", [], timeout: 50)

    ref = Sidewinder.async(:time, :sleep, [9], timeout: 50)
    assert {:error, %Error{reason: :timeout}} = Sidewinder.await(ref)
    ref = Sidewinder.async(:time, :sleep, [9])
    assert {:error, %Error{reason: :timeout}} = Sidewinder.await(ref, 50)

    assert {:error, %Error{reason: :timeout}} =
             Sidewinder.exec("import time; time.sleep(9)", timeout: 50)
  end

  test "a target may be named" do
    {:ok, node} = :py_node.default(30_000)
    assert Sidewinder.call!(:math, :sqrt, [4], target: node) == 2.0
    assert Sidewinder.await!(Sidewinder.async(:math, :sqrt, [4], target: node)) == 2.0
    assert Sidewinder.call!(:shop, :names, [], target: node, kwargs: [a: 1]) == ["a"]
    assert Sidewinder.eval!("x", [x: 1], target: node) == 1
    assert Sidewinder.exec("pass", target: node) == :ok
    assert Sidewinder.cast(:math, :sqrt, [4], target: node) == :ok
    assert {:ok, channel} = Channel.new(target: node)
    assert Channel.close(channel) == :ok
  end

  test "binaries are what the call says" do
    assert Sidewinder.call!(:builtins, :repr, ["a"]) == "'a'"
    assert Sidewinder.call!(:builtins, :repr, ["a"], binary: :bytes) == "b'a'"
  end

  test "an option that is none is the caller's mistake" do
    assert_raise ArgumentError, fn -> Sidewinder.call(:math, :sqrt, [4], time_out: 1) end
    assert_raise ArgumentError, fn -> Sidewinder.eval("1", [], kwargs: []) end
    assert_raise ArgumentError, fn -> Channel.new(size: 1) end
  end

  test "what a process defined is its own" do
    assert Sidewinder.exec("mine = 1") == :ok

    Task.await(
      Task.async(fn -> assert {:error, %Error{class: "NameError"}} = Sidewinder.eval("mine") end)
    )

    assert Sidewinder.eval("mine") == {:ok, 1}
  end

  test "an Elixir function that raises is an exception in Python" do
    :ok = Sidewinder.register("fails", fn -> raise "so it is" end)

    assert Sidewinder.exec!("""
           import erlang
           try:
               erlang.call("fails")
           except erlang.ErlangError as error:
               text = str(error)
           """) == :ok

    assert Sidewinder.eval!("text") =~ "so it is"
  end

  test "a channel is full at its bound and closed when it is closed" do
    {:ok, channel} = Channel.new(max_size: 64)
    assert Channel.send(channel, String.duplicate("x", 100), 10) in [:ok, :busy]
    assert Channel.send(channel, String.duplicate("x", 100)) == :busy
    assert {:error, %Error{reason: :empty}} = Channel.try_receive(channel)
    assert {:error, %Error{reason: :timeout}} = Channel.recv(channel, 10)
    assert_raise Error, "no answer in time", fn -> Enum.take(Channel.stream(channel, 10), 1) end
    assert Channel.info(channel).closed == false
    assert Channel.close(channel) == :ok
    assert {:error, %Error{reason: :closed}} = Channel.send(channel, 1)
    assert Enum.to_list(Channel.stream(channel)) == []
  end

  test "a result may stay in Python, as a reference that goes back in" do
    {:ok, counter} = Sidewinder.call(:collections, :Counter, ["hello"], return: :ref)
    assert :py.call_method(counter, :most_common, [1]) == {:ok, [{"l", 2}]}
    assert Sidewinder.call!(:operator, :getitem, [counter, "o"]) == 1
    assert :py.release(counter) == :ok
    assert {:error, %Error{}} = Sidewinder.call(:operator, :getitem, [counter, "o"])
  end

  test "a context is a target" do
    {:ok, context} = :py.context()
    assert Sidewinder.exec("shared = 2", target: context) == :ok
    assert Sidewinder.eval!("shared + 1", [], target: context) == 3
  end

  test "a stream's generator is closed when no more is taken" do
    log = Sidewinder.call!(:shop, :new_log)
    items = Sidewinder.stream(:shop, :noted, [log], demand: 1)
    assert Enum.take(items, 2) == [0, 1]
    assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
    assert eventually(fn -> Sidewinder.call!(:shop, :noted_in, [log]) == ["closed"] end)
    assert Enum.take(items, 1) == [0]
  end

  test "a stream has the items before an exception" do
    parent = self()

    assert_raise Error, "LookupError: no more", fn ->
      Sidewinder.stream(:shop, :counted, [3]) |> Enum.each(&send(parent, {:item, &1}))
    end

    for n <- 0..2, do: assert_received({:item, ^n})
  end

  test "a stream of a function that is not there raises when it is run" do
    stream = Sidewinder.stream(:shop, :no_such)
    assert_raise Error, ~r/AttributeError/, fn -> Enum.to_list(stream) end
  end

  test "a long stream comes whole, on a named node too, and leaves nothing behind" do
    {:ok, node} = :py_node.default(30_000)
    items = Sidewinder.stream(:builtins, :range, [5_000], target: node, batch: 64)
    assert Enum.sum(items) == div(4999 * 5000, 2)
    assert Process.info(self(), :message_queue_len) == {:message_queue_len, 0}
  end

  test "arrays are used as they are" do
    array = :py_data.from_list(:int16, [[1, 2], [3, 4]])
    assert Sidewinder.call!(:operator, :getitem, [array, 2]) == [2, 2]
  end

  defp eventually(condition, tries \\ 500) do
    cond do
      condition.() -> true
      tries == 0 -> false
      true -> Process.sleep(10) && eventually(condition, tries - 1)
    end
  end
end
