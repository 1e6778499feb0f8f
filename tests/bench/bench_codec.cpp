// The term codec: decoding to Python objects and encoding them, against two baselines in the same
// run.
//
//   ei          ei_decode_* straight into the same Python objects, ei_x_encode_* straight from them
//   msgspec,    JSON and MessagePack of comparable data, per byte of their own format; left out,
//   with a orjson      word, where Python cannot import them (PYTHONPATH is heeded)
//
// Each figure is processor time, the median of batches that take turns, so that a noisy machine
// disturbs all alike. With an argument, only the case of that name runs.
#include <ei.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "tests/cpp/python_home.hpp"

namespace {

using etf::Bytes;

// Looked up once: what is measured is the codec, not the way to it.
term::Codec& codec() {
  static term::Codec& the_one = python_home::codec();
  return the_one;
}

void require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "bench_codec: %s\n", what);
  std::exit(1);
}

// Atoms for the baseline, interned as a binding to ei would: by a dict from their text.
PyObject* interned(const char* name) {
  static PyObject* atoms = py::check(PyDict_New()).release();
  const py::Ref text =
      py::check(PyUnicode_DecodeUTF8(name, static_cast<Py_ssize_t>(strlen(name)), nullptr));
  PyObject* known = PyDict_GetItemWithError(atoms, text.get());
  if (known != nullptr) return py::Ref::borrow(known).release();
  py::Ref atom = codec().atom(name);
  py::check_status(PyDict_SetItem(atoms, text.get(), atom.get()));
  return atom.release();
}

// ei into Python. It reads only what our own reader has checked first, once and outside the clock.
PyObject* ei_read(const char* bytes, int* index) {
  int type = 0;
  int size = 0;
  ei_get_type(bytes, index, &type, &size);
  switch (type) {
    case ERL_SMALL_INTEGER_EXT:
    case ERL_INTEGER_EXT:
    case ERL_SMALL_BIG_EXT: {
      long long value = 0;
      ei_decode_longlong(bytes, index, &value);
      return PyLong_FromLongLong(value);
    }
    case ERL_FLOAT_EXT:
    case NEW_FLOAT_EXT: {
      double value = 0;
      ei_decode_double(bytes, index, &value);
      return PyFloat_FromDouble(value);
    }
    case ERL_ATOM_EXT:
    case ERL_SMALL_ATOM_UTF8_EXT: {
      char name[MAXATOMLEN_UTF8];
      ei_decode_atom_as(bytes, index, name, sizeof name, ERLANG_UTF8, nullptr, nullptr);
      const std::string_view text(name);
      if (text == "true" || text == "false")
        return py::Ref::borrow(text == "true" ? Py_True : Py_False).release();
      if (text == "none" || text == "nil" || text == "undefined")
        return py::Ref::borrow(Py_None).release();
      return interned(name);
    }
    case ERL_BINARY_EXT: {
      const char* data = nullptr;
      unsigned int offset = 0;
      std::size_t bits = 0;
      ei_decode_bitstring(bytes, index, &data, &offset, &bits);  // the one that does not copy
      PyObject* text = PyUnicode_DecodeUTF8(data, static_cast<Py_ssize_t>(bits / 8), nullptr);
      if (text != nullptr) return text;
      PyErr_Clear();
      return PyBytes_FromStringAndSize(data, static_cast<Py_ssize_t>(bits / 8));
    }
    case ERL_REFERENCE_EXT:
    case ERL_NEW_REFERENCE_EXT:
    case ERL_NEWER_REFERENCE_EXT: {
      erlang_ref reference;
      ei_decode_ref(bytes, index, &reference);
      char raw[512];
      int length = 0;
      ei_encode_ref(raw, &length, &reference);
      etf::RefView view;
      view.raw = {reinterpret_cast<std::uint8_t*>(raw), static_cast<std::size_t>(length)};
      return codec().reference(view).release();
    }
    case ERL_PID_EXT:
    case ERL_NEW_PID_EXT: {
      erlang_pid pid;
      ei_decode_pid(bytes, index, &pid);
      char raw[512];
      int length = 0;
      ei_encode_pid(raw, &length, &pid);
      etf::PidView view;
      view.raw = {reinterpret_cast<std::uint8_t*>(raw), static_cast<std::size_t>(length)};
      return codec().pid(view).release();
    }
    case ERL_SMALL_TUPLE_EXT:
    case ERL_LARGE_TUPLE_EXT: {
      int arity = 0;
      ei_decode_tuple_header(bytes, index, &arity);
      PyObject* tuple = PyTuple_New(arity);
      for (int i = 0; i < arity; ++i) PyTuple_SET_ITEM(tuple, i, ei_read(bytes, index));
      return tuple;
    }
    case ERL_NIL_EXT:
    case ERL_LIST_EXT: {
      int count = 0;
      ei_decode_list_header(bytes, index, &count);
      PyObject* list = PyList_New(count);
      for (int i = 0; i < count; ++i) PyList_SET_ITEM(list, i, ei_read(bytes, index));
      if (count > 0) ei_decode_list_header(bytes, index, &count);
      return list;
    }
    case ERL_MAP_EXT: {
      int pairs = 0;
      ei_decode_map_header(bytes, index, &pairs);
      PyObject* dict = PyDict_New();
      for (int i = 0; i < pairs; ++i) {
        const py::Ref key = py::Ref::steal(ei_read(bytes, index));
        const py::Ref value = py::Ref::steal(ei_read(bytes, index));
        PyDict_SetItem(dict, key.get(), value.get());
      }
      return dict;
    }
    default:
      require(false, "a term that the baseline does not know");
      return nullptr;
  }
}

void ei_write(ei_x_buff& out, PyObject* object) {
  if (PyUnicode_Check(object)) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(object, &size);
    if (codec().is_atom(object)) {
      ei_x_encode_atom_len_as(&out, text, static_cast<int>(size), ERLANG_UTF8, ERLANG_UTF8);
    } else {
      ei_x_encode_binary(&out, text, static_cast<int>(size));
    }
  } else if (PyBool_Check(object)) {
    ei_x_encode_boolean(&out, object == Py_True);
  } else if (PyLong_Check(object)) {
    ei_x_encode_longlong(&out, PyLong_AsLongLong(object));
  } else if (PyFloat_Check(object)) {
    ei_x_encode_double(&out, PyFloat_AS_DOUBLE(object));
  } else if (object == Py_None) {
    ei_x_encode_atom(&out, "none");
  } else if (PyBytes_Check(object)) {
    ei_x_encode_binary(&out, PyBytes_AS_STRING(object), static_cast<int>(PyBytes_GET_SIZE(object)));
  } else if (PyTuple_Check(object)) {
    ei_x_encode_tuple_header(&out, PyTuple_GET_SIZE(object));
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); ++i)
      ei_write(out, PyTuple_GET_ITEM(object, i));
  } else if (PyList_Check(object)) {
    ei_x_encode_list_header(&out, PyList_GET_SIZE(object));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(object); ++i)
      ei_write(out, PyList_GET_ITEM(object, i));
    if (PyList_GET_SIZE(object) > 0) ei_x_encode_empty_list(&out);
  } else if (PyDict_Check(object)) {
    ei_x_encode_map_header(&out, PyDict_GET_SIZE(object));
    PyObject* key = nullptr;
    PyObject* value = nullptr;
    for (Py_ssize_t at = 0; PyDict_Next(object, &at, &key, &value) != 0;) {
      ei_write(out, key);
      ei_write(out, value);
    }
  } else if (etf::Ref reference; codec().as_reference(object, reference)) {
    erlang_ref raw{};
    reference.node.copy(raw.node, sizeof raw.node - 1);
    raw.len = reference.count;
    raw.creation = reference.creation;
    for (std::size_t i = 0; i < reference.count; ++i) raw.n[i] = reference.words[i];
    ei_x_encode_ref(&out, &raw);
  } else if (etf::Pid pid; codec().as_pid(object, pid)) {
    erlang_pid raw{};
    pid.node.copy(raw.node, sizeof raw.node - 1);
    raw.num = pid.id;
    raw.serial = pid.serial;
    raw.creation = pid.creation;
    ei_x_encode_pid(&out, &raw);
  } else {
    require(false, "an object that the baseline does not know");
  }
}

struct Contender {
  std::string name;
  std::function<void()> once;
  std::size_t bytes;
  std::vector<double> nanoseconds;

  double median() {
    std::sort(nanoseconds.begin(), nanoseconds.end());
    return nanoseconds[nanoseconds.size() / 2];
  }
};

// This thread's processor time: what else the machine does is not ours to count.
double cpu_nanoseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

// Lets them take turns; each turn lasts about ten milliseconds.
void race(std::vector<Contender>& contenders) {
  constexpr int kTurns = 31;
  for (int turn = 0; turn < kTurns; ++turn) {
    for (Contender& contender : contenders) {
      const double begin = cpu_nanoseconds();
      double spent = 0;
      long rounds = 0;
      while (spent < 10e6) {
        for (int i = 0; i < 20; ++i) contender.once();
        rounds += 20;
        spent = cpu_nanoseconds() - begin;
      }
      contender.nanoseconds.push_back(spent / static_cast<double>(rounds));
    }
  }
}

etf::Buffer encoded(PyObject* object) {
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  codec().encode(object, writer);
  return buffer;
}

std::string_view only;  // the one case that was asked for, if one was

void against_ei(const char* name, const char* expression) {
  if (!only.empty() && only != name) return;
  const py::Ref object = python_home::evaluate(expression);
  const etf::Buffer bytes = encoded(object.get());
  const char* data = reinterpret_cast<const char*>(bytes.data());
  int index = 0;
  const py::Ref theirs = py::check(ei_read(data, &index));
  require(python_home::equal(theirs.get(), object.get()), "ei built another object");
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  ei_x_buff out;
  ei_x_new(&out);

  std::vector<Contender> decoders{{"ours",
                                   [&] {
                                     etf::Reader reader(bytes.bytes());
                                     require(codec().decode(reader).ok(), "not decoded");
                                   },
                                   bytes.size(),
                                   {}},
                                  {"ei",
                                   [&] {
                                     int at = 0;
                                     Py_DECREF(ei_read(data, &at));
                                   },
                                   bytes.size(),
                                   {}}};
  std::vector<Contender> encoders{{"ours",
                                   [&] {
                                     buffer.clear();
                                     codec().encode(object.get(), writer);
                                   },
                                   bytes.size(),
                                   {}},
                                  {"ei",
                                   [&] {
                                     out.index = 0;
                                     ei_write(out, object.get());
                                   },
                                   bytes.size(),
                                   {}}};
  race(decoders);
  race(encoders);
  ei_x_free(&out);
  const auto print = [&](const char* verb, std::vector<Contender>& both) {
    std::printf("%-6s %-10s %6zu bytes   ours %9.0f ns   ei %9.0f ns   %.2f x\n", verb, name,
                bytes.size(), both[0].median(), both[1].median(),
                both[1].median() / both[0].median());
  };
  print("decode", decoders);
  print("encode", encoders);
}

// A function of a module that may not be there.
py::Ref find(const char* module, const char* name) {
  try {
    const py::Ref found = py::import(module);
    return py::attribute(found.get(), name);
  } catch (const py::Error&) {
    return {};
  }
}

void against_json(const char* name, const char* expression) {
  if (!only.empty() && only != name) return;
  const py::Ref object = python_home::evaluate(expression);
  const etf::Buffer bytes = encoded(object.get());
  etf::Buffer buffer;
  etf::Writer writer(buffer);
  std::vector<Contender> decoders{{"ours",
                                   [&] {
                                     etf::Reader reader(bytes.bytes());
                                     require(codec().decode(reader).ok(), "not decoded");
                                   },
                                   bytes.size(),
                                   {}}};
  std::vector<Contender> encoders{{"ours",
                                   [&] {
                                     buffer.clear();
                                     codec().encode(object.get(), writer);
                                   },
                                   bytes.size(),
                                   {}}};
  struct Library {
    const char* label;
    const char* module;
    const char* encode;
    const char* decode;
  };
  std::vector<py::Ref> kept;
  for (const Library& library : {Library{"msgspec.msgpack", "msgspec.msgpack", "encode", "decode"},
                                 Library{"msgspec.json", "msgspec.json", "encode", "decode"},
                                 Library{"orjson", "orjson", "dumps", "loads"}}) {
    py::Ref encode = find(library.module, library.encode);
    py::Ref decode = find(library.module, library.decode);
    if (!encode || !decode) {
      std::printf("       %-10s %s is not installed: not compared\n", name, library.module);
      continue;
    }
    kept.push_back(py::check(PyObject_CallOneArg(encode.get(), object.get())));
    PyObject* text = kept.back().get();
    const auto size = static_cast<std::size_t>(PyBytes_GET_SIZE(text));
    decoders.push_back(
        {library.label,
         [decode = decode.get(), text] { Py_DECREF(PyObject_CallOneArg(decode, text)); },
         size,
         {}});
    encoders.push_back({library.label,
                        [encode = encode.get(), object = object.get()] {
                          Py_DECREF(PyObject_CallOneArg(encode, object));
                        },
                        size,
                        {}});
    kept.push_back(std::move(encode));
    kept.push_back(std::move(decode));
  }
  const auto print = [&](const char* verb, std::vector<Contender>& all) {
    race(all);
    const double ours = all[0].median();
    for (Contender& each : all) {
      const double per_byte = each.median() / static_cast<double>(each.bytes);
      std::printf(
          "%-6s %-10s %-15s %7zu bytes %9.0f ns %6.3f ns/byte   per byte %.2f x   in all %.2f x\n",
          verb, name, each.name.c_str(), each.bytes, each.median(), per_byte,
          per_byte / (ours / static_cast<double>(bytes.size())), each.median() / ours);
    }
  };
  print("decode", decoders);
  print("encode", encoders);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 1) only = argv[1];
  codec();
  if (const char* path = std::getenv("PYTHONPATH")) {
    const std::string script =
        "import sys; sys.path[1:1] = r'''" + std::string(path) + "'''.split(':')";
    require(PyRun_SimpleString(script.c_str()) == 0, "PYTHONPATH");
  }
  against_ei("sqrt", "(Atom('call'), Atom('math'), Atom('sqrt'), [2.0])");
  against_ei("call",
             "(Atom('call'), Ref('node@host', 9, (1, 2, 3)), 'mod', 'fun',"
             " [1, 2.0, 'abc', {Atom('a'): 1}])");
  against_ei("batch",
             "(Atom('$py_batch'), [(Atom('call'), i + 1000, Atom('math'), Atom('sqrt'), [float(i)])"
             " for i in range(64)])");
  against_ei(
      "rows",
      "(Atom('ok'), [{'id': i, 'name': f'user number {i}', 'active': i % 2 == 0, 'score': i / 7,"
      " Atom('tags'): ['a', 'b', None]} for i in range(50)])");
  against_ei("integers", "list(range(-500, 500))");
  against_json(
      "document",
      "{'users': [{'id': i * 7919, 'name': f'User Number {i}', 'email': f'user{i}@example.org',"
      " 'active': i % 3 == 0, 'score': i / 7, 'tags': ['alpha', 'beta', 'gamma'],"
      " 'address': {'street': f'{i} High Street', 'city': 'Springfield', 'zip': 10000 + i}}"
      " for i in range(100)], 'total': 100, 'next': None}");
  return 0;
}
