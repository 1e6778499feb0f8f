#include "cnode/py/error.hpp"

namespace py {
namespace {

// str(object) or what `fallback` says, with no exception left behind.
std::string safe_text(PyObject* object, const char* fallback) noexcept {
  const Ref text = Ref::steal(object == nullptr ? nullptr : PyObject_Str(object));
  if (!text) {
    PyErr_Clear();
    return fallback;
  }
  try {
    return text_of(text.get());
  } catch (const Error&) {
    return fallback;
  }
}

Ref attribute_or_null(PyObject* object, const char* name) noexcept {
  Ref found = Ref::steal(PyObject_GetAttrString(object, name));
  if (!found) PyErr_Clear();
  return found;
}

std::string type_name(PyObject* exception) noexcept {
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(exception));
  const std::string name = safe_text(attribute_or_null(type, "__qualname__").get(), "Exception");
  const std::string module = safe_text(attribute_or_null(type, "__module__").get(), "builtins");
  return module == "builtins" ? name : module + "." + name;
}

std::string traceback_of(PyObject* exception) noexcept {
  try {
    const Ref module = import("traceback");
    const Ref lines = check(PyObject_CallMethod(module.get(), "format_exception", "O", exception));
    const Ref nothing = check(PyUnicode_FromStringAndSize("", 0));
    return text_of(check(PyUnicode_Join(nothing.get(), lines.get())).get());
  } catch (const Error&) {
    return {};
  }
}

}  // namespace

Error Error::fetch() {
#if PY_VERSION_HEX >= 0x030C0000
  PyObject* exception = PyErr_GetRaisedException();
#else
  PyObject* type = nullptr;
  PyObject* exception = nullptr;
  PyObject* traceback = nullptr;
  PyErr_Fetch(&type, &exception, &traceback);
  if (type != nullptr) {
    PyErr_NormalizeException(&type, &exception, &traceback);
    if (traceback != nullptr && exception != nullptr)
      PyException_SetTraceback(exception, traceback);
    Py_DECREF(type);
    Py_XDECREF(traceback);
  }
#endif
  assert(exception != nullptr && "fetch() is called after a failure that set an exception");
  return Error(Ref::steal(exception));
}

void Error::restore() && {
#if PY_VERSION_HEX >= 0x030C0000
  PyErr_SetRaisedException(exception_.release());
#else
  PyObject* exception = exception_.release();
  auto* type = reinterpret_cast<PyObject*>(Py_TYPE(exception));
  Py_INCREF(type);
  PyErr_Restore(type, exception, PyException_GetTraceback(exception));
#endif
}

Description Error::describe() const noexcept {
  PyObject* exception = exception_.get();
  return {type_name(exception), safe_text(exception, "<no text: its __str__ failed>"),
          traceback_of(exception)};
}

void throw_fetched() { throw Error::fetch(); }

void raise(PyObject* type, const std::string& message) {
  const Ref text = Ref::steal(
      PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "replace"));
  if (text) PyErr_SetObject(type, text.get());
  throw_fetched();
}

Ref import(const char* module) { return check(PyImport_ImportModule(module)); }

Ref attribute(PyObject* object, const char* name) {
  return check(PyObject_GetAttrString(object, name));
}

std::string text_of(PyObject* str) {
  const Ref bytes = check(PyUnicode_AsEncodedString(str, "utf-8", "replace"));
  return {PyBytes_AS_STRING(bytes.get()), static_cast<std::size_t>(PyBytes_GET_SIZE(bytes.get()))};
}

}  // namespace py
