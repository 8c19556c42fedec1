// The last two axes exchanged, as a copy: y[b][c][r] = x[b][r][c].
//
// Squares of one vector by one vector are turned in registers.  A thread takes a few hundred rows, which stay in the
// cache while all columns are read, so that every line of memory is read once and written once, whole.

#include <algorithm>

#include "complex.h"
#include "memory.h"

namespace {

constexpr int64_t ROWS = 256;

template <class T>
INLINE void turn_square(const T* x, int64_t step, T* y, int64_t rows) {
    constexpr int W = Vector<T>::lanes;
    Vec<T> square[W];
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) square[i] = load(x + i * step);
    transpose<T>(square);
#pragma GCC unroll 16
    for (int i = 0; i < W; i++) store(y + i * rows, square[i]);
}

// The columns of some rows of one matrix.
template <class T>
void turn_rows(const T* x, int64_t step, T* y, int64_t rows, int64_t first, int64_t last, int64_t columns) {
    constexpr int W = Vector<T>::lanes;
    for (int64_t c = 0; c < columns; c += W) {
        const int64_t width = std::min<int64_t>(W, columns - c);
        int64_t r = first;
        if (width == W)
            for (; r + W <= last; r += W) turn_square(x + r * step + c, step, y + c * rows + r, rows);
        for (; r < last; r++)
            for (int64_t i = 0; i < width; i++) y[(c + i) * rows + r] = x[r * step + c + i];
    }
}

template <class T>
void turn(const T* x, T* y, int64_t batch, int64_t rows, int64_t columns, int64_t batch_step, int64_t step, int threads) {
    prefer_large_pages(y, batch * rows * columns * sizeof(T));
    const int64_t parts = (rows + ROWS - 1) / ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < batch * parts; job++) {
        const int64_t b = job / parts, first = job % parts * ROWS;
        turn_rows(x + b * batch_step, step, y + b * rows * columns, rows, first, std::min(first + ROWS, rows), columns);
    }
}

}  // namespace

// x: (batch, rows, columns), of which batch and rows have any strides, in elements; y: (batch, columns, rows), dense.
#define TRANSPOSED(NAME, T)                                                                                           \
    LONGREACH_EXPORT void longreach_transposed_##NAME(const void* x, void* y, int64_t batch, int64_t rows,            \
                                                      int64_t columns, int64_t batch_step, int64_t step,              \
                                                      int threads) {                                                  \
        turn(static_cast<const T*>(x), static_cast<T*>(y), batch, rows, columns, batch_step, step, threads);          \
    }

TRANSPOSED(float32, float)
TRANSPOSED(float64, double)
