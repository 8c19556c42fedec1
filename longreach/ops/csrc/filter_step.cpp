// One output of a causal filter for every channel, and the inputs that the next one needs.
//
//     y = bias + sum_j taps_j x_{t-j} + sum_i added_i           x_t the input, before it those in `window`
//
// Inputs of a channel lie next to each other in memory, oldest first, and fill the lanes; taps count backwards in time.

#include <algorithm>

#include "vector.h"

namespace {

template <class T>
INLINE Vec<T> reversed(Vec<T> x) {
    Vec<T> result;
    for (int i = 0; i < Vector<T>::lanes; i++) result[i] = x[Vector<T>::lanes - 1 - i];
    return result;
}

// sum_j taps[j] end[-j] for j < count
template <class T>
INLINE T backward_product(const T* taps, const T* end, int64_t count) {
    constexpr int lanes = Vector<T>::lanes;
    Vec<T> sum{};
    int64_t j = 0;
    for (; j + lanes <= count; j += lanes) sum += load(taps + j) * reversed<T>(load(end - j - lanes + 1));
    T total = 0;
    for (int i = 0; i < lanes; i++) total += sum[i];
    for (; j < count; j++) total += taps[j] * end[-j];
    return total;
}

struct Sizes {
    int64_t rows, channels, width, kept, taps, taps_stride, added;
};

template <class T>
void step(const void* x_data, const void* window_data, const void* taps_data, const void* bias_data,
          const void* const* added, const int64_t* strides, const Sizes& sizes, void* y_data, void* after_data) {
    const T *x = static_cast<const T*>(x_data), *window = static_cast<const T*>(window_data);
    const T *taps = static_cast<const T*>(taps_data), *bias = static_cast<const T*>(bias_data);
    T *y = static_cast<T*>(y_data), *after = static_cast<T*>(after_data);
    const int64_t past = std::min(sizes.width, sizes.taps - 1), moved = sizes.kept - 1;
    for (int64_t b = 0; b < sizes.rows; b++)
        for (int64_t c = 0; c < sizes.channels; c++) {
            const int64_t at = b * sizes.channels + c;
            const T *end = window + (at + 1) * sizes.width, *own = taps + c * sizes.taps_stride;
            T sum = own[0] * x[at] + backward_product(own + 1, end - 1, past);
            if (bias) sum += bias[c];
            for (int64_t i = 0; i < sizes.added; i++)
                sum += static_cast<const T*>(added[i])[b * strides[2 * i] + c * strides[2 * i + 1]];
            y[at] = sum;
            if (sizes.kept) {
                std::copy(end - moved, end, after + at * sizes.kept);
                after[at * sizes.kept + moved] = x[at];
            }
        }
}

}  // namespace

// x (b, d), window (b, d, w), after (b, d, kept) with kept <= w + 1; taps (d, at least 1) with rows of any stride; bias
// (d) may be null; added: so many (b, d) with two strides each.  sizes: those of Sizes, in its order.
#define FILTER_STEP(NAME, T)                                                                                        \
    LONGREACH_EXPORT void longreach_filter_step_##NAME(const void* x, const void* window, const void* taps,         \
                                                       const void* bias, const void* const* added,                  \
                                                       const int64_t* strides, const int64_t* sizes, void* y,       \
                                                       void* after, int) {                                          \
        step<T>(x, window, taps, bias, added, strides,                                                              \
                {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]}, y, after);                  \
    }

FILTER_STEP(float32, float)
FILTER_STEP(float64, double)
