// WKV, the weighted average of RWKV-4, and its adjoint.
//
//     y_t = (e^{p - q} n + e^{u + k_t - q} v_t) / (e^{p - q} d + e^{u + k_t - q})       q = max(p, u + k_t)
//     n  <- e^{p + w - r} n + e^{k_t - r} v_t                                           r = max(p + w, k_t)
//     d  <- e^{p + w - r} d + e^{k_t - r}
//     p  <- r
//
// In each pair of weights the larger is 1, so that two exponentials a position are enough.  The scale e^p cancels in y,
// and no derivative passes through p.
//
// Channels lie next to each other in memory and fill the lanes; n, d and p of a channel stay in registers.  Time is cut
// into blocks.  The states between blocks are kept for the adjoint, which walks through a block once more from there,
// puts what it needs on the stack, and walks back.  Threads share tiles of (batch, channels), each in the same order.

#include "exponential.h"
#include "lanes.h"
#include "memory.h"

namespace {

constexpr int64_t BLOCK = 64;  // positions between two states that are kept

template <class T>
struct Sums {
    Vec<T> numerator, denominator, exponent;
};

// Where the arrays of one tile begin; rows of a sequence are `channels` apart.
template <class T>
struct Arguments {
    const T *log_decay, *bonus, *key, *value, *numerator, *denominator, *exponent;
    const bool* mask;
    int64_t batch, length, channels;

    int64_t signal_bytes() const { return batch * length * channels * sizeof(T); }
    int64_t blocks() const { return (length + BLOCK - 1) / BLOCK; }
    // Of the states between blocks: (batch, blocks - 1, 3, channels).
    int64_t kept_at(int64_t b, int64_t block) const { return (b * (blocks() - 1) + block - 1) * 3 * channels; }
};

template <class T, class Lanes>
INLINE Sums<T> get_sums(Lanes lanes, const T* numerator, const T* denominator, const T* exponent) {
    return {lanes.get(numerator), lanes.get(denominator), lanes.get(exponent)};
}

template <class T, class Lanes>
INLINE void put_sums(Lanes lanes, T* numerator, T* denominator, T* exponent, const Sums<T>& sums) {
    lanes.put(numerator, sums.numerator), lanes.put(denominator, sums.denominator), lanes.put(exponent, sums.exponent);
}

// e^{a - largest}, e^{b - largest} and the largest of both.
template <class T>
struct Weights {
    Vec<T> first, second, largest;
};

template <class T>
INLINE Weights<T> weights(Vec<T> a, Vec<T> b) {
    const Vec<T> largest = a > b ? a : b, one = Vec<T>{} + T(1);
    // one of the differences is zero, or neither is a number
    const Vec<T> smaller = exponential<T>((a - largest) + (b - largest));
    return {a > b ? one : smaller, a <= b ? one : smaller, largest};
}

// n, d and p after a position.
template <class T>
INLINE void advance(Sums<T>& sums, const Weights<T>& w, Vec<T> value) {
    sums.numerator = w.first * sums.numerator + w.second * value;
    sums.denominator = w.first * sums.denominator + w.second;
    sums.exponent = w.largest;
}

// Averages of `steps` positions of one vector of channels.
template <class T, bool whole>
void average_block(Lanes<T, whole> lanes, Sums<T>& sums, Vec<T> log_decay, Vec<T> bonus, const T* key, const T* value,
                   const bool* mask, T* y, int64_t steps, int64_t row) {
    Sums<T> past = sums;
    for (int64_t t = 0; t < steps; t++) {
        if (mask && !mask[t]) {
            lanes.put(y + t * row, Vec<T>{});
            continue;
        }
        const Vec<T> k = lanes.get(key + t * row), v = lanes.get(value + t * row);
        const Weights<T> seen = weights<T>(past.exponent, bonus + k);
        const Vec<T> above = seen.first * past.numerator + seen.second * v;
        lanes.put(y + t * row, above / (seen.first * past.denominator + seen.second));
        advance(past, weights<T>(past.exponent + log_decay, k), v);
    }
    sums = past;
}

// What the way back through a block needs of a position.
template <class T>
struct Position {
    Vec<T> numerator, denominator;  // before it
    Vec<T> decay, weight;           // of the past and of the value in what comes after it
    Vec<T> y, old_share, new_share; // its average; the weights in it, divided by its denominator
};

// Gradients that pass from block to block.
template <class T>
struct Gradients {
    Vec<T> numerator, denominator;
    double log_decay[Vector<T>::lanes], bonus[Vector<T>::lanes];
};

template <class T, bool whole>
void adjoint_block(Lanes<T, whole> lanes, Sums<T> past, Gradients<T>& gradients, Vec<T> log_decay, Vec<T> bonus,
                   const T* key, const T* value, const bool* mask, const T* grad, T* grad_key, T* grad_value,
                   int64_t steps, int64_t row) {
    Position<T> positions[BLOCK];
    for (int64_t t = 0; t < steps; t++) {
        if (mask && !mask[t]) continue;
        const Vec<T> k = lanes.get(key + t * row), v = lanes.get(value + t * row);
        const Weights<T> seen = weights<T>(past.exponent, bonus + k), next = weights<T>(past.exponent + log_decay, k);
        const Vec<T> scale = T(1) / (seen.first * past.denominator + seen.second);
        const Vec<T> old_share = scale * seen.first, new_share = scale * seen.second;
        positions[t] = {past.numerator, past.denominator, next.first, next.second,
                        old_share * past.numerator + new_share * v, old_share, new_share};
        advance(past, next, v);
    }
    Vec<T> above = gradients.numerator, below = gradients.denominator, of_decay{}, of_bonus{};
    for (int64_t t = steps - 1; t >= 0; t--) {
        if (mask && !mask[t]) {
            lanes.put(grad_key + t * row, Vec<T>{});
            lanes.put(grad_value + t * row, Vec<T>{});
            continue;
        }
        const Position<T>& at = positions[t];
        const Vec<T> v = lanes.get(value + t * row), g = lanes.get(grad + t * row);
        const Vec<T> of_present = g * at.new_share * (v - at.y), past_g = g * at.old_share;
        of_bonus += of_present;
        of_decay += at.decay * (above * at.numerator + below * at.denominator);
        lanes.put(grad_key + t * row, of_present + at.weight * (above * v + below));
        lanes.put(grad_value + t * row, g * at.new_share + at.weight * above);
        above = at.decay * above + past_g;
        below = at.decay * below - past_g * at.y;
    }
    gradients.numerator = above, gradients.denominator = below;
    for (int i = 0; i < Vector<T>::lanes; i++) gradients.log_decay[i] += of_decay[i], gradients.bonus[i] += of_bonus[i];
}

template <class T>
void average(const Arguments<T>& given, T* y, T* numerator, T* denominator, T* exponent, T* kept, int threads) {
    constexpr int W = Vector<T>::lanes;
    prefer_large_pages(y, given.signal_bytes());
    for_each_tile<T>(given.batch, given.channels, threads, [&](auto lanes, int64_t b, int64_t first, int vectors) {
        const int64_t row = given.channels;
        const bool* mask = given.mask ? given.mask + b * given.length : nullptr;
        Sums<T> sums[TILE];
        for (int i = 0; i < vectors; i++) {
            const int64_t c = b * row + first + i * W;
            sums[i] = get_sums<T>(lanes, given.numerator + c, given.denominator + c, given.exponent + c);
        }
        for (int64_t block = 0; block < given.blocks(); block++) {
            const int64_t t = block * BLOCK, steps = std::min(BLOCK, given.length - t);
            for (int i = 0; i < vectors; i++) {
                const int64_t c = first + i * W, at = (b * given.length + t) * row + c;
                if (block) {
                    T* to = kept + given.kept_at(b, block) + c;
                    put_sums(lanes, to, to + row, to + 2 * row, sums[i]);
                }
                average_block(lanes, sums[i], lanes.get(given.log_decay + c), lanes.get(given.bonus + c),
                              given.key + at, given.value + at, mask ? mask + t : nullptr, y + at, steps, row);
            }
        }
        for (int i = 0; i < vectors; i++) {
            const int64_t c = b * row + first + i * W;
            put_sums(lanes, numerator + c, denominator + c, exponent + c, sums[i]);
        }
    });
}

// Gradients that come in (`grad`, and of the state at the end) and those that go out.
template <class T>
struct Adjoint {
    const T *grad, *end_numerator, *end_denominator, *kept;
    T *log_decay, *bonus, *key, *value, *numerator, *denominator;
};

template <class T>
void adjoint(const Arguments<T>& given, const Adjoint<T>& wanted, int threads) {
    constexpr int W = Vector<T>::lanes;
    for (const T* result : {wanted.key, wanted.value}) prefer_large_pages(result, given.signal_bytes());
    for_each_tile<T>(given.batch, given.channels, threads, [&](auto lanes, int64_t b, int64_t first, int vectors) {
        const int64_t row = given.channels;
        const bool* mask = given.mask ? given.mask + b * given.length : nullptr;
        Gradients<T> gradients[TILE] = {};
        for (int i = 0; i < vectors; i++) {
            const int64_t c = b * row + first + i * W;
            gradients[i].numerator = lanes.get(wanted.end_numerator + c);
            gradients[i].denominator = lanes.get(wanted.end_denominator + c);
        }
        for (int64_t block = given.blocks() - 1; block >= 0; block--) {
            const int64_t t = block * BLOCK, steps = std::min(BLOCK, given.length - t);
            for (int i = 0; i < vectors; i++) {
                const int64_t c = first + i * W, at = (b * given.length + t) * row + c, state = b * row + c;
                const T* kept = block ? wanted.kept + given.kept_at(b, block) + c : nullptr;
                const Sums<T> past = kept ? get_sums<T>(lanes, kept, kept + row, kept + 2 * row)
                                          : get_sums<T>(lanes, given.numerator + state, given.denominator + state,
                                                        given.exponent + state);
                adjoint_block(lanes, past, gradients[i], lanes.get(given.log_decay + c), lanes.get(given.bonus + c),
                              given.key + at, given.value + at, mask ? mask + t : nullptr, wanted.grad + at,
                              wanted.key + at, wanted.value + at, steps, row);
            }
        }
        for (int i = 0; i < vectors; i++) {
            const int64_t c = b * row + first + i * W;
            lanes.put(wanted.numerator + c, gradients[i].numerator);
            lanes.put(wanted.denominator + c, gradients[i].denominator);
            lanes.put_sums(wanted.log_decay + c, gradients[i].log_decay);
            lanes.put_sums(wanted.bonus + c, gradients[i].bonus);
        }
    });
}

template <class T>
Arguments<T> arguments(const void* const* from, const int64_t* sizes) {
    const auto pointer = [=](int i) { return static_cast<const T*>(from[i]); };
    return {pointer(0), pointer(1), pointer(2), pointer(3), pointer(4), pointer(5), pointer(6),
            static_cast<const bool*>(from[7]), sizes[0], sizes[1], sizes[2]};
}

}  // namespace

// given: log_decay, bonus (channels); key, value (batch, length, channels); numerator, denominator, exponent (batch,
// channels); mask (batch, length), which may be null.  sizes: batch, length, channels.
// results: y; the state at the end, three arrays; states between blocks.
// gradients: of y, of numerator and denominator at the end; the states between blocks; then the gradients of log_decay
// and bonus, one for each row of the batch, key, value, numerator, denominator.
#define WKV(NAME, T)                                                                                                 \
    LONGREACH_EXPORT void longreach_wkv_##NAME(const void* const* given, void* const* results, const int64_t* sizes, \
                                               int threads) {                                                        \
        const auto result = [=](int i) { return static_cast<T*>(results[i]); };                                      \
        average(arguments<T>(given, sizes), result(0), result(1), result(2), result(3), result(4), threads);         \
    }                                                                                                                \
    LONGREACH_EXPORT void longreach_wkv_adjoint_##NAME(const void* const* given, void* const* gradients,             \
                                                       const int64_t* sizes, int threads) {                          \
        const auto at = [=](int i) { return static_cast<T*>(gradients[i]); };                                        \
        adjoint(arguments<T>(given, sizes), {at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7), at(8), at(9)},  \
                threads);                                                                                            \
    }

WKV(float32, float)
WKV(float64, double)
