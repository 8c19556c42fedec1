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

// What the exponential of a number type is made of: the bounds beyond which it is 0 or infinite, log 2 in two parts of
// which the first has a few bits only, a summand that rounds to an integer and has it in its last bits, and the
// polynomial in r, |r| <= (log 2) / 2, with the least possible relative error.
template <class T>
struct Exponential;

template <>
struct Exponential<float> {
    typedef int32_t Bits;
    static constexpr float lowest = -104, highest = 89, log2_high = 0.693145751953125f, log2_low = 1.42860677e-6f;
    static constexpr float rounder = 12582912;  // 1.5 * 2^23
    static constexpr int mantissa = 23, bias = 127;
    static constexpr float polynomial[] = {1.0f,           1.00000003643f, 0.499999920561f,  0.166664196809f,
                                           0.04166822868f, 0.00837485705f, 0.00138367941662f};  // 2e-9
};

template <>
struct Exponential<double> {
    typedef int64_t Bits;
    static constexpr double lowest = -746, highest = 710;
    static constexpr double log2_high = 6.93147180369123816490e-01, log2_low = 1.90821492927058770002e-10;
    static constexpr double rounder = 6755399441055744;  // 1.5 * 2^52
    static constexpr int mantissa = 52, bias = 1023;
    static constexpr double polynomial[] = {1.0,
                                            1.000000000000000031,
                                            0.5000000000000017774,
                                            0.1666666666666616621,
                                            0.04166666666649207549,
                                            0.00833333333356015708,
                                            0.001388888895141009232,
                                            0.0001984126943149003032,
                                            2.480148632073879556e-5,
                                            2.755762310547520544e-6,
                                            2.763236797042510265e-7,
                                            2.499425709266684349e-8};  // 3e-18
};

// x 2^n, also where that is denormal; `shifted` is n plus the rounder.
template <class T>
INLINE Vec<T> times_power_of_two(Vec<T> x, Vec<T> shifted) {
    typedef Exponential<T> Number;
    const Vec<T> n = shifted - Number::rounder;
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == sizeof(float)) return (Vec<T>)_mm512_maskz_scalef_ps(-1, (__m512)x, (__m512)n);
    else return (Vec<T>)_mm512_maskz_scalef_pd(-1, (__m512d)x, (__m512d)n);
#else
    // in two steps, because the powers of two reach less far than n
    typedef typename Vector<typename Number::Bits>::Type Bits;
    const auto power = [](Vec<T> s) { return (Vec<T>)(((Bits)s + Number::bias) << Number::mantissa); };
    const Vec<T> half = n * T(0.5) + Number::rounder, rest = n - (half - Number::rounder) + Number::rounder;
    return x * power(half) * power(rest);
#endif
}

// e^x, off by at most 1.4 last places; NaN stays NaN.
template <class T>
INLINE Vec<T> exponential(Vec<T> x) {
    typedef Exponential<T> Number;
    constexpr int degree = sizeof(Number::polynomial) / sizeof(T) - 1;
    const Vec<T> lowest = Vec<T>{} + Number::lowest, highest = Vec<T>{} + Number::highest;
    x = lowest > x ? lowest : x;
    x = highest < x ? highest : x;
    const Vec<T> shifted = x * T(1.4426950408889634074) + Number::rounder, n = shifted - Number::rounder;
    const Vec<T> r = x - n * Number::log2_high - n * Number::log2_low;
    Vec<T> result = Vec<T>{} + Number::polynomial[degree];
#pragma GCC unroll 16
    for (int i = degree - 1; i >= 0; i--) result = result * r + Number::polynomial[i];
    return times_power_of_two<T>(result, shifted);
}
