// Memory that may not be there: what a kernel could not get is reported to its caller, instead of ending the process.
//
// An exception may leave neither a function that is called from C nor one thread of several, so entry points and the
// bodies of their loops run inside attempts:
//
//     Attempts attempt;
//     attempt([&] {
//         ...
//     #pragma omp parallel for
//         for (...) attempt([&] { ... });
//     });
//
// After the first that fails the others are skipped, and results are worth nothing.  Whoever calls a kernel asks
// `longreach_missing_memory` afterwards.

#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <vector>

constexpr int FEWEST_LARGE_PAGES = 4;  // below, memory is used again more often than it comes from the system

struct OutOfMemory {
    int64_t bytes;
};

inline void* allocate(int64_t bytes) {
    void* memory = std::aligned_alloc(64, (bytes + 64) / 64 * 64);  // never of no size, which may give null
    if (!memory) throw OutOfMemory{bytes};
    return memory;
}

template <class T>
struct Allocator {
    typedef T value_type;

    T* allocate(size_t count) { return static_cast<T*>(::allocate(int64_t(count * sizeof(T)))); }
    void deallocate(T* memory, size_t) { std::free(memory); }
    friend bool operator==(Allocator, Allocator) { return true; }
    friend bool operator!=(Allocator, Allocator) { return false; }
};

// Cleared, at an address that suits vectors.
template <class T>
using Array = std::vector<T, Allocator<T>>;

// Asks the system for large pages where a result lies that will be written from end to end.  Memory of this size comes
// fresh from the system, and to get it 4 KiB at a time takes as long as the arithmetic.
inline void prefer_large_pages(const void* result, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t PAGE = uintptr_t(2) << 20;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(result), end = begin + uintptr_t(bytes);
    const uintptr_t first = (begin + PAGE - 1) / PAGE * PAGE, last = end / PAGE * PAGE;
    if (result && last > first + FEWEST_LARGE_PAGES * PAGE)
        madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)result, (void)bytes;
#endif
}

// Notes for the calling thread what could not be had.
void report_missing_memory(int64_t bytes);

class Attempts {
   public:
    ~Attempts() {
        if (missing_) report_missing_memory(missing_);
    }
    template <class Work>
    void operator()(Work work) {
        if (missing_) return;
        try {
            work();
        } catch (const OutOfMemory& error) {
            missing_ = error.bytes;
        }
    }
    bool failed() const { return missing_; }

   private:
    std::atomic<int64_t> missing_{0};
};
