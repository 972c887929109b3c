// What LoRA controls add to a linear layer, in one call: y += sum over controls u of w_u (x A_u^T) B_u.
//
// `lora_kernel.py` compiles it for the processor at hand and says what the arguments are. A token pays for its own
// controls alone. All is summed in float32 and rounded once, into y, in an order that does not depend on which other
// tokens there are. Written for steps of a few dozen tokens, where starting an operation costs more than what it
// computes, but not slower than a library's products on many.

#include <cstdint>
#include <cstring>
#include <omp.h>

namespace {

constexpr int LANES = 16;
constexpr int PAIR = 2 * LANES;
constexpr int PAIRS = 2;
constexpr int BLOCK = PAIRS * PAIR;  // outputs, and
constexpr int TOKENS = 4;            // tokens, whose sums are kept in registers
constexpr int64_t MAX_COLUMNS = 1024;
constexpr int64_t ROW = MAX_COLUMNS + LANES;  // so that rows of sums do not fall on the same lines of the cache
constexpr int64_t ONE_THREAD = 32768;  // products, beneath which no other thread is woken; not tuned
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));

struct BFloat16 {
  uint16_t bits;
};

// PAIR values that lie side by side: of floats the first half and the second, of halves those at even places and those
// at odd ones, which takes one operation each where the lower half of a word comes first.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
struct Pair {
  Floats first, second;
};

inline float load(const float* p) { return *p; }
inline float load(const BFloat16* p) {
  uint32_t word = uint32_t(p->bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline Pair load_pair(const float* p) {
  Pair pair;
  std::memcpy(&pair, p, sizeof pair);
  return pair;
}
inline Pair load_pair(const BFloat16* p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return {(Floats)(words << 16), (Floats)(words & 0xffff0000)};
}

inline void store(float* p, float value) { *p = value; }
inline void store(BFloat16* p, float value) {  // to the nearest, ties to even; what is not a number stays none
  uint32_t word;
  std::memcpy(&word, &value, 4);
  p->bits = value != value ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline void store_pair(float* p, const Pair& pair) { std::memcpy(p, &pair, sizeof pair); }
inline Words rounded(Floats lanes) {  // what counts of it are its upper halves
  Words words = (Words)lanes, unordered = (Words)(lanes != lanes);
  return ((words + 0x7fff + ((words >> 16) & 1)) & ~unordered) | (0x7fc00000 & unordered);
}
inline void store_pair(BFloat16* p, const Pair& pair) {
  Words words = (rounded(pair.first) >> 16) | (rounded(pair.second) & 0xffff0000);
  std::memcpy(p, &words, sizeof words);
}

template <int N>
inline float sum_of(const float* lanes) {
  typedef float Half __attribute__((vector_size(N * 2)));
  Half low, high;
  std::memcpy(&low, lanes, sizeof low);
  std::memcpy(&high, lanes + N / 2, sizeof high);
  low += high;
  float half[N / 2];
  std::memcpy(half, &low, sizeof half);
  return sum_of<N / 2>(half);
}
template <>
inline float sum_of<2>(const float* lanes) {
  return lanes[0] + lanes[1];
}
inline float sum(Floats lanes) {
  float all[LANES];
  std::memcpy(all, &lanes, sizeof all);
  return sum_of<LANES>(all);
}

// h[n][j] = x[n] . a[j] for N tokens and M rows of a
template <int N, int M, typename T>
inline void shrink_tile(float (*h)[ROW], const T* const* x, const T* a, int64_t in, int64_t j, int64_t at) {
  Floats sums[N][M] = {};
  int64_t whole = in - in % PAIR;
  const T* rows = a + j * in;
  for (int64_t i = 0; i < whole; i += PAIR) {
    Pair values[N];
    for (int n = 0; n < N; ++n) values[n] = load_pair(x[n] + i);
    for (int m = 0; m < M; ++m) {
      Pair row = load_pair(rows + m * in + i);
      for (int n = 0; n < N; ++n) sums[n][m] += values[n].first * row.first;
      for (int n = 0; n < N; ++n) sums[n][m] += values[n].second * row.second;
    }
  }
  for (int n = 0; n < N; ++n)
    for (int m = 0; m < M; ++m) {
      float total = sum(sums[n][m]);
      for (int64_t i = whole; i < in; ++i) total += load(x[n] + i) * load(rows + m * in + i);
      h[n][at + j + m] = total;
    }
}

template <int N, typename T>
void shrink(float (*h)[ROW], const T* const* x, const T* a, int64_t in, int64_t rank, int64_t at) {
  int64_t j = 0;
  for (; j + 4 <= rank; j += 4) shrink_tile<N, 4>(h, x, a, in, j, at);
  for (; j < rank; ++j) shrink_tile<N, 1>(h, x, a, in, j, at);
}

// y[n][o] += sum over k of c[n][k] rows[k][o], for N tokens and begin <= o < end
template <int N, typename T>
void expand(T* const* y, const float (*c)[ROW], const T* const* rows, int64_t num, int64_t begin, int64_t end) {
  int64_t o = begin;
  for (; o + BLOCK <= end; o += BLOCK) {
    Pair sums[N][PAIRS];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < PAIRS; ++v) sums[n][v] = load_pair(y[n] + o + v * PAIR);
    for (int64_t k = 0; k < num; ++k) {
      Pair row[PAIRS];
      for (int v = 0; v < PAIRS; ++v) row[v] = load_pair(rows[k] + o + v * PAIR);
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < PAIRS; ++v) {
          sums[n][v].first += c[n][k] * row[v].first;
          sums[n][v].second += c[n][k] * row[v].second;
        }
    }
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < PAIRS; ++v) store_pair(y[n] + o + v * PAIR, sums[n][v]);
  }
  for (; o < end; ++o)
    for (int n = 0; n < N; ++n) {
      float total = load(y[n] + o);
      for (int64_t k = 0; k < num; ++k) total += c[n][k] * load(rows[k] + o);
      store(y[n] + o, total);
    }
}

struct Layer {
  const void* a;          // (num_a, rank, in)
  const void* b;          // (controls, rank, out)
  const int64_t* a_of;    // (slices, controls): which A
  const int64_t* bounds;  // (slices + 1,): where each slice begins in out
  int64_t rank, in, out, controls, slices;
};

struct Batch {
  const float* strengths;  // (all tokens, controls)
  const int64_t* order;    // (tokens,): those that have a control
  int64_t tokens;
};

// N tokens, outputs from..to
template <int N, typename T>
void add_tile(const Layer& layer, T* const* y, const T* const* x, const float* const* w, int64_t from, int64_t to) {
  const int64_t rank = layer.rank, controls = layer.controls;
  const T* all_a = static_cast<const T*>(layer.a);
  const T* all_b = static_cast<const T*>(layer.b);
  float h[N][ROW], c[N][ROW];
  const T* rows[MAX_COLUMNS];
  uint64_t done[MAX_COLUMNS / 64] = {};
  for (int64_t s = 0; s < layer.slices; ++s) {
    int64_t begin = layer.bounds[s] > from ? layer.bounds[s] : from;
    int64_t end = layer.bounds[s + 1] < to ? layer.bounds[s + 1] : to;
    if (begin >= end) continue;
    int64_t num = 0;
    for (int64_t u = 0; u < controls; ++u) {
      bool used = false;
      for (int n = 0; n < N; ++n) used |= w[n][u] != 0;
      if (!used) continue;
      int64_t which = layer.a_of[s * controls + u];
      if (!(done[which / 64] >> (which % 64) & 1)) {
        shrink<N>(h, x, all_a + which * rank * layer.in, layer.in, rank, which * rank);
        done[which / 64] |= uint64_t(1) << (which % 64);
      }
      for (int64_t j = 0; j < rank; ++j, ++num) {
        for (int n = 0; n < N; ++n) c[n][num] = w[n][u] * h[n][which * rank + j];
        rows[num] = all_b + (u * rank + j) * layer.out;
      }
    }
    expand<N>(y, c, rows, num, begin, end);
  }
}

template <typename T>
void add_part(const Layer& layer, const Batch& batch, T* y, const T* x, int64_t tiles_from, int64_t tiles_to,
              int64_t from, int64_t to) {
  for (int64_t tile = tiles_from; tile < tiles_to; ++tile) {
    T* tile_y[TOKENS];
    const T* tile_x[TOKENS];
    const float* tile_w[TOKENS];
    int64_t num = batch.tokens - tile * TOKENS < TOKENS ? batch.tokens - tile * TOKENS : TOKENS;
    for (int64_t n = 0; n < num; ++n) {
      int64_t t = batch.order[tile * TOKENS + n];
      tile_y[n] = y + t * layer.out, tile_x[n] = x + t * layer.in, tile_w[n] = batch.strengths + t * layer.controls;
    }
    if (num == TOKENS) {
      add_tile<TOKENS>(layer, tile_y, tile_x, tile_w, from, to);
      continue;
    }
    for (int64_t n = 0; n < num; ++n) add_tile<1>(layer, tile_y + n, tile_x + n, tile_w + n, from, to);
  }
}

template <typename T>
void add(const Layer& layer, const Batch& batch, T* y, const T* x) {
  int64_t work = batch.tokens * layer.rank * (layer.in + layer.out), tiles = (batch.tokens + TOKENS - 1) / TOKENS;
  int64_t threads = work < ONE_THREAD ? 1 : omp_get_max_threads();
  if (threads == 1) return add_part(layer, batch, y, x, 0, tiles, 0, layer.out);
  int64_t over_tokens = tiles < threads ? tiles : threads, over_out = threads / over_tokens;
  int64_t blocks = (layer.out + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(over_tokens * over_out) schedule(static)
  for (int64_t part = 0; part < over_tokens * over_out; ++part) {
    int64_t rows = part / over_out, columns = part % over_out;
    int64_t from = blocks * columns / over_out * BLOCK, to = blocks * (columns + 1) / over_out * BLOCK;
    if (to > layer.out) to = layer.out;
    add_part(layer, batch, y, x, tiles * rows / over_tokens, tiles * (rows + 1) / over_tokens, from, to);
  }
}

}  // namespace

// y (tokens, out) and x (tokens, in), without gaps
extern "C" {
void meet_add_float32(const Layer* layer, const Batch* batch, void* y, const void* x) {
  add(*layer, *batch, static_cast<float*>(y), static_cast<const float*>(x));
}
void meet_add_bfloat16(const Layer* layer, const Batch* batch, void* y, const void* x) {
  add(*layer, *batch, static_cast<BFloat16*>(y), static_cast<const BFloat16*>(x));
}
}
