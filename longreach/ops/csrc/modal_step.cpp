// One step of diagonal systems, real or complex, with a correction of low rank where there is one.
//
//     after = abar * modes + bbar u - sum_r left_r 2 Re(right_r . modes)        y = 2 Re(C . after) + skip u
//
// Modes lie next to each other in memory and fill the lanes; complex ones are interleaved pairs.  A thread takes whole
// channels of a row.  abar and bbar have strides of their own: rows of the batch, or channels, may share them.

#include "arithmetic.h"

namespace {

template <class Arithmetic>
using ScalarOf = typename Arithmetic::Scalar;

// Calls `whole(at)` for every full vector below `width`, and `rest(at, count)` for what remains.
template <class T, class Whole, class Rest>
INLINE void for_each_vector(int64_t width, Whole whole, Rest rest) {
    constexpr int lanes = Vector<T>::lanes;
    int64_t at = 0;
    for (; at + lanes <= width; at += lanes) whole(at);
    if (at < width) rest(at, int(width - at));
}

// 2 Re(x . y)
template <class Arithmetic>
INLINE ScalarOf<Arithmetic> twice_real_product(const ScalarOf<Arithmetic>* x, const ScalarOf<Arithmetic>* y,
                                               int64_t width) {
    typedef ScalarOf<Arithmetic> T;
    Vec<T> sum{};
    for_each_vector<T>(
        width, [&](int64_t at) { sum += load(x + at) * load(y + at); },
        [&](int64_t at, int count) { sum += load_some(x + at, count) * load_some(y + at, count); });
    T total = 0;
    for (int i = 0; i < Vector<T>::lanes; i++) total += Arithmetic::parts == 2 && i % 2 ? -sum[i] : sum[i];
    return 2 * total;
}

template <class Arithmetic>
struct Problem {
    typedef ScalarOf<Arithmetic> T;
    const T *u, *modes, *abar, *bbar, *C, *skip, *left, *right;
    int64_t batch, channels, width, rank, abar_batch, abar_channel, bbar_batch, bbar_channel;

    // Writes the modes of channel c in row b and returns the output.
    T step(int64_t b, int64_t c, T* after) const {
        const T input = u[b * channels + c], *before = modes + (b * channels + c) * width;
        const T *a = abar + b * abar_batch + c * abar_channel, *drive = bbar + b * bbar_batch + c * bbar_channel;
        for_each_vector<T>(
            width,
            [&](int64_t at) {
                store(after + at, Arithmetic::multiply(load(a + at), load(before + at)) + load(drive + at) * input);
            },
            [&](int64_t at, int count) {
                const Vec<T> turned = Arithmetic::multiply(load_some(a + at, count), load_some(before + at, count));
                store_some(after + at, turned + load_some(drive + at, count) * input, count);
            });
        for (int64_t r = 0; r < rank; r++) correct(left + (r * channels + c) * width, right + (r * channels + c) * width,
                                                   before, after);
        const T y = twice_real_product<Arithmetic>(C + c * width, after, width);
        return skip ? y + skip[c] * input : y;
    }

    void correct(const T* towards, const T* along, const T* before, T* after) const {
        const T seen = twice_real_product<Arithmetic>(along, before, width);
        for_each_vector<T>(
            width, [&](int64_t at) { store(after + at, load(after + at) - load(towards + at) * seen); },
            [&](int64_t at, int count) {
                store_some(after + at, load_some(after + at, count) - load_some(towards + at, count) * seen, count);
            });
    }
};

template <class Arithmetic>
void step(const void* const* from, const int64_t* sizes, void* y, void* after, int threads) {
    typedef ScalarOf<Arithmetic> T;
    const auto pointer = [=](int i) { return static_cast<const T*>(from[i]); };
    const Problem<Arithmetic> problem = {pointer(0), pointer(1), pointer(2), pointer(3), pointer(4), pointer(5),
                                         pointer(6), pointer(7), sizes[0],   sizes[1],   sizes[2],   sizes[3],
                                         sizes[4],   sizes[5],   sizes[6],   sizes[7]};
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < problem.batch * problem.channels; job++)
        static_cast<T*>(y)[job] = problem.step(job / problem.channels, job % problem.channels,
                                               static_cast<T*>(after) + job * problem.width);
}

}  // namespace

// from: u (b, d), modes (b, d, n), abar, bbar, C (d, n), and skip (d), left (r, d, n), right (r, d, n), which may be
// null.  sizes, in scalars where they are not counts: b, d, width of n modes, r, the strides of abar between rows and
// between channels, those of bbar.
#define MODAL_STEP(NAME, ARITHMETIC)                                                                            \
    LONGREACH_EXPORT void longreach_modal_step_##NAME(const void* const* from, const int64_t* sizes, void* y,   \
                                                      void* after, int threads) {                              \
        step<ARITHMETIC>(from, sizes, y, after, threads);                                                       \
    }

MODAL_STEP(float32, Real<float>)
MODAL_STEP(float64, Real<double>)
MODAL_STEP(complex64, Complex<float>)
MODAL_STEP(complex128, Complex<double>)
