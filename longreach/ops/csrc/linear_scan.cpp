// The recurrence h_t = a_t h_{t-1} + x_t and its adjoint, for real and complex channels.
//
// Channels lie next to each other in memory and fill the lanes; time is walked step by step with the states of a tile of
// channels in registers, so every array is read or written exactly once.  A complex tile holds interleaved pairs; its
// products exchange neighbouring lanes.  `a` has strides of its own, because a time-invariant one is expanded, not
// copied.  Threads share tiles of (batch, channels).
//
// Adjoint:  g_t = grad_t + conj(a_{t+1}) g_{t+1},   grad a_t = g_t conj(h_{t-1}),   grad x_t = g_t,
//           grad initial = g_0 conj(a_0).

#include "arithmetic.h"
#include "memory.h"

namespace {

// Vectors in a tile.  Four are enough independent chains to hide the latency of a product; more are memory enough, side
// by side for it to be fetched ahead.
constexpr int WIDE = VECTOR_BYTES == 64 ? 16 : 8, NARROW = 4;

// The strides of `a` between rows of the batch and between positions, in scalars; channels lie side by side.
struct Strides {
    int64_t batch, time;
};

template <class Arithmetic, int n_vectors>
INLINE void scan_tile(const typename Arithmetic::Scalar* a, const typename Arithmetic::Scalar* x,
                      const typename Arithmetic::Scalar* initial, typename Arithmetic::Scalar* h, int64_t length,
                      int64_t width, int64_t a_step, bool reverse, int count) {
    typedef typename Arithmetic::Scalar T;
    constexpr int lanes = Vector<T>::lanes;
    Vec<T> state[n_vectors];
    for (int i = 0; i < n_vectors; i++)
        state[i] = n_vectors == 1 ? load_some(initial, count) : load(initial + i * lanes);
    for (int64_t step = 0; step < length; step++) {
        const int64_t t = reverse ? length - 1 - step : step;
        for (int i = 0; i < n_vectors; i++) {
            const int64_t at = t * width + i * lanes;
            if (n_vectors == 1) {
                state[i] = Arithmetic::multiply(load_some(a + t * a_step, count), state[i]) + load_some(x + at, count);
                store_some(h + at, state[i], count);
            } else {
                state[i] = Arithmetic::multiply(load(a + t * a_step + i * lanes), state[i]) + load(x + at);
                store(h + at, state[i]);
            }
        }
    }
}

template <class Arithmetic, int n_vectors>
INLINE void adjoint_tile(const typename Arithmetic::Scalar* grad, const typename Arithmetic::Scalar* a,
                         const typename Arithmetic::Scalar* initial, const typename Arithmetic::Scalar* h,
                         typename Arithmetic::Scalar* grad_a, typename Arithmetic::Scalar* grad_x,
                         typename Arithmetic::Scalar* grad_initial, int64_t length, int64_t width, int64_t a_step,
                         bool reverse, int count) {
    typedef typename Arithmetic::Scalar T;
    constexpr int lanes = Vector<T>::lanes;
    const auto get = [count](const T* from) { return n_vectors == 1 ? load_some(from, count) : load(from); };
    const auto put = [count](T* to, Vec<T> value) {
        if (n_vectors == 1) store_some(to, value, count);
        else store(to, value);
    };
    Vec<T> carried[n_vectors] = {};  // conj(a_{t+1}) g_{t+1}
    for (int64_t step = length - 1; step >= 0; step--) {
        const int64_t t = reverse ? length - 1 - step : step;
        const int64_t before = reverse ? t + 1 : t - 1;
        for (int i = 0; i < n_vectors; i++) {
            const int64_t at = t * width + i * lanes;
            const Vec<T> g = get(grad + at) + carried[i];
            put(grad_x + at, g);
            if (grad_a) {
                const T* previous = step ? h + before * width + i * lanes : initial + i * lanes;
                put(grad_a + at, Arithmetic::multiply_conjugate(g, get(previous)));
            }
            carried[i] = Arithmetic::multiply_conjugate(g, get(a + t * a_step + i * lanes));
        }
    }
    for (int i = 0; i < n_vectors; i++) put(grad_initial + i * lanes, carried[i]);
}

template <int n>
using Count = std::integral_constant<int, n>;

// Calls `use(n_vectors, row, offset, count)` for all tiles: as many wide ones as there are, if they occupy the threads, then
// narrow ones, then single vectors, of which the last may hold but `count` scalars.
template <class T, class Use>
void for_each_tile(int64_t batch, int64_t width, int threads, Use use) {
    constexpr int lanes = Vector<T>::lanes;
    const int64_t wide = batch * (width / (WIDE * lanes)) < threads ? 0 : width / (WIDE * lanes);
    const int64_t narrow = (width - wide * WIDE * lanes) / (NARROW * lanes), whole = wide * WIDE + narrow * NARROW;
    const int64_t tiles = wide + narrow + (width - whole * lanes + lanes - 1) / lanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < batch * tiles; job++) {
        const int64_t row = job / tiles, index = job % tiles;
        if (index < wide) {
            use(Count<WIDE>(), row, index * WIDE * lanes, 0);
        } else if (index < wide + narrow) {
            use(Count<NARROW>(), row, (wide * WIDE + (index - wide) * NARROW) * lanes, 0);
        } else {
            const int64_t offset = (whole + index - wide - narrow) * lanes;
            use(Count<1>(), row, offset, int(width - offset < lanes ? width - offset : lanes));
        }
    }
}

template <class Arithmetic>
void scan(const void* a_data, const void* x_data, const void* initial_data, void* h_data, int64_t batch, int64_t length,
          int64_t channels, Strides strides, bool reverse, int threads) {
    typedef typename Arithmetic::Scalar T;
    const T *a = static_cast<const T*>(a_data), *x = static_cast<const T*>(x_data);
    const T* initial = static_cast<const T*>(initial_data);
    T* h = static_cast<T*>(h_data);
    const int64_t width = channels * Arithmetic::parts, row = length * width;
    prefer_large_pages(h, batch * row * sizeof(T));
    const auto run = [=](auto n_vectors, int64_t b, int64_t c, int count) {
        scan_tile<Arithmetic, n_vectors>(a + b * strides.batch + c, x + b * row + c, initial + b * width + c,
                                         h + b * row + c, length, width, strides.time, reverse, count);
    };
    for_each_tile<T>(batch, width, threads, run);
}

template <class Arithmetic>
void adjoint(const void* grad_data, const void* a_data, const void* initial_data, const void* h_data, void* grad_a_data,
             void* grad_x_data, void* grad_initial_data, int64_t batch, int64_t length, int64_t channels,
             Strides strides, bool reverse, int threads) {
    typedef typename Arithmetic::Scalar T;
    const T *grad = static_cast<const T*>(grad_data), *a = static_cast<const T*>(a_data);
    const T *initial = static_cast<const T*>(initial_data), *h = static_cast<const T*>(h_data);
    T *grad_a = static_cast<T*>(grad_a_data), *grad_x = static_cast<T*>(grad_x_data);
    T* grad_initial = static_cast<T*>(grad_initial_data);
    const int64_t width = channels * Arithmetic::parts, row = length * width;
    for (const T* result : {grad_a, grad_x}) prefer_large_pages(result, batch * row * sizeof(T));
    const auto run = [=](auto n_vectors, int64_t b, int64_t c, int count) {
        const int64_t at = b * row + c, state = b * width + c;
        adjoint_tile<Arithmetic, n_vectors>(grad + at, a + b * strides.batch + c, initial + state, h + at,
                                            grad_a ? grad_a + at : nullptr, grad_x + at, grad_initial + state, length,
                                            width, strides.time, reverse, count);
    };
    for_each_tile<T>(batch, width, threads, run);
}

}  // namespace

// For each dtype: the scan, and its adjoint, in which `grad_a` may be null.  All arrays but `a` are contiguous
// (batch, length, channels) or (batch, channels); the strides of `a` are in scalars.
#define LINEAR_SCAN(NAME, ARITHMETIC)                                                                                  \
    LONGREACH_EXPORT void longreach_linear_scan_##NAME(const void* a, const void* x, const void* initial, void* h,    \
                                                       int64_t batch, int64_t length, int64_t channels,               \
                                                       int64_t a_batch_stride, int64_t a_time_stride, int reverse,    \
                                                       int threads) {                                                 \
        scan<ARITHMETIC>(a, x, initial, h, batch, length, channels, {a_batch_stride, a_time_stride}, reverse, threads); \
    }                                                                                                                  \
    LONGREACH_EXPORT void longreach_linear_scan_adjoint_##NAME(                                                        \
        const void* grad, const void* a, const void* initial, const void* h, void* grad_a, void* grad_x,              \
        void* grad_initial, int64_t batch, int64_t length, int64_t channels, int64_t a_batch_stride,                  \
        int64_t a_time_stride, int reverse, int threads) {                                                            \
        adjoint<ARITHMETIC>(grad, a, initial, h, grad_a, grad_x, grad_initial, batch, length, channels,               \
                            {a_batch_stride, a_time_stride}, reverse, threads);                                       \
    }

LINEAR_SCAN(float32, Real<float>)
LINEAR_SCAN(float64, Real<double>)
LINEAR_SCAN(complex64, Complex<float>)
LINEAR_SCAN(complex128, Complex<double>)
