// Vectors of the widest registers that the translation unit is compiled for, and how work is shared among threads.
//
// Every source is compiled once for each instruction set (see setup.py) and the best is chosen when the library is
// loaded, so the number of lanes is a constant here: 16 floats with AVX-512, 8 with AVX2, 4 elsewhere.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
#else
constexpr int VECTOR_BYTES = 16;
#endif

#define LONGREACH_EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

template <class T>
struct Vector {
    typedef T Type __attribute__((vector_size(VECTOR_BYTES)));
    static constexpr int lanes = VECTOR_BYTES / sizeof(T);
};

template <class T>
using Vec = typename Vector<T>::Type;

// Loads and stores at any address.
template <class T>
INLINE Vec<T> load(const T* from) {
    Vec<T> value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

template <class T>
INLINE void store(T* to, Vec<T> value) {
    std::memcpy(to, &value, sizeof value);
}

// The first `count` lanes only; the others are zero, or are left as they are.
template <class T>
INLINE Vec<T> load_some(const T* from, int count) {
    Vec<T> value{};
    std::memcpy(&value, from, count * sizeof(T));
    return value;
}

template <class T>
INLINE void store_some(T* to, Vec<T> value, int count) {
    std::memcpy(to, &value, count * sizeof(T));
}

// Lanes of two vectors, of which those of the second count on from those of the first.
template <class T, class Indices>
INLINE Vec<T> shuffle(Vec<T> a, Vec<T> b, Indices from) {
#if defined(__clang__)
    constexpr int lanes = Vector<T>::lanes;
    Vec<T> result;
    for (int i = 0; i < lanes; i++) result[i] = from[i] < lanes ? a[from[i]] : b[from[i] - lanes];
    return result;
#else
    return __builtin_shuffle(a, b, from);
#endif
}
