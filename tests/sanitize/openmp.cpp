// The entry points of GNU OpenMP that the kernels call, on std::thread.
//
// ThreadSanitizer sees what happens in code that it has instrumented, and no compiler's OpenMP is: it would take every
// loop that is shared among threads for a race.  With this file linked into the kernels, hidden from everybody else, it
// sees where threads begin, wait and end, and reports what is really a race in between.

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace {

// Threads that run a parallel region together.
class Team {
   public:
    explicit Team(int size) : size(size) {}

    void wait_for_all() {
        std::unique_lock<std::mutex> lock(mutex_);
        const int round = round_;
        if (++arrived_ == size) {
            arrived_ = 0;
            round_++;
            all_.notify_all();
        } else {
            all_.wait(lock, [&] { return round_ != round; });
        }
    }

    const int size;
    std::atomic<long> next{0};  // of a loop whose iterations are handed out one by one

   private:
    std::mutex mutex_;
    std::condition_variable all_;
    int arrived_ = 0, round_ = 0;
};

thread_local Team* team = nullptr;
thread_local int number = 0;
thread_local long loop_end = 0, loop_chunk = 1;

}  // namespace

extern "C" {

void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned) {
    Team all(threads ? int(threads) : 1);
    const auto run = [&](int own) {
        team = &all;
        number = own;
        work(data);
        team = nullptr;
    };
    std::vector<std::thread> others;
    for (int i = 1; i < all.size; i++) others.emplace_back(run, i);
    run(0);
    for (std::thread& other : others) other.join();
}

int omp_get_num_threads() { return team ? team->size : 1; }

int omp_get_thread_num() { return team ? number : 0; }

void GOMP_barrier() { team->wait_for_all(); }

bool GOMP_loop_nonmonotonic_dynamic_next(long* from, long* to) {
    *from = team->next.fetch_add(loop_chunk);
    *to = *from + loop_chunk < loop_end ? *from + loop_chunk : loop_end;
    return *from < loop_end;
}

// All kernels' loops of this kind begin at zero, go up by one, and are alone in their region.
bool GOMP_loop_nonmonotonic_dynamic_start(long, long end, long, long chunk, long* from, long* to) {
    loop_end = end;
    loop_chunk = chunk;
    return GOMP_loop_nonmonotonic_dynamic_next(from, to);
}

void GOMP_loop_end_nowait() {}

}
