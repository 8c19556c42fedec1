// One step of a memory that is a matrix for every head: linear attention, with decays, with the delta rule.
//
//     z = read^T S        S' = diag(decay) S + write z^T + key value^T
//     y = query^T S'      or with a bonus  query^T (S + diag(bonus) key value^T)
//
// Value channels lie next to each other in memory and fill the lanes; a tile of them is carried through all key channels
// in registers.  A thread takes whole heads of a row.

#include "vector.h"

namespace {

constexpr int REGISTERS = 4;  // vectors in a tile

template <class T>
struct Problem {
    const T *query, *key, *value, *decay, *read, *write, *bonus, *state;
    int64_t jobs, heads, keys, values;
};

// Value channels from `column` on: `n_vectors` of them, or with one vector `count` channels.
template <class T, int n_vectors>
INLINE void tile(const Problem<T>& problem, int64_t job, int64_t column, int count, T* y, T* after) {
    constexpr int lanes = Vector<T>::lanes;
    const auto get = [count](const T* from) { return n_vectors == 1 ? load_some(from, count) : load(from); };
    const auto put = [count](T* to, Vec<T> value) {
        if (n_vectors == 1) store_some(to, value, count);
        else store(to, value);
    };
    const int64_t at = job * problem.keys, size = problem.values, matrix = at * size + column;
    const T *query = problem.query + at, *key = problem.key + at;
    const T* bonus = problem.bonus ? problem.bonus + job % problem.heads * problem.keys : nullptr;
    Vec<T> written[n_vectors], seen[n_vectors] = {}, sum[n_vectors] = {};
    for (int i = 0; i < n_vectors; i++) written[i] = get(problem.value + job * size + column + i * lanes);
    if (problem.read)
        for (int64_t k = 0; k < problem.keys; k++)
            for (int i = 0; i < n_vectors; i++)
                seen[i] += problem.read[at + k] * get(problem.state + matrix + k * size + i * lanes);
    for (int64_t k = 0; k < problem.keys; k++)
        for (int i = 0; i < n_vectors; i++) {
            const int64_t place = matrix + k * size + i * lanes;
            const Vec<T> before = get(problem.state + place), fresh = key[k] * written[i];
            Vec<T> now = (problem.decay ? problem.decay[at + k] * before : before) + fresh;
            if (problem.read) now += problem.write[at + k] * seen[i];
            put(after + place, now);
            sum[i] += query[k] * (bonus ? before + bonus[k] * fresh : now);
        }
    for (int i = 0; i < n_vectors; i++) put(y + job * size + column + i * lanes, sum[i]);
}

template <class T>
void step(const void* const* from, const int64_t* sizes, void* y_data, void* after_data, int threads) {
    const auto pointer = [=](int i) { return static_cast<const T*>(from[i]); };
    const Problem<T> problem = {pointer(0), pointer(1), pointer(2), pointer(3), pointer(4), pointer(5),
                                pointer(6), pointer(7), sizes[0],   sizes[1],   sizes[2],   sizes[3]};
    T *y = static_cast<T*>(y_data), *after = static_cast<T*>(after_data);
    constexpr int lanes = Vector<T>::lanes;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < problem.jobs; job++) {
        int64_t column = 0;
        for (; column + REGISTERS * lanes <= problem.values; column += REGISTERS * lanes)
            tile<T, REGISTERS>(problem, job, column, 0, y, after);
        for (; column < problem.values; column += lanes) {
            const int64_t rest = problem.values - column;
            tile<T, 1>(problem, job, column, int(rest < lanes ? rest : lanes), y, after);
        }
    }
}

}  // namespace

// from: query, key (b, h, k), value (b, h, v), then decay, read, write (b, h, k) and bonus (h, k), each of which may be
// null, read and write together, and state (b, h, k, v).  sizes: b h, h, k, v.
#define MEMORY_STEP(NAME, T)                                                                                  \
    LONGREACH_EXPORT void longreach_memory_step_##NAME(const void* const* from, const int64_t* sizes, void* y, \
                                                       void* after, int threads) {                            \
        step<T>(from, sizes, y, after, threads);                                                              \
    }

MEMORY_STEP(float32, float)
MEMORY_STEP(float64, double)
