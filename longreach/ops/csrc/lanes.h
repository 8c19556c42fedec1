// Channels that lie next to each other in memory, as lanes of vectors, while time is walked step by step.

#pragma once

#include <algorithm>

#include "vector.h"

constexpr int TILE = 4;  // vectors of channels that go through a block one after the other, while its rows are near

// Up to a vector of neighbouring channels.
template <class T, bool whole>
struct Lanes {
    static constexpr bool is_whole = whole;
    int count;
    Vec<T> get(const T* from) const { return whole ? load(from) : load_some(from, count); }
    void put(T* to, Vec<T> value) const {
        if (whole) store(to, value);
        else store_some(to, value, count);
    }
    // Sums that were made in double precision.
    void put_sums(T* to, const double* sums) const {
        for (int i = 0; i < count; i++) to[i] = T(sums[i]);
    }
};

// Calls `run(lanes, row of the batch, first channel, vectors)` for every tile; what does not fill a vector is one by
// itself.
template <class T, class Run>
void for_each_tile(int64_t batch, int64_t channels, int threads, Run run) {
    constexpr int64_t W = Vector<T>::lanes, tile = TILE * W;
    const int64_t full = channels / W * W, tiles = (full + tile - 1) / tile, all = tiles + (full < channels);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t job = 0; job < batch * all; job++) {
        const int64_t b = job / all, index = job % all, c = index * tile;
        if (index < tiles) run(Lanes<T, true>{int(W)}, b, c, int(std::min(tile, full - c) / W));
        else run(Lanes<T, false>{int(channels - full)}, b, full, 1);
    }
}
