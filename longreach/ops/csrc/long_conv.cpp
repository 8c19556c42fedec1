// Convolution of every channel with its own long filter, gates and skip connection included, and its adjoint.
//
//     v = gate_before u,   z_t = sum_j kernel_j v_{t-j} + sum_j reverse_j v_{t+lag+j} + skip v_t,   y = gate_after z
//
// All in one pass over the input: gates are applied where samples are read and written, the skip connection is part of
// kernel_0, and the future is the conjugate of a spectrum, so a two-sided filter costs no more than a causal one.  A
// thread takes a channel, transforms its filter once and then row after row of the batch; while it works on one row it asks
// for the next, because rows lie too far apart for the processor to guess.  Only the arguments are kept for the adjoint,
// which transforms them again:
//
//     g = gate_after grad,   grad v = F^-1(conj(K) F g),   grad kernel = sum_b F^-1(F g conj(F v)), ...
//
// Workspace: up to four spectra a thread, 8 to 16 bytes a sample each, kept for the next call (see Workspace).

#include <algorithm>

#include "right_angle.h"

namespace {

// Samples (batch, channel, length) that lie side by side along the length; null for none.
template <class T>
struct Signal {
    T* data;
    int64_t batch_stride, channel_stride;

    T* row(int64_t b, int64_t c) const { return data ? data + b * batch_stride + c * channel_stride : nullptr; }
};

// What a thread needs; grows to the largest call so far, and is given back if that was large.
template <class T>
class Workspace {
   public:
    static constexpr int64_t KEPT = int64_t(64) << 20;  // bytes

    Pair<T>* array(int index, int64_t rows) {
        if (capacity_[index] < rows) {
            arrays_[index] = Aligned<Pair<T>>::make(rows);
            capacity_[index] = rows;
        }
        return arrays_[index].get();
    }
    void shrink() {
        for (int i = 0; i < 4; i++)
            if (capacity_[i] * int64_t(sizeof(Pair<T>)) > KEPT / 4) {
                arrays_[i].reset();
                capacity_[i] = 0;
            }
    }

   private:
    typename Aligned<Pair<T>>::Array arrays_[4];
    int64_t capacity_[4] = {};
};

template <class T>
Workspace<T>& workspace() {
    static thread_local Workspace<T> own;
    return own;
}

// Row `row` of `count` samples; zero beyond the end.
template <class T>
INLINE Vec<T> samples(const T* from, int64_t row, int64_t count) {
    constexpr int W = Vector<T>::lanes;
    const int64_t left = count - row * W;
    if (left >= W) return load(from + row * W);
    return left > 0 ? load_some(from + row * W, int(left)) : Vec<T>{};
}

template <class T>
INLINE Vec<T> gated(const T* from, const T* gate, int64_t row, int64_t count) {
    const Vec<T> x = samples(from, row, count);
    return gate ? x * samples(gate, row, count) : x;
}

template <class T>
INLINE void write(T* to, int64_t row, int64_t count, Vec<T> value) {
    constexpr int W = Vector<T>::lanes;
    const int64_t left = count - row * W;
    if (left >= W) store(to + row * W, value);
    else if (left > 0) store_some(to + row * W, value, int(left));
}

template <class T>
struct Problem {
    static constexpr int64_t EXPECTED = int64_t(1) << 19;  // bytes of a row; larger ones do not fit beside a spectrum

    const T *kernel, *reverse, *skip;
    Signal<const T> u, before, after;
    int64_t batch, channels, length, taps, reverse_taps, lag;

    int64_t signal_bytes() const { return batch * channels * length * int64_t(sizeof(T)); }

    // The row that is likely to come after this one, null if there is none or it is too long to be asked for early.
    const T* next(Signal<const T> signal, int64_t b, int64_t channel) const {
        if (length * int64_t(sizeof(T)) > EXPECTED) return nullptr;
        if (b + 1 < batch) return signal.row(b + 1, channel);
        return channel + 1 < channels ? signal.row(0, channel + 1) : nullptr;
    }
};

// Asks for a group of W samples of each of these rows (null for none).  A few at a time, in between arithmetic: the
// processor waits where it is asked for more than it can have under way.
template <class T, class... More>
INLINE void expect(int64_t row, int64_t count, const T* from, More... more) {
    constexpr int W = Vector<T>::lanes, G = GROUP<W>;
    if (from && (row + G) * W <= count) {
#pragma GCC unroll 8
        for (int i = 0; i < G; i++) __builtin_prefetch(from + (row + i) * W);
    }
    if constexpr (sizeof...(more) > 0) expect(row, count, more...);
}

template <class T, class Get>
void enter(const Plan<T>& plan, Pair<T>* rows, Get get) {
    with_radix(plan.radix[0], [&](auto radix) { first_pass<radix>(plan, rows, get); });
}

template <class T, class Put>
void leave(const Plan<T>& plan, const Pair<T>* rows, Put put) {
    with_radix(plan.radix[0], [&](auto radix) { last_pass<radix>(plan, rows, put); });
}

// The spectrum of the whole filter of a channel, divided by the size of the transform; `scratch` is as large.
template <class T>
void filter_spectrum(const Plan<T>& plan, const Problem<T>& problem, int64_t channel, Pair<T>* spectrum, Pair<T>* scratch) {
    constexpr int W = Vector<T>::lanes;
    const T scale = T(1) / T(plan.size);
    const T* kernel = problem.kernel + channel * problem.taps;
    const T skip = problem.skip ? problem.skip[channel] : T(0);
    const int64_t taps = std::min(problem.taps, problem.length);
    enter(plan, spectrum, [=](int64_t row) {
        Vec<T> x = samples(kernel, row, taps);
        if (row == 0) x[0] += skip;
        return x;
    });
    descend<1, 0>(plan, &spectrum, [=, &plan](int64_t at) {
        read_block(plan, spectrum, at, [=](int64_t from, auto& values) {
            for (Pair<T>& value : values) spectrum[from++] = {value.re * scale, value.im * scale};
        });
    });
    if (!problem.reverse) return;
    const T* reverse = problem.reverse + channel * problem.reverse_taps;
    const int64_t lag = problem.lag, reverse_taps = std::min(problem.reverse_taps, problem.length - lag);
    enter(plan, scratch, [=](int64_t row) {
        Vec<T> x{};
        for (int c = 0; c < W; c++) {
            const int64_t tap = row * W + c - lag;
            if (tap >= 0 && tap < reverse_taps) x[c] = reverse[tap];
        }
        return x;
    });
    descend<1, 0>(plan, &scratch, [=, &plan](int64_t at) {
        read_block(plan, scratch, at, [=](int64_t from, auto& values) {
            for (Pair<T>& value : values) {
                spectrum[from].re += value.re * scale;
                spectrum[from++].im -= value.im * scale;
            }
        });
    });
}

template <class T>
void convolve_channel(const Plan<T>& plan, const Problem<T>& problem, int64_t channel, T* y) {
    const int64_t length = problem.length;
    Pair<T>*spectrum = workspace<T>().array(0, plan.rows), *rows = workspace<T>().array(1, plan.rows);
    filter_spectrum(plan, problem, channel, spectrum, rows);
    for (int64_t b = 0; b < problem.batch; b++) {
        const T *u = problem.u.row(b, channel), *before = problem.before.row(b, channel);
        const T* after = problem.after.row(b, channel);
        const T *next_u = problem.next(problem.u, b, channel), *next_before = problem.next(problem.before, b, channel);
        T* result = y + (b * problem.channels + channel) * length;
        enter(plan, rows, [=](int64_t row) { return gated(u, before, row, length); });
        descend<1, 1>(plan, &rows, [=, &plan](int64_t at) {
            change_block(plan, rows, at, [=](int64_t from, auto& values) {
                expect<T>(from, length, result, after, next_u, next_before);
#pragma GCC unroll 8
                for (Pair<T>& value : values) value = multiply<false>(value, spectrum[from++]);
            });
        });
        leave(plan, rows, [=](int64_t row, Vec<T> z) {
            write(result, row, length, after ? z * samples(after, row, length) : z);
        });
    }
    workspace<T>().shrink();
}

// Where the gradients go; null for what is not wanted.  Those of signals are contiguous.
template <class T>
struct Gradients {
    T *u, *kernel, *reverse, *skip, *before, *after;
};

template <class T>
void adjoint_row(const Plan<T>& plan, const Problem<T>& problem, const Gradients<T>& gradients, Signal<const T> grad,
                 int64_t b, int64_t channel, const Pair<T>* spectrum, Pair<T>* correlation) {
    constexpr int W = Vector<T>::lanes;
    const int64_t length = problem.length, at_row = (b * problem.channels + channel) * length;
    const auto row_of = [=](T* gradient) { return gradient ? gradient + at_row : nullptr; };
    T *grad_u = row_of(gradients.u), *grad_before = row_of(gradients.before), *grad_after = row_of(gradients.after);
    Pair<T>* arrays[2] = {workspace<T>().array(2, plan.rows), workspace<T>().array(3, plan.rows)};
    Pair<T>*g = arrays[0], *v = arrays[1];
    const T *u = problem.u.row(b, channel), *before = problem.before.row(b, channel);
    const T *after = problem.after.row(b, channel), *grad_row = grad.row(b, channel);
    enter(plan, g, [=](int64_t row) { return gated(grad_row, after, row, length); });
    enter(plan, v, [=](int64_t row) { return gated(u, before, row, length); });
    const T *next_grad = problem.next(grad, b, channel), *next_after = problem.next(problem.after, b, channel);
    const T *next_u = problem.next(problem.u, b, channel), *next_before = problem.next(problem.before, b, channel);
    const bool needs_output = grad_after;
    const auto leaf = [=, &plan](int64_t at) {
        Pair<T> x[W], y[W];
        enter_block(plan, v, at, x);
        enter_block(plan, g, at, y);
        Pair<T>* other = x;
        for_each_group(y, [&](int row, auto& values) {
            const int64_t from = at + row;
            expect<T>(from, length, grad_u, grad_before, grad_after, next_grad, next_after, next_u, next_before);
            Pair<T> signal[GROUP<W>];
            for (Pair<T>& value : signal) value = *other++;
            other -= GROUP<W>;
            dft<false>(signal);
            dft<false>(values);
#pragma GCC unroll 8
            for (int i = 0; i < GROUP<W>; i++) {
                correlation[from + i] = correlation[from + i] + multiply<true>(values[i], signal[i]);
                values[i] = multiply<true>(values[i], spectrum[from + i]);
                signal[i] = multiply<false>(signal[i], spectrum[from + i]);
            }
            dft<true>(values);
            if (needs_output) dft<true>(signal);
            for (Pair<T>& value : signal) *other++ = value;
        });
        leave_block(plan, y, at, g);
        if (needs_output) leave_block(plan, x, at, v);
    };
    if (needs_output) descend<2, 2>(plan, arrays, leaf);
    else descend<2, 1>(plan, arrays, leaf);
    leave(plan, g, [=](int64_t row, Vec<T> grad_v) {
        if (grad_u) write(grad_u, row, length, before ? grad_v * samples(before, row, length) : grad_v);
        if (grad_before) write(grad_before, row, length, grad_v * samples(u, row, length));
    });
    if (needs_output)
        leave(plan, v, [=](int64_t row, Vec<T> z) {
            write(grad_after, row, length, z * samples(grad_row, row, length));
        });
}

// The gradients of a channel's filter from the sum over the batch of F g conj(F v), which is overwritten.
template <class T>
void adjoint_filter(const Plan<T>& plan, const Problem<T>& problem, const Gradients<T>& gradients, int64_t channel,
                    Pair<T>* correlation, Pair<T>* scratch) {
    constexpr int W = Vector<T>::lanes;
    const T scale = T(1) / T(plan.size);
    const int64_t taps = problem.taps, used = std::min(taps, problem.length);
    if (gradients.reverse) {
        const int64_t lag = problem.lag, reverse_taps = problem.reverse_taps;
        const int64_t known = std::min(reverse_taps, problem.length - lag);
        T* to = gradients.reverse + channel * reverse_taps;
        descend<0, 1>(plan, &scratch, [=, &plan](int64_t at) {
            write_block(plan, scratch, at, [=](int64_t from, auto& values) {
                for (Pair<T>& value : values) {
                    value = {correlation[from].re * scale, -correlation[from].im * scale};
                    from++;
                }
            });
        });
        std::fill(to, to + reverse_taps, T(0));
        leave(plan, scratch, [=](int64_t row, Vec<T> value) {
            for (int c = 0; c < W; c++) {
                const int64_t tap = row * W + c - lag;
                if (tap >= 0 && tap < known) to[tap] = value[c];
            }
        });
    }
    if (!gradients.kernel && !gradients.skip) return;
    descend<0, 1>(plan, &correlation, [=, &plan](int64_t at) {
        write_block(plan, correlation, at, [=](int64_t from, auto& values) {
            for (Pair<T>& value : values) {
                value = {correlation[from].re * scale, correlation[from].im * scale};
                from++;
            }
        });
    });
    T* to = gradients.kernel ? gradients.kernel + channel * taps : nullptr;
    T* skip = gradients.skip ? gradients.skip + channel : nullptr;
    if (to) std::fill(to + used, to + taps, T(0));
    leave(plan, correlation, [=](int64_t row, Vec<T> value) {
        if (to) write(to, row, used, value);
        if (skip && row == 0) *skip = value[0];
    });
}

template <class T>
void adjoint_channel(const Plan<T>& plan, const Problem<T>& problem, const Gradients<T>& gradients,
                     Signal<const T> grad, int64_t channel) {
    Pair<T>*spectrum = workspace<T>().array(0, plan.rows), *correlation = workspace<T>().array(1, plan.rows);
    filter_spectrum(plan, problem, channel, spectrum, correlation);
    std::fill(correlation, correlation + plan.rows, Pair<T>{});
    for (int64_t b = 0; b < problem.batch; b++)
        adjoint_row(plan, problem, gradients, grad, b, channel, spectrum, correlation);
    adjoint_filter(plan, problem, gradients, channel, correlation, workspace<T>().array(2, plan.rows));
    workspace<T>().shrink();
}

template <class T>
Problem<T> make_problem(const void* const* inputs, const int64_t* sizes) {
    const auto pointer = [=](int i) { return static_cast<const T*>(inputs[i]); };
    return {pointer(0),
            pointer(1),
            pointer(2),
            {pointer(3), sizes[6], sizes[7]},
            {pointer(4), sizes[8], sizes[9]},
            {pointer(5), sizes[10], sizes[11]},
            sizes[0],
            sizes[1],
            sizes[2],
            sizes[3],
            sizes[4],
            sizes[5]};
}

template <class T>
void convolve(const void* const* inputs, const int64_t* sizes, void* y, int threads) {
    const Problem<T> problem = make_problem<T>(inputs, sizes);
    prefer_large_pages(y, problem.signal_bytes());
    Attempts attempt;
    attempt([&] {
        const Plan<T>& plan = find_plan<T>(fitting_size<T>(problem.length));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t channel = 0; channel < problem.channels; channel++)
            attempt([&] { convolve_channel(plan, problem, channel, static_cast<T*>(y)); });
    });
}

template <class T>
void adjoint(const void* const* inputs, const int64_t* sizes, const void* grad, void* const* outputs, int threads) {
    const Problem<T> problem = make_problem<T>(inputs, sizes);
    const auto pointer = [=](int i) { return static_cast<T*>(outputs[i]); };
    const Gradients<T> gradients = {pointer(0), pointer(1), pointer(2), pointer(3), pointer(4), pointer(5)};
    const Signal<const T> signal = {static_cast<const T*>(grad), sizes[12], sizes[13]};
    for (T* result : {gradients.u, gradients.before, gradients.after}) prefer_large_pages(result, problem.signal_bytes());
    Attempts attempt;
    attempt([&] {
        const Plan<T>& plan = find_plan<T>(fitting_size<T>(problem.length));
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t channel = 0; channel < problem.channels; channel++)
            attempt([&] { adjoint_channel(plan, problem, gradients, signal, channel); });
    });
}

}  // namespace

// inputs: kernel, reverse, skip, u, gate_before, gate_after (null where there is none).
// sizes: batch, channels, length, taps, reverse_taps, lag, and the strides (batch, channel) of u, gate_before,
// gate_after and, for the adjoint, grad.  outputs: the gradients of u, kernel, reverse, skip, gate_before, gate_after.
#define LONG_CONV(NAME, T)                                                                                           \
    LONGREACH_EXPORT void longreach_long_conv_##NAME(const void* const* inputs, const int64_t* sizes, void* y,       \
                                                     int threads) {                                                  \
        convolve<T>(inputs, sizes, y, threads);                                                                      \
    }                                                                                                                \
    LONGREACH_EXPORT void longreach_long_conv_adjoint_##NAME(const void* const* inputs, const int64_t* sizes,        \
                                                             const void* grad, void* const* outputs, int threads) { \
        adjoint<T>(inputs, sizes, grad, outputs, threads);                                                           \
    }

LONG_CONV(float32, float)
LONG_CONV(float64, double)
