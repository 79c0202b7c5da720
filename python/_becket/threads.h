/*
 * threads.h: what the extension needs of Python where there is no GIL (PEP 703); where there is
 * one, this is nothing. What is locked by what, docs/threads.md tells. Included by becket_py.h.
 */
#ifndef BECKET_THREADS_H
#define BECKET_THREADS_H

#include <stdatomic.h>

#ifdef Py_GIL_DISABLED
#define BK_FREE_THREADING
#endif

/* What other threads than the loop's own look at without its lock. */
#ifdef BK_FREE_THREADING
#define BK_SHARED(type) _Atomic(type)
#else
#define BK_SHARED(type) type
#endif

/* An object's lock. As the GIL, it is let go of while its thread waits for anything, and taken
   again: so what holds under the GIL holds under it. */
#if PY_VERSION_HEX < 0x030D0000
#define Py_BEGIN_CRITICAL_SECTION(object) {
#define Py_END_CRITICAL_SECTION() }
#endif

#endif
