// The page's matrix product, for WebAssembly with SIMD (view/matmul.py builds it):
//   y (rows, wide) = x (rows, inputs) W^T + bias (wide),  wide a multiple of 8
// W lies in panels: for each 8 outputs, for each input, these 8 weights side by side. A panel stays
// in the first cache while all rows pass it; 4 rows share each load of its weights.
#include <wasm_simd128.h>

typedef const float *numbers;

static inline __attribute__((always_inline)) void block(
    int count, numbers x, numbers w, numbers bias, float *y, int inputs, int wide) {
  v128_t low[4], high[4];
  for (int r = 0; r < count; r++) {
    low[r] = wasm_v128_load(bias);
    high[r] = wasm_v128_load(bias + 4);
  }
  for (int i = 0; i < inputs; i++, w += 8) {
    v128_t a = wasm_v128_load(w), b = wasm_v128_load(w + 4);
    for (int r = 0; r < count; r++) {
      v128_t v = wasm_v128_load32_splat(x + r * inputs + i);
      low[r] = wasm_f32x4_add(low[r], wasm_f32x4_mul(v, a));
      high[r] = wasm_f32x4_add(high[r], wasm_f32x4_mul(v, b));
    }
  }
  for (int r = 0; r < count; r++) {
    wasm_v128_store(y + r * wide, low[r]);
    wasm_v128_store(y + r * wide + 4, high[r]);
  }
}

void product(numbers x, numbers w, numbers bias, float *y, int rows, int inputs, int wide) {
  for (int p = 0; p < wide; p += 8) {
    int r = 0;
    for (; r + 4 <= rows; r += 4)
      block(4, x + r * inputs, w + p * inputs, bias + p, y + r * wide + p, inputs, wide);
    for (; r < rows; r++)
      block(1, x + r * inputs, w + p * inputs, bias + p, y + r * wide + p, inputs, wide);
  }
}
