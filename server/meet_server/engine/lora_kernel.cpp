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
constexpr int WIDE = 4;
constexpr int BLOCK = WIDE * LANES;  // outputs, and
constexpr int TOKENS = 4;            // tokens, whose sums are kept in registers
constexpr int64_t MAX_COLUMNS = 1024;
constexpr int64_t ONE_THREAD = 32768;  // products, beneath which no other thread is woken; not tuned
typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(LANES * 2)));

struct BFloat16 {
  uint16_t bits;
};

inline float load(const float* p) { return *p; }
inline float load(const BFloat16* p) {
  uint32_t word = uint32_t(p->bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline Floats load_lanes(const float* p) {
  Floats lanes;
  std::memcpy(&lanes, p, sizeof lanes);
  return lanes;
}
inline Floats load_lanes(const BFloat16* p) {
  Halves halves;
  std::memcpy(&halves, p, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats lanes;
  std::memcpy(&lanes, &words, sizeof lanes);
  return lanes;
}

inline void store(float* p, float value) { *p = value; }
inline void store(BFloat16* p, float value) {  // to the nearest, ties to even; what is not a number stays none
  uint32_t word;
  std::memcpy(&word, &value, 4);
  p->bits = value != value ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline void store_lanes(float* p, Floats lanes) { std::memcpy(p, &lanes, sizeof lanes); }
inline void store_lanes(BFloat16* p, Floats lanes) {
  Words words;
  std::memcpy(&words, &lanes, sizeof words);
  Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
  Words unordered = (Words)(lanes != lanes);
  Halves halves = __builtin_convertvector((rounded & ~unordered) | (0x7fc0 & unordered), Halves);
  std::memcpy(p, &halves, sizeof halves);
}

inline float sum(Floats lanes) {
  float total = 0;
  for (int i = 0; i < LANES; ++i) total += lanes[i];
  return total;
}

// h[n][j] = x[n] . a[j] for N tokens and M rows of a
template <int N, int M, typename T>
inline void shrink_tile(float (*h)[MAX_COLUMNS], const T* const* x, const T* a, int64_t in, int64_t j, int64_t at) {
  Floats sums[N][M] = {};
  int64_t whole = in - in % LANES;
  const T* rows = a + j * in;
  for (int64_t i = 0; i < whole; i += LANES) {
    Floats lanes[N];
    for (int n = 0; n < N; ++n) lanes[n] = load_lanes(x[n] + i);
    for (int m = 0; m < M; ++m) {
      Floats row = load_lanes(rows + m * in + i);
      for (int n = 0; n < N; ++n) sums[n][m] += lanes[n] * row;
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
void shrink(float (*h)[MAX_COLUMNS], const T* const* x, const T* a, int64_t in, int64_t rank, int64_t at) {
  int64_t j = 0;
  for (; j + 4 <= rank; j += 4) shrink_tile<N, 4>(h, x, a, in, j, at);
  for (; j < rank; ++j) shrink_tile<N, 1>(h, x, a, in, j, at);
}

// y[n][o] += sum over k of c[n][k] rows[k][o], for N tokens and begin <= o < end
template <int N, typename T>
void expand(T* const* y, const float (*c)[MAX_COLUMNS], const T* const* rows, int64_t num, int64_t begin,
            int64_t end) {
  int64_t o = begin;
  for (; o + BLOCK <= end; o += BLOCK) {
    Floats sums[N][WIDE];
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < WIDE; ++v) sums[n][v] = load_lanes(y[n] + o + v * LANES);
    for (int64_t k = 0; k < num; ++k) {
      Floats row[WIDE];
      for (int v = 0; v < WIDE; ++v) row[v] = load_lanes(rows[k] + o + v * LANES);
      for (int n = 0; n < N; ++n)
        for (int v = 0; v < WIDE; ++v) sums[n][v] += c[n][k] * row[v];
    }
    for (int n = 0; n < N; ++n)
      for (int v = 0; v < WIDE; ++v) store_lanes(y[n] + o + v * LANES, sums[n][v]);
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

// N tokens, outputs from..to
template <int N, typename T>
void add_tile(const Layer& layer, T* const* y, const T* const* x, const float* const* w, int64_t from, int64_t to) {
  const int64_t rank = layer.rank, controls = layer.controls;
  const T* all_a = static_cast<const T*>(layer.a);
  const T* all_b = static_cast<const T*>(layer.b);
  float h[N][MAX_COLUMNS], c[N][MAX_COLUMNS];
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
void add(const Layer& layer, T* y, const T* x, const float* strengths, const int64_t* order, int64_t tokens,
         int64_t ldy, int64_t ldx) {
  if (!tokens) return;
  int64_t work = tokens * layer.rank * (layer.in + layer.out);
  int64_t tiles = (tokens + TOKENS - 1) / TOKENS, threads = work < ONE_THREAD ? 1 : omp_get_max_threads();
  int64_t over_tokens = tiles < threads ? tiles : threads, over_out = threads / over_tokens;
  int64_t blocks = (layer.out + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(over_tokens * over_out) schedule(static) if (threads > 1)
  for (int64_t part = 0; part < over_tokens * over_out; ++part) {
    int64_t rows = part / over_out, columns = part % over_out;
    int64_t from = blocks * columns / over_out * BLOCK, to = blocks * (columns + 1) / over_out * BLOCK;
    if (to > layer.out) to = layer.out;
    for (int64_t tile = tiles * rows / over_tokens; tile < tiles * (rows + 1) / over_tokens; ++tile) {
      T* tile_y[TOKENS];
      const T* tile_x[TOKENS];
      const float* tile_w[TOKENS];
      int64_t num = tokens - tile * TOKENS < TOKENS ? tokens - tile * TOKENS : TOKENS;
      for (int64_t n = 0; n < num; ++n) {
        int64_t t = order[tile * TOKENS + n];
        tile_y[n] = y + t * ldy, tile_x[n] = x + t * ldx, tile_w[n] = strengths + t * layer.controls;
      }
      if (num == TOKENS) {
        add_tile<TOKENS>(layer, tile_y, tile_x, tile_w, from, to);
        continue;
      }
      for (int64_t n = 0; n < num; ++n) add_tile<1>(layer, tile_y + n, tile_x + n, tile_w + n, from, to);
    }
  }
}

}  // namespace

extern "C" {
void meet_add_float32(const Layer* layer, void* y, const void* x, const float* strengths, const int64_t* order,
                      int64_t tokens, int64_t ldy, int64_t ldx) {
  add(*layer, static_cast<float*>(y), static_cast<const float*>(x), strengths, order, tokens, ldy, ldx);
}
void meet_add_bfloat16(const Layer* layer, void* y, const void* x, const float* strengths, const int64_t* order,
                       int64_t tokens, int64_t ldy, int64_t ldx) {
  add(*layer, static_cast<BFloat16*>(y), static_cast<const BFloat16*>(x), strengths, order, tokens, ldy, ldx);
}
}
