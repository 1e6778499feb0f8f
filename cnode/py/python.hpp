// The only place that includes <Python.h>: it must come before the standard headers and with 64-bit
// sizes.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#if PY_VERSION_HEX < 0x030B0000
#error "Sidewinder needs CPython 3.11 or later"
#endif
#include <structmember.h>  // the kinds of members, which later versions have in Python.h under other names
