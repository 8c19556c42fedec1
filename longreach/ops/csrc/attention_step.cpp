// Softmax attention of one query in every head to keys and values that lie in several parts of a cache.
//
//     y = sum_j p_j v_j / sum_j p_j        p_j = exp(scale q . k_j - slope (t - t_j) - maximum)
//
// over the keys with 0 <= t_j and 0 <= t - t_j < window; without any, zero.  Keys are taken as many at a time as there are
// lanes: their products with the query are added up across the lanes together, then the maximum so far is raised where it
// must be, and what was summed up before is scaled down.  Nothing is copied, and no weight is stored.

#include <algorithm>
#include <cmath>
#include <limits>

#include "exponential.h"

namespace {

// Lane i of the result is the sum of all lanes of sums[i], i < 2 HALF.
template <class T, int HALF>
INLINE Vec<T> across(Vec<T>* sums) {
    if constexpr (HALF == 0) return sums[0];
    else {
        typedef typename Vector<typename Exponential<T>::Bits>::Type Indices;
        constexpr int W = Vector<T>::lanes;
        Indices straight, crossed;
        for (int i = 0; i < W; i++) {
            straight[i] = i & HALF ? W + i : i;
            crossed[i] = i & HALF ? W + (i ^ HALF) : i ^ HALF;
        }
#pragma GCC unroll 16
        for (int i = 0; i < HALF; i++)
            sums[i] = shuffle<T>(sums[i], sums[i + HALF], straight) + shuffle<T>(sums[i], sums[i + HALF], crossed);
        return across<T, HALF / 2>(sums);
    }
}

template <class T>
INLINE Vec<T> get(const T* from, int64_t left) {
    return left >= Vector<T>::lanes ? load(from) : load_some(from, int(left));
}

template <class T>
INLINE void put(T* to, Vec<T> value, int64_t left) {
    if (left >= Vector<T>::lanes) store(to, value);
    else store_some(to, value, int(left));
}

// The keys and values of a head in one part; rows are `key_row` and `value_row` apart.
template <class T>
struct Part {
    const T *key, *value;
    const int64_t* position;
    int64_t size, key_row, value_row;
};

template <class T>
struct Head {
    const T* query;
    T* y;
    int64_t key_width, value_width, position, window;
    T scale, slope;
    T maximum = -std::numeric_limits<T>::infinity(), sum = 0;

    // Scores of up to a vector of keys; those that may not be seen, and those beyond `count`, are minus infinity.
    Vec<T> scores(const Part<T>& part, int64_t first, int count) const {
        constexpr int W = Vector<T>::lanes;
        Vec<T> products[W] = {};
        for (int i = 0; i < count; i++) {
            const T* key = part.key + (first + i) * part.key_row;
            Vec<T> sum{};
            for (int64_t e = 0; e < key_width; e += W) sum += get(query + e, key_width - e) * get(key + e, key_width - e);
            products[i] = sum;
        }
        Vec<T> result = scale * across<T, W / 2>(products);
        for (int i = 0; i < W; i++) {
            const int64_t from = i < count ? part.position[first + i] : -1, distance = position - from;
            const bool seen = from >= 0 && distance >= 0 && distance < window;
            result[i] = seen ? result[i] - slope * T(distance) : -std::numeric_limits<T>::infinity();
        }
        return result;
    }

    void add(const Part<T>& part, int64_t first, int count) {
        constexpr int W = Vector<T>::lanes;
        const Vec<T> score = scores(part, first, count);
        T largest = maximum;
        bool some = false;  // are seen; NaN is, and is larger than nothing
        for (int i = 0; i < W; i++) {
            largest = std::max(largest, score[i]);
            some |= score[i] != -std::numeric_limits<T>::infinity();
        }
        if (!some) return;
        const T kept = std::exp(maximum - largest);
        maximum = largest;
        const Vec<T> weight = score == -std::numeric_limits<T>::infinity() ? Vec<T>{} : exponential<T>(score - largest);
        sum *= kept;
        for (int i = 0; i < W; i++) sum += weight[i];
        for (int64_t f = 0; f < value_width; f += W) {
            Vec<T> total = kept * get(y + f, value_width - f);
            const T* value = part.value + first * part.value_row + f;
#pragma GCC unroll 4
            for (int i = 0; i < count; i++) total += weight[i] * get(value + i * part.value_row, value_width - f);
            put(y + f, total, value_width - f);
        }
    }

    void finish() const {
        for (int64_t f = 0; f < value_width; f++) y[f] = sum == 0 ? 0 : y[f] / sum;
    }
};

template <class T>
void step(const void* const* from, const int64_t* sizes, const double* numbers, void* y_data, int threads) {
    const int64_t batch = sizes[0], heads = sizes[1], groups = sizes[2], e = sizes[3], f = sizes[4];
    const int64_t window = sizes[5], parts = sizes[6];
    const T *query = static_cast<const T*>(from[0]), *slopes = static_cast<const T*>(from[2]);
    const int64_t* positions = static_cast<const int64_t*>(from[1]);
    T* y = static_cast<T*>(y_data);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < batch * heads; job++) {
        const int64_t b = job / heads, h = job % heads, g = h / (heads / groups);
        Head<T> head = {query + job * e, y + job * f, e, f, positions[b], window, T(numbers[0]), slopes ? slopes[h] : 0};
        std::fill(head.y, head.y + f, T(0));
        for (int64_t p = 0; p < parts; p++) {
            const void* const* where = from + 3 + 3 * p;
            const int64_t* own = sizes + 7 + 8 * p;  // size, and strides of keys, values (b, g, m) and positions (b)
            const Part<T> part = {static_cast<const T*>(where[0]) + b * own[1] + g * own[2],
                                  static_cast<const T*>(where[1]) + b * own[4] + g * own[5],
                                  static_cast<const int64_t*>(where[2]) + b * own[7],
                                  own[0], own[3], own[6]};
            constexpr int64_t W = Vector<T>::lanes;
            for (int64_t m = 0; m < part.size; m += W) head.add(part, m, int(std::min(W, part.size - m)));
        }
        head.finish();
    }
}

}  // namespace

// from: query (b, h, e), its positions (b), slopes (h), which may be null, then for every part key (b, g, m, e), value
// (b, g, m, f), both with numbers of a row side by side, and position (b, m), negative at padding.  sizes: b, h, g, e, f,
// window, number of parts, then for every part m and seven strides.  numbers: the scale.  y (b, h, f) is written.
#define ATTENTION_STEP(NAME, T)                                                                                \
    LONGREACH_EXPORT void longreach_attention_step_##NAME(const void* const* from, const int64_t* sizes,       \
                                                          const double* numbers, void* y, int threads) {       \
        step<T>(from, sizes, numbers, y, threads);                                                             \
    }

ATTENTION_STEP(float32, float)
ATTENTION_STEP(float64, double)
