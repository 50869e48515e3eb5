// One step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2), in float32 or float64.

#include <cmath>
#include <cstdint>

// gradient (count,). Changes param and the moving averages of its gradient, first, and of its square, second, in place.
// decay: what the parameter is multiplied by. rate: of the step, over the first moment's bias correction.
// correction: the square root of that of the second moment.
template <class T> static inline void adamw(
    const T* __restrict__ gradient, int64_t count, T beta1, T beta2, T new1, T new2, T decay, T rate, T correction,
    T eps, T* __restrict__ param, T* __restrict__ first, T* __restrict__ second) {
    #pragma omp parallel for
    for (int64_t i = 0; i < count; i++) {
        const T value = gradient[i];
        first[i] = beta1 * first[i] + new1 * value;
        second[i] = beta2 * second[i] + new2 * value * value;
        param[i] = param[i] * decay - rate * first[i] / (std::sqrt(second[i]) / correction + eps);
    }
}
