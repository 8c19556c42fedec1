// Sums of conjugate pairs of simple poles, and their adjoint: products with a Cauchy matrix that is never formed.
//
//     r_k = sum_n v_n X + conj(v_n) Y              X = 1 / (z_k - w_n),   Y = 1 / (z_k - conj(w_n))
//
// Both fractions have the denominator q = (z - w)(z - conj(w)).  With I = 1 / q and P = (z - Re w) / q, X + Y = 2 P and
// X - Y = 2 i Im(w) I, so that real coefficients are left and no digit is lost next to a pole:
//
//     r_k = sum_n 2 Re(v) P - 2 Im(v) Im(w) I
//
// The derivatives need four real sums over the points for each coefficient, of conj(grad) with
// P, I, 2 P^2 - I = (X^2 + Y^2) / 2 and P I = (X^2 - Y^2) / (4 i Im w).
//
// Lanes run along the points.  A few rows of coefficients that share their poles are summed at a time, so that one
// division serves all of them.  Work and traffic are linear in everything; the workspace of a thread does not depend on
// the number of points.

#include <algorithm>

#include "memory.h"
#include "vector.h"

namespace {

constexpr int MOST_ROWS = 4;   // of coefficients whose sums are in registers at a time
constexpr int AT_ONCE = 2;     // vectors of points in a sum
constexpr int CHUNK = 512;     // points in a thread's workspace, a multiple of AT_ONCE vectors of any width
constexpr int MOMENTS = 4;

// Real and imaginary parts of up to CHUNK numbers, the last one repeated to the end or followed by zeros.
template <class T>
struct Split {
    alignas(64) T re[CHUNK], im[CHUNK];

    void read(const T* pairs, int count, bool repeat) {
        for (int i = 0; i < count; i++) re[i] = pairs[2 * i], im[i] = pairs[2 * i + 1];
        for (int i = count; i < CHUNK; i++) {
            re[i] = repeat ? re[count - 1] : T(0);
            im[i] = repeat ? im[count - 1] : T(0);
        }
    }
    void write(T* pairs, int count) const {
        for (int i = 0; i < count; i++) pairs[2 * i] = re[i], pairs[2 * i + 1] = im[i];
    }
};

// P and I at a vector of points.
template <class T>
struct Fractions {
    Vec<T> P_re, P_im, I_re, I_im;

    INLINE Fractions at(Vec<T> re, Vec<T> im, const T* pole) {
        const Vec<T> apart = re - pole[0];
        const Vec<T> q_re = apart * apart - (im - pole[1]) * (im + pole[1]), q_im = T(2) * apart * im;
        const Vec<T> scale = T(1) / (q_re * q_re + q_im * q_im);
        const Vec<T> I_re = q_re * scale, I_im = -q_im * scale;
        return {apart * I_re - im * I_im, apart * I_im + im * I_re, I_re, I_im};
    }
};

template <class T>
struct Sizes {
    int64_t rows, channels, modes, points;

    // The coefficients, and the results, of a row and a channel.
    int64_t coefficient(int64_t row, int64_t channel) const { return 2 * (row * channels + channel) * modes; }
    int64_t result(int64_t row, int64_t channel) const { return 2 * (row * channels + channel) * points; }
};

// Calls `run(count)` with the number of rows as a constant.
template <class Function>
INLINE void with_count(int64_t rows, Function run) {
    switch (rows) {
        case 1: return run(std::integral_constant<int, 1>());
        case 2: return run(std::integral_constant<int, 2>());
        case 3: return run(std::integral_constant<int, 3>());
        default: return run(std::integral_constant<int, MOST_ROWS>());
    }
}

// The sums of `rows` rows at a chunk of points.  `weight` holds the two real coefficients of each row, mode by mode.
template <int rows, class T>
void sum_chunk(const Split<T>& z, const T* poles, const T* weight, int64_t modes, int count, Split<T>* sums) {
    constexpr int W = Vector<T>::lanes;
    for (int k = 0; k < count; k += AT_ONCE * W) {
        Vec<T> re[rows][AT_ONCE] = {}, im[rows][AT_ONCE] = {};
        for (int64_t n = 0; n < modes; n++) {
            const T* factor = weight + 2 * rows * n;
#pragma GCC unroll 2
            for (int j = 0; j < AT_ONCE; j++) {
                const auto f = Fractions<T>::at(load(z.re + k + j * W), load(z.im + k + j * W), poles + 2 * n);
#pragma GCC unroll 4
                for (int row = 0; row < rows; row++) {
                    re[row][j] += factor[2 * row] * f.P_re + factor[2 * row + 1] * f.I_re;
                    im[row][j] += factor[2 * row] * f.P_im + factor[2 * row + 1] * f.I_im;
                }
            }
        }
        for (int row = 0; row < rows; row++)
            for (int j = 0; j < AT_ONCE; j++) {
                store(sums[row].re + k + j * W, re[row][j]);
                store(sums[row].im + k + j * W, im[row][j]);
            }
    }
}

template <class T>
void sums(const T* v, const T* z, const T* w, T* r, Sizes<T> sizes, int threads) {
    const int64_t chunks = (sizes.points + CHUNK - 1) / CHUNK;
    Attempts attempt;
#pragma omp parallel num_threads(threads)
    {
        Split<T> points, found[MOST_ROWS];
        Array<T> weight;
        attempt([&] { weight.resize(2 * MOST_ROWS * sizes.modes); });
#pragma omp for schedule(static)
        for (int64_t job = 0; job < sizes.channels * chunks; job++) {
            if (attempt.failed()) continue;
            const int64_t channel = job / chunks, start = job % chunks * CHUNK;
            const int count = int(std::min<int64_t>(CHUNK, sizes.points - start));
            const T* poles = w + 2 * channel * sizes.modes;
            points.read(z + 2 * start, count, true);
            for (int64_t first = 0; first < sizes.rows; first += MOST_ROWS)
                with_count(sizes.rows - first, [&](auto rows) {
                    for (int row = 0; row < rows; row++) {
                        const T* v_row = v + sizes.coefficient(first + row, channel);
                        for (int64_t n = 0; n < sizes.modes; n++) {
                            weight[2 * (n * rows + row)] = 2 * v_row[2 * n];
                            weight[2 * (n * rows + row) + 1] = -2 * v_row[2 * n + 1] * poles[2 * n + 1];
                        }
                    }
                    sum_chunk<rows>(points, poles, weight.data(), sizes.modes, count, found);
                    for (int row = 0; row < rows; row++)
                        found[row].write(r + sizes.result(first + row, channel) + 2 * start, count);
                });
        }
    }
}

// Adds the four sums of each row over a chunk of points, for one pole.
template <int rows, class T>
void add_moments(const Split<T>& z, const Split<T>* grad, const T* pole, int count, double (*total)[MOMENTS]) {
    constexpr int W = Vector<T>::lanes;
    Vec<T> sum[rows][MOMENTS] = {};
    for (int k = 0; k < count; k += W) {
        const auto f = Fractions<T>::at(load(z.re + k), load(z.im + k), pole);
        const Vec<T> re[MOMENTS] = {f.P_re, f.I_re, T(2) * (f.P_re * f.P_re - f.P_im * f.P_im) - f.I_re,
                                    f.P_re * f.I_re - f.P_im * f.I_im};
        const Vec<T> im[MOMENTS] = {f.P_im, f.I_im, T(4) * f.P_re * f.P_im - f.I_im,
                                    f.P_re * f.I_im + f.P_im * f.I_re};
#pragma GCC unroll 4
        for (int row = 0; row < rows; row++) {
            const Vec<T> grad_re = load(grad[row].re + k), grad_im = load(grad[row].im + k);
#pragma GCC unroll 4
            for (int i = 0; i < MOMENTS; i++) sum[row][i] += grad_re * re[i] + grad_im * im[i];
        }
    }
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < MOMENTS; i++)
            for (int lane = 0; lane < W; lane++) total[row][i] += sum[row][i][lane];
}

template <class T>
void adjoint(const T* grad, const T* v, const T* z, const T* w, T* grad_v, T* grad_w, Sizes<T> sizes, int threads) {
    Attempts attempt;
#pragma omp parallel num_threads(threads)
    {
        Split<T> points, grads[MOST_ROWS];
        Array<double> memory;
        attempt([&] { memory.resize(MOST_ROWS * MOMENTS * sizes.modes); });
        double(*const total)[MOMENTS] = reinterpret_cast<double(*)[MOMENTS]>(memory.data());
#pragma omp for schedule(static)
        for (int64_t channel = 0; channel < sizes.channels; channel++) {
            if (attempt.failed()) continue;
            const T* poles = w + 2 * channel * sizes.modes;
            T* to_poles = grad_w + 2 * channel * sizes.modes;
            std::fill(to_poles, to_poles + 2 * sizes.modes, T(0));
            for (int64_t first = 0; first < sizes.rows; first += MOST_ROWS)
                with_count(sizes.rows - first, [&](auto rows) {
                    std::fill(memory.begin(), memory.end(), 0);
                    for (int64_t start = 0; start < sizes.points; start += CHUNK) {
                        const int count = int(std::min<int64_t>(CHUNK, sizes.points - start));
                        points.read(z + 2 * start, count, true);
                        for (int row = 0; row < rows; row++)
                            grads[row].read(grad + sizes.result(first + row, channel) + 2 * start, count, false);
                        for (int64_t n = 0; n < sizes.modes; n++)
                            add_moments<rows>(points, grads, poles + 2 * n, count, total + n * rows);
                    }
                    for (int row = 0; row < rows; row++) {
                        const int64_t at = sizes.coefficient(first + row, channel);
                        for (int64_t n = 0; n < sizes.modes; n++) {
                            const double* moment = total[n * rows + row];
                            const double im_w = poles[2 * n + 1], re_v = v[at + 2 * n], im_v = v[at + 2 * n + 1];
                            grad_v[at + 2 * n] = T(2 * moment[0]);
                            grad_v[at + 2 * n + 1] = T(-2 * im_w * moment[1]);
                            to_poles[2 * n] += T(2 * re_v * moment[2] - 4 * im_w * im_v * moment[3]);
                            to_poles[2 * n + 1] -= T(4 * im_w * re_v * moment[3] + 2 * im_v * moment[2]);
                        }
                    }
                });
        }
    }
}

}  // namespace

// Complex arrays hold pairs.  v, grad_v: (rows, channels, modes); w, grad_w: (channels, modes); z: (points);
// r, grad: (rows, channels, points).
#define CAUCHY(NAME, T)                                                                                                \
    LONGREACH_EXPORT void longreach_cauchy_##NAME(const void* v, const void* z, const void* w, void* r, int64_t rows,  \
                                                  int64_t channels, int64_t modes, int64_t points, int threads) {      \
        sums(static_cast<const T*>(v), static_cast<const T*>(z), static_cast<const T*>(w), static_cast<T*>(r),         \
             Sizes<T>{rows, channels, modes, points}, threads);                                                        \
    }                                                                                                                  \
    LONGREACH_EXPORT void longreach_cauchy_adjoint_##NAME(const void* grad, const void* v, const void* z,              \
                                                          const void* w, void* grad_v, void* grad_w, int64_t rows,     \
                                                          int64_t channels, int64_t modes, int64_t points,             \
                                                          int threads) {                                               \
        adjoint(static_cast<const T*>(grad), static_cast<const T*>(v), static_cast<const T*>(z),                       \
                static_cast<const T*>(w), static_cast<T*>(grad_v), static_cast<T*>(grad_w),                            \
                Sizes<T>{rows, channels, modes, points}, threads);                                                     \
    }

CAUCHY(complex64, float)
CAUCHY(complex128, double)
