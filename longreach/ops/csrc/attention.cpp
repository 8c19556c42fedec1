// Softmax attention in tiles that stay in the cache, and its adjoint (see longreach/ops/attention_tiled.py for the
// equations).
//
// All tiles lie with lanes along the queries: S_{ji}, the score of key j for query i of a block.  So maxima and sums over
// keys run down the rows, each lane is a query of its own, and keys and values are read number by number where they are:
//
//     S = K Q^T      W = exp(S - maximum)      Y^T += V^T W
//     dW = V dY^T    dS = W (dW - delta)       dV += W dY       dK += dS Q       dQ^T += K^T dS
//
// Scores are kept times log2(e).  A thread takes a block of queries; in the adjoint a head of keys, or if there are fewer
// of those than threads first blocks of queries and then stretches of keys, with the same bits.
//
// With bfloat16 all products are of pairs along what is summed over.  Tensors are then given twice: with neighbours along
// the features, and with neighbours along the positions ("columns").

#include "attention_mask.h"
#include "complex.h"
#include "exponential.h"
#include "memory.h"
#include "product.h"

namespace {

constexpr double LOG2_E = 1.44269504088896340736;
constexpr int LOW_ROW = 32;     // floats in the space of which QUERIES numbers of bfloat16 fit, in whole vectors
constexpr int64_t STRETCH = 8;  // tiles of keys that a thread takes in the adjoint, where it takes no head

template <class T>
using Mask = decltype(Vec<T>{} < Vec<T>{});

// (batch, head, position, unit), units side by side.
template <class T>
struct Tensor {
    const T* data;
    int64_t batch, head, row;

    const T* at(int64_t b, int64_t h, int64_t i) const { return data + b * batch + h * head + i * row; }
};

struct Dropout {
    bool on;
    int32_t threshold;
    uint32_t seed;  // scrambled
};

template <class T>
struct Problem {
    int64_t batch, heads, groups, queries, keys, width, value_width;
    Tensor<T> query, key, value, grad, output;                          // units along features
    Tensor<T> query_columns, key_columns, value_columns, grad_columns;  // units along positions
    const T* slopes;
    T scale, softcap, kept_scale;
    Dropout dropout;
    Array<Rule> rules;
    Array<Tiles> tiles;

    int64_t blocks() const { return (queries + QUERIES - 1) / QUERIES; }
    int64_t block(int64_t b, int64_t h, int64_t first) const { return (b * heads + h) * blocks() + first / QUERIES; }
    int64_t group_of(int64_t h) const { return h / (heads / groups); }
    const Rule& rule(int64_t b) const { return rules[rules.size() > 1 ? b : 0]; }
    const Tiles& tiles_of(int64_t b) const { return tiles[tiles.size() > 1 ? b : 0]; }
    // What products of queries and keys are multiplied by: scores times log2(e), or what tanh2 takes.
    T factor() const { return softcap ? scale * T(2 * LOG2_E) / softcap : scale * T(LOG2_E); }
};

// The finaliser of MurmurHash3, as in longreach/ops/attention_dropout.py.
template <class Integers>
INLINE Integers scramble(Integers x) {
    x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
    x = (x ^ (x >> 13)) * 0xC2B2AE35u;
    return x ^ (x >> 16);
}

// What a thread needs for one block of queries; kept for the next.
template <class T>
class Workspace {
   public:
    typedef T Row[QUERIES];
    // Of each query: position relative to the first one, and what the softmax has so far or has had.
    alignas(64) Row relative, maximum, total, inverse, delta;
    alignas(64) uint32_t hash[QUERIES];
    alignas(64) int64_t position[QUERIES], segment[QUERIES];
    alignas(64) Row scores[KEYS], score_grads[KEYS], cap_gradients[KEYS];
    alignas(64) T low_rows[KEYS][LOW_ROW], low_pairs[KEYS / 2][QUERIES];  // in bfloat16
    Row *query, *grad, *sum;  // turned: (features, queries)

    void make_room(int64_t width, int64_t value_width) {
        const int64_t widest = std::max(width, value_width);
        if (int64_t(room_.size()) < 3 * widest) room_.resize(3 * widest);
        query = &room_[0].numbers, grad = &room_[widest].numbers, sum = &room_[2 * widest].numbers;
    }

   private:
    struct alignas(64) Line {
        Row numbers;
    };
    Array<Line> room_;
};

// Of the calling thread; not a variable of its own, because the process ends where there is no memory for those.
template <class T>
Workspace<T>& workspace() {
    static thread_local Array<Workspace<T>> own;
    if (own.empty()) own.resize(1);
    return own[0];
}

// y[c][r] = x[r][c] for multiples of the lanes of both; rows of x from `x_rows` on are taken for zero, and those of y from
// `y_rows` on are not written.
template <class T>
void turn(const T* x, int64_t x_row, int64_t x_rows, T* y, int64_t y_row, int64_t y_rows, int64_t rows,
          int64_t columns) {
    constexpr int W = Vector<T>::lanes;
    for (int64_t r = 0; r < rows; r += W)
        for (int64_t c = 0; c < columns; c += W) {
            Vec<T> square[W];
#pragma GCC unroll 16
            for (int i = 0; i < W; i++) square[i] = r + i < x_rows ? load(x + (r + i) * x_row + c) : Vec<T>{};
            transpose<T>(square);
#pragma GCC unroll 16
            for (int i = 0; i < W; i++)
                if (c + i < y_rows) store(y + (c + i) * y_row + r, square[i]);
        }
}

// Up to QUERIES queries of one head, whose numbers are in the workspace.
template <class T>
struct Block {
    int64_t b, h, first, count;
    int64_t columns;  // `count` in whole vectors
    const Rule& rule;
    Extent extent;
};

template <class Kind, class T>
Block<T> enter(const Problem<T>& problem, int64_t b, int64_t h, int64_t first, Workspace<T>& space) {
    constexpr int W = Vector<T>::lanes;
    const Rule& rule = problem.rule(b);
    const int64_t count = std::min<int64_t>(QUERIES, problem.queries - first), columns = (count + W - 1) / W * W;
    space.make_room(problem.width, problem.value_width);
    const int64_t units = problem.width / Kind::together;
    turn(problem.query.at(b, h, first), problem.query.row, count, *space.query, QUERIES, units, columns, units);
    for (int64_t i = 0; i < QUERIES; i++) {
        const int64_t at = first + std::min(i, count - 1);
        space.position[i] = rule.query_position[at];
        space.segment[i] = rule.segment_of_query(at);
        space.relative[i] = T(space.position[i] - space.position[0]);
        const uint32_t row = uint32_t((b * problem.heads + h) * problem.queries + at);
        space.hash[i] = scramble(row) ^ problem.dropout.seed;
    }
    return {b, h, first, count, columns, rule, extent_of_queries(rule, first, first + count)};
}

// For each query of a block, all bits set if it may see key j, or none.
template <class T, class Integer>
void find_meetings(const Rule& rule, int64_t j, const Workspace<T>& space, Integer* meets) {
    const int64_t position = rule.key_position[j], segment = rule.segment_of_key(j);
    const bool real = rule.is_real(j);
    for (int i = 0; i < QUERIES; i++) {
        const int64_t distance = space.position[i] - position;
        meets[i] = -(real & (distance >= rule.lowest) & (distance <= rule.highest) & (space.segment[i] == segment));
    }
}

// The scores of a tile times log2(e), -infinity where key and query may not meet, and the derivative of the soft cap.
template <class Kind, class T>
void make_scores(const Problem<T>& problem, const Block<T>& block, const Tile& tile, Workspace<T>& space) {
    constexpr int W = Vector<T>::lanes;
    const int64_t b = block.b, g = problem.group_of(block.h);
    const Matrix<T> keys = {problem.key.at(b, g, tile.first), problem.key.row, 1};
    product<Kind, false>(keys, tile.last - tile.first, *space.query, QUERIES, problem.width / Kind::together,
                         problem.factor(), *space.scores, QUERIES, block.columns);
    if (tile.whole && !problem.softcap && !problem.slopes) return;
    const T cap = problem.softcap * T(LOG2_E), slope = problem.slopes ? problem.slopes[block.h] * T(LOG2_E) : T(0);
    const Rule& rule = block.rule;
    for (int64_t j = tile.first; j < tile.last; j++) {
        T *scores = space.scores[j - tile.first], *cap_gradients = space.cap_gradients[j - tile.first];
        const bool all = tile.whole || meet(rule, block.extent, extent_of_key(rule, j)) == Meeting::all;
        const T relative = T(rule.key_position[j] - space.position[0]);
        alignas(64) typename BaseTwo<T>::Integer meets[QUERIES];
        if (!all) find_meetings(rule, j, space, meets);
        for (int64_t v = 0; v < block.columns; v += W) {
            Vec<T> score = load(scores + v);
            if (problem.softcap) {
                const Vec<T> tanh = tanh2<T>(score);
                store(cap_gradients + v, 1 - tanh * tanh);
                score = cap * tanh;
            }
            if (slope != 0) {
                const Vec<T> distance = load(space.relative + v) - relative;
                score -= slope * (distance < 0 ? -distance : distance);
            }
            if (!all) {
                Mask<T> mask;
                std::memcpy(&mask, meets + v, sizeof mask);
                score = mask ? score : Vec<T>{} - std::numeric_limits<T>::infinity();
            }
            store(scores + v, score);
        }
    }
}

// As many 32-bit integers as there are lanes.
template <class T>
struct Hashes {
    typedef uint32_t Unsigned __attribute__((vector_size(4 * Vector<T>::lanes)));
    typedef int32_t Signed __attribute__((vector_size(4 * Vector<T>::lanes)));
};

// Which weights of a key are kept.
template <class T>
INLINE Mask<T> kept(const Dropout& dropout, const uint32_t* hash, int64_t key) {
    typename Hashes<T>::Unsigned mixed;
    std::memcpy(&mixed, hash, sizeof mixed);
    mixed = scramble(mixed ^ scramble(uint32_t(-1 - key)));
    return __builtin_convertvector((typename Hashes<T>::Signed)mixed >= dropout.threshold, Mask<T>);
}

// Rounds rows to pairs of neighbouring rows; one row of zeros is added to an odd number.
template <class T>
void round_pairs(T (*rows)[QUERIES], int64_t count, int64_t columns, Workspace<T>& space) {
    constexpr int W = Vector<T>::lanes;
    for (int64_t j = 0; j < count; j += 2)
        for (int64_t v = 0; v < columns; v += W) {
            const Vec<T> odd = j + 1 < count ? load(rows[j + 1] + v) : Vec<T>{};
            store(space.low_pairs[j / 2] + v, rounded_pairs(load(rows[j] + v), odd));
        }
}

// Rounds rows to pairs within them.
template <class T>
void round_rows(const T (*rows)[QUERIES], int64_t count, int64_t columns, T (*low)[LOW_ROW]) {
    constexpr int W = Vector<T>::lanes;
    for (int64_t j = 0; j < count; j++)
        for (int64_t v = 0; v < columns; v += 2 * W) {
            const Vec<T> second = v + W < columns ? load(rows[j] + v + W) : Vec<T>{};
            store(low[j] + v / 2, rounded(load(rows[j] + v), second));
        }
}

// Adds to the sums of the block, which are turned, what a tile of weights makes of the first `rows` features of `columns`.
template <class Kind, class T>
void gather(Tensor<T> columns, const Block<T>& block, const Problem<T>& problem, const Tile& tile, int64_t rows,
            T (*weights)[QUERIES], Workspace<T>& space) {
    const int64_t count = tile.last - tile.first, depth = (count + Kind::together - 1) / Kind::together;
    const T* numbers = columns.at(block.b, problem.group_of(block.h), tile.first / Kind::together);
    const T* right = *weights;
    if constexpr (Kind::together == 2) {
        round_pairs(weights, count, block.columns, space);
        right = *space.low_pairs;
    }
    product<Kind, true>(Matrix<T>{numbers, 1, columns.row}, rows, right, QUERIES, depth, T(1), *space.sum, QUERIES,
                        block.columns);
}

// Turns the scores of a tile into weights relative to the largest so far, and adds them up.  Returns whether there is a
// new largest one, and then in `inverse` what all earlier sums have to be multiplied by.
template <class T>
bool weigh(const Problem<T>& problem, const Block<T>& block, const Tile& tile, Workspace<T>& space) {
    constexpr int W = Vector<T>::lanes;
    const T infinity = std::numeric_limits<T>::infinity();
    const int64_t count = tile.last - tile.first;
    bool risen = false;
    for (int64_t v = 0; v < block.columns; v += W) {
        const Vec<T> before = load(space.maximum + v);
        Vec<T> highest[4] = {before, before, before, before};
        for (int64_t j = 0; j < count; j += 4)
            for (int64_t r = 0; r < std::min<int64_t>(4, count - j); r++) {
                const Vec<T> score = load(space.scores[j + r] + v);
                highest[r] = score > highest[r] ? score : highest[r];
            }
        for (int r = 1; r < 4; r++) highest[0] = highest[r] > highest[0] ? highest[r] : highest[0];
        const Vec<T> shift = highest[0] == -infinity ? Vec<T>{} : highest[0];  // while nothing is visible
        const Vec<T> rescale = exp2<T>(before - shift);
        Vec<T> total{};
        for (int64_t j = 0; j < count; j++) {
            T* scores = space.scores[j] + v;
            Vec<T> weight = exp2<T>(load(scores) - shift);
            total += weight;
            if (problem.dropout.on)
                weight = kept<T>(problem.dropout, space.hash + v, tile.first + j) ? weight : Vec<T>{};
            store(scores, weight);
        }
        store(space.total + v, load(space.total + v) * rescale + total);
        store(space.maximum + v, highest[0]);
        store(space.inverse + v, rescale);
        for (int i = 0; i < W; i++) risen |= rescale[i] != 1;
    }
    return risen;
}

// One block of queries: the results, and for each the maximum and the inverse sum.
template <class Kind, class T>
void attend(const Problem<T>& problem, int64_t b, int64_t h, int64_t first, T* output, T* softmax) {
    constexpr int W = Vector<T>::lanes;
    Workspace<T>& space = workspace<T>();
    const Block<T> block = enter<Kind>(problem, b, h, first, space);
    const int64_t width = problem.value_width;
    std::fill_n(space.maximum, QUERIES, -std::numeric_limits<T>::infinity());
    std::fill_n(space.total, QUERIES, T(0));
    std::fill_n(*space.sum, width * QUERIES, T(0));
    const auto scale_sums = [&] {
        for (int64_t x = 0; x < width; x++)
            for (int64_t v = 0; v < block.columns; v += W)
                store(space.sum[x] + v, load(space.sum[x] + v) * load(space.inverse + v));
    };
    const Tiles& tiles = problem.tiles_of(b);
    tiles.each(block.rule, block.extent, 0, tiles.count(), [&](const Tile& tile) {
        make_scores<Kind>(problem, block, tile, space);
        if (weigh(problem, block, tile, space)) scale_sums();
        gather<Kind>(problem.value_columns, block, problem, tile, width, space.scores, space);
    });
    const int64_t row = (b * problem.heads + h) * problem.queries + first;
    T *maximum = softmax + row * 2, *inverse = maximum + 1;
    for (int64_t i = 0; i < block.count; i++) {
        const bool blind = space.total[i] == 0;
        maximum[2 * i] = blind ? T(0) : space.maximum[i];
        inverse[2 * i] = blind ? T(0) : 1 / space.total[i];
        space.inverse[i] = inverse[2 * i] * problem.kept_scale;
    }
    scale_sums();
    turn(*space.sum, QUERIES, width, output + row * width, width, block.count, width, block.columns);
}

// Where gradients go, from zero; null where they are not wanted.
template <class T>
struct Gradients {
    T *query, *key, *value;
    double* slopes;  // of each block of queries
};

// From the scores of a tile to its weights after dropout, and from the gradients of the weights to those of the scores.
// Returns the gradient of the slope.
template <class T>
double differentiate(const Problem<T>& problem, const Block<T>& block, const Tile& tile, Workspace<T>& space) {
    constexpr int W = Vector<T>::lanes;
    Vec<T> slope_grad{};
    for (int64_t v = 0; v < block.columns; v += W) {
        const Vec<T> maximum = load(space.maximum + v), inverse = load(space.inverse + v);
        const Vec<T> delta = load(space.delta + v), place = load(space.relative + v);
        for (int64_t j = tile.first; j < tile.last; j++) {
            const int64_t row = j - tile.first;
            T *scores = space.scores[row] + v, *grads = space.score_grads[row] + v;
            const Vec<T> weight = exp2<T>(load(scores) - maximum) * inverse;
            Vec<T> used = weight, grad = load(grads);
            if (problem.dropout.on) {
                const Mask<T> keep = kept<T>(problem.dropout, space.hash + v, j);
                used = keep ? weight * problem.kept_scale : Vec<T>{};
                grad = keep ? grad * problem.kept_scale : Vec<T>{};
            }
            grad = weight * (grad - delta);
            if (problem.slopes) {
                const Vec<T> distance = place - T(block.rule.key_position[j] - space.position[0]);
                slope_grad -= grad * (distance < 0 ? -distance : distance);
            }
            if (problem.softcap) grad *= load(space.cap_gradients[row] + v);
            store(scores, used);
            store(grads, grad);
        }
    }
    double sum = 0;
    for (int i = 0; i < W; i++) sum += slope_grad[i];
    return sum;
}

// The gradients of the results of a block, turned, and their products with the results.  These are summed in the order of
// products with values, so that nothing is left of their difference where a query sees one key only.
template <class Kind, class T>
void find_delta(const Problem<T>& problem, const Block<T>& block, Workspace<T>& space) {
    constexpr int W = Vector<T>::lanes;
    const int64_t units = problem.value_width / Kind::together;
    const auto turned = [&](Tensor<T> tensor, T (*to)[QUERIES]) {
        const T* from = tensor.at(block.b, block.h, block.first);
        turn(from, tensor.row, block.count, *to, QUERIES, units, block.columns, units);
    };
    turned(problem.grad, space.grad);
    turned(problem.output, space.sum);
    for (int64_t v = 0; v < block.columns; v += W) {
        Vec<T> delta{};
        for (int64_t x = 0; x < units; x++)
            delta = Kind::add_product(delta, load(space.sum[x] + v), load(space.grad[x] + v));
        store(space.delta + v, delta);
    }
}

// What the tiles from `begin` to `end` of one block of queries add to the gradients.
template <class Kind, class T>
void sweep(const Problem<T>& problem, int64_t b, int64_t h, int64_t first, int64_t begin, int64_t end,
           const T* softmax, Gradients<T> gradients) {
    Workspace<T>& space = workspace<T>();
    const Block<T> block = enter<Kind>(problem, b, h, first, space);
    const int64_t g = problem.group_of(h), width = problem.width, value_width = problem.value_width;
    const int64_t row = (b * problem.heads + h) * problem.queries + first;
    for (int64_t i = 0; i < QUERIES; i++) {
        const bool real = i < block.count;
        space.maximum[i] = real ? softmax[2 * (row + i)] : T(0);
        space.inverse[i] = real ? softmax[2 * (row + i) + 1] : T(0);
    }
    find_delta<Kind>(problem, block, space);
    if (gradients.query) std::fill_n(*space.sum, width * QUERIES, T(0));
    // destination += factor rows columns
    const auto scatter = [&](const T (*rows)[QUERIES], T (*low)[LOW_ROW], Tensor<T> columns, const Tile& tile, T factor,
                             int64_t size, T* destination) {
        const int64_t count = tile.last - tile.first, depth = (block.count + Kind::together - 1) / Kind::together;
        Matrix<T> left = {*rows, QUERIES, 1};
        if constexpr (Kind::together == 2) {
            round_rows(rows, count, block.columns, low);
            left = {*low, LOW_ROW, 1};
        }
        product<Kind, true>(left, count, columns.at(b, h, first / Kind::together), columns.row, depth, factor,
                            destination + ((b * problem.groups + g) * problem.keys + tile.first) * size, size, size);
    };
    double slope_grad = 0;
    problem.tiles_of(b).each(block.rule, block.extent, begin, end, [&](const Tile& tile) {
        make_scores<Kind>(problem, block, tile, space);
        const Matrix<T> values = {problem.value.at(b, g, tile.first), problem.value.row, 1};
        product<Kind, false>(values, tile.last - tile.first, *space.grad, QUERIES, value_width / Kind::together, T(1),
                             *space.score_grads, QUERIES, block.columns);
        slope_grad += differentiate(problem, block, tile, space);
        if (gradients.value)
            scatter(space.scores, space.low_rows, problem.grad_columns, tile, T(1), value_width, gradients.value);
        if (gradients.key)
            scatter(space.score_grads, space.low_rows, problem.query_columns, tile, problem.scale, width,
                    gradients.key);
        if (gradients.query)
            gather<Kind>(problem.key_columns, block, problem, tile, width, space.score_grads, space);
    });
    if (gradients.slopes) gradients.slopes[problem.block(b, h, first)] = slope_grad;
    if (!gradients.query) return;
    for (int64_t x = 0; x < width; x++)
        for (int64_t i = 0; i < QUERIES; i++) space.sum[x][i] *= problem.scale;
    turn(*space.sum, QUERIES, width, gradients.query + row * width, width, block.count, width, block.columns);
}

template <class Kind, class T>
void attend_all(const Problem<T>& problem, T* output, T* softmax, int threads, Attempts& attempt) {
    const int64_t blocks = problem.blocks();
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t job = 0; job < problem.batch * problem.heads * blocks; job++) {
        const int64_t row = job / blocks, block = blocks - 1 - job % blocks;  // the longest causal rows first
        attempt([&] {
            attend<Kind>(problem, row / problem.heads, row % problem.heads, block * QUERIES, output, softmax);
        });
    }
}

template <class Kind, class T>
void differentiate_all(const Problem<T>& problem, const T* softmax, Gradients<T> gradients,
                       T* slope_grads, int threads, Attempts& attempt) {
    const int64_t blocks = problem.blocks(), repeats = problem.heads / std::max<int64_t>(1, problem.groups);
    Array<double> of_blocks(slope_grads ? problem.batch * problem.heads * blocks : 0);
    gradients.slopes = slope_grads ? of_blocks.data() : nullptr;
    // All heads of queries that share a head of keys, whose tiles from `begin` to `end` are taken.
    const auto sweep_group = [&](int64_t group, int64_t begin, int64_t end, Gradients<T> wanted) {
        const int64_t b = group / problem.groups, h = group % problem.groups * repeats;
        attempt([&] {
            for (int64_t job = 0; job < repeats * blocks; job++)
                sweep<Kind>(problem, b, h + job / blocks, job % blocks * QUERIES, begin, end, softmax, wanted);
        });
    };
    const int64_t groups = problem.batch * problem.groups, tiles = (problem.keys + KEYS - 1) / KEYS;
    if (groups >= threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t group = 0; group < groups; group++) sweep_group(group, 0, tiles, gradients);
    } else {
        const Gradients<T> of_queries = {gradients.query, nullptr, nullptr, gradients.slopes};
        const Gradients<T> of_keys = {nullptr, gradients.key, gradients.value, nullptr};
        const int64_t stretches = (tiles + STRETCH - 1) / STRETCH;
        if (gradients.query || gradients.slopes) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
            for (int64_t job = 0; job < groups * repeats * blocks; job++) {
                const int64_t row = job / blocks, first = (blocks - 1 - job % blocks) * QUERIES;
                attempt([&] {
                    sweep<Kind>(problem, row / problem.heads, row % problem.heads, first, 0, tiles, softmax, of_queries);
                });
            }
        }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
        for (int64_t job = 0; job < groups * stretches; job++) {
            const int64_t begin = job % stretches * STRETCH, end = std::min(begin + STRETCH, tiles);
            sweep_group(job / stretches, begin, end, of_keys);
        }
    }
    for (int64_t h = 0; slope_grads && h < problem.heads; h++) {
        double sum = 0;
        for (int64_t b = 0; b < problem.batch; b++)
            for (int64_t block = 0; block < blocks; block++) sum += of_blocks[problem.block(b, h, block * QUERIES)];
        slope_grads[h] = T(sum);
    }
}

// The order of what a call is given; see below.
template <class T>
Problem<T> make_problem(const void* const* inputs, const int64_t* sizes, const double* numbers) {
    const auto tensor = [=](int i) {
        const int64_t* strides = sizes + 12 + 3 * i;
        return Tensor<T>{static_cast<const T*>(inputs[i]), strides[0], strides[1], strides[2]};
    };
    const auto integers = [=](int i) { return static_cast<const int64_t*>(inputs[i]); };
    Problem<T> problem = {sizes[0],
                          sizes[1],
                          sizes[2],
                          sizes[3],
                          sizes[4],
                          sizes[5],
                          sizes[6],
                          tensor(0),
                          tensor(1),
                          tensor(2),
                          tensor(3),
                          tensor(4),
                          tensor(5),
                          tensor(6),
                          tensor(7),
                          tensor(8),
                          static_cast<const T*>(inputs[9]),
                          T(numbers[0]),
                          T(numbers[1]),
                          T(numbers[2]),
                          {numbers[2] != 1, int32_t(sizes[10]), scramble(uint32_t(sizes[11]))},
                          {},
                          {}};
    const int64_t farthest = std::numeric_limits<int64_t>::max(), highest = sizes[8] ? sizes[8] - 1 : farthest;
    for (int64_t row = 0; row < sizes[9]; row++) {
        const auto at = [=](const auto* data, int64_t length) { return data ? data + row * length : nullptr; };
        const Rule rule = {sizes[7] ? 0 : -highest,
                           highest,
                           at(integers(10), problem.queries),
                           at(integers(11), problem.keys),
                           at(integers(12), problem.queries),
                           at(integers(13), problem.keys),
                           at(static_cast<const uint8_t*>(inputs[14]), problem.keys)};
        problem.rules.push_back(rule);
        problem.tiles.emplace_back(rule, problem.keys);
    }
    return problem;
}

template <class Kind>
void forward(const void* const* inputs, const int64_t* sizes, const double* numbers, void* const* outputs,
             int threads) {
    typedef typename Kind::Real T;
    Attempts attempt;
    attempt([&] {
        const Problem<T> problem = make_problem<T>(inputs, sizes, numbers);
        attend_all<Kind>(problem, static_cast<T*>(outputs[0]), static_cast<T*>(outputs[1]), threads, attempt);
    });
}

template <class Kind>
void adjoint(const void* const* inputs, const int64_t* sizes, const double* numbers, void* const* outputs,
             int threads) {
    typedef typename Kind::Real T;
    const auto pointer = [=](int i) { return static_cast<T*>(outputs[i]); };
    const Gradients<T> gradients = {pointer(0), pointer(1), pointer(2), nullptr};
    Attempts attempt;
    attempt([&] {
        const Problem<T> problem = make_problem<T>(inputs, sizes, numbers);
        const T* softmax = static_cast<const T*>(inputs[15]);
        differentiate_all<Kind>(problem, softmax, gradients, pointer(3), threads, attempt);
    });
}

}  // namespace

// inputs: query, key, value, grad, output; the first four by columns (the same tensors, but for bfloat16); slopes;
// positions of queries and keys; segments of queries and keys; key mask; softmax.  Null where there is none: grad, output
// and softmax are for the adjoint.
// sizes: batch, heads, groups, queries, keys, width, width of values (both multiples of 16, of 32 for bfloat16), causal,
// window (0: none), rows of the mask, threshold and seed of dropout; strides (batch, head, row) of the first nine inputs,
// in units.  numbers: scale, soft cap (0: none), one over the share of weights that are kept.
// outputs: result and softmax, or the gradients of query (any content), key, value (zeros) and slopes.
#define ATTENTION(NAME, KIND)                                                                                        \
    LONGREACH_EXPORT void longreach_attention_##NAME(const void* const* inputs, const int64_t* sizes,                \
                                                     const double* numbers, void* const* outputs, int threads) {     \
        forward<KIND>(inputs, sizes, numbers, outputs, threads);                                                     \
    }                                                                                                                \
    LONGREACH_EXPORT void longreach_attention_adjoint_##NAME(const void* const* inputs, const int64_t* sizes,        \
                                                             const double* numbers, void* const* outputs,            \
                                                             int threads) {                                          \
        adjoint<KIND>(inputs, sizes, numbers, outputs, threads);                                                     \
    }

ATTENTION(float32, Numbers<float>)
ATTENTION(float64, Numbers<double>)

// Whether this build has instructions for bfloat16 and the processor too; if not, the kernels for it must not be called.
LONGREACH_EXPORT void longreach_attention_knows_bfloat16(int32_t* answer) {
#if defined(LONGREACH_BFLOAT16)
    *answer = __builtin_cpu_supports("avx512bf16");
#else
    *answer = 0;
#endif
}

#if defined(LONGREACH_BFLOAT16)
ATTENTION(bfloat16, PairsOfBFloat16)
#endif
