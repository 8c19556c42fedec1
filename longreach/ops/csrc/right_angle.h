// The right-angle Fourier transform of real sequences, at which a causal convolution needs no zero padding.
//
// Polynomials are multiplied modulo x^N - i (Nussbaumer, https://doi.org/10.1007/978-3-662-00551-4, weighted as in
// Crandall & Fagin, https://doi.org/10.1090/S0025-5718-1994-1185244-1).  What exceeds degree N - 1 in the product of two
// real polynomials comes back times i, so the real part of the result is the causal convolution of N samples, exactly;
// and that of a product with a conjugate spectrum is their correlation.  N complex points do the work of 2N real ones.
//
//     X_k = sum_n u_n exp(i pi n / 2N) exp(-2 pi i n k / N)
//
// With W lanes, n = W m + c: row m, lane c.  k = k1 + M k2, M = N / W rows:
//
//     X_k = sum_c exp(-2 pi i c k2 / W) exp(-2 pi i c (k1 - 1/4) / N) sum_m u_{Wm+c} exp(i pi m / 2M) exp(-2 pi i m k1 / M)
//
// The inner sum is a transform down the rows, each lane by itself: no data crosses lanes.  It runs depth first, so that
// every part is finished while it is in the cache, by passes that leave the frequencies in digit-reversed order, which a
// product does not mind.  The last W rows of it, the factor in front and the outer sum happen in the first-level cache: a
// transform of W rows, a transpose, another transform of W rows, for the block of W frequencies by W at once.
//
// Sizes are N = W^2 times 2^a, 3 2^a or 5 2^a.

#pragma once

#include <cmath>
#include <map>
#include <memory>
#include <mutex>

#include "complex.h"
#include "memory.h"

constexpr int MOST_LEVELS = 16;

template <class T>
struct Aligned {
    // An array at an address that suits vectors.
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    typedef std::unique_ptr<T[], Free> Array;

    static Array make(int64_t count) { return Array(static_cast<T*>(allocate(count * int64_t(sizeof(T))))); }
};

// Everything about a size that does not depend on the data.
template <class T>
struct Plan {
    int64_t size, rows;
    int n_levels;
    int radix[MOST_LEVELS];
    Array<Scalar<T>> twiddles[MOST_LEVELS];  // exp(-2 pi i r j / n), for each j those of r = 1 .. radix - 1
    Array<Scalar<T>> twist;                  // exp(i pi m / 2M) for every row m
    typename Aligned<Pair<T>>::Array block_factor;  // exp(-2 pi i c (f - 1/4) / N), f the lowest frequency of a block
    Pair<T> lane_factor[Vector<T>::lanes];          // exp(-2 pi i c s / W^2) for row s of any block
};

template <class T>
Scalar<T> turn(double parts, double of) {
    const double angle = 2 * M_PI * parts / of;
    return {T(std::cos(angle)), T(std::sin(angle))};
}

// The least size that takes `length` samples.
template <class T>
int64_t fitting_size(int64_t length) {
    int64_t best = 0;
    for (int64_t odd : {1, 3, 5}) {
        int64_t size = odd * Vector<T>::lanes * Vector<T>::lanes;
        while (size < length) size *= 2;
        if (!best || size < best) best = size;
    }
    return best;
}

template <class T>
void choose_radices(Plan<T>& plan) {
    int64_t rest = plan.rows / Vector<T>::lanes;
    plan.n_levels = 0;
    const auto add = [&](int radix) {
        plan.radix[plan.n_levels++] = radix;
        rest /= radix;
    };
    if (rest % 3 == 0) add(3);
    else if (rest % 5 == 0) add(5);
    else if (rest % 8 == 0 && (rest & (rest - 1)) == 0 && __builtin_ctzll(rest) % 3 == 0) add(8);
    else if (__builtin_ctzll(rest) % 3 == 2) add(4);
    else if (__builtin_ctzll(rest) % 3 == 1) add(2);
    else add(1);
    while (rest > 1) add(rest % 8 == 0 ? 8 : rest % 4 == 0 ? 4 : 2);
}

template <class T>
std::unique_ptr<Plan<T>> make_plan(int64_t size) {
    constexpr int W = Vector<T>::lanes;
    std::unique_ptr<Plan<T>> plan(new Plan<T>);
    plan->size = size;
    plan->rows = size / W;
    choose_radices(*plan);
    int64_t n = plan->rows;
    for (int level = 0; level < plan->n_levels; level++) {
        const int radix = plan->radix[level];
        for (int64_t j = 0; j < n / radix; j++)
            for (int r = 1; r < radix; r++) plan->twiddles[level].push_back(turn<T>(-double(r * j), double(n)));
        n /= radix;
    }
    for (int64_t m = 0; m < plan->rows; m++) plan->twist.push_back(turn<T>(double(m), 4.0 * plan->rows));
    const int64_t blocks = plan->rows / W;
    plan->block_factor = Aligned<Pair<T>>::make(blocks);
    for (int64_t block = 0; block < blocks; block++) {
        int64_t frequency = 0, weight = 1, rest = block, below = blocks;
        for (int level = 0; level < plan->n_levels; level++) {
            below /= plan->radix[level];
            frequency += weight * (rest / below);
            rest %= below;
            weight *= plan->radix[level];
        }
        for (int c = 0; c < W; c++) {
            const Scalar<T> factor = turn<T>(-c * (double(frequency) - 0.25), double(size));
            plan->block_factor[block].re[c] = factor.re;
            plan->block_factor[block].im[c] = factor.im;
        }
    }
    for (int s = 0; s < W; s++)
        for (int c = 0; c < W; c++) {
            const Scalar<T> factor = turn<T>(-double(c * frequency_of_row<W>(s)), double(W * W));
            plan->lane_factor[s].re[c] = factor.re;
            plan->lane_factor[s].im[c] = factor.im;
        }
    return plan;
}

// The plan of a size, made once.  There are three sizes for each power of two, so they do not add up to much.
template <class T>
const Plan<T>& find_plan(int64_t size) {
    static std::mutex mutex;
    static std::map<int64_t, std::unique_ptr<Plan<T>>> plans;
    const std::lock_guard<std::mutex> lock(mutex);
    std::unique_ptr<Plan<T>>& plan = plans[size];
    if (!plan) plan = make_plan<T>(size);
    return *plan;
}

// A function that is called with the radix as a constant.
template <class Function>
INLINE void with_radix(int radix, Function function) {
    switch (radix) {
        case 1: return function(std::integral_constant<int, 1>());
        case 2: return function(std::integral_constant<int, 2>());
        case 3: return function(std::integral_constant<int, 3>());
        case 4: return function(std::integral_constant<int, 4>());
        case 5: return function(std::integral_constant<int, 5>());
        default: return function(std::integral_constant<int, 8>());
    }
}

// The first pass: `get(row)` gives the samples of a row.
template <int radix, class T, class Get>
void first_pass(const Plan<T>& plan, Pair<T>* rows, Get get) {
    const int64_t stride = plan.rows / radix;
    const Scalar<T>*twiddle = plan.twiddles[0].data(), *twist = plan.twist.data();
    for (int64_t j = 0; j < stride; j++, twiddle += radix - 1) {
        Pair<T> x[radix];
#pragma GCC unroll 8
        for (int m = 0; m < radix; m++) {
            const int64_t row = j + m * stride;
            const Vec<T> sample = get(row);
            x[m] = {sample * twist[row].re, sample * twist[row].im};
        }
        dft<false>(x);
        rows[j] = x[0];
#pragma GCC unroll 8
        for (int r = 1; r < radix; r++) rows[j + r * stride] = multiply<false>(x[r], twiddle[r - 1]);
    }
}

// The last pass of the inverse: `put(row, samples)` takes the real part.
template <int radix, class T, class Put>
void last_pass(const Plan<T>& plan, const Pair<T>* rows, Put put) {
    const int64_t stride = plan.rows / radix;
    const Scalar<T>*twiddle = plan.twiddles[0].data(), *twist = plan.twist.data();
    for (int64_t j = 0; j < stride; j++, twiddle += radix - 1) {
        Pair<T> x[radix];
        x[0] = rows[j];
#pragma GCC unroll 8
        for (int r = 1; r < radix; r++) x[r] = multiply<true>(rows[j + r * stride], twiddle[r - 1]);
        dft<true>(x);
#pragma GCC unroll 8
        for (int m = 0; m < radix; m++) {
            const int64_t row = j + m * stride;
            put(row, x[m].re * twist[row].re + x[m].im * twist[row].im);
        }
    }
}

template <int radix, bool inverse, class T>
void pass(Pair<T>* rows, int64_t stride, const Scalar<T>* twiddle) {
    for (int64_t j = 0; j < stride; j++, twiddle += radix - 1) {
        Pair<T> x[radix];
#pragma GCC unroll 8
        for (int r = 0; r < radix; r++) {
            x[r] = rows[j + r * stride];
            if (inverse && r) x[r] = multiply<true>(x[r], twiddle[r - 1]);
        }
        dft<inverse>(x);
#pragma GCC unroll 8
        for (int r = 0; r < radix; r++) rows[j + r * stride] = inverse || !r ? x[r] : multiply<false>(x[r], twiddle[r - 1]);
    }
}

template <class T>
INLINE void transpose_pairs(Pair<T>* x) {
    constexpr int W = Vector<T>::lanes;
    Vec<T> part[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) part[i] = x[i].re;
    transpose<T>(part);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) x[i].re = part[i];
    settle();
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) part[i] = x[i].im;
    transpose<T>(part);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) x[i].im = part[i];
    settle();
}

// Calls `use(row, values)` for the values of every group of a block, values in registers, and stores what it leaves.
template <class T, class Use>
INLINE void for_each_group(Pair<T>* x, Use use) {
    constexpr int W = Vector<T>::lanes, G = GROUP<W>;
#pragma GCC unroll 4
    for (int row = 0; row < W; row += G) {
        Pair<T> values[G];
#pragma GCC unroll 8
        for (int i = 0; i < G; i++) values[i] = x[row + i];
        use(row, values);
#pragma GCC unroll 8
        for (int i = 0; i < G; i++) x[row + i] = values[i];
        settle();
    }
}

// The last W rows of the transform down the rows, and the one across the lanes but for a dft of every group.
template <class T>
INLINE void enter_block(const Plan<T>& plan, const Pair<T>* rows, int64_t at, Pair<T>* x) {
    constexpr int W = Vector<T>::lanes, G = GROUP<W>;
    half_dft<false, T, W>(rows + at, x);
    const Pair<T> factor = plan.block_factor[at / W];
    for_each_group(x, [&](int row, auto& values) {
        dft<false>(values);
#pragma GCC unroll 8
        for (int i = 0; i < G; i++)
            values[i] = multiply<false>(values[i], multiply<false>(plan.lane_factor[row + i], factor));
    });
    transpose_pairs(x);
    half_dft<false, T, W>(x, x);
}

template <class T>
INLINE void leave_block(const Plan<T>& plan, Pair<T>* x, int64_t at, Pair<T>* rows) {
    constexpr int W = Vector<T>::lanes, G = GROUP<W>;
    half_dft<true, T, W>(x, x);
    transpose_pairs(x);
    const Pair<T> factor = plan.block_factor[at / W];
    for_each_group(x, [&](int row, auto& values) {
#pragma GCC unroll 8
        for (int i = 0; i < G; i++)
            values[i] = multiply<true>(values[i], multiply<false>(plan.lane_factor[row + i], factor));
        dft<true>(values);
    });
    half_dft<true, T, W>(x, rows + at);
}

// A block's part of the spectrum goes through `change(at, values)`, groups of frequencies from `at` on, and back.
template <class T, class Change>
INLINE void change_block(const Plan<T>& plan, Pair<T>* rows, int64_t at, Change change) {
    Pair<T> x[Vector<T>::lanes];
    enter_block(plan, rows, at, x);
    for_each_group(x, [&](int row, auto& values) {
        dft<false>(values);
        change(at + row, values);
        dft<true>(values);
    });
    leave_block(plan, x, at, rows);
}

// Calls `use(at, values)` with the groups of a block's part of the spectrum.
template <class T, class Use>
INLINE void read_block(const Plan<T>& plan, const Pair<T>* rows, int64_t at, Use use) {
    Pair<T> x[Vector<T>::lanes];
    enter_block(plan, rows, at, x);
    for_each_group(x, [&](int row, auto& values) {
        dft<false>(values);
        use(at + row, values);
    });
}

// The rows of a block from `get(at, values)`, which gives the groups of its part of the spectrum.
template <class T, class Get>
INLINE void write_block(const Plan<T>& plan, Pair<T>* rows, int64_t at, Get get) {
    constexpr int W = Vector<T>::lanes, G = GROUP<W>;
    Pair<T> x[W];
    for (int row = 0; row < W; row += G) {
        Pair<T> values[G];
        get(at + row, values);
        dft<true>(values);
        for (int i = 0; i < G; i++) x[row + i] = values[i];
    }
    leave_block(plan, x, at, rows);
}

// The passes after the first on `forward` arrays, `leaf(at)` on every block of W rows, the passes back on the first
// `inverse` of them.
template <int forward, int inverse, class T, class Leaf>
void descend(const Plan<T>& plan, Pair<T>* const* arrays, Leaf leaf, int level = 1, int64_t at = 0, int64_t n = 0) {
    if (level == 1 && n == 0) {
        n = plan.rows / plan.radix[0];
        for (int r = 0; r < plan.radix[0]; r++) descend<forward, inverse>(plan, arrays, leaf, 1, r * n, n);
        return;
    }
    if (level == plan.n_levels) return leaf(at);
    const int radix = plan.radix[level];
    const int64_t stride = n / radix;
    const Scalar<T>* twiddle = plan.twiddles[level].data();
    with_radix(radix, [&](auto r) {
        for (int i = 0; i < forward; i++) pass<r, false>(arrays[i] + at, stride, twiddle);
    });
    for (int r = 0; r < radix; r++)
        descend<forward, inverse>(plan, arrays, leaf, level + 1, at + r * stride, stride);
    with_radix(radix, [&](auto r) {
        for (int i = 0; i < inverse; i++) pass<r, true>(arrays[i] + at, stride, twiddle);
    });
}
