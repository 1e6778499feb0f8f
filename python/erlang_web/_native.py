"""Puts `erlang_web._http` in its place: linked into the node under a name of its own, as built-in modules have no packages;
an extension module elsewhere."""

import importlib
import sys

_BUILT_IN = "_sidewinder_web"

if _BUILT_IN in sys.builtin_module_names:
    sys.modules.setdefault("erlang_web._http", importlib.import_module(_BUILT_IN))
