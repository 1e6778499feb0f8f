#include "cnode/py/python.hpp"

#include "cnode/main/interpreter.hpp"

#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <utility>

#include "cnode/bridge/native_module.hpp"
#include "cnode/loop/module.hpp"
#include "cnode/py/error.hpp"
#include "cnode/web/module.hpp"

namespace node_main {
namespace {

namespace fs = std::filesystem;

// The built-in module's name until it is put into its package: the import system finds no built-in
// submodules.
constexpr const char* kBuiltIn = "_sidewinder_native";

// Where the `erlang` package lies, seen from the program: a build tree or an installation.
std::string package_directory() {
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);
  const std::array<fs::path, 4> places{program.parent_path() / "../python",
                                       program.parent_path() / "../../python",
                                       program.parent_path() / "../lib/sidewinder/python",
                                       program.parent_path() / "../share/sidewinder/python"};
  for (const auto& place : places) {
    if (fs::exists(place / "erlang" / "__init__.py", ignored))
      return fs::weakly_canonical(place, ignored).string();
  }
  throw ConfigError("path: the erlang package is not where the program looks for it, beside " +
                    program.string());
}

void check_venv(const std::string& venv) {
  std::ifstream file(fs::path(venv) / "pyvenv.cfg");
  if (!file)
    throw ConfigError("venv: '" + venv + "' is no virtual environment (it has no pyvenv.cfg)");
  const std::string wanted =
      std::to_string(PY_MAJOR_VERSION) + "." + std::to_string(PY_MINOR_VERSION);
  for (std::string line; std::getline(file, line);) {
    const std::size_t equals = line.find('=');
    if (equals == std::string::npos) continue;
    const std::string key = line.substr(0, line.find_last_not_of(" \t", equals - 1) + 1);
    if (key != "version" && key != "version_info") continue;
    const std::string version = line.substr(line.find_first_not_of(" \t", equals + 1));
    if (version.rfind(wanted + ".", 0) == 0 || version == wanted) return;
    throw ConfigError("venv: '" + venv + "' was made for Python " + version +
                      ", this program runs Python " + wanted);
  }
}

void must(PyStatus status) {
  if (PyStatus_Exception(status) != 0) {
    throw ConfigError(std::string("python: ") +
                      (status.err_msg != nullptr ? status.err_msg : "cannot start"));
  }
}

void set_path(PyConfig& config, wchar_t** field, const fs::path& path) {
  must(PyConfig_SetBytesString(&config, field, path.c_str()));
}

// What is the same in every interpreter: `front` of the module path, the package and its output,
// the user's modules. `native` gives the module that is to be erlang._native.
void prepare(const Config& config, std::vector<std::string> front,
             const std::function<py::Ref()>& native) {
  try {
    PyObject* path = PySys_GetObject("path");
    if (path == nullptr) throw ConfigError("python: there is no sys.path");
    for (std::size_t i = 0; i < front.size(); ++i) {
      py::Ref text = py::check(PyUnicode_DecodeFSDefault(front[i].c_str()));
      py::check_status(PyList_Insert(path, static_cast<Py_ssize_t>(i), text.get()));
    }
    py::Ref module = native();
    py::import("erlang");
    if (config.capture && config.log_level != "off") {
      py::Ref logs = py::import("erlang.logs");
      py::check(PyObject_CallMethod(logs.get(), "install", "s", config.log_level.c_str()));
    }
    if (config.none_atom != "none") {
      py::check(PyObject_CallMethod(module.get(), "set_none_atom", "s", config.none_atom.c_str()));
    }
  } catch (const py::Error& error) {
    const auto told = error.describe();
    throw ConfigError("python: " + told.type + ": " + told.message);
  }
  for (const auto& name : config.imports) {
    try {
      py::import(name.c_str());
    } catch (const py::Error& error) {
      const auto told = error.describe();
      throw ConfigError("import: " + name + ": " + told.type + ": " + told.message);
    }
  }
}

std::vector<std::string> user_paths(const Config& config) {
  std::vector<std::string> paths;
  for (const auto& one : config.paths) paths.push_back(fs::absolute(one).string());
  return paths;
}

}  // namespace

void start_interpreter(const Config& config) {
  const std::string package = package_directory();
  if (!config.venv.empty()) check_venv(config.venv);
  if (PyImport_AppendInittab(kBuiltIn, PyInit__native) < 0 ||
      PyImport_AppendInittab(loop::kBuiltIn, PyInit__core) < 0 ||
      PyImport_AppendInittab(web::kBuiltIn, PyInit__http) < 0)
    throw ConfigError("python: no memory");

  PyConfig python;
  PyConfig_InitPythonConfig(&python);
  python.parse_argv = 0;
  python.install_signal_handlers = 0;
  python.buffered_stdio = 0;  // what is printed is not lost when the node ends
  try {
    if (!config.venv.empty()) {
      // The environment's own interpreter as ours: site then finds its packages and its .pth files.
      set_path(python, &python.program_name,
               fs::absolute(fs::path(config.venv) / "bin" / "python3"));
    }
    must(Py_InitializeFromConfig(&python));
    PyConfig_Clear(&python);
  } catch (...) {
    PyConfig_Clear(&python);
    throw;
  }

  std::vector<std::string> front = user_paths(config);
  front.push_back(package);
  prepare(config, std::move(front), [] {
    py::Ref native = py::import(kBuiltIn);
    py::Ref name = py::check(PyUnicode_FromString("erlang._native"));
    py::check_status(PyObject_SetAttrString(native.get(), "__name__", name.get()));
    py::check_status(PyDict_SetItem(PyImport_GetModuleDict(), name.get(), native.get()));
    return native;
  });
}

void join_interpreter(const Config& config) {
  if (!config.venv.empty()) {
    throw ConfigError("venv: the node runs in the environment of the Python that runs it; leave '" +
                      config.venv + "' out, or start it with that environment's Python");
  }
  prepare(config, user_paths(config), [] { return py::import("erlang._native"); });
}

std::string python_program() {
  PyObject* program = PySys_GetObject("executable");
  return program != nullptr && PyUnicode_Check(program) ? py::text_of(program) : "";
}

void forget_environment() {
  try {
    py::Ref environ = py::attribute(py::import("os").get(), "environ");
    py::Ref names = py::check(PyMapping_Keys(environ.get()));
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names.get()); ++i) {
      PyObject* bytes = nullptr;
      PyObject* name = PyList_GET_ITEM(names.get(), i);
      if (PyUnicode_FSConverter(name, &bytes) == 0) py::throw_fetched();
      const py::Ref owned = py::Ref::steal(bytes);
      // NOLINTNEXTLINE(concurrency-mt-unsafe): before there is another thread
      if (std::getenv(PyBytes_AS_STRING(bytes)) == nullptr)
        py::check_status(PyObject_DelItem(environ.get(), name));
    }
  } catch (const py::Error& error) {
    throw ConfigError("python: os.environ: " + error.describe().message);
  }
}

}  // namespace node_main
