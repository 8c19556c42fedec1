// Causal convolution of every channel with a few taps of its own, and its adjoint.
//
//     y_t = bias + sum_j weight_{k-1-j} x_{t-j},     x_{-1}, x_{-2}, ... the end of `tail`, or zero
//
// Lanes run along the length.  A thread takes a channel with all rows of the batch, so the gradients of its taps are sums
// of its own.  Rows and channels of x may lie anywhere; everything else is contiguous.

#include <algorithm>

#include "vector.h"

namespace {

constexpr int TAPS = 8;  // taps whose gradients are summed in registers at a time

template <class T>
struct Problem {
    const T *x, *weight, *bias, *tail;
    int64_t batch, channels, length, width, batch_stride, channel_stride;

    const T* row(int64_t b, int64_t c) const { return x + b * batch_stride + c * channel_stride; }
    // The sample at t, which may lie before the row.
    T sample(int64_t b, int64_t c, int64_t t) const {
        if (t >= 0) return row(b, c)[t];
        return tail ? tail[(b * channels + c) * (width - 1) + width - 1 + t] : T(0);
    }
};

template <class T>
void filter_row(const Problem<T>& problem, int64_t b, int64_t c, T* y) {
    constexpr int W = Vector<T>::lanes;
    const int64_t length = problem.length, width = problem.width, edge = std::min(width - 1, length);
    const T *x = problem.row(b, c), *weight = problem.weight + c * width;
    const T bias = problem.bias ? problem.bias[c] : T(0);
    for (int64_t t = 0; t < edge; t++) {
        T sum = bias;
        for (int64_t j = 0; j < width; j++) sum += weight[width - 1 - j] * problem.sample(b, c, t - j);
        y[t] = sum;
    }
    int64_t t = edge;
    for (; t + W <= length; t += W) {
        Vec<T> sum = Vec<T>{} + bias;
        for (int64_t j = 0; j < width; j++) sum += weight[width - 1 - j] * load(x + t - j);
        store(y + t, sum);
    }
    for (; t < length; t++) {
        T sum = bias;
        for (int64_t j = 0; j < width; j++) sum += weight[width - 1 - j] * x[t - j];
        y[t] = sum;
    }
}

// grad x_t = sum_j weight_{k-1-j} grad_{t+j}; before the row it belongs to the tail.
template <class T>
void input_gradient(const Problem<T>& problem, int64_t c, const T* grad, T* grad_x, T* grad_tail) {
    constexpr int W = Vector<T>::lanes;
    const int64_t length = problem.length, width = problem.width;
    const T* weight = problem.weight + c * width;
    const auto at = [=](int64_t t) {
        T sum = 0;
        for (int64_t j = std::max<int64_t>(0, -t); j < width && t + j < length; j++)
            sum += weight[width - 1 - j] * grad[t + j];
        return sum;
    };
    if (grad_tail)
        for (int64_t i = 0; i < width - 1; i++) grad_tail[i] = at(i - (width - 1));
    if (!grad_x) return;
    int64_t t = 0;
    for (; t + W + width - 1 <= length; t += W) {
        Vec<T> sum{};
        for (int64_t j = 0; j < width; j++) sum += weight[width - 1 - j] * load(grad + t + j);
        store(grad_x + t, sum);
    }
    for (; t < length; t++) grad_x[t] = at(t);
}

// A function that is called with the number of taps, 1 to TAPS, as a constant.
template <class Function>
INLINE void with_count(int count, Function function) {
    switch (count) {
        case 1: return function(std::integral_constant<int, 1>());
        case 2: return function(std::integral_constant<int, 2>());
        case 3: return function(std::integral_constant<int, 3>());
        case 4: return function(std::integral_constant<int, 4>());
        case 5: return function(std::integral_constant<int, 5>());
        case 6: return function(std::integral_constant<int, 6>());
        case 7: return function(std::integral_constant<int, 7>());
        default: return function(std::integral_constant<int, 8>());
    }
}

// Adds sum_t grad_t x_{t-j} to grad_weight_{k-1-j}, for a row.
template <class T>
void weight_gradient(const Problem<T>& problem, int64_t b, int64_t c, const T* grad, T* grad_weight) {
    constexpr int W = Vector<T>::lanes;
    const int64_t length = problem.length, width = problem.width, edge = std::min(width - 1, length);
    const T* x = problem.row(b, c);
    const int64_t whole = edge + (length - edge) / W * W;
    for (int64_t first = 0; first < width; first += TAPS) {
        Vec<T> sum[TAPS] = {};
        const int count = int(std::min<int64_t>(TAPS, width - first));
        const auto add = [&](auto constant) {
            constexpr int taps = decltype(constant)::value;
            for (int64_t t = edge; t < whole; t += W) {
                const Vec<T> g = load(grad + t);
#pragma GCC unroll 8
                for (int j = 0; j < taps; j++) sum[j] += g * load(x + t - first - j);
            }
        };
        with_count(count, add);
        for (int j = 0; j < count; j++) {
            T total = 0;
            for (int i = 0; i < W; i++) total += sum[j][i];
            for (int64_t t = 0; t < edge; t++) total += grad[t] * problem.sample(b, c, t - first - j);
            for (int64_t t = whole; t < length; t++) total += grad[t] * x[t - first - j];
            grad_weight[width - 1 - first - j] += total;
        }
    }
}

template <class T>
T sum_of(const T* x, int64_t count) {
    constexpr int W = Vector<T>::lanes;
    Vec<T> sum{};
    int64_t t = 0;
    for (; t + W <= count; t += W) sum += load(x + t);
    T total = 0;
    for (int i = 0; i < W; i++) total += sum[i];
    for (; t < count; t++) total += x[t];
    return total;
}

template <class T>
void filter(const Problem<T>& problem, T* y, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t b = 0; b < problem.batch; b++)
        for (int64_t c = 0; c < problem.channels; c++)
            filter_row(problem, b, c, y + (b * problem.channels + c) * problem.length);
}

// Gradients may be null where they are not wanted.
template <class T>
void adjoint(const Problem<T>& problem, const T* grad, T* grad_x, T* grad_weight, T* grad_bias, T* grad_tail,
             int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t c = 0; c < problem.channels; c++) {
        if (grad_weight) std::fill_n(grad_weight + c * problem.width, problem.width, T(0));
        if (grad_bias) grad_bias[c] = 0;
        for (int64_t b = 0; b < problem.batch; b++) {
            const int64_t at = b * problem.channels + c;
            const T* row = grad + at * problem.length;
            input_gradient(problem, c, row, grad_x ? grad_x + at * problem.length : nullptr,
                           grad_tail ? grad_tail + at * (problem.width - 1) : nullptr);
            if (grad_weight) weight_gradient(problem, b, c, row, grad_weight + c * problem.width);
            if (grad_bias) grad_bias[c] += sum_of(row, problem.length);
        }
    }
}

template <class T>
Problem<T> make_problem(const void* x, const void* weight, const void* bias, const void* tail, const int64_t* sizes) {
    const auto pointer = [](const void* p) { return static_cast<const T*>(p); };
    return {pointer(x), pointer(weight), pointer(bias), pointer(tail), sizes[0],
            sizes[1],   sizes[2],        sizes[3],      sizes[4],      sizes[5]};
}

}  // namespace

// sizes: batch, channels, length, width, and the strides of x (batch, channel).  bias and tail may be null.
#define SHORT_CONV(NAME, T)                                                                                          \
    LONGREACH_EXPORT void longreach_short_conv_##NAME(const void* x, const void* weight, const void* bias,           \
                                                      const void* tail, const int64_t* sizes, void* y,               \
                                                      int threads) {                                                 \
        filter(make_problem<T>(x, weight, bias, tail, sizes), static_cast<T*>(y), threads);                          \
    }                                                                                                                \
    LONGREACH_EXPORT void longreach_short_conv_adjoint_##NAME(                                                       \
        const void* x, const void* weight, const void* bias, const void* tail, const int64_t* sizes,                 \
        const void* grad, void* grad_x, void* grad_weight, void* grad_bias, void* grad_tail, int threads) {          \
        adjoint(make_problem<T>(x, weight, bias, tail, sizes), static_cast<const T*>(grad), static_cast<T*>(grad_x), \
                static_cast<T*>(grad_weight), static_cast<T*>(grad_bias), static_cast<T*>(grad_tail), threads);      \
    }

SHORT_CONV(float32, float)
SHORT_CONV(float64, double)
