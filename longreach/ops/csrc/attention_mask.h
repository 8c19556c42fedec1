// Who may attend to whom, in blocks of queries and tiles of keys (see longreach/ops/attention_mask.py for the rule).
//
// A tile is left out if the extremes of positions and segments prove that no pair in it may meet, and needs no mask if
// they prove that every pair may.  Extremes of whole groups of tiles come first, so what is far away costs next to
// nothing.

#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "memory.h"

constexpr int QUERIES = 48;   // in a block; a multiple of three vectors of floats
constexpr int KEYS = 64;      // in a tile
constexpr int TOGETHER = 64;  // tiles in a group

// The rule for one row of the batch.
struct Rule {
    int64_t lowest, highest;  // of the distances at which a key may lie behind a query
    const int64_t *query_position, *key_position;
    const int64_t *query_segment, *key_segment;  // null where there is one segment only
    const uint8_t* key_mask;                     // null where all keys are real

    int64_t segment_of_query(int64_t i) const { return query_segment ? query_segment[i] : 0; }
    int64_t segment_of_key(int64_t j) const { return key_segment ? key_segment[j] : 0; }
    bool is_real(int64_t j) const { return !key_mask || key_mask[j]; }
};

struct Extremes {
    int64_t low = std::numeric_limits<int64_t>::max(), high = std::numeric_limits<int64_t>::min();

    void include(int64_t x) {
        low = std::min(low, x);
        high = std::max(high, x);
    }
    void include(Extremes other) {
        low = std::min(low, other.low);
        high = std::max(high, other.high);
    }
};

// Some queries or some keys.
struct Extent {
    Extremes position, segment;
    bool some = false, all = true;  // are no padding

    void include(int64_t at, int64_t of, bool real) {
        position.include(at);
        segment.include(of);
        some |= real;
        all &= real;
    }
    void include(const Extent& other) {
        position.include(other.position);
        segment.include(other.segment);
        some |= other.some;
        all &= other.all;
    }
};

enum class Meeting { none, some, all };

// What the extremes prove about pairs of a query and a key.
inline Meeting meet(const Rule& rule, const Extent& queries, const Extent& keys) {
    const int64_t nearest = queries.position.low - keys.position.high;
    const int64_t farthest = queries.position.high - keys.position.low;
    const Extremes &own = queries.segment, &other = keys.segment;
    if (!keys.some || farthest < rule.lowest || nearest > rule.highest || own.low > other.high || other.low > own.high)
        return Meeting::none;
    const bool all = keys.all && nearest >= rule.lowest && farthest <= rule.highest && own.low == other.high &&
                     own.high == other.low;
    return all ? Meeting::all : Meeting::some;
}

inline Extent extent_of_key(const Rule& rule, int64_t j) {
    Extent extent;
    extent.include(rule.key_position[j], rule.segment_of_key(j), rule.is_real(j));
    return extent;
}

inline Extent extent_of_queries(const Rule& rule, int64_t first, int64_t last) {
    Extent extent;
    for (int64_t i = first; i < last; i++) extent.include(rule.query_position[i], rule.segment_of_query(i), true);
    return extent;
}

// Keys that some of a block of queries may see.
struct Tile {
    int64_t first, last;
    bool whole;  // every pair may meet
};

// All keys of one row of the batch, in tiles and groups of tiles.
class Tiles {
   public:
    Tiles(const Rule& rule, int64_t keys)
        : keys_(keys), tiles_((keys + KEYS - 1) / KEYS), groups_((count() + TOGETHER - 1) / TOGETHER) {
        for (int64_t j = 0; j < keys; j++) tiles_[j / KEYS].include(extent_of_key(rule, j));
        for (int64_t t = 0; t < count(); t++) groups_[t / TOGETHER].include(tiles_[t]);
    }

    int64_t count() const { return int64_t(tiles_.size()); }

    // Calls `visit` with each tile among those from `begin` to `end` that is not proved empty, without keys on its edges
    // that nobody sees; the first key of what remains is even.
    template <class Visit>
    void each(const Rule& rule, const Extent& queries, int64_t begin, int64_t end, Visit visit) const {
        for (int64_t t = begin; t < end; t++) {
            if (t % TOGETHER == 0 && meet(rule, queries, groups_[t / TOGETHER]) == Meeting::none) {
                t += TOGETHER - 1;
                continue;
            }
            const Meeting meeting = meet(rule, queries, tiles_[t]);
            if (meeting == Meeting::none) continue;
            Tile tile = {t * KEYS, std::min((t + 1) * KEYS, keys_), meeting == Meeting::all};
            const auto unseen = [&](int64_t j) { return meet(rule, queries, extent_of_key(rule, j)) == Meeting::none; };
            while (!tile.whole && tile.last > tile.first && unseen(tile.last - 1)) tile.last--;
            while (!tile.whole && tile.last > tile.first && unseen(tile.first)) tile.first++;
            tile.first -= tile.first % 2;
            if (tile.last > tile.first) visit(tile);
        }
    }

   private:
    int64_t keys_;
    Array<Extent> tiles_, groups_;
};
