// Elementwise arithmetic on vectors, for kernels that are written once for real and complex numbers.

#pragma once

#include "vector.h"

// Arithmetic on vectors of real numbers.
template <class T>
struct Real {
    typedef T Scalar;
    static constexpr int parts = 1;
    INLINE Vec<T> multiply(Vec<T> a, Vec<T> b) { return a * b; }
    INLINE Vec<T> multiply_conjugate(Vec<T> a, Vec<T> b) { return a * b; }
};

// Arithmetic on vectors of interleaved complex numbers: real part, imaginary part, real part, ...
template <class T>
struct Complex {
    typedef T Scalar;
    static constexpr int parts = 2;

    INLINE Vec<T> exchanged(Vec<T> a) {
        Vec<T> result;
        for (int i = 0; i < Vector<T>::lanes; i++) result[i] = a[i ^ 1];
        return result;
    }
    INLINE Vec<T> real_parts(Vec<T> a) {
        Vec<T> result;
        for (int i = 0; i < Vector<T>::lanes; i++) result[i] = a[i & ~1];
        return result;
    }
    INLINE Vec<T> imaginary_parts(Vec<T> a) {
        Vec<T> result;
        for (int i = 0; i < Vector<T>::lanes; i++) result[i] = a[i | 1];
        return result;
    }
    INLINE Vec<T> signs() {
        Vec<T> result;
        for (int i = 0; i < Vector<T>::lanes; i++) result[i] = i % 2 ? T(1) : T(-1);
        return result;
    }
    INLINE Vec<T> multiply(Vec<T> a, Vec<T> b) {
        return real_parts(a) * b + signs() * imaginary_parts(a) * exchanged(b);
    }
    // a conj(b)
    INLINE Vec<T> multiply_conjugate(Vec<T> a, Vec<T> b) {
        return real_parts(b) * a - signs() * imaginary_parts(b) * exchanged(a);
    }
};
