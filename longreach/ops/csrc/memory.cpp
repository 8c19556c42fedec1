// What the last kernels that this thread called could not get.

#include "memory.h"

#include "vector.h"

namespace {

thread_local int64_t missing = 0;

}  // namespace

void report_missing_memory(int64_t bytes) { missing = bytes; }

// In bytes; zero if nothing was missing since the last question.
LONGREACH_EXPORT int64_t longreach_missing_memory() {
    const int64_t bytes = missing;
    missing = 0;
    return bytes;
}
