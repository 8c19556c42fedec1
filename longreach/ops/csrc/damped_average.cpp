// Damped averages of every channel, read out with weights of their own (Mega), and the adjoint.
//
//     s_t,n = s_{t-1},n + (x_t - forgotten_n s_{t-1},n)          y_t = skip x_t + sum_n weight_n s_t,n
//
// for each direction of time, of which there may be two; y is the sum of both.  What is forgotten is subtracted, because
// 1 - forgotten would have no digits left for slow averages.
//
// Adjoint:  h_t,n = h_{t+1},n + (weight_n g_t - forgotten_n h_{t+1},n),     grad x_t = skip g_t + sum_n h_t,n,
//           grad weight_n = sum_t g_t s_t,n,     grad forgotten_n = - sum_t h_t,n s_{t-1},n,     grad skip = sum_t g_t x_t.
//
// Channels lie next to each other in memory and fill the lanes.  Time is cut into blocks, averages into groups that are
// carried through a block in registers.  The averages between blocks are kept for the adjoint, which walks through a
// block once more from there, group by group, and back.  Threads share tiles of (batch, channels), each in the same order.


#include "lanes.h"
#include "memory.h"

namespace {

constexpr int64_t BLOCK = 128;  // positions between two states that are kept
constexpr int GROUP = 4;        // averages in registers; their number is a multiple of it

// x, y: (batch, length, channels); weight, forgotten: (directions, averages, channels); skip: (channels);
// kept: (batch, directions, blocks - 1, averages, channels).
template <class T>
struct Problem {
    const T *x, *weight, *forgotten, *skip;
    int64_t batch, length, channels, averages, directions;

    int64_t signal_bytes() const { return batch * length * channels * sizeof(T); }
    int64_t blocks() const { return (length + BLOCK - 1) / BLOCK; }
    int64_t kept_at(int64_t b, int64_t direction, int64_t block) const {
        return ((b * directions + direction) * (blocks() - 1) + block - 1) * averages * channels;
    }
};

// Where a direction of time begins in a row of the batch, and how far apart its positions are.
struct Walk {
    int64_t start, step;
    template <class T>
    Walk(const Problem<T>& problem, int64_t b, int64_t direction)
        : start((b * problem.length + (direction ? problem.length - 1 : 0)) * problem.channels),
          step(direction ? -problem.channels : problem.channels) {}
};

// A group of averages through `steps` positions; the first of all groups also sets y to skip x.
template <bool first, class T, bool whole>
void average_group(Lanes<T, whole> lanes, Vec<T>* states, const T* weight, const T* forgotten, Vec<T> skip, const T* x,
                   T* y, int64_t steps, int64_t step, int64_t channels) {
    Vec<T> s[GROUP], w[GROUP], f[GROUP];
    for (int i = 0; i < GROUP; i++) {
        s[i] = states[i];
        w[i] = lanes.get(weight + i * channels), f[i] = lanes.get(forgotten + i * channels);
    }
    for (int64_t t = 0; t < steps; t++, x += step, y += step) {
        const Vec<T> in = lanes.get(x);
        Vec<T> out = first ? skip * in : lanes.get(y);
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++) {
            s[i] += in - f[i] * s[i];
            out += w[i] * s[i];
        }
        lanes.put(y, out);
    }
    for (int i = 0; i < GROUP; i++) states[i] = s[i];
}

template <class T>
void average(const Problem<T>& problem, T* y, T* kept, int threads) {
    constexpr int W = Vector<T>::lanes;
    prefer_large_pages(y, problem.signal_bytes());
    Attempts attempt;
    for_each_tile<T>(problem.batch, problem.channels, threads, [&](auto lanes, int64_t b, int64_t tile, int vectors) {
        const int64_t n = problem.averages, channels = problem.channels;
        Array<Vec<T>> states;
        attempt([&] { states.resize(TILE * n); });
        if (attempt.failed()) return;
        for (int64_t direction = 0; direction < problem.directions; direction++) {
            const Walk walk(problem, b, direction);
            std::fill(states.begin(), states.end(), Vec<T>{});
            for (int64_t block = 0; block < problem.blocks(); block++) {
                const int64_t t = block * BLOCK, steps = std::min(BLOCK, problem.length - t);
                for (int v = 0; v < vectors; v++) {
                    const int64_t c = tile + v * W, at = walk.start + t * walk.step + c;
                    const Vec<T> skip = lanes.get(problem.skip + c);
                    for (int64_t i = 0; i < n; i += GROUP) {
                        Vec<T>* group = &states[v * n + i];
                        if (block)
                            for (int j = 0; j < GROUP; j++)
                                lanes.put(kept + problem.kept_at(b, direction, block) + (i + j) * channels + c, group[j]);
                        const int64_t of = (direction * n + i) * channels + c;
                        const auto run = i || direction ? average_group<false, T, decltype(lanes)::is_whole>
                                                        : average_group<true, T, decltype(lanes)::is_whole>;
                        run(lanes, group, problem.weight + of, problem.forgotten + of, skip, problem.x + at, y + at, steps,
                            walk.step, channels);
                    }
                }
            }
        }
    });
}

// Sums over time of one average.
template <class T>
struct Totals {
    double weight[Vector<T>::lanes], forgotten[Vector<T>::lanes];
};

template <class T>
INLINE void add(double* totals, Vec<T> sums) {
    for (int i = 0; i < Vector<T>::lanes; i++) totals[i] += sums[i];
}

// What a group gives to the gradients in a block; `adjoints` are h after it, `states` are s before it.
template <bool first, class T, bool whole>
void adjoint_group(Lanes<T, whole> lanes, const Vec<T>* states, Vec<T>* adjoints, Totals<T>* totals, double* of_skip,
                   const T* weight, const T* forgotten, Vec<T> skip, const T* x, const T* grad, T* grad_x,
                   int64_t steps, int64_t step, int64_t channels) {
    Vec<T> past[(BLOCK + 1) * GROUP];  // the states before each position
    Vec<T> s[GROUP], h[GROUP], w[GROUP], f[GROUP];
    for (int i = 0; i < GROUP; i++) {
        past[i] = s[i] = states[i], h[i] = adjoints[i];
        w[i] = lanes.get(weight + i * channels), f[i] = lanes.get(forgotten + i * channels);
    }
    for (int64_t t = 0; t < steps; t++) {
        const Vec<T> in = lanes.get(x + t * step);
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++) past[(t + 1) * GROUP + i] = s[i] += in - f[i] * s[i];
    }
    Vec<T> of_weight[GROUP] = {}, of_forgotten[GROUP] = {}, skipped{};
    for (int64_t t = steps - 1; t >= 0; t--) {
        const Vec<T> g = lanes.get(grad + t * step);
        Vec<T> out = first ? skip * g : lanes.get(grad_x + t * step);
        if (first) skipped += g * lanes.get(x + t * step);
#pragma GCC unroll 4
        for (int i = 0; i < GROUP; i++) {
            const Vec<T> before = past[t * GROUP + i];
            of_weight[i] += g * s[i];
            h[i] += w[i] * g - f[i] * h[i];
            of_forgotten[i] -= h[i] * before;
            out += h[i];
            s[i] = before;
        }
        lanes.put(grad_x + t * step, out);
    }
    for (int i = 0; i < GROUP; i++) {
        adjoints[i] = h[i];
        add<T>(totals[i].weight, of_weight[i]);
        add<T>(totals[i].forgotten, of_forgotten[i]);
    }
    if (first) add<T>(of_skip, skipped);
}

// Gradients that come in and those that go out: those of the coefficients for each row of the batch.
template <class T>
struct Adjoint {
    const T *grad, *kept;
    T *x, *weight, *forgotten, *skip;
};

template <class T>
void adjoint(const Problem<T>& problem, const Adjoint<T>& wanted, int threads) {
    constexpr int W = Vector<T>::lanes;
    prefer_large_pages(wanted.x, problem.signal_bytes());
    Attempts attempt;
    for_each_tile<T>(problem.batch, problem.channels, threads, [&](auto lanes, int64_t b, int64_t tile, int vectors) {
        const int64_t n = problem.averages, channels = problem.channels;
        Array<Vec<T>> adjoints;
        Array<Totals<T>> totals;
        attempt([&] { adjoints.resize(TILE * n), totals.resize(TILE * n); });
        if (attempt.failed()) return;
        double of_skip[TILE][W] = {};
        for (int64_t direction = 0; direction < problem.directions; direction++) {
            const Walk walk(problem, b, direction);
            std::fill(adjoints.begin(), adjoints.end(), Vec<T>{});
            std::fill(totals.begin(), totals.end(), Totals<T>{});
            for (int64_t block = problem.blocks() - 1; block >= 0; block--) {
                const int64_t t = block * BLOCK, steps = std::min(BLOCK, problem.length - t);
                for (int v = 0; v < vectors; v++) {
                    const int64_t c = tile + v * W, at = walk.start + t * walk.step + c;
                    const Vec<T> skip = lanes.get(problem.skip + c);
                    for (int64_t i = 0; i < n; i += GROUP) {
                        Vec<T> states[GROUP] = {};
                        if (block)
                            for (int j = 0; j < GROUP; j++)
                                states[j] = lanes.get(wanted.kept + problem.kept_at(b, direction, block) +
                                                      (i + j) * channels + c);
                        const int64_t of = (direction * n + i) * channels + c;
                        const auto run = i || direction ? adjoint_group<false, T, decltype(lanes)::is_whole>
                                                        : adjoint_group<true, T, decltype(lanes)::is_whole>;
                        run(lanes, states, &adjoints[v * n + i], &totals[v * n + i], of_skip[v], problem.weight + of,
                            problem.forgotten + of, skip, problem.x + at, wanted.grad + at, wanted.x + at, steps,
                            walk.step, channels);
                    }
                }
            }
            for (int v = 0; v < vectors; v++)
                for (int64_t i = 0; i < n; i++) {
                    const int64_t to = ((b * problem.directions + direction) * n + i) * channels + tile + v * W;
                    lanes.put_sums(wanted.weight + to, totals[v * n + i].weight);
                    lanes.put_sums(wanted.forgotten + to, totals[v * n + i].forgotten);
                }
        }
        for (int v = 0; v < vectors; v++) lanes.put_sums(wanted.skip + b * channels + tile + v * W, of_skip[v]);
    });
}

template <class T>
Problem<T> make_problem(const void* const* given, const int64_t* sizes) {
    const auto pointer = [=](int i) { return static_cast<const T*>(given[i]); };
    return {pointer(0), pointer(1), pointer(2), pointer(3), sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

}  // namespace

// given: x, weight, forgotten, skip.  sizes: batch, length, channels, averages, directions.
// gradients: of y; the states between blocks; then the gradients of x, weight, forgotten, skip.
#define DAMPED_AVERAGE(NAME, T)                                                                                      \
    LONGREACH_EXPORT void longreach_damped_average_##NAME(const void* const* given, void* const* results,            \
                                                          const int64_t* sizes, int threads) {                       \
        average(make_problem<T>(given, sizes), static_cast<T*>(results[0]), static_cast<T*>(results[1]), threads);   \
    }                                                                                                                \
    LONGREACH_EXPORT void longreach_damped_average_adjoint_##NAME(const void* const* given, void* const* gradients,  \
                                                                  const int64_t* sizes, int threads) {               \
        const auto at = [=](int i) { return static_cast<T*>(gradients[i]); };                                        \
        adjoint(make_problem<T>(given, sizes), {at(0), at(1), at(2), at(3), at(4), at(5)}, threads);                 \
    }

DAMPED_AVERAGE(float32, float)
DAMPED_AVERAGE(float64, double)
