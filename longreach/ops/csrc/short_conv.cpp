// Causal convolution of every channel with a few taps of its own, and its adjoint.
//
//     y_t = bias + sum_j weight_{k-1-j} x_{t-j},     x_{-1}, x_{-2}, ... the end of `tail`, or zero
//
// Either the positions of a channel or the channels of a position lie side by side, and fill the lanes: `First` (channels
// first) and `Last` say what differs.  A line is a channel, or the channels of a few registers.  The adjoint walks lines in
// blocks that stay in the cache, so it reads input and gradient once, and adds its sums over a block up in double precision.
// With channels last there must be a vector of them.

#include <algorithm>

#include "memory.h"
#include "vector.h"

namespace {

constexpr int TAPS = 8;       // taps that are specialised, and whose gradients are summed in registers at a time
constexpr int REGISTERS = 2;  // vectors of a line with channels last
constexpr int BLOCK = 32;     // steps of a block

template <class T>
struct Problem {
    const T *x, *weight, *bias, *tail;
    int64_t batch, channels, length, width, batch_stride, channel_stride, time_stride;

    int64_t signal_bytes() const { return batch * channels * length * sizeof(T); }
    const T* row(int64_t b, int64_t c) const { return x + b * batch_stride + c * channel_stride; }
    // The sample at t, which may lie before the row.
    T sample(int64_t b, int64_t c, int64_t t) const {
        if (t >= 0) return row(b, c)[t * time_stride];
        return tail ? tail[(b * channels + c) * (width - 1) + width - 1 + t] : T(0);
    }
    T tap(int64_t c, int64_t j) const { return weight[c * width + width - 1 - j]; }
    T output(int64_t b, int64_t c, int64_t t) const {
        T sum = bias ? bias[c] : T(0);
        for (int64_t j = 0; j < width; j++) sum += tap(c, j) * sample(b, c, t - j);
        return sum;
    }
    // grad x_t = sum_j weight_{k-1-j} grad_{t+j}; before the row it belongs to the tail.
    T input_gradient(const T* grad, int64_t step, int64_t c, int64_t t) const {
        T sum = 0;
        for (int64_t j = std::max<int64_t>(0, -t); j < width && t + j < length; j++) sum += tap(c, j) * grad[(t + j) * step];
        return sum;
    }
};

// Vectors of neighbouring positions, at steps from `from` on and up to taps - 1 positions back, put together from one load a
// step.  With a load for each tap, of which most cross lines of the cache, rows in memory take twice as long.
template <class T, int taps>
class Neighbours {
   public:
    Neighbours(const T* from, int64_t) : from_(from - W) {
        if constexpr (JOINED) now_ = joined(Vec<T>{}, load_some(from - (taps - 1), taps - 1), taps - 1);
    }
    void advance() {
        before_ = now_;
        from_ += W;
        now_ = load(from_);
    }
    Vec<T> at(int back, int) const { return JOINED ? joined(before_, now_, W - back) : load(from_ - back); }

   private:
    static constexpr int W = Vector<T>::lanes;
    static constexpr bool JOINED = taps <= W;
    typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Index;
    typedef Index Indices __attribute__((vector_size(VECTOR_BYTES)));

    // From element `first` on of one vector and then another.
    static Vec<T> joined(Vec<T> left, Vec<T> right, int first) {
        Indices order;
        for (int i = 0; i < W; i++) order[i] = first + i;
        return shuffle<T>(left, right, order);
    }

    const T* from_;
    Vec<T> before_{}, now_{};
};

// The same where channels are neighbours, and each position is a load of its own.
template <class T>
class Positions {
   public:
    Positions(const T* from, int64_t step) : from_(from - step), step_(step) {}
    void advance() { from_ += step_; }
    Vec<T> at(int back, int i) const { return load(from_ - back * step_ + i * Vector<T>::lanes); }

   private:
    const T* from_;
    int64_t step_;
};

// A channel, whose positions lie side by side.  A step is a vector of positions.
template <class T>
struct First {
    static constexpr int lanes = Vector<T>::lanes, vectors = 1;
    template <int taps>
    using Window = Neighbours<T, taps>;
    const Problem<T>& problem;
    int64_t channel;

    First(const Problem<T>& all, int64_t line) : problem(all), channel(line) {}
    int count() const { return 1; }  // channels
    int64_t x_step() const { return 1; }  // from a position to the next, here in x, below in a dense array
    int64_t step() const { return 1; }
    int64_t positions() const { return lanes; }  // of a step
    int64_t at(int64_t b) const { return (b * problem.channels + channel) * problem.length; }  // in a dense array
    Vec<T> tap(int64_t j, int) const { return Vec<T>{} + problem.tap(channel, j); }
    Vec<T> bias(int) const { return Vec<T>{} + (problem.bias ? problem.bias[channel] : T(0)); }
    // Adds a vector of sums to those of the channels.
    void add(double* sums, int, Vec<T> values) const {
        for (int i = 0; i < lanes; i++) sums[0] += values[i];
    }
};

// The channels of some vectors, which lie side by side.  A step is a position.
template <class T, int n_vectors>
struct Last {
    static constexpr int lanes = Vector<T>::lanes, vectors = n_vectors;
    template <int>
    using Window = Positions<T>;
    const Problem<T>& problem;
    int64_t channel;

    Last(const Problem<T>& all, int64_t first) : problem(all), channel(first) {}
    int count() const { return vectors * lanes; }
    int64_t x_step() const { return problem.time_stride; }
    int64_t step() const { return problem.channels; }
    int64_t positions() const { return 1; }
    int64_t at(int64_t b) const { return b * problem.length * problem.channels + channel; }
    Vec<T> tap(int64_t j, int i) const {
        Vec<T> taps;
        for (int k = 0; k < lanes; k++) taps[k] = problem.tap(channel + i * lanes + k, j);
        return taps;
    }
    Vec<T> bias(int i) const { return problem.bias ? load(problem.bias + channel + i * lanes) : Vec<T>{}; }
    void add(double* sums, int i, Vec<T> values) const {
        for (int k = 0; k < lanes; k++) sums[i * lanes + k] += values[k];
    }
};

// A function that is called with the number of taps, 1 to TAPS, as a constant.
template <class Function>
INLINE void with_count(int64_t count, Function function) {
    switch (count) {
        case 1: return function(std::integral_constant<int, 1>());
        case 2: return function(std::integral_constant<int, 2>());
        case 3: return function(std::integral_constant<int, 3>());
        case 4: return function(std::integral_constant<int, 4>());
        case 5: return function(std::integral_constant<int, 5>());
        case 6: return function(std::integral_constant<int, 6>());
        case 7: return function(std::integral_constant<int, 7>());
        default: return function(std::integral_constant<int, TAPS>());
    }
}

// Calls `use(first, count)` for at most TAPS taps at a time, their number a constant.
template <class Use>
INLINE void for_taps(int64_t width, Use use) {
    for (int64_t first = 0; first < width; first += TAPS)
        with_count(std::min<int64_t>(TAPS, width - first), [&](auto count) { use(first, count); });
}

// `to` at some steps becomes, or with `more` gains, sum_j weight_{k-1-j} of `from` j positions before, or with `ahead` after,
// j from `first` on.
template <bool more, bool ahead, int taps, class T, class Line>
INLINE void filter_steps(const Line& line, int64_t first, const Vec<T>* start, const T* from, int64_t from_step, T* to,
                         int64_t to_step, int64_t steps) {
    constexpr int V = Line::vectors, W = Vector<T>::lanes;
    Vec<T> weight[taps][V], first_sum[V];
    for (int i = 0; i < V; i++) first_sum[i] = start[i];
    for (int back = 0; back < taps; back++)
        for (int i = 0; i < V; i++) weight[back][i] = line.tap(first + (ahead ? taps - 1 - back : back), i);
    typename Line::template Window<taps> window(from + (ahead ? first + taps - 1 : -first) * from_step, from_step);
    for (int64_t s = 0; s < steps; s++, to += line.positions() * to_step) {
        window.advance();
#pragma GCC unroll 2
        for (int i = 0; i < V; i++) {
            Vec<T> sum = first_sum[i];
            if constexpr (more) sum = load(to + i * W);
#pragma GCC unroll 8
            for (int back = 0; back < taps; back++) sum += weight[back][i] * window.at(back, i);
            store(to + i * W, sum);
        }
    }
}

// The same with all taps.
template <bool ahead, class T, class Line>
INLINE void filter_with_all(const Line& line, const Vec<T>* start, const T* from, int64_t from_step, T* to,
                            int64_t to_step, int64_t steps) {
    for_taps(line.problem.width, [&](int64_t first, auto taps) {
        if (first) filter_steps<true, ahead, taps>(line, first, start, from, from_step, to, to_step, steps);
        else filter_steps<false, ahead, taps>(line, first, start, from, from_step, to, to_step, steps);
    });
}

template <class T, class Line>
void filter_row(const Line& line, int64_t b, T* y) {
    const Problem<T>& problem = line.problem;
    const int64_t edge = std::min(problem.width - 1, problem.length), positions = line.positions();
    const int64_t x_step = line.x_step(), step = line.step();
    const auto scalars = [&](int64_t from, int64_t to) {
        for (int64_t t = from; t < to; t++)
            for (int c = 0; c < line.count(); c++) y[t * step + c] = problem.output(b, line.channel + c, t);
    };
    scalars(0, edge);
    Vec<T> bias[Line::vectors];
    for (int i = 0; i < Line::vectors; i++) bias[i] = line.bias(i);
    const int64_t most = problem.width <= TAPS ? problem.length : BLOCK;  // a block is read again for further taps
    const int64_t last = problem.length - positions;
    if (last < edge) return scalars(edge, problem.length);
    // After the first step, stores are to whole lines of the cache; that step and the last may overlap their neighbours.
    for (int64_t t = edge, next; t < problem.length; t = next) {
        t = std::min(t, last);
        const int64_t uneven = t < last ? int64_t(reinterpret_cast<uintptr_t>(y + t) / sizeof(T) % positions) : 0;
        const int64_t steps = uneven ? 1 : std::min(most, (problem.length - t) / positions);
        const T* x = problem.row(b, line.channel) + t * x_step;
        filter_with_all<false>(line, bias, x, x_step, y + t * step, step, steps);
        next = t + steps * positions - uneven;
    }
}

// The gradients of a line; null for what is not wanted.
template <class T>
struct Gradients {
    T *x, *weight, *bias, *tail;
};

// Adds to `sums`, (taps, channels), what some steps contribute to the gradients of taps from `first` on.
template <int taps, class T, class Line>
INLINE void correlate_steps(const Line& line, const T* grad, int64_t step, const T* x, int64_t x_step, int64_t steps,
                            double (*sums)[REGISTERS * Vector<T>::lanes]) {
    constexpr int V = Line::vectors, W = Vector<T>::lanes;
    Vec<T> sum[taps][V] = {};
    typename Line::template Window<taps> window(x, x_step);
    for (int64_t s = 0; s < steps; s++, grad += line.positions() * step) {
        window.advance();
#pragma GCC unroll 2
        for (int i = 0; i < V; i++) {
            const Vec<T> g = load(grad + i * W);
#pragma GCC unroll 8
            for (int j = 0; j < taps; j++) sum[j][i] += g * window.at(j, i);
        }
    }
    for (int j = 0; j < taps; j++)
        for (int i = 0; i < V; i++) line.add(sums[j], i, sum[j][i]);
}

template <class T, class Line>
INLINE void sum_steps(const Line& line, const T* grad, int64_t step, int64_t steps, double* sums) {
    constexpr int V = Line::vectors, W = Vector<T>::lanes;
    Vec<T> sum[V] = {};
    for (int64_t s = 0; s < steps; s++, grad += line.positions() * step)
        for (int i = 0; i < V; i++) sum[i] += load(grad + i * W);
    for (int i = 0; i < V; i++) line.add(sums, i, sum[i]);
}

// Everything for one row of a line, with the gradients of at most TAPS taps; those of x and tail are for the first of them.
template <class T, class Line>
void adjoint_row(const Line& line, int64_t b, const T* grad, const Gradients<T>& to, int64_t first, int64_t count,
                 double (*weight_sums)[REGISTERS * Vector<T>::lanes], double* bias_sums) {
    const Problem<T>& problem = line.problem;
    const int64_t length = problem.length, width = problem.width, edge = std::min(width - 1, length);
    const int64_t positions = line.positions(), x_step = line.x_step(), step = line.step(), at = line.at(b);
    T* grad_x = to.x && !first ? to.x + at : nullptr;
    grad += at;
    const auto input_scalars = [&](int64_t from, int64_t until) {
        for (int64_t t = from; grad_x && t < until; t++)
            for (int c = 0; c < line.count(); c++)
                grad_x[t * step + c] = problem.input_gradient(grad + c, step, line.channel + c, t);
    };
    const auto sum_scalars = [&](int64_t from, int64_t until) {
        for (int64_t t = from; t < until; t++)
            for (int c = 0; c < line.count(); c++) {
                const double g = grad[t * step + c];
                if (to.bias && !first) bias_sums[c] += g;
                for (int64_t j = 0; to.weight && j < count; j++)
                    weight_sums[j][c] += g * problem.sample(b, line.channel + c, t - first - j);
            }
    };
    if (to.tail && !first)
        for (int c = 0; c < line.count(); c++)
            for (int64_t i = 0; i < width - 1; i++)
                to.tail[(b * problem.channels + line.channel + c) * (width - 1) + i] =
                    problem.input_gradient(grad + c, step, line.channel + c, i - (width - 1));
    input_scalars(0, edge);
    sum_scalars(0, edge);
    const Vec<T> nothing[Line::vectors] = {};
    int64_t t = edge, known = edge;  // sums and gradients of x are complete up to here
    while (t + positions <= length) {
        const int64_t steps = std::min<int64_t>(BLOCK, (length - t) / positions);
        const T* x = problem.row(b, line.channel) + t * x_step;
        if (to.weight)
            with_count(count, [&](auto taps) {
                correlate_steps<taps>(line, grad + t * step, step, x - first * x_step, x_step, steps, weight_sums);
            });
        if (to.bias && !first) sum_steps(line, grad + t * step, step, steps, bias_sums);
        const int64_t inside = std::min(steps, (length - (width - 1) - t) / positions);
        if (grad_x && inside > 0) {
            filter_with_all<true>(line, nothing, grad + t * step, step, grad_x + t * step, step, inside);
            known = t + inside * positions;
        }
        t += steps * positions;
    }
    sum_scalars(t, length);
    input_scalars(known, length);
}

template <class T, class Line>
void adjoint_line(const Line& line, const T* grad, const Gradients<T>& to) {
    const Problem<T>& problem = line.problem;
    const int64_t width = problem.width;
    double bias_sums[REGISTERS * Vector<T>::lanes] = {};
    for (int64_t first = 0; first < width; first += TAPS) {
        const int64_t count = std::min<int64_t>(TAPS, width - first);
        double sums[TAPS][REGISTERS * Vector<T>::lanes] = {};
        for (int64_t b = 0; b < problem.batch; b++) adjoint_row(line, b, grad, to, first, count, sums, bias_sums);
        for (int c = 0; to.weight && c < line.count(); c++)
            for (int64_t j = 0; j < count; j++)
                to.weight[(line.channel + c) * width + width - 1 - first - j] = T(sums[j][c]);
        if (!to.weight) break;
    }
    for (int c = 0; to.bias && c < line.count(); c++) to.bias[line.channel + c] = T(bias_sums[c]);
}

// Calls `use(line, row)` for all lines of some rows, in the order of memory.  With channels last what is left of them after
// the last whole line goes with it, in lines of one vector of which the last may overlap: the same thread then writes the
// same numbers again.
template <class T, class Use>
void for_each_line(const Problem<T>& problem, int64_t rows, int threads, Use use) {
    const int64_t channels = problem.channels;
    if (problem.time_stride == 1) {
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t c = 0; c < channels; c++) use(First<T>(problem, c), row);
        return;
    }
    constexpr int lanes = Vector<T>::lanes, tile = REGISTERS * lanes;
    const int64_t whole = channels / tile, jobs = std::max<int64_t>(1, whole);
#pragma omp parallel for num_threads(threads) schedule(static) collapse(2)
    for (int64_t row = 0; row < rows; row++)
        for (int64_t job = 0; job < jobs; job++) {
            if (job < whole) use(Last<T, REGISTERS>(problem, job * tile), row);
            for (int64_t c = whole * tile; job == jobs - 1 && c < channels; c += lanes)
                use(Last<T, 1>(problem, std::min(c, channels - lanes)), row);
        }
}

template <class T>
void filter(const Problem<T>& problem, T* y, int threads) {
    prefer_large_pages(y, problem.signal_bytes());
    for_each_line(problem, problem.batch, threads,
                  [&](const auto& line, int64_t row) { filter_row(line, row, y + line.at(row)); });
}

// A thread takes a line with all rows of the batch, of which the gradients of its taps are sums.
template <class T>
void adjoint(const Problem<T>& problem, const T* grad, const Gradients<T>& to, int threads) {
    prefer_large_pages(to.x, problem.signal_bytes());
    for_each_line(problem, 1, threads, [&](const auto& line, int64_t) { adjoint_line(line, grad, to); });
}

template <class T>
Problem<T> make_problem(const void* x, const void* weight, const void* bias, const void* tail, const int64_t* sizes) {
    const auto pointer = [](const void* p) { return static_cast<const T*>(p); };
    return {pointer(x), pointer(weight), pointer(bias), pointer(tail), sizes[0], sizes[1],
            sizes[2],   sizes[3],        sizes[4],      sizes[5],      sizes[6]};
}

}  // namespace

// sizes: batch, channels, length, width, and the strides of x (batch, channel, position), of which that of positions is 1,
// or else that of channels; y, grad and the gradient of x are dense with the same axis innermost.  bias and tail may be
// null, and gradients that are not wanted.
#define SHORT_CONV(NAME, T)                                                                                          \
    LONGREACH_EXPORT void longreach_short_conv_##NAME(const void* x, const void* weight, const void* bias,           \
                                                      const void* tail, const int64_t* sizes, void* y,               \
                                                      int threads) {                                                 \
        filter(make_problem<T>(x, weight, bias, tail, sizes), static_cast<T*>(y), threads);                          \
    }                                                                                                                \
    LONGREACH_EXPORT void longreach_short_conv_adjoint_##NAME(                                                       \
        const void* x, const void* weight, const void* bias, const void* tail, const int64_t* sizes,                 \
        const void* grad, void* grad_x, void* grad_weight, void* grad_bias, void* grad_tail, int threads) {          \
        const auto pointer = [](void* p) { return static_cast<T*>(p); };                                             \
        adjoint(make_problem<T>(x, weight, bias, tail, sizes), static_cast<const T*>(grad),                          \
                Gradients<T>{pointer(grad_x), pointer(grad_weight), pointer(grad_bias), pointer(grad_tail)}, threads); \
    }

SHORT_CONV(float32, float)
SHORT_CONV(float64, double)
