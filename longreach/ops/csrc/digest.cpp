// What the library was built from, so that it is not used with sources, and callers, that have changed since.

#include "vector.h"

#ifndef LONGREACH_DIGEST
#error "setup.py defines it: the digest of all sources"
#endif

LONGREACH_EXPORT const char* longreach_digest() { return LONGREACH_DIGEST; }
