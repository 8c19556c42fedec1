// Vectors of complex numbers as two vectors, and discrete Fourier transforms of a few of them.
//
// Each lane is transformed by itself ("vertically").  `inverse` turns the sign of the exponent; nothing is scaled.

#pragma once

#include "vector.h"

template <class T>
struct Pair {
    Vec<T> re, im;
};

// One complex number, for all lanes.
template <class T>
struct Scalar {
    T re, im;
};

template <class T>
INLINE Pair<T> operator+(Pair<T> a, Pair<T> b) {
    return {a.re + b.re, a.im + b.im};
}

template <class T>
INLINE Pair<T> operator-(Pair<T> a, Pair<T> b) {
    return {a.re - b.re, a.im - b.im};
}

// a b, or a conj(b); b is a Pair or a Scalar.
template <bool conjugate, class T, class B>
INLINE Pair<T> multiply(Pair<T> a, B b) {
    if constexpr (conjugate) return {a.re * b.re + a.im * b.im, a.im * b.re - a.re * b.im};
    else return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

// a times -i, or times i for the inverse.
template <bool inverse, class T>
INLINE Pair<T> quarter_turn(Pair<T> a) {
    if constexpr (inverse) return {-a.im, a.re};
    else return {a.im, -a.re};
}

// Keeps the compiler from holding more vectors in registers than there are.
INLINE void settle() { asm volatile("" ::: "memory"); }

template <bool inverse, class T>
INLINE void dft(Pair<T> (&x)[1]) {
    (void)x;
}

template <bool inverse, class T>
INLINE void dft(Pair<T> (&x)[2]) {
    const Pair<T> sum = x[0] + x[1];
    x[1] = x[0] - x[1];
    x[0] = sum;
}

template <bool inverse, class T>
INLINE void dft(Pair<T> (&x)[3]) {
    const T cosine = -0.5, sine = 0.86602540378443864676;
    const Pair<T> sum = x[1] + x[2], turned = quarter_turn<inverse>(x[1] - x[2]);
    const Pair<T> middle = {x[0].re + cosine * sum.re, x[0].im + cosine * sum.im};
    const Pair<T> side = {sine * turned.re, sine * turned.im};
    x[0] = x[0] + sum;
    x[1] = middle + side;
    x[2] = middle - side;
}

template <bool inverse, class T>
INLINE void dft(Pair<T> (&x)[4]) {
    const Pair<T> even = x[0] + x[2], odd = x[1] + x[3];
    const Pair<T> difference = x[0] - x[2], turned = quarter_turn<inverse>(x[1] - x[3]);
    x[0] = even + odd;
    x[2] = even - odd;
    x[1] = difference + turned;
    x[3] = difference - turned;
}

template <bool inverse, class T>
INLINE void dft(Pair<T> (&x)[5]) {
    const T c1 = 0.30901699437494742410, c2 = -0.80901699437494742410;
    const T s1 = 0.95105651629515357212, s2 = 0.58778525229247312917;
    const Pair<T> p = x[1] + x[4], q = x[2] + x[3];
    const Pair<T> r = quarter_turn<inverse>(x[1] - x[4]), s = quarter_turn<inverse>(x[2] - x[3]);
    const Pair<T> a = {x[0].re + c1 * p.re + c2 * q.re, x[0].im + c1 * p.im + c2 * q.im};
    const Pair<T> b = {x[0].re + c2 * p.re + c1 * q.re, x[0].im + c2 * p.im + c1 * q.im};
    const Pair<T> c = {s1 * r.re + s2 * s.re, s1 * r.im + s2 * s.im};
    const Pair<T> d = {s2 * r.re - s1 * s.re, s2 * r.im - s1 * s.im};
    x[0] = x[0] + p + q;
    x[1] = a + c;
    x[4] = a - c;
    x[2] = b + d;
    x[3] = b - d;
}

template <bool inverse, class T>
INLINE void dft(Pair<T> (&x)[8]) {
    const T root = 0.70710678118654752440;
    Pair<T> even[4] = {x[0] + x[4], x[1] + x[5], x[2] + x[6], x[3] + x[7]};
    const Pair<T> b = x[1] - x[5], d = x[3] - x[7];
    const Pair<T> tb = quarter_turn<inverse>(b), td = quarter_turn<inverse>(d);
    Pair<T> odd[4] = {x[0] - x[4],
                      {root * (b.re + tb.re), root * (b.im + tb.im)},
                      quarter_turn<inverse>(x[2] - x[6]),
                      {root * (td.re - d.re), root * (td.im - d.im)}};
    dft<inverse>(even);
    dft<inverse>(odd);
    for (int i = 0; i < 4; i++) {
        x[2 * i] = even[i];
        x[2 * i + 1] = odd[i];
    }
}

// cos and sin of 2 pi j / 16
constexpr double COSINE_16[10] = {1, 0.92387953251128675613, 0.70710678118654752440, 0.38268343236508977173, 0,
                                  -0.38268343236508977173, -0.70710678118654752440, -0.92387953251128675613, -1,
                                  -0.92387953251128675613};
constexpr double SINE_16[10] = {0, 0.38268343236508977173, 0.70710678118654752440, 0.92387953251128675613, 1,
                                0.92387953251128675613, 0.70710678118654752440, 0.38268343236508977173, 0,
                                -0.38268343236508977173};

// The transform of W rows in two halves, so that what comes next can be done on the way: sixteen pairs are more than
// there are registers.  Forward: the first half mixes rows, the second is a dft of each group of GROUP<W> rows; the
// frequency at row p is `frequency_of_row(p)`.  The inverse goes the same way back.
template <int W>
constexpr int GROUP = W == 16 ? 4 : W;

template <int W>
constexpr int frequency_of_row(int row) {
    return W == 16 ? row / 4 + 4 * (row % 4) : row;
}

template <bool inverse, class T, int W>
INLINE void half_dft(const Pair<T>* from, Pair<T>* to) {
    if constexpr (W == 16) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++) {
            Pair<T> x[4] = {from[j], from[j + 4], from[j + 8], from[j + 12]};
            if constexpr (!inverse) dft<false>(x);
#pragma GCC unroll 3
            for (int r = 1; r < 4; r++)
                x[r] = multiply<!inverse>(x[r], Scalar<T>{T(COSINE_16[j * r]), T(SINE_16[j * r])});
            if constexpr (inverse) dft<true>(x);
#pragma GCC unroll 4
            for (int r = 0; r < 4; r++) to[j + 4 * r] = x[r];
            settle();
        }
    } else {
#pragma GCC unroll 8
        for (int i = 0; i < W; i++) to[i] = from[i];
    }
}

// Rows become lanes: x[i] lane j <-> x[j] lane i, by log2(lanes) rounds of interleaving the halves.
template <class T>
INLINE void transpose(Vec<T> (&x)[Vector<T>::lanes]) {
    constexpr int lanes = Vector<T>::lanes;
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
    typedef Index Indices __attribute__((vector_size(VECTOR_BYTES)));
    Indices low, high;
    for (int i = 0; i < lanes; i++) {
        low[i] = i / 2 + (i % 2) * lanes;
        high[i] = low[i] + lanes / 2;
    }
#pragma GCC unroll 4
    for (int round = 1; round < lanes; round *= 2) {
        Vec<T> y[lanes];
#pragma GCC unroll 16
        for (int i = 0; i < lanes / 2; i++) {
            y[2 * i] = shuffle<T>(x[i], x[i + lanes / 2], low);
            y[2 * i + 1] = shuffle<T>(x[i], x[i + lanes / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < lanes; i++) x[i] = y[i];
    }
}
