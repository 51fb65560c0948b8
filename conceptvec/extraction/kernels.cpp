// The two inner loops of the exact projection on a CPU: one pass over a chunk of readouts, and exact dot products.
// `sweep.py` has the same in PyTorch, which the tests hold these against. Built by `fast.py`.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr int BLOCK = 16;  // tokens that are looked into together
constexpr int LANES = 32;  // directions side by side in vector registers: a cache line of bfloat16

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {  // bfloat16 is the upper half of a float32
    const uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

struct Entry {
    float value;
    int32_t token;
};

// A pole's best tokens so far. When `capacity` is reached, the `keep` best stay and their least becomes the level to
// pass: an entry is handled about twice, however many there are.
struct Heap {
    Entry* entries;
    int32_t& count;
    float& level;
    int keep, capacity;

    void push(float value, int32_t token) {
        if (!(value > level)) return;  // NaN does not pass either
        entries[count++] = {value, token};
        if (count < capacity) return;
        std::nth_element(entries, entries + keep - 1, entries + capacity,
                         [](const Entry& a, const Entry& b) { return a.value > b.value; });
        count = keep;
        level = entries[keep - 1].value;
    }
};

// Takes in z (tokens, n), whose first row is token `start`: the power sums about `mean` (n) go into `sums` (3, n), the
// tokens that pass into `entries` (2, n, capacity), the lower pole's with their sign turned. A direction belongs to
// one thread, so that the result does not depend on how many there are.
template <class T>
void scan(const T* z, int64_t tokens, int64_t n, int64_t start, const float* mean, int keep, int capacity,
          float* level, int32_t* count, Entry* entries, double* sums, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t first = 0; first < n; first += LANES) {
        const int width = int(std::min<int64_t>(LANES, n - first));
        float centre[LANES] = {}, above[2][LANES], tile[BLOCK][LANES] = {};
        double total[3][LANES] = {};
        std::fill_n(above[0], 2 * LANES, std::numeric_limits<float>::infinity());
        std::copy_n(mean + first, width, centre);
        for (int pole = 0; pole < 2; ++pole) std::copy_n(level + pole * n + first, width, above[pole]);
        for (int64_t token = 0; token < tokens; token += BLOCK) {
            const int rows = int(std::min<int64_t>(BLOCK, tokens - token));
            for (int t = 0; t < rows; ++t) {
                const T* row = z + (token + t) * n + first;
                if (width == LANES)  // a constant number of lanes is turned into vector instructions
                    for (int j = 0; j < LANES; ++j) tile[t][j] = widen(row[j]);
                else
                    for (int j = 0; j < width; ++j) tile[t][j] = widen(row[j]);
            }
            float best[2][LANES], power[3][LANES] = {};
            for (int j = 0; j < LANES; ++j) best[0][j] = tile[0][j], best[1][j] = -tile[0][j];
            for (int t = 0; t < rows; ++t)
                for (int j = 0; j < LANES; ++j) {
                    const float x = tile[t][j], centred = x - centre[j], square = centred * centred;
                    best[0][j] = x > best[0][j] ? x : best[0][j];
                    best[1][j] = -x > best[1][j] ? -x : best[1][j];
                    power[0][j] += square, power[1][j] += square * centred, power[2][j] += square * square;
                }
            uint32_t passing[2] = {};  // a bit per direction
            for (int pole = 0; pole < 2; ++pole)
                for (int j = 0; j < LANES; ++j) passing[pole] |= uint32_t(best[pole][j] > above[pole][j]) << j;
            for (int m = 0; m < 3; ++m)
                for (int j = 0; j < LANES; ++j) total[m][j] += power[m][j];
            for (int pole = 0; pole < 2; ++pole)
                for (uint32_t lanes = passing[pole]; lanes; lanes &= lanes - 1) {
                    const int j = __builtin_ctz(lanes);
                    const int64_t at = pole * n + first + j;
                    const float sign = pole ? -1.f : 1.f;
                    Heap heap{entries + at * capacity, count[at], above[pole][j], keep, capacity};
                    uint32_t hits = 0;  // a bit per token
                    for (int t = 0; t < rows; ++t) hits |= uint32_t(sign * tile[t][j] > heap.level) << t;
                    for (; hits; hits &= hits - 1) {
                        const int t = __builtin_ctz(hits);
                        heap.push(sign * tile[t][j], int32_t(start + token + t));
                    }
                }
        }
        for (int pole = 0; pole < 2; ++pole) std::copy_n(above[pole], width, level + pole * n + first);
        for (int m = 0; m < 3; ++m)
            for (int j = 0; j < width; ++j) sums[m * n + first + j] += total[m][j];
    }
}

// out (n, m) = matrix[ids (n, m)] · directions (n, hidden), in float64: products of float32 are exact there.
template <class T>
void dots(const T* matrix, const int64_t* ids, const float* directions, int64_t n, int64_t m, int64_t hidden,
          double* out, int threads) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < n; ++i)
        for (int64_t k = i * m; k < (i + 1) * m; ++k) {
            const T* row = matrix + ids[k] * hidden;
            const float* d = directions + i * hidden;
            if (k + 1 < n * m)  // rows lie anywhere: the next is fetched while this one is summed
                for (int64_t h = 0; h < hidden; h += 64 / sizeof(T)) __builtin_prefetch(matrix + ids[k + 1] * hidden + h);
            double part[LANES] = {}, sum = 0;
            int64_t h = 0;
            for (; h + LANES <= hidden; h += LANES)
                for (int j = 0; j < LANES; ++j) part[j] += double(widen(row[h + j])) * double(d[h + j]);
            for (; h < hidden; ++h) sum += double(widen(row[h])) * double(d[h]);
            for (int j = 0; j < LANES; ++j) sum += part[j];
            out[k] = sum;
        }
}

}  // namespace

extern "C" void conceptvec_scan(int narrow, const void* z, int64_t tokens, int64_t n, int64_t start, const float* mean,
                                int keep, int capacity, float* level, int32_t* count, void* entries, double* sums,
                                int threads) {
    Entry* into = static_cast<Entry*>(entries);
    if (narrow)
        scan(static_cast<const uint16_t*>(z), tokens, n, start, mean, keep, capacity, level, count, into, sums, threads);
    else
        scan(static_cast<const float*>(z), tokens, n, start, mean, keep, capacity, level, count, into, sums, threads);
}

extern "C" void conceptvec_dots(int narrow, const void* matrix, const int64_t* ids, const float* directions, int64_t n,
                                int64_t m, int64_t hidden, double* out, int threads) {
    if (narrow)
        dots(static_cast<const uint16_t*>(matrix), ids, directions, n, m, hidden, out, threads);
    else
        dots(static_cast<const float*>(matrix), ids, directions, n, m, hidden, out, threads);
}
