// Exponentials, powers of two and hyperbolic tangents of whole vectors, to within two units of the last place.
//
//     e^x = 2^n p(x - n log 2),    n the integer nearest to x / log 2
//     2^x = 2^n (1 + q(x - n)),    n the integer nearest to x,    q a polynomial without constant term
//
// q was fitted to 2^f - 1 for |f| <= 1/2 so that its largest error, relative to 2^f, is least: 2e-9 and 4e-18.

#pragma once

#include "vector.h"

template <class T>
struct BaseTwo;

template <>
struct BaseTwo<float> {
    typedef int32_t Integer;
    static constexpr int mantissa = 23;
    static constexpr float magic = 0x1.8p23f + 127;  // what is added to it is rounded, and stands in the lowest bits
    static constexpr float lowest = -126;            // below lie denormal numbers
    static constexpr float coefficients[] = {6.9314720285512881e-1f, 2.4022647913619677e-1f, 5.550332471026545e-2f,
                                             9.61843735829271e-3f,   1.33988744455291e-3f,   1.5353361816586507e-4f};
};

template <>
struct BaseTwo<double> {
    typedef int64_t Integer;
    static constexpr int mantissa = 52;
    static constexpr double magic = 0x1.8p52 + 1023;
    static constexpr double lowest = -1022;
    static constexpr double coefficients[] = {
        6.9314718055994532607e-1, 2.4022650695910131521e-1, 5.550410866482009502e-2,  9.6181291075940321925e-3,
        1.333355814677140312e-3,  1.5403530457194034748e-4, 1.5252733495897100703e-5, 1.3215435252965167988e-6,
        1.0178198634831335035e-7, 7.0737868178636863464e-9, 4.434878611936458244e-10};
};

// 2^n, and what q(x - n) is.
template <class T>
struct PowerOfTwo {
    Vec<T> scale, rest;
};

template <class T>
INLINE PowerOfTwo<T> power_of_two(Vec<T> x) {
    typedef BaseTwo<T> Constants;
    typedef typename Constants::Integer Integers __attribute__((vector_size(VECTOR_BYTES)));
    constexpr int degree = sizeof(Constants::coefficients) / sizeof(T);
    const Vec<T> shifted = x + Constants::magic, f = x - (shifted - Constants::magic);
    Vec<T> q = Vec<T>{} + Constants::coefficients[degree - 1];
#pragma GCC unroll 16
    for (int i = degree - 2; i >= 0; i--) q = q * f + Constants::coefficients[i];
    return {(Vec<T>)((Integers)shifted << Constants::mantissa), q * f};
}

// 2^x for x up to 127 (1023); zero where the result would be denormal.
template <class T>
INLINE Vec<T> exp2(Vec<T> x) {
    const PowerOfTwo<T> power = power_of_two<T>(x);
    return x < BaseTwo<T>::lowest ? Vec<T>{} : power.scale + power.scale * power.rest;
}

// tanh(x log(2) / 2) = (2^x - 1) / (2^x + 1)
template <class T>
INLINE Vec<T> tanh2(Vec<T> x) {
    constexpr T large = sizeof(T) == 4 ? 32 : 64;  // here the result is 1
    x = x < -large ? Vec<T>{} - large : x;
    x = x > large ? Vec<T>{} + large : x;
    const PowerOfTwo<T> power = power_of_two<T>(x);
    const Vec<T> less_one = power.scale * power.rest + (power.scale - 1);
    return less_one / (less_one + 2);
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
