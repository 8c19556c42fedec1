// Products of small matrices that lie in the cache, by blocks of sums which stay in registers:
//
//     c_{rn} = factor sum_k a_{rk} b_{kn}        or this is added to c
//
// Lanes run along n.  Numbers of `a` are read one by one at any strides, so no matrix has to be transposed or packed.
// Each sum runs over k in order, whatever block it is in: how rows are split changes no bit.
//
// A unit is a number, or a pair of bfloat16 with neighbouring k in the space of a float.

#pragma once

#include <algorithm>

#include "vector.h"

// How numbers of type T are multiplied.
template <class T>
struct Numbers {
    typedef T Real;
    static constexpr int together = 1;  // values of k in a unit
    INLINE Vec<T> add_product(Vec<T> sum, Vec<T> a, Vec<T> b) { return sum + a * b; }
};

#if defined(__AVX512BW__)
#define LONGREACH_BFLOAT16  // the instructions are compiled in; whether the processor has them is another question

struct PairsOfBFloat16 {
    typedef float Real;
    static constexpr int together = 2;
    INLINE Vec<float> add_product(Vec<float> sum, Vec<float> a, Vec<float> b) {
        asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
        return sum;
    }
};

// Both vectors rounded to bfloat16, the numbers of `low` first.
INLINE Vec<float> rounded(Vec<float> low, Vec<float> high) {
    Vec<float> both;
    asm("vcvtne2ps2bf16 %2, %1, %0" : "=v"(both) : "v"(high), "v"(low));
    return both;
}

// Both vectors rounded to bfloat16, each number of `even` beside that of `odd`.
INLINE Vec<float> rounded_pairs(Vec<float> even, Vec<float> odd) {
    typedef uint16_t Halves __attribute__((vector_size(VECTOR_BYTES)));
    constexpr Halves beside = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                               8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    return (Vec<float>)__builtin_shuffle((Halves)rounded(even, odd), beside);
}
#endif

// A matrix of units: row r begins at data + r * row, and its columns are `column` apart.
template <class T>
struct Matrix {
    const T* data;
    int64_t row, column;
};

template <class T>
INLINE Vec<T> broadcast(const T* from) {
    T value;
    std::memcpy(&value, from, sizeof value);  // a unit may be no number that T knows
    return value - Vec<T>{};
}

template <class Kind, bool ADD, int ROWS, int VECTORS, class T>
INLINE void product_block(Matrix<T> a, const T* b, int64_t b_row, int64_t depth, T factor, T* c, int64_t c_row) {
    constexpr int W = Vector<T>::lanes;
    Vec<T> sum[ROWS][VECTORS] = {};
    for (int64_t k = 0; k < depth; k++) {
        Vec<T> right[VECTORS];
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) right[v] = load(b + k * b_row + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const Vec<T> left = broadcast(a.data + r * a.row + k * a.column);
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sum[r][v] = Kind::add_product(sum[r][v], left, right[v]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) {
            T* to = c + r * c_row + v * W;
            store(to, ADD ? load(to) + factor * sum[r][v] : factor * sum[r][v]);
        }
}

// Blocks of 24 sums where there are 32 registers, of 12 where there are 16.
constexpr int BLOCK_ROWS = VECTOR_BYTES == 64 ? 8 : 4;

template <class Kind, bool ADD, int VECTORS, class T>
void product_columns(Matrix<T> a, int64_t rows, const T* b, int64_t b_row, int64_t depth, T factor, T* c,
                     int64_t c_row) {
    int64_t r = 0;
    const auto advance = [&](auto constant) {
        constexpr int ROWS = decltype(constant)::value;
        const Matrix<T> part = {a.data + r * a.row, a.row, a.column};
        product_block<Kind, ADD, ROWS, VECTORS>(part, b, b_row, depth, factor, c + r * c_row, c_row);
        r += ROWS;
    };
    while (rows - r >= BLOCK_ROWS) advance(std::integral_constant<int, BLOCK_ROWS>());
    if (BLOCK_ROWS == 8 && rows - r >= 4) advance(std::integral_constant<int, 4>());
    if (rows - r >= 2) advance(std::integral_constant<int, 2>());
    if (rows - r >= 1) advance(std::integral_constant<int, 1>());
}

// c (rows x columns) from a (rows x depth) and b (depth x columns, rows b_row apart); depth in units, columns a multiple
// of the lanes.
template <class Kind, bool ADD, class T>
void product(Matrix<T> a, int64_t rows, const T* b, int64_t b_row, int64_t depth, T factor, T* c, int64_t c_row,
             int64_t columns) {
    constexpr int W = Vector<T>::lanes;
    for (int64_t n = 0; n < columns;) {
        const int64_t left = (columns - n) / W;
        const auto advance = [&](auto constant) {
            constexpr int VECTORS = decltype(constant)::value;
            product_columns<Kind, ADD, VECTORS>(a, rows, b + n, b_row, depth, factor, c + n, c_row);
            n += VECTORS * W;
        };
        if (left == 1) advance(std::integral_constant<int, 1>());
        else if (left == 2 || left == 4) advance(std::integral_constant<int, 2>());
        else advance(std::integral_constant<int, 3>());
    }
}
