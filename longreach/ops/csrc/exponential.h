// Powers of two and hyperbolic tangents of whole vectors, to within two units of the last place.
//
//     2^x = 2^n (1 + q(x - n)),    n the integer nearest to x,    q a polynomial without constant term
//
// q was fitted to 2^f - 1 for |f| <= 1/2 so that its largest error, relative to 2^f, is least: 2e-9 and 4e-18.

#pragma once

#include "vector.h"

template <class T>
struct Exponential;

template <>
struct Exponential<float> {
    typedef int32_t Integer;
    static constexpr int mantissa = 23;
    static constexpr float magic = 0x1.8p23f + 127;  // what is added to it is rounded, and stands in the lowest bits
    static constexpr float lowest = -126;            // below lie denormal numbers
    static constexpr float coefficients[] = {6.9314720285512881e-1f, 2.4022647913619677e-1f, 5.550332471026545e-2f,
                                             9.61843735829271e-3f,   1.33988744455291e-3f,   1.5353361816586507e-4f};
};

template <>
struct Exponential<double> {
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
    typedef Exponential<T> Constants;
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
    return x < Exponential<T>::lowest ? Vec<T>{} : power.scale + power.scale * power.rest;
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
