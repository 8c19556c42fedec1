// Sums of exponentials and their moments: products with a Vandermonde matrix that is never formed.
//
//     sums      y_l = 2 Re sum_n c_n z_n^l
//     moments   m_n = sum_l u_l z_n^l   and   d_n = sum_l l u_l z_n^l
//
// With l = q T + s, z^l = z^{qT} z^s: both are small matrix products with tables of about 2 sqrt(l) powers a mode.  The
// powers are computed in double precision whatever the dtype is: in single precision the phase of a late power would be
// all rounding.  Lanes run along s; a thread takes a channel, makes its tables once and uses them for all rows.
//
// Work n l, memory (l / T + T) n a thread.

#include <algorithm>
#include <cmath>
#include <complex>

#include "memory.h"
#include "vector.h"

namespace {

typedef std::complex<double> Complex;

constexpr int QS = 4, SS = 4;  // blocks q and vectors along s that are summed in registers at a time
constexpr int CHAINS = 16;     // powers that are multiplied side by side, so that products do not wait for each other

INLINE Complex times(Complex a, Complex b) {
    return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
}

template <class T>
struct Sizes {
    int64_t length, fine, coarse, stored;  // `coarse` blocks of `fine` positions, a multiple of the tile along s

    explicit Sizes(int64_t n) : length(n) {
        const int64_t tile = std::max<int64_t>(SS * Vector<T>::lanes, CHAINS), root = int64_t(std::sqrt(double(n)));
        fine = std::max<int64_t>(1, (root + tile / 2) / tile) * tile;
        coarse = (n + fine - 1) / fine;
        coarse = (coarse + QS - 1) / QS * QS;
        stored = (coarse + CHAINS - 1) / CHAINS * CHAINS;  // powers of a mode in its coarse table
    }
};

// z^0 .. z^{count-1}, a multiple of CHAINS, computed in double precision.
template <class T>
void powers(Complex z, int64_t count, T* re, T* im) {
    constexpr int W = Vector<double>::lanes, V = CHAINS / W;
    typedef T Narrow __attribute__((vector_size(W * sizeof(T))));
    double start_re[CHAINS] = {1}, start_im[CHAINS] = {0};
    for (int known = 1; known < CHAINS; known *= 2, z = times(z, z))  // z is z^known
        for (int i = 0; i < known; i++) {
            start_re[known + i] = start_re[i] * z.real() - start_im[i] * z.imag();
            start_im[known + i] = start_re[i] * z.imag() + start_im[i] * z.real();
        }
    Vec<double> x[V], y[V];
    for (int i = 0; i < V; i++) x[i] = load(start_re + i * W), y[i] = load(start_im + i * W);
    const double leap_re = z.real(), leap_im = z.imag();
    for (int64_t at = 0; at < count; at += CHAINS)
#pragma GCC unroll 8
        for (int i = 0; i < V; i++) {
            const Narrow low_re = __builtin_convertvector(x[i], Narrow), low_im = __builtin_convertvector(y[i], Narrow);
            std::memcpy(re + at + i * W, &low_re, sizeof low_re);
            std::memcpy(im + at + i * W, &low_im, sizeof low_im);
            const Vec<double> next = x[i] * leap_re - y[i] * leap_im;
            y[i] = x[i] * leap_im + y[i] * leap_re;
            x[i] = next;
        }
}

// The tables of a channel: real and imaginary parts of z^s, (mode, s), and z^{qT} in double precision, (mode, q).
template <class T>
struct Tables {
    Array<T> re, im;
    Array<double> coarse_re, coarse_im;

    void make(const T* log_ratio, int64_t modes, const Sizes<T>& sizes) {
        re.resize(modes * sizes.fine);
        im.resize(modes * sizes.fine);
        coarse_re.resize(modes * sizes.stored);
        coarse_im.resize(modes * sizes.stored);
        for (int64_t n = 0; n < modes; n++) {
            const Complex z = std::exp(Complex(log_ratio[2 * n], log_ratio[2 * n + 1]));
            powers(z, sizes.fine, &re[n * sizes.fine], &im[n * sizes.fine]);
            Complex stride = 1, square = z;
            for (int64_t bits = sizes.fine; bits; bits >>= 1, square = times(square, square))
                if (bits & 1) stride = times(stride, square);
            powers(stride, sizes.stored, &coarse_re[n * sizes.stored], &coarse_im[n * sizes.stored]);
        }
    }
};

// y for one row: `weight` holds 2 Re and -2 Im of c_n z_n^{qT}, (mode, q) each.
template <class T>
void sum_row(const Tables<T>& tables, const Sizes<T>& sizes, int64_t modes, const T* weight_re, const T* weight_im, T* y) {
    constexpr int W = Vector<T>::lanes;
    for (int64_t q = 0; q < sizes.coarse; q += QS)
        for (int64_t s = 0; s < sizes.fine; s += SS * W) {
            if (q * sizes.fine + s >= sizes.length) break;
            Vec<T> sum[QS][SS] = {};
            for (int64_t n = 0; n < modes; n++) {
                const T *re = &tables.re[n * sizes.fine + s], *im = &tables.im[n * sizes.fine + s];
                const T *wr = weight_re + n * sizes.coarse + q, *wi = weight_im + n * sizes.coarse + q;
#pragma GCC unroll 4
                for (int j = 0; j < SS; j++) {
                    const Vec<T> a = load(re + j * W), b = load(im + j * W);
#pragma GCC unroll 4
                    for (int i = 0; i < QS; i++) sum[i][j] += wr[i] * a + wi[i] * b;
                }
            }
            for (int i = 0; i < QS; i++)
                for (int j = 0; j < SS; j++) {
                    const int64_t at = (q + i) * sizes.fine + s + j * W, left = sizes.length - at;
                    if (left >= W) store(y + at, sum[i][j]);
                    else if (left > 0) store_some(y + at, sum[i][j], int(left));
                }
        }
}

// Real part and minus the imaginary part of c z^{qT}.
template <class T>
void weigh(double c_re, double c_im, const double* __restrict x, const double* __restrict y, int64_t count,
           T* __restrict re, T* __restrict im) {
    for (int64_t q = 0; q < count; q++) {
        re[q] = T(c_re * x[q] - c_im * y[q]);
        im[q] = T(-c_re * y[q] - c_im * x[q]);
    }
}

template <class T>
void sums(const T* coefficient, const T* log_ratio, T* y, int64_t batch, int64_t channels, int64_t modes, int64_t length,
          int threads) {
    const Sizes<T> sizes(length);
    Attempts attempt;
#pragma omp parallel num_threads(threads)
    {
        Tables<T> tables;
        Array<T> weight;
        attempt([&] { weight.resize(2 * modes * sizes.coarse); });
        T *re = weight.data(), *im = re + modes * sizes.coarse;
#pragma omp for schedule(static)
        for (int64_t d = 0; d < channels; d++) {
            attempt([&] { tables.make(log_ratio + 2 * d * modes, modes, sizes); });
            if (attempt.failed()) continue;
            for (int64_t b = 0; b < batch; b++) {
                const T* c = coefficient + 2 * (b * channels + d) * modes;
                for (int64_t n = 0; n < modes; n++) {
                    const double *x = &tables.coarse_re[n * sizes.stored], *y_n = &tables.coarse_im[n * sizes.stored];
                    weigh(2.0 * c[2 * n], 2.0 * c[2 * n + 1], x, y_n, sizes.coarse, re + n * sizes.coarse, im + n * sizes.coarse);
                }
                sum_row(tables, sizes, modes, re, im, y + (b * channels + d) * length);
            }
        }
    }
}

// What the powers z^{qT} of a mode weigh in both moments, in the precision of the sums.
template <class T>
struct Weights {
    Array<T> re, im, late_re, late_im;  // z^{qT} and q z^{qT}

    void make(const Tables<T>& tables, int64_t modes, const Sizes<T>& sizes) {
        const int64_t count = modes * sizes.stored;
        for (auto* part : {&re, &im, &late_re, &late_im}) part->resize(count);
        for (int64_t first = 0; first < count; first += sizes.stored)
            for (int64_t q = 0; q < sizes.coarse; q++) {
                const int64_t i = first + q;
                const T x = T(tables.coarse_re[i]), y = T(tables.coarse_im[i]);
                re[i] = x, im[i] = y, late_re[i] = T(q) * x, late_im[i] = T(q) * y;
            }
    }
};

// Both moments of some modes, in a row that is padded to coarse * fine samples.
template <int count, class T>
void moments_of_row(const Tables<T>& tables, const Weights<T>& weights, const Sizes<T>& sizes, int64_t mode, const T* u,
                    T* moment, T* derivative) {
    constexpr int W = Vector<T>::lanes, V = SS / count;
    Vec<T> position;  // the s of the first vector
    for (int i = 0; i < W; i++) position[i] = T(i);
    Vec<T> total[count][4] = {};  // lanes of the moment and of the derivative
    for (int64_t s = 0; s < sizes.fine; s += V * W) {
        Vec<T> sum[count][4][V] = {};  // over q, of z^{qT} u and q z^{qT} u
        for (int64_t q = 0; q < sizes.coarse; q++) {
            Vec<T> v[V];
#pragma GCC unroll 4
            for (int j = 0; j < V; j++) v[j] = load(u + q * sizes.fine + s + j * W);
#pragma GCC unroll 2
            for (int m = 0; m < count; m++) {
                const int64_t at = (mode + m) * sizes.stored + q;
                const T w[4] = {weights.re[at], weights.im[at], weights.late_re[at], weights.late_im[at]};
#pragma GCC unroll 4
                for (int k = 0; k < 4; k++)
#pragma GCC unroll 4
                    for (int j = 0; j < V; j++) sum[m][k][j] += w[k] * v[j];
            }
        }
        for (int m = 0; m < count; m++)
            for (int j = 0; j < V; j++) {
                const int64_t from = (mode + m) * sizes.fine + s + j * W;
                const Vec<T> zr = load(&tables.re[from]), zi = load(&tables.im[from]), at = position + T(s + j * W);
                const Vec<T> early_re = sum[m][0][j] * zr - sum[m][1][j] * zi;
                const Vec<T> early_im = sum[m][0][j] * zi + sum[m][1][j] * zr;
                total[m][0] += early_re, total[m][1] += early_im;
                total[m][2] += at * early_re + T(sizes.fine) * (sum[m][2][j] * zr - sum[m][3][j] * zi);
                total[m][3] += at * early_im + T(sizes.fine) * (sum[m][2][j] * zi + sum[m][3][j] * zr);
            }
    }
    for (int m = 0; m < count; m++) {
        double sum[4] = {};
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < W; i++) sum[k] += total[m][k][i];
        moment[2 * m] = T(sum[0]), moment[2 * m + 1] = T(sum[1]);
        derivative[2 * m] = T(sum[2]), derivative[2 * m + 1] = T(sum[3]);
    }
}

template <class T>
void moments(const T* u, const T* log_ratio, T* moment, T* derivative, int64_t batch, int64_t channels, int64_t modes,
             int64_t length, bool reverse, int threads) {
    const Sizes<T> sizes(length);
    Attempts attempt;
#pragma omp parallel num_threads(threads)
    {
        Tables<T> tables;
        Weights<T> weights;
        Array<T> padded;
        attempt([&] { padded.resize(sizes.coarse * sizes.fine); });
#pragma omp for schedule(static)
        for (int64_t d = 0; d < channels; d++) {
            attempt([&] {
                tables.make(log_ratio + 2 * d * modes, modes, sizes);
                weights.make(tables, modes, sizes);
            });
            if (attempt.failed()) continue;
            for (int64_t b = 0; b < batch; b++) {
                const T* row = u + (b * channels + d) * length;
                if (reverse) std::reverse_copy(row, row + length, padded.begin());
                else std::copy(row, row + length, padded.begin());
                const int64_t at = 2 * (b * channels + d) * modes;
                int64_t n = 0;
                for (; n + 2 <= modes; n += 2)
                    moments_of_row<2>(tables, weights, sizes, n, padded.data(), moment + at + 2 * n, derivative + at + 2 * n);
                if (n < modes)
                    moments_of_row<1>(tables, weights, sizes, n, padded.data(), moment + at + 2 * n, derivative + at + 2 * n);
            }
        }
    }
}

}  // namespace

// Complex arrays hold pairs.  coefficient, moment, derivative: (batch, channels, modes); log_ratio: (channels, modes);
// y, u: (batch, channels, length).  With `reverse`, u_l counts from the end.
#define VANDERMONDE(NAME, T)                                                                                         \
    LONGREACH_EXPORT void longreach_vandermonde_##NAME(const void* coefficient, const void* log_ratio, void* y,      \
                                                       int64_t batch, int64_t channels, int64_t modes,               \
                                                       int64_t length, int threads) {                                \
        sums(static_cast<const T*>(coefficient), static_cast<const T*>(log_ratio), static_cast<T*>(y), batch,        \
             channels, modes, length, threads);                                                                      \
    }                                                                                                                \
    LONGREACH_EXPORT void longreach_vandermonde_moments_##NAME(                                                      \
        const void* u, const void* log_ratio, void* moment, void* derivative, int64_t batch, int64_t channels,       \
        int64_t modes, int64_t length, int reverse, int threads) {                                                   \
        moments(static_cast<const T*>(u), static_cast<const T*>(log_ratio), static_cast<T*>(moment),                 \
                static_cast<T*>(derivative), batch, channels, modes, length, reverse, threads);                      \
    }

VANDERMONDE(float32, float)
VANDERMONDE(float64, double)
