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

template <class T>
struct Sizes {
    int64_t length, fine, coarse;  // `coarse` blocks of `fine` positions, a multiple of the tile along s

    explicit Sizes(int64_t n) : length(n) {
        const int64_t tile = SS * Vector<T>::lanes, root = int64_t(std::sqrt(double(n)));
        fine = std::max<int64_t>(1, (root + tile / 2) / tile) * tile;
        coarse = (n + fine - 1) / fine;
        coarse = (coarse + QS - 1) / QS * QS;
    }
};

// The tables of a channel: real and imaginary parts of z^s, (mode, s), and z^{qT} in double precision, (mode, q).
template <class T>
struct Tables {
    Array<T> re, im;
    Array<Complex> coarse;

    void make(const T* log_ratio, int64_t modes, const Sizes<T>& sizes) {
        constexpr int LANES = 8;
        re.resize(modes * sizes.fine);
        im.resize(modes * sizes.fine);
        coarse.resize(modes * sizes.coarse);
        for (int64_t n = 0; n < modes; n++) {
            const Complex z = std::exp(Complex(log_ratio[2 * n], log_ratio[2 * n + 1]));
            double x[LANES], y[LANES];  // several powers side by side: the products do not wait for each other
            Complex power = 1;
            for (int i = 0; i < LANES; i++, power = times(power, z)) x[i] = power.real(), y[i] = power.imag();
            const Complex leap = power;
            T *re_n = &re[n * sizes.fine], *im_n = &im[n * sizes.fine];
            for (int64_t s = 0; s < sizes.fine; s += LANES)
                for (int i = 0; i < LANES && s + i < sizes.fine; i++) {
                    re_n[s + i] = T(x[i]), im_n[s + i] = T(y[i]);
                    const double next = x[i] * leap.real() - y[i] * leap.imag();
                    y[i] = x[i] * leap.imag() + y[i] * leap.real();
                    x[i] = next;
                }
            Complex stride = 1, square = z;
            for (int64_t bits = sizes.fine; bits; bits >>= 1, square = times(square, square))
                if (bits & 1) stride = times(stride, square);
            power = 1;
            for (int64_t q = 0; q < sizes.coarse; q++, power = times(power, stride)) coarse[n * sizes.coarse + q] = power;
        }
    }

    static Complex times(Complex a, Complex b) {
        return {a.real() * b.real() - a.imag() * b.imag(), a.real() * b.imag() + a.imag() * b.real()};
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
                for (int64_t n = 0; n < modes; n++)
                    for (int64_t q = 0; q < sizes.coarse; q++) {
                        const Complex w = Tables<T>::times({c[2 * n], c[2 * n + 1]}, tables.coarse[n * sizes.coarse + q]);
                        re[n * sizes.coarse + q] = T(2 * w.real());
                        im[n * sizes.coarse + q] = T(-2 * w.imag());
                    }
                sum_row(tables, sizes, modes, re, im, y + (b * channels + d) * length);
            }
        }
    }
}

// Both moments of one row of one mode.  `u` is padded to coarse * fine samples.
template <class T>
void moments_of_row(const Tables<T>& tables, const Sizes<T>& sizes, int64_t n, const T* u, T* moment, T* derivative) {
    constexpr int W = Vector<T>::lanes;
    const Complex* power = &tables.coarse[n * sizes.coarse];
    const T *re_n = &tables.re[n * sizes.fine], *im_n = &tables.im[n * sizes.fine];
    Vec<T> position;  // the s of the first vector
    for (int i = 0; i < W; i++) position[i] = T(i);
    Vec<T> total[4] = {};  // lanes of the moment and of the derivative
    for (int64_t s = 0; s < sizes.fine; s += SS * W) {
        Vec<T> re[SS] = {}, im[SS] = {}, late_re[SS] = {}, late_im[SS] = {};  // sums over q of z^{qT} u and q z^{qT} u
        for (int64_t q = 0; q < sizes.coarse; q++) {
            const T x = T(power[q].real()), y = T(power[q].imag()), qx = T(q) * x, qy = T(q) * y;
#pragma GCC unroll 4
            for (int j = 0; j < SS; j++) {
                const Vec<T> v = load(u + q * sizes.fine + s + j * W);
                re[j] += x * v, im[j] += y * v, late_re[j] += qx * v, late_im[j] += qy * v;
            }
        }
        for (int j = 0; j < SS; j++) {
            const Vec<T> zr = load(re_n + s + j * W), zi = load(im_n + s + j * W), at = position + T(s + j * W);
            const Vec<T> early_re = re[j] * zr - im[j] * zi, early_im = re[j] * zi + im[j] * zr;
            total[0] += early_re, total[1] += early_im;
            total[2] += at * early_re + T(sizes.fine) * (late_re[j] * zr - late_im[j] * zi);
            total[3] += at * early_im + T(sizes.fine) * (late_re[j] * zi + late_im[j] * zr);
        }
    }
    double sum[4] = {};
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < W; i++) sum[k] += total[k][i];
    moment[0] = T(sum[0]), moment[1] = T(sum[1]);
    if (derivative) derivative[0] = T(sum[2]), derivative[1] = T(sum[3]);
}

template <class T>
void moments(const T* u, const T* log_ratio, T* moment, T* derivative, int64_t batch, int64_t channels, int64_t modes,
             int64_t length, bool reverse, int threads) {
    const Sizes<T> sizes(length);
    Attempts attempt;
#pragma omp parallel num_threads(threads)
    {
        Tables<T> tables;
        Array<T> padded;
        attempt([&] { padded.resize(sizes.coarse * sizes.fine); });
#pragma omp for schedule(static)
        for (int64_t d = 0; d < channels; d++) {
            attempt([&] { tables.make(log_ratio + 2 * d * modes, modes, sizes); });
            if (attempt.failed()) continue;
            for (int64_t b = 0; b < batch; b++) {
                const T* row = u + (b * channels + d) * length;
                if (reverse) std::reverse_copy(row, row + length, padded.begin());
                else std::copy(row, row + length, padded.begin());
                for (int64_t n = 0; n < modes; n++) {
                    const int64_t at = 2 * ((b * channels + d) * modes + n);
                    moments_of_row(tables, sizes, n, padded.data(), moment + at, derivative ? derivative + at : nullptr);
                }
            }
        }
    }
}

}  // namespace

// Complex arrays hold pairs.  coefficient, moment, derivative: (batch, channels, modes); log_ratio: (channels, modes);
// y, u: (batch, channels, length).  With `reverse`, u_l counts from the end.  `derivative` may be null.
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
